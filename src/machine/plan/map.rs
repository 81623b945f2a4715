//! The guest's address map, piece by piece, for people. Pure.

use serde::Serialize;

use super::{PlacedWindow, Plan, RamRange};
use crate::x86_64::layout;

/// What is behind a range of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegionKind {
    /// RAM.
    Ram,
    /// Something that the monitor writes into RAM before the guest runs.
    Boot,
    /// Registers.
    Registers,
    /// Memory of the host that is not the guest's RAM.
    Window,
    /// Used by KVM itself.
    Kvm,
}

/// A range of guest-physical addresses. Those of [`RegionKind::Boot`] lie inside RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What is behind it.
    pub kind: RegionKind,
    /// What it is, in words.
    pub name: String,
}

impl Plan {
    /// Everything in the guest's address space, ascending; `windows` is what [`Plan::place`] has placed.
    pub fn map(&self, windows: &[PlacedWindow]) -> Vec<Region> {
        const PAGE: u64 = 4096;
        let region = |start, len, kind, name: &str| Region { start, len, kind, name: name.to_owned() };
        let boot = |start, len, name| region(start, len, RegionKind::Boot, name);
        let mut map: Vec<_> =
            self.ram.iter().map(|RamRange { start, len }| region(*start, *len, RegionKind::Ram, "RAM")).collect();
        map.extend([
            boot(layout::BOOT_GDT, layout::BOOT_IDT - layout::BOOT_GDT, "global descriptor table"),
            boot(layout::BOOT_IDT, 8, "interrupt descriptor table"),
            boot(layout::PVH_START_INFO, PAGE, "PVH start info (kernels that enter by PVH)"),
            boot(layout::ZERO_PAGE, PAGE, "zero page (kernels that enter by the 64-bit boot protocol)"),
            boot(layout::BOOT_PML4, 3 * PAGE, "page tables: the first GiB, identical"),
            boot(layout::CMDLINE, layout::CMDLINE_MAX as u64, "kernel command line"),
            boot(layout::EBDA, 0xa_0000 - layout::EBDA, "extended BIOS data area (reserved)"),
            boot(layout::ACPI, layout::ACPI_LEN, "ACPI tables, reset vector (reserved)"),
        ]);
        let low = self.ram.first().map_or(0, |range| range.len);
        let name = "kernel, where it wants to be; initrd, as high as the kernel allows";
        map.push(boot(layout::HIGH_RAM, low.saturating_sub(layout::HIGH_RAM), name));
        map.extend(self.devices.iter().map(|slot| {
            let name = format!("virtio {} '{}'", slot.config.kind_name(), slot.id);
            region(slot.gpa, layout::VIRTIO_MMIO_LEN, RegionKind::Registers, &name)
        }));
        map.extend(windows.iter().map(|window| {
            let slot = self.devices.get(window.slot);
            let name =
                slot.map_or_else(String::new, |slot| format!("virtio {} '{}'", slot.config.kind_name(), slot.id));
            region(window.start, window.len, RegionKind::Window, &name)
        }));
        map.extend([
            region(layout::IOAPIC, PAGE, RegionKind::Registers, "I/O APIC"),
            region(layout::LAPIC, PAGE, RegionKind::Registers, "local APIC"),
            region(layout::KVM_IDENTITY_MAP, PAGE, RegionKind::Kvm, "KVM's identity map"),
            region(layout::KVM_TSS, 3 * PAGE, RegionKind::Kvm, "KVM's task state segment"),
        ]);
        map.sort_by_key(|region| (region.start, region.kind != RegionKind::Ram));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;

    #[test]
    fn nothing_overlaps() {
        let document = serde_json::json!({
            "boot-source": { "kernel_image_path": "k" }, "machine-config": { "mem_size_mib": 8192 },
            "drives": [{ "drive_id": "a", "path_on_host": "a" }, { "drive_id": "b", "path_on_host": "b" }],
            "pmem": [{ "id": "c", "path_on_host": "c" }]
        });
        let config: VmConfig = serde_json::from_value(document).unwrap();
        let plan = Plan::of(&config).unwrap();
        let map = plan.map(&plan.place([(2, 1 << 32)]));
        let backed = [RegionKind::Ram, RegionKind::Registers, RegionKind::Kvm, RegionKind::Window];
        let window = map.iter().find(|region| region.kind == RegionKind::Window).unwrap();
        assert_eq!(window.name, "virtio pmem 'c'");
        for wanted in [&[RegionKind::Boot][..], &backed] {
            let regions: Vec<_> = map.iter().filter(|region| wanted.contains(&region.kind)).collect();
            assert!(regions.windows(2).all(|two| two[0].start + two[0].len <= two[1].start), "{regions:#x?}");
        }
        let ram: Vec<_> = map.iter().filter(|region| region.kind == RegionKind::Ram).collect();
        let inside = |region: &Region| {
            ram.iter().any(|ram| ram.start <= region.start && region.start + region.len <= ram.start + ram.len)
        };
        assert!(map.iter().filter(|region| region.kind == RegionKind::Boot).all(inside));
    }
}
