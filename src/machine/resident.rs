//! How much of a range of this process's memory the host has given it, and which pages are in the host's memory. Any thread; 8
//! bytes or 1 are read per page.
//!
//! Sources: Linux, Documentation/admin-guide/mm/pagemap.rst; mincore(2).
#![allow(unsafe_code)] // mincore(2)

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::Serialize;

use crate::memory::PAGE;
use crate::sparse;

/// Bytes of an entry, and its bit that says the page is there.
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63;
/// It is in swap.
const SWAPPED: u64 = 1 << 62;
/// Pages that are looked at together.
const BATCH: u64 = 4096;

/// Bytes of the `len` bytes at address `host` that are there; `None` where the host does not tell.
pub fn resident(host: u64, len: u64) -> Option<u64> {
    let mut present = 0;
    look(host, len, |_, entry| present += u64::from(entry & PRESENT != 0)).ok()?;
    Some(present * PAGE)
}

/// Which of the `len` bytes at address `host` have been touched, whole pages in order, from the beginning: they are in memory or
/// in swap.
pub fn touched(host: u64, len: u64) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    look(host, len, |page, entry| {
        if entry & (PRESENT | SWAPPED) != 0 {
            sparse::join(&mut found, page * PAGE..(page + 1) * PAGE, 0);
        }
    })?;
    Ok(found)
}

/// Shows the number and the entry of each page of the `len` bytes at address `host`.
fn look(host: u64, len: u64, mut see: impl FnMut(u64, u64)) -> io::Result<()> {
    let map = File::open("/proc/self/pagemap")?;
    let mut room = vec![0; BATCH as usize * ENTRY];
    let (first, pages) = (host / PAGE, (host + len).div_ceil(PAGE) - host / PAGE);
    let mut page = 0;
    while page < pages {
        let now = (pages - page).min(BATCH);
        let entries = &mut room[..now as usize * ENTRY];
        map.read_exact_at(entries, (first + page) * ENTRY as u64)?;
        for (number, entry) in (page..).zip(entries.chunks_exact(ENTRY).filter_map(|entry| entry.first_chunk())) {
            see(number, u64::from_ne_bytes(*entry));
        }
        page += now;
    }
    Ok(())
}

/// A range of guest memory, by the names of the API that E2B's Firecracker has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// Where the guest sees it.
    pub guest_phys_addr: u64,
    /// Where it lies in this process.
    pub base_host_virt_addr: u64,
    /// Bytes.
    pub size: u64,
    /// Where it would lie in a file that has one range after the other.
    pub offset: u64,
    /// Bytes of a page, the unit of bitmaps.
    pub page_size: u64,
}

/// Which pages of some ranges (host address and length, whole pages) are in the host's memory: a bit each, the lowest first,
/// one range after the other. A page of a file counts where the host has it, whoever read it.
pub fn resident_pages(ranges: impl Iterator<Item = (u64, u64)>) -> io::Result<Vec<u64>> {
    let mut room = vec![0_u8; BATCH as usize];
    let (mut words, mut bit) = (Vec::new(), 0);
    for (mut host, len) in ranges {
        let end = host + len;
        while host < end {
            let now = (end - host).min(BATCH * PAGE);
            let pages = (now / PAGE) as usize;
            // SAFETY: the kernel only looks at the range's pages, and writes one byte for each of them, of which the room has
            // enough: `now` is at most BATCH pages.
            let failed = unsafe { libc::mincore(host as *mut libc::c_void, now as usize, room.as_mut_ptr()) };
            if failed != 0 {
                return Err(io::Error::last_os_error());
            }
            for page in &room[..pages] {
                if bit % 64 == 0 {
                    words.push(0);
                }
                if let Some(word) = words.last_mut() {
                    *word |= u64::from(page & 1) << (bit % 64);
                }
                bit += 1;
            }
            host += now;
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HugePages;
    use crate::memory::{Ram, RamKind, test_ram};
    use crate::plan::RamRange;
    use devices::memory::{Bytes, GuestAddress};

    #[test]
    fn pages_that_were_touched_are_there() {
        let ram = test_ram(64 << 20);
        let count = || ram.slots().map(|(_, len, host)| resident(host, len).unwrap()).sum::<u64>();
        let before = count();
        for page in 0..10_u64 {
            ram.guest().write_obj(1_u8, GuestAddress(page << 22)).unwrap();
        }
        // Ten pages, or ten huge ones.
        let more = count() - before;
        assert!((10 * PAGE..=10 << 21).contains(&more), "{more}");
    }

    #[test]
    fn a_bit_for_each_page_that_was_touched() {
        const MIB: u64 = 1 << 20;
        let kind = RamKind { pages: HugePages::None, ..Default::default() };
        let ranges = [RamRange { start: 0, len: 20 * MIB }, RamRange { start: 1 << 32, len: 4 * MIB }];
        let ram = Ram::map(&ranges, kind).unwrap();
        let look = || resident_pages(ram.slots().map(|(_, len, host)| (host, len))).unwrap();
        assert_eq!(look(), vec![0; (24 * MIB / PAGE / 64) as usize]);
        let touched = [0, 63, 64, 4095, 4096, 5119];
        for page in touched {
            ram.guest().write_obj(1_u8, GuestAddress(page * PAGE)).unwrap();
        }
        ram.guest().write_obj(1_u8, GuestAddress((1 << 32) + 5 * PAGE)).unwrap();
        let set = |words: Vec<u64>| -> Vec<u64> {
            let bits = (0..64 * words.len() as u64).filter(|bit| words[(bit / 64) as usize] >> (bit % 64) & 1 != 0);
            bits.collect()
        };
        assert_eq!(set(look()), [0, 63, 64, 4095, 4096, 5119, 5120 + 5]);
    }

    #[test]
    fn what_is_not_mapped_is_an_error() {
        assert!(resident_pages([(PAGE, PAGE)].into_iter()).is_err());
        assert!(resident_pages(std::iter::empty()).unwrap().is_empty());
    }
}
