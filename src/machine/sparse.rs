//! Ranges with holes between them, and files that have such.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::memory::PAGE;

/// Where `within`, whole pages, has data (SEEK_DATA and SEEK_HOLE in lseek(2)): bytes from its beginning, in order, whole pages.
pub fn data(file: &File, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = within.start;
    while at < within.end {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break, // no more
            start => start?,
        };
        if start >= within.end {
            break;
        }
        let end = seek(file, SeekFrom::Hole(start))?;
        // Blocks of a file system may be smaller than pages.
        let start = (start - within.start) / PAGE * PAGE;
        let end = (end.min(within.end) - within.start).next_multiple_of(PAGE);
        join(&mut found, start..end, 0);
        at = within.start + end;
    }
    Ok(found)
}

/// Adds a range behind those that are there, or to the last of them, where no more than `hole` is between.
pub fn join(ranges: &mut Vec<Range<u64>>, next: Range<u64>, hole: u64) {
    match ranges.last_mut() {
        Some(last) if next.start <= last.end.saturating_add(hole) => last.end = next.end,
        _ => ranges.push(next),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_left_out() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE).unwrap();
        for at in [3 * PAGE + 5, 4 * PAGE, 40 * PAGE, 63 * PAGE] {
            file.write_all_at(b"x", at).unwrap();
        }
        let pages = |from, to| {
            let found = data(&file, from * PAGE..to * PAGE).unwrap();
            found.into_iter().map(|range| (range.start / PAGE, range.end / PAGE)).collect::<Vec<_>>()
        };
        assert_eq!(pages(0, 64), [(3, 5), (40, 41), (63, 64)]);
        assert_eq!(pages(4, 41), [(0, 1), (36, 37)]);
        assert_eq!((pages(5, 40), pages(64, 70)), (vec![], vec![]));
    }
}
