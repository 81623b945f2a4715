//! Where the guest finds memory of the host that is not its RAM: above RAM, one window after another. Pure.
//!
//! A window is as long as a file, which no configuration says; so their places are planned when the files are known.

use serde::Serialize;

use super::Plan;
use crate::x86_64::layout;

/// A window at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PlacedWindow {
    /// The device that has it: its place among the virtio devices.
    pub slot: usize,
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Plan {
    /// Gives windows their places, from the slot and the length of each, in the order of the slots; up to the first one
    /// that goes past the end of all addresses.
    pub fn place(&self, windows: impl IntoIterator<Item = (usize, u64)>) -> Vec<PlacedWindow> {
        let end_of_ram = self.ram.iter().map(|range| range.start + range.len).max().unwrap_or(0);
        let mut free = end_of_ram.max(layout::GAP_END);
        let mut placed = Vec::new();
        for (slot, len) in windows {
            let start = free.checked_next_multiple_of(layout::WINDOW_ALIGN);
            let Some((start, end)) = start.and_then(|start| Some((start, start.checked_add(len)?))) else { break };
            placed.push(PlacedWindow { slot, start, len });
            free = end;
        }
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn plan(mem_size_mib: u64) -> Plan {
        let config: VmConfig = serde_json::from_value(serde_json::json!({
            "boot-source": { "kernel_image_path": "k" }, "machine-config": { "mem_size_mib": mem_size_mib }
        }))
        .unwrap();
        Plan::of(&config).unwrap()
    }

    #[test]
    fn windows_are_above_ram_and_share_no_section_of_linux() {
        for (mib, first) in [(128, 4 * GIB), (3072, 4 * GIB), (3073, 4 * GIB + 128 * MIB), (5 * 1024, 6 * GIB)] {
            let placed = plan(mib).place([(1, 2 * MIB), (4, 130 * MIB), (5, 2 * MIB)]);
            let second = first + 128 * MIB;
            let wanted = [(1, first, 2 * MIB), (4, second, 130 * MIB), (5, second + 256 * MIB, 2 * MIB)];
            assert_eq!(placed, wanted.map(|(slot, start, len)| PlacedWindow { slot, start, len }));
        }
    }

    #[test]
    fn what_has_no_address_has_no_place() {
        let placed = plan(128).place([(0, 2 * MIB), (1, u64::MAX - 4 * GIB), (2, 2 * MIB)]);
        assert_eq!(placed.len(), 1);
    }
}
