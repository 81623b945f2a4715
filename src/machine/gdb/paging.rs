//! Where a virtual address is, by the guest's own page tables: for user pages, which KVM_TRANSLATE does not find in a guest
//! that has SMAP on (it asks as a kernel would). Control thread; pure.
//!
//! Source: Intel SDM vol. 3A, 4.5 (4-level and 5-level paging).

use kvm_bindings::kvm_sregs;

const PAGE: u64 = 4096;
const PG: u64 = 1 << 31;
const FIVE_LEVELS: u64 = 1 << 12;
const LONG_MODE_ACTIVE: u64 = 1 << 10;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The guest-physical address of `virt`, where the processor is in 64-bit mode and the page is there. `read` gives the eight
/// bytes at a guest-physical address.
pub fn find(system: &kvm_sregs, virt: u64, read: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    if system.cr0 & PG == 0 || system.efer & LONG_MODE_ACTIVE == 0 {
        return None;
    }
    let levels = if system.cr4 & FIVE_LEVELS == 0 { 4 } else { 5 };
    let mut table = system.cr3 & ADDRESS;
    for level in (0..levels).rev() {
        let size = PAGE << (9 * level);
        let entry = read(table + virt / size % 512 * 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 0 || matches!(level, 1 | 2) && entry & LARGE != 0 {
            return Some(entry & ADDRESS & !(size - 1) | (virt % size));
        }
        table = entry & ADDRESS;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Where `virt` is by these entries.
    fn found(entries: &[(u64, u64)], levels: u64, virt: u64) -> Option<u64> {
        let memory: BTreeMap<_, _> = entries.iter().copied().collect();
        let cr4 = if levels == 5 { FIVE_LEVELS } else { 0 };
        // The low bits of CR3 are no part of the address (PCID).
        let system = kvm_sregs { cr0: PG, cr3: 0x1005, cr4, efer: LONG_MODE_ACTIVE, ..Default::default() };
        find(&system, virt, |at| memory.get(&at).copied())
    }

    #[test]
    fn small_and_large_pages_are_found() {
        const VIRT: u64 = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x56;
        const NO_EXECUTE: u64 = 1 << 63;
        let upper = [(0x1008, 0x2007), (0x2010, 0x3007)];
        let small = [(0x3018, 0x4007), (0x4020, NO_EXECUTE | 0x9007)];
        assert_eq!(found(&[upper, small].concat(), 4, VIRT), Some(0x9056));
        assert_eq!(found(&[&upper[..], &[(0x3018, 0x4007), (0x4020, 0x9006)]].concat(), 4, VIRT), None, "not present");
        let two_mib = [(0x3018, 0x1234_5000 & !0x1f_ffff | LARGE | 7)];
        assert_eq!(found(&[&upper[..], &two_mib].concat(), 4, VIRT), Some(0x1220_4056));
        assert_eq!(found(&[upper[0], (0x2010, 1 << 30 | LARGE | 7)], 4, VIRT), Some((1 << 30) + (3 << 21) + 0x4056));
        assert_eq!(found(&upper, 4, VIRT), None, "a table that is not in memory");
    }

    #[test]
    fn a_fifth_level_is_looked_at_where_there_is_one() {
        let entries = [(0x1010, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x5007), (0x5000, 0x7007)];
        assert_eq!(found(&entries, 5, 2 << 48 | 1), Some(0x7001));
        assert_eq!(found(&entries, 4, 2 << 48 | 1), None);
    }

    #[test]
    fn without_paging_there_is_nothing() {
        assert_eq!(find(&kvm_sregs::default(), 0, |_| Some(7)), None);
    }
}
