//! Boot parameters: the memory map, Linux's zero page, PVH's start info.
//!
//! Sources: Linux, Documentation/arch/x86/zero-page.rst; Xen, xen/include/public/arch-x86/hvm/start_info.h.

use devices::memory::{Bytes, GuestAddress};
use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::ByteValued;

use super::Kernel;
use super::initrd::Initrd;
use crate::error::{Doing, HostError};
use crate::memory::Ram;
use crate::x86_64::layout;

/// Usable RAM, as an e820 type.
const E820_RAM: u32 = 1;
/// Reserved, as an e820 type.
const E820_RESERVED: u32 = 2;
const PVH_MAGIC: u32 = 0x336e_c578;
const KERNEL_BOOT_FLAG: u16 = 0xaa55;
const KERNEL_HDR_MAGIC: u32 = 0x5372_6448;
/// "Undefined" boot loader: no id is assigned to this monitor.
const LOADER_UNDEFINED: u8 = 0xff;
const MODLIST: u64 = layout::PVH_START_INFO + 0x40;
const MEMMAP: u64 = layout::PVH_START_INFO + 0x100;

/// One range of the guest's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820 {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// 1: RAM; 2: reserved.
    pub kind: u32,
}

/// The memory map of `ram`.
pub fn e820(ram: &Ram) -> Vec<E820> {
    let range = |start: u64, end: u64, kind| E820 { start, len: end - start, kind };
    let mut map = vec![
        range(0, layout::EBDA, E820_RAM),
        range(layout::EBDA, 0xa_0000, E820_RESERVED),
        range(layout::ACPI, layout::ACPI + layout::ACPI_LEN, E820_RESERVED),
    ];
    for (start, len, _) in ram.slots() {
        map.push(range(start.max(layout::HIGH_RAM), start + len, E820_RAM));
    }
    map
}

pub(super) fn write_zero_page(
    ram: &Ram,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    cmdline: &str,
    e820: &[E820],
    acpi_rsdp: u64,
) -> Result<(), HostError> {
    let mut params = boot_params::default();
    match &kernel.header {
        Some(header) => params.hdr = **header,
        None => {
            params.hdr.boot_flag = KERNEL_BOOT_FLAG;
            params.hdr.header = KERNEL_HDR_MAGIC;
            params.hdr.kernel_alignment = 0x100_0000;
        }
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.start as u32;
        params.ext_ramdisk_image = (initrd.start >> 32) as u32;
        params.hdr.ramdisk_size = initrd.len as u32;
        params.ext_ramdisk_size = (initrd.len >> 32) as u32;
    }
    params.acpi_rsdp_addr = acpi_rsdp;
    for (entry, range) in params.e820_table.iter_mut().zip(e820) {
        *entry = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind };
    }
    params.e820_entries = e820.len() as u8;
    ram.guest().write_slice(params.as_slice(), GuestAddress(layout::ZERO_PAGE)).doing(|| "write the zero page")
}

pub(super) fn write_start_info(
    ram: &Ram,
    initrd: Option<Initrd>,
    e820: &[E820],
    acpi_rsdp: u64,
) -> Result<(), HostError> {
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: acpi_rsdp,
        memmap_paddr: MEMMAP,
        memmap_entries: e820.len() as u32,
        ..Default::default()
    };
    let put = |bytes: &[u8], at| ram.guest().write_slice(bytes, GuestAddress(at)).doing(|| "write PVH start info");
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry { paddr: initrd.start, size: initrd.len, ..Default::default() };
        (info.nr_modules, info.modlist_paddr) = (1, MODLIST);
        put(module.as_slice(), MODLIST)?;
    }
    for (index, range) in (0..).zip(e820) {
        let entry = hvm_memmap_table_entry { addr: range.start, size: range.len, type_: range.kind, reserved: 0 };
        put(entry.as_slice(), MEMMAP + index * size_of::<hvm_memmap_table_entry>() as u64)?;
    }
    put(info.as_slice(), layout::PVH_START_INFO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HugePages;
    use crate::memory::RamKind;
    use crate::plan::RamRange;

    const GIB: u64 = 1 << 30;

    fn ram() -> Ram {
        let ranges = [RamRange { start: 0, len: 3 * GIB }, RamRange { start: 4 * GIB, len: 2 * GIB }];
        Ram::map(&ranges, RamKind { pages: HugePages::None, ..RamKind::default() }).unwrap()
    }

    #[test]
    fn the_map_covers_all_ram_around_holes() {
        let map = e820(&ram());
        let usable: u64 = map.iter().filter(|range| range.kind == E820_RAM).map(|range| range.len).sum();
        assert_eq!(usable, 5 * GIB - (layout::HIGH_RAM - layout::EBDA));
        assert!(map.windows(2).all(|pair| pair[0].start + pair[0].len <= pair[1].start));
        assert_eq!(map[4], E820 { start: 4 * GIB, len: 2 * GIB, kind: E820_RAM });
    }

    #[test]
    fn start_info_points_at_everything() {
        let ram = ram();
        let map = e820(&ram);
        write_start_info(&ram, Some(Initrd { start: 0x700_0000, len: 77 }), &map, 0xe_0000).unwrap();
        let mut info = hvm_start_info::default();
        ram.guest().read_slice(info.as_mut_slice(), GuestAddress(layout::PVH_START_INFO)).unwrap();
        assert_eq!((info.magic, info.nr_modules, info.rsdp_paddr), (PVH_MAGIC, 1, 0xe_0000));
        let mut module = hvm_modlist_entry::default();
        ram.guest().read_slice(module.as_mut_slice(), GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x700_0000, 77));
        let mut last = hvm_memmap_table_entry::default();
        let at = info.memmap_paddr + 24 * u64::from(info.memmap_entries - 1);
        ram.guest().read_slice(last.as_mut_slice(), GuestAddress(at)).unwrap();
        assert_eq!((last.addr, last.size, last.type_), (4 * GIB, 2 * GIB, E820_RAM));
        assert!(at + 24 <= layout::ZERO_PAGE);
    }

    #[test]
    fn the_zero_page_carries_the_header_initrd_and_map() {
        let ram = ram();
        let kernel =
            Kernel { entry: crate::x86_64::regs::Entry::Linux64 { rip: 0 }, end: 0, initrd_max: 0, header: None };
        let initrd = Initrd { start: 0x1_2345_6000, len: 0x1_0000_0001 };
        write_zero_page(&ram, &kernel, Some(initrd), "quiet", &e820(&ram), 0xe_0000).unwrap();
        let mut params = boot_params::default();
        ram.guest().read_slice(params.as_mut_slice(), GuestAddress(layout::ZERO_PAGE)).unwrap();
        let (image, ext_image, size, ext_size) =
            (params.hdr.ramdisk_image, params.ext_ramdisk_image, params.hdr.ramdisk_size, params.ext_ramdisk_size);
        assert_eq!((image, ext_image, size, ext_size), (0x2345_6000, 1, 1, 1));
        let (rsdp, magic, entries) = (params.acpi_rsdp_addr, params.hdr.header, params.e820_entries);
        assert_eq!((rsdp, magic, entries), (0xe_0000, KERNEL_HDR_MAGIC, 5));
    }
}
