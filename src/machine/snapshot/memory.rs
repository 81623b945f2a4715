//! The file with guest memory: its ranges one after the other, as many bytes as they have together. Pages of zeros are holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use devices::memory::{Bytes, GuestAddress};

use crate::memory::{PAGE, Ram};
use crate::sparse;

/// Bytes that are read together, whole pages.
const PIECE: u64 = 1 << 18;
/// Holes that are no longer than this are loaded like the rest: a mapping of its own for each stretch would cost more.
const SMALL_HOLE: u64 = 1 << 16;
/// Most stretches of a range: each is two mappings, of which a process has 65,530 (vm.max_map_count).
const MOST_STRETCHES: usize = 8192;

/// Writes what the guest may have put there.
pub fn write(ram: &Ram, file: &mut File) -> io::Result<()> {
    file.set_len(ram.size())?;
    let mut room = vec![0; PIECE as usize];
    for (gpa, len) in ram.used()? {
        let offset = offset_of(ram, gpa).ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = 0;
        while at < len {
            let piece = &mut room[..(len - at).min(PIECE) as usize];
            ram.guest().read_slice(piece, GuestAddress(gpa + at)).map_err(io::Error::other)?;
            write_pages(file, offset + at, piece)?;
            at += piece.len() as u64;
        }
    }
    Ok(())
}

/// Where in the file a guest address is.
fn offset_of(ram: &Ram, gpa: u64) -> Option<u64> {
    let mut offset = 0;
    for (start, len, _) in ram.slots() {
        if (start..start + len).contains(&gpa) {
            return Some(offset + (gpa - start));
        }
        offset += len;
    }
    None
}

/// Writes runs of pages that are not all zeros.
fn write_pages(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    let mut start = 0;
    for (number, page) in bytes.chunks(PAGE as usize).enumerate() {
        let at = number * PAGE as usize;
        if page == &ZEROS[..page.len()] {
            file.write_all_at(&bytes[start..at], offset + start as u64)?;
            start = at + page.len();
        }
    }
    file.write_all_at(&bytes[start..], offset + start as u64)
}

/// Puts it where it was, into memory that is all zeros.
pub fn load(file: &File, ram: &Ram) -> io::Result<()> {
    let (wanted, found) = (ram.size(), file.metadata()?.len());
    if wanted != found {
        let text = format!("it has {found} bytes, and the VM {wanted} of memory");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut begin = 0;
    for (gpa, len, _) in ram.slots() {
        for stretch in joined(sparse::data(file, begin..begin + len)?) {
            ram.place_lazily(file, begin + stretch.start, stretch.end - stretch.start, gpa + stretch.start)?;
        }
        begin += len;
    }
    Ok(())
}

/// Without small holes; the more there are of them, the larger is what counts as small.
fn joined(mut stretches: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut small = SMALL_HOLE;
    loop {
        let mut joined: Vec<Range<u64>> = Vec::new();
        for stretch in stretches {
            sparse::join(&mut joined, stretch, small);
        }
        if joined.len() <= MOST_STRETCHES {
            return joined;
        }
        (stretches, small) = (joined, small * 2);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::config::HugePages;
    use crate::memory::RamKind;
    use crate::plan::RamRange;

    const MIB: u64 = 1 << 20;

    fn ram(pages: HugePages, shared: bool) -> Ram {
        let ranges = [RamRange { start: 0, len: 4 * MIB }, RamRange { start: 1 << 32, len: 2 * MIB }];
        Ram::map(&ranges, RamKind { pages, dirty: false, shared }).unwrap()
    }

    /// Where something is written, on both sides of holes, page borders and the gap.
    const PLACES: [u64; 6] = [0, 0x1fff, 0x8000, MIB + 5, 4 * MIB - 8, (1 << 32) + MIB];

    fn put(ram: &Ram) {
        for (number, place) in (1..).zip(PLACES) {
            ram.guest().write_slice(&[number; 8], GuestAddress(place)).unwrap();
        }
    }

    fn all(ram: &Ram) -> Vec<u8> {
        let bytes = ram.slots().flat_map(|(gpa, len, _)| {
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            ram.guest().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
            bytes
        });
        bytes.collect()
    }

    fn saved(ram: &Ram) -> File {
        let mut file = tempfile::tempfile().unwrap();
        write(ram, &mut file).unwrap();
        file
    }

    #[test]
    fn memory_is_where_it_was_whatever_kind_it_is() {
        for (pages, shared) in
            [(HugePages::None, false), (HugePages::Transparent, false), (HugePages::Transparent, true)]
        {
            let first = ram(pages, shared);
            put(&first);
            let file = saved(&first);
            assert_eq!(file.metadata().unwrap().len(), 6 * MIB);
            let second = ram(pages, shared);
            load(&file, &second).unwrap();
            assert!(all(&second) == all(&first), "{pages:?} {shared}");
            // One that goes on is saved like one that booted, and changes nothing of the file.
            second.guest().write_slice(b"more", GuestAddress(0x9000)).unwrap();
            let third = ram(pages, shared);
            load(&saved(&second), &third).unwrap();
            assert!(all(&third) == all(&second) && all(&third) != all(&first));
            let again = ram(pages, shared);
            load(&file, &again).unwrap();
            assert!(all(&again) == all(&first));
        }
    }

    #[test]
    fn pages_of_zeros_take_no_room() {
        let ram = ram(HugePages::None, false);
        put(&ram);
        ram.guest().write_slice(&[0; 3 * PAGE as usize], GuestAddress(2 * MIB)).unwrap(); // touched
        let room = saved(&ram).metadata().unwrap().blocks() * 512;
        assert!(room <= 8 * PAGE, "{room}");
    }

    #[test]
    fn stretches_are_joined_until_they_are_few_enough() {
        let of =
            |count: u64, hole: u64| (0..count).map(move |number| number * (PAGE + hole)..number * (PAGE + hole) + PAGE);
        assert_eq!(joined(of(3, SMALL_HOLE).collect()).len(), 1);
        assert_eq!(joined(of(3, SMALL_HOLE + PAGE).collect()).len(), 3);
        let far = 1 << 40..(1 << 40) + PAGE;
        let many: Vec<_> = of(40_000, SMALL_HOLE + PAGE).chain(std::iter::once(far.clone())).collect();
        let last = many[39_999].end;
        assert_eq!(joined(many), [0..last, far]);
    }

    #[test]
    fn another_size_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 * MIB).unwrap();
        let refused = load(&file, &ram(HugePages::None, false)).unwrap_err().to_string();
        assert_eq!(refused, "it has 5242880 bytes, and the VM 6291456 of memory");
    }
}
