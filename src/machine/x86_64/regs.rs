//! Registers at entry: what the boot protocols promise a kernel. Only the boot processor gets them; the others wait
//! for its INIT and SIPI.
//!
//! Sources: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; Xen, docs/misc/pvh.pandoc.

use devices::memory::{Bytes, GuestAddress, GuestRam};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::layout;
use crate::error::{Doing, HostError};

/// How the boot processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol: RIP, with RSI at the zero page.
    Linux64 {
        /// Entry point, guest-physical.
        rip: u64,
    },
    /// PVH: 32-bit protected mode without paging, EBX at `hvm_start_info`.
    Pvh {
        /// Entry point, guest-physical.
        eip: u32,
    },
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 2;

/// One descriptor of the boot GDT.
#[derive(Clone, Copy)]
struct Descriptor {
    selector: u16,
    /// Type and access bits, as bits 8 to 15 of the high word.
    access: u8,
    /// Granularity bits: G, D/B, L.
    flags: u8,
    limit: u32,
}

impl Descriptor {
    fn raw(self) -> u64 {
        let limit = u64::from(self.limit >> if self.flags & 0x8 != 0 { 12 } else { 0 });
        (limit & 0xffff) | ((limit & 0xf_0000) << 32) | (u64::from(self.access) << 40) | (u64::from(self.flags) << 52)
    }

    fn segment(self) -> kvm_segment {
        kvm_segment {
            base: 0,
            limit: self.limit,
            selector: self.selector,
            type_: self.access & 0xf,
            s: (self.access >> 4) & 1,
            dpl: (self.access >> 5) & 3,
            present: self.access >> 7,
            avl: self.flags & 1,
            l: (self.flags >> 1) & 1,
            db: (self.flags >> 2) & 1,
            g: self.flags >> 3,
            unusable: 0,
            padding: 0,
        }
    }
}

/// Code, data and task segments: `__BOOT_CS` is 0x10 and `__BOOT_DS` 0x18, as the boot protocol asks.
fn descriptors(entry: Entry) -> [Descriptor; 3] {
    let long = matches!(entry, Entry::Linux64 { .. });
    [
        Descriptor { selector: 0x10, access: 0x9b, flags: if long { 0xa } else { 0xc }, limit: 0xffff_ffff },
        Descriptor { selector: 0x18, access: 0x93, flags: 0xc, limit: 0xffff_ffff },
        Descriptor { selector: 0x20, access: 0x8b, flags: 0, limit: 0x67 },
    ]
}

/// All that there is of a BIOS: a reset by the keyboard controller. Linux jumps to it when it finds ACPI hardware-reduced
/// and no EFI (arch/x86/kernel/reboot.c: BOOT_EFI, then BOOT_BIOS), with F000:FFF0 as the address.
const RESET: [u8; 7] = [
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
];

/// Writes the GDT, the empty IDT, the reset vector and, for a 64-bit entry, page tables that map the first GiB onto itself.
pub fn write_boot_tables(ram: &GuestRam, entry: Entry) -> Result<(), HostError> {
    let put = |gpa: u64, value: u64| ram.write_obj(value, GuestAddress(gpa)).doing(|| "write the boot tables");
    put(layout::BOOT_GDT, 0)?;
    put(layout::BOOT_GDT + 8, 0)?;
    for descriptor in descriptors(entry) {
        put(layout::BOOT_GDT + u64::from(descriptor.selector), descriptor.raw())?;
    }
    put(layout::BOOT_IDT, 0)?;
    ram.write_slice(&RESET, GuestAddress(layout::RESET_VECTOR)).doing(|| "write the reset vector")?;
    if matches!(entry, Entry::Linux64 { .. }) {
        const PRESENT_WRITABLE: u64 = 0x3;
        const PAGE_SIZE_2M: u64 = 0x80;
        put(layout::BOOT_PML4, layout::BOOT_PDPT | PRESENT_WRITABLE)?;
        put(layout::BOOT_PDPT, layout::BOOT_PD | PRESENT_WRITABLE)?;
        let directory: Vec<u8> =
            (0..512u64).flat_map(|i| (i << 21 | PRESENT_WRITABLE | PAGE_SIZE_2M).to_le_bytes()).collect();
        ram.write_slice(&directory, GuestAddress(layout::BOOT_PD)).doing(|| "write the boot tables")?;
    }
    Ok(())
}

