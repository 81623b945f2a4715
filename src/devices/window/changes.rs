//! What a guest has changed in a private window: no file has it, so it is kept with guest memory when a VM is saved, and is put
//! back when one is loaded. Who does that has paused the VM.
//!
//! The memory is read and written by /proc/self/mem, where a file that someone cut off meanwhile is an error; through the mapping
//! it would be a SIGBUS. Source: Linux, Documentation/admin-guide/mm/pagemap.rst.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{Window, Writes};

/// Bytes of a page of the host.
const PAGE: u64 = 4096;
/// Bytes of a page's entry, and its bits: the page is in memory; it is in swap; it is the file's own, or another kind of memory
/// that is shared.
const ENTRY: u64 = 8;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const SHARED: u64 = 1 << 61;
/// Bytes of entries that are read together.
const BUFFER: usize = 1 << 15;

impl Window {
    /// Which bytes the guest has changed, from the window's start, whole pages in ascending order. A page behind the file that was
    /// only read may be among them. Nothing where writes are not private.
    pub fn changed(&self) -> io::Result<Vec<Range<u64>>> {
        let mut changed: Vec<Range<u64>> = Vec::new();
        if self.writes != Writes::Private {
            return Ok(changed);
        }
        let mut map = BufReader::with_capacity(BUFFER, File::open("/proc/self/pagemap")?);
        map.seek(SeekFrom::Start((self.host_address() / PAGE).saturating_mul(ENTRY)))?;
        let mut entry = [0; 8];
        for page in 0..self.size() / PAGE {
            map.read_exact(&mut entry)?;
            let entry = u64::from_ne_bytes(entry);
            if entry & (PRESENT | SWAPPED) == 0 || entry & SHARED != 0 {
                continue;
            }
            let start = page.saturating_mul(PAGE);
            let end = start.saturating_add(PAGE);
            match changed.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => changed.push(start..end),
            }
        }
        Ok(changed)
    }

    /// Reads what the guest sees from `offset` on.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let place = self.place(offset, bytes.len())?;
        File::open("/proc/self/mem")?.read_exact_at(bytes, place)
    }

    /// Puts there what the guest shall see, as if it had written it. For a private window.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.writes != Writes::Private {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let place = self.place(offset, bytes.len())?;
        OpenOptions::new().write(true).open("/proc/self/mem")?.write_all_at(bytes, place)
    }

    /// The address of `len` bytes at `offset`.
    fn place(&self, offset: u64, len: usize) -> io::Result<u64> {
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        let place = end.filter(|end| *end <= self.size()).and_then(|_| self.host_address().checked_add(offset));
        place.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{file, peek, poke};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn window(file: &File, writes: Writes) -> Arc<Window> {
        Window::of_file(file, 3 * MIB, writes).unwrap()
    }

    #[test]
    fn the_pages_that_were_written_are_the_changed_ones() {
        let file = file(&vec![0x5a; 3 << 20]);
        let private = window(&file, Writes::Private);
        assert!(private.changed().unwrap().is_empty());
        (0..3 << 20).step_by(4096).for_each(|at| assert_eq!(peek(&private, at), 0x5a));
        assert!(private.changed().unwrap().is_empty(), "reading changes nothing");
        for at in [4095, 4096, 3 * 4096, (3 << 20) - 1, (4 << 20) - 1] {
            poke(&private, at, 7);
        }
        let last = [(3 * MIB - 4096, 3 * MIB), (4 * MIB - 4096, 4 * MIB)];
        let wanted = [(0, 8192), (12288, 16384)].into_iter().chain(last).map(|(start, end)| start..end);
        assert_eq!(private.changed().unwrap(), wanted.collect::<Vec<_>>());
        let shared = window(&file, Writes::Shared);
        poke(&shared, 0, 7);
        assert!(shared.changed().unwrap().is_empty(), "the file has it");
        assert!(window(&file, Writes::Refused).changed().unwrap().is_empty());
    }

    #[test]
    fn what_was_changed_can_be_put_into_another_window() {
        let file = file(&vec![0x5a; 3 << 20]);
        let first = window(&file, Writes::Private);
        for at in [5000, 2 << 20, (4 << 20) - 1] {
            poke(&first, at, 7);
        }
        let second = window(&file, Writes::Private);
        for range in first.changed().unwrap() {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
            first.read_at(range.start, &mut bytes).unwrap();
            second.write_at(range.start, &bytes).unwrap();
        }
        assert_eq!(second.changed().unwrap(), first.changed().unwrap());
        let whole = |window: &Window| {
            let mut bytes = vec![0; usize::try_from(window.size()).unwrap()];
            window.read_at(0, &mut bytes).unwrap();
            bytes
        };
        assert!(whole(&second) == whole(&first));
        assert_eq!([5000, 5001, (4 << 20) - 1].map(|at| peek(&second, at)), [7, 0x5a, 7]);
        assert_eq!(peek(&window(&file, Writes::Shared), 5000), 0x5a, "the file is as it was");
    }

    #[test]
    fn a_file_that_was_cut_off_is_an_error_and_no_signal() {
        let file = file(&vec![0x5a; 3 << 20]);
        let window = window(&file, Writes::Private);
        poke(&window, 0, 7);
        file.set_len(0).unwrap();
        assert!(window.read_at(0, &mut [0]).is_err());
        assert!(window.write_at(0, &[0]).is_err());
        assert!(window.changed().unwrap().is_empty(), "what was written went with the file");
    }

    #[test]
    fn what_is_out_of_bounds_or_not_private_is_refused() {
        let file = file(&vec![0; 3 << 20]);
        let private = window(&file, Writes::Private);
        for (offset, len) in [(4 * MIB, 1), (4 * MIB - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 2)] {
            let mut bytes = vec![0; len];
            assert_eq!(private.read_at(offset, &mut bytes).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(private.write_at(offset, &bytes).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        private.read_at(4 * MIB, &mut []).unwrap();
        for writes in [Writes::Shared, Writes::Refused] {
            let refused = window(&file, writes).write_at(0, &[1]).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
