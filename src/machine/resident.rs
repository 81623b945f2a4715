//! How much of a range of this process's memory the host has given it. Any thread; a read of 8 bytes per page.
//!
//! Source: Linux, Documentation/admin-guide/mm/pagemap.rst.

use std::fs::File;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
/// Bytes of an entry, and its bit that says the page is there.
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63;
/// Pages that are looked at together.
const BATCH: u64 = 4096;

/// Bytes of the `len` bytes at address `host` that are there; `None` where the host does not tell.
pub fn resident(host: u64, len: u64) -> Option<u64> {
    let map = File::open("/proc/self/pagemap").ok()?;
    let mut room = vec![0; BATCH as usize * ENTRY];
    let (mut page, end) = (host / PAGE, (host + len).div_ceil(PAGE));
    let mut present = 0;
    while page < end {
        let now = (end - page).min(BATCH);
        let entries = room.get_mut(..now as usize * ENTRY)?;
        map.read_exact_at(entries, page * ENTRY as u64).ok()?;
        let there =
            entries.chunks_exact(ENTRY).filter_map(|entry| entry.first_chunk()).map(|it| u64::from_ne_bytes(*it));
        present += there.filter(|entry| entry & PRESENT != 0).count() as u64;
        page += now;
    }
    Some(present * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::test_ram;
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
}