/// General registers at entry.
pub fn general(entry: Entry) -> kvm_regs {
    match entry {
        Entry::Linux64 { rip } => kvm_regs {
            rip,
            rsi: layout::ZERO_PAGE,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        },
        Entry::Pvh { eip } => {
            kvm_regs { rip: eip.into(), rbx: layout::PVH_START_INFO, rflags: RFLAGS_RESERVED, ..Default::default() }
        }
    }
}

/// System registers at entry, made from those that KVM gives at reset.
pub fn system(mut sregs: kvm_sregs, entry: Entry) -> kvm_sregs {
    let [code, data, task] = descriptors(entry).map(Descriptor::segment);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = layout::BOOT_IDT;
    sregs.idt.limit = 7;
    match entry {
        Entry::Linux64 { .. } => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::BOOT_PML4;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Entry::Pvh { .. } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
    }
    sregs
}

/// Puts a vCPU in the state in which `entry` expects it.
pub fn set_up(vcpu: &VcpuFd, entry: Entry) -> Result<(), HostError> {
    let sregs = vcpu.get_sregs().doing(|| "read system registers (KVM_GET_SREGS)")?;
    vcpu.set_sregs(&system(sregs, entry)).doing(|| "set system registers (KVM_SET_SREGS)")?;
    vcpu.set_regs(&general(entry)).doing(|| "set registers (KVM_SET_REGS)")
}

/// LINT0 takes the 8259's interrupts and LINT1 takes NMIs, as firmware leaves them (Intel SDM vol. 3, 11.5.1).
pub fn set_up_lapic(vcpu: &VcpuFd) -> Result<(), HostError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVERY_NMI: u8 = 4;
    const DELIVERY_EXTINT: u8 = 7;
    let mut lapic = vcpu.get_lapic().doing(|| "read the local APIC (KVM_GET_LAPIC)")?;
    for (register, delivery) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        if let Some(byte) = lapic.regs.get_mut(register + 1) {
            *byte = (*byte & !0x7i8) | delivery as i8; // delivery mode is bits 8 to 10
        }
    }
    vcpu.set_lapic(&lapic).doing(|| "set the local APIC (KVM_SET_LAPIC)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gdt_holds_what_the_segments_say() {
        let [code, data, task] = descriptors(Entry::Linux64 { rip: 0 });
        assert_eq!(code.raw(), 0x00af_9b00_0000_ffff);
        assert_eq!(data.raw(), 0x00cf_9300_0000_ffff);
        assert_eq!(task.raw(), 0x0000_8b00_0000_0067);
        let segment = code.segment();
        assert_eq!((segment.l, segment.db, segment.g, segment.type_, segment.s), (1, 0, 1, 0xb, 1));
        let [code, ..] = descriptors(Entry::Pvh { eip: 0 });
        assert_eq!((code.segment().l, code.segment().db), (0, 1));
    }

    #[test]
    fn entries_are_what_the_protocols_ask() {
        let linux = system(kvm_sregs::default(), Entry::Linux64 { rip: 0x100_0200 });
        assert_eq!((linux.cr0, linux.cr4, linux.efer), (CR0_PE | CR0_ET | CR0_PG, CR4_PAE, EFER_LME | EFER_LMA));
        assert_eq!(general(Entry::Linux64 { rip: 0x100_0200 }).rsi, layout::ZERO_PAGE);
        let pvh = system(kvm_sregs::default(), Entry::Pvh { eip: 0x100_0000 });
        assert_eq!((pvh.cr0 & CR0_PG, pvh.efer, pvh.cr4), (0, 0, 0));
        assert_eq!(general(Entry::Pvh { eip: 0x100_0000 }).rbx, layout::PVH_START_INFO);
    }

    #[test]
    fn page_tables_map_the_first_gib_onto_itself() {
        let mapped = crate::memory::test_ram(1 << 20);
        let ram = mapped.guest();
        write_boot_tables(ram, Entry::Linux64 { rip: 0 }).unwrap();
        let entry = |gpa| ram.read_obj::<u64>(GuestAddress(gpa)).unwrap();
        assert_eq!(entry(layout::BOOT_PML4), layout::BOOT_PDPT | 3);
        assert_eq!(entry(layout::BOOT_PDPT), layout::BOOT_PD | 3);
        assert_eq!(entry(layout::BOOT_PD + 511 * 8), 511 << 21 | 0x83);
        assert_eq!(entry(layout::BOOT_GDT + 0x10), 0x00af_9b00_0000_ffff);
        assert_eq!(entry(layout::BOOT_GDT + 0x20), 0x0000_8b00_0000_0067);
        assert_eq!(entry(layout::RESET_VECTOR), 0x00fd_ebf4_64e6_feb0);
    }
}
