//! The guest's physical address map: constants only.
//!
//! ```text
//! 0x0000_0000  boot structures, then low RAM (EBDA at 0x9_fc00, ACPI tables at 0xe_0000,
//!              reset vector at 0xf_fff0)
//! 0x0010_0000  RAM up to 3 GiB
//! 0xc000_0000  the 32-bit gap: virtio-mmio registers, IOAPIC, LAPIC, KVM's TSS
//! 0x1_0000_0000  the rest of RAM; above all RAM, windows of host memory (virtio-pmem)
//! ```

/// Smallest guest memory, MiB.
pub const MIN_MEMORY_MIB: u64 = 32;

/// Zero page (`struct boot_params`), 4 KiB.
pub const ZERO_PAGE: u64 = 0x7000;
/// PVH `hvm_start_info`, its module list and memory map.
pub const PVH_START_INFO: u64 = 0x6000;
/// Global descriptor table of the boot state.
pub const BOOT_GDT: u64 = 0x500;
/// Interrupt descriptor table of the boot state.
pub const BOOT_IDT: u64 = 0x530;
/// Stack pointer at a 64-bit entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Identity map of the first GiB: PML4, PDPT and page directory.
pub const BOOT_PML4: u64 = 0x9000;
/// See [`BOOT_PML4`].
pub const BOOT_PDPT: u64 = 0xa000;
/// See [`BOOT_PML4`].
pub const BOOT_PD: u64 = 0xb000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest kernel command line with its final NUL, bytes (Linux's `COMMAND_LINE_SIZE` on x86).
pub const CMDLINE_MAX: usize = 2048;
/// Extended BIOS data area: the end of conventional memory.
pub const EBDA: u64 = 0x9_fc00;
/// ACPI tables; the RSDP comes first, where firmware-style scans find it too.
pub const ACPI: u64 = 0xe_0000;
/// Bytes for ACPI tables.
pub const ACPI_LEN: u64 = 0x2_0000;
/// Where a processor starts in real mode: the BIOS's entry point. A kernel that resets "by the BIOS" jumps there.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Start of extended memory; kernels load from here up.
pub const HIGH_RAM: u64 = 0x10_0000;

/// Start of the 32-bit gap: low RAM ends here at the latest.
pub const GAP_START: u64 = 0xc000_0000;
/// End of the 32-bit gap: the rest of RAM starts here.
pub const GAP_END: u64 = 0x1_0000_0000;

/// Windows of host memory start at multiples of this, above RAM: a section of Linux's memory map (SECTION_SIZE_BITS on
/// x86-64), so that no two of them share one, nor one of them with RAM.
pub const WINDOW_ALIGN: u64 = 128 << 20;

/// Register windows of virtio-mmio devices, one after another.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes per virtio-mmio register window.
pub const VIRTIO_MMIO_LEN: u64 = 0x1000;
/// Most virtio-mmio devices of one VM. Past the number of free GSIs they share interrupt lines.
pub const VIRTIO_MMIO_MAX: usize = 64;
/// GSIs for virtio-mmio devices, in the order they are given out: IOAPIC pins that no register device uses.
pub const VIRTIO_GSIS: [u32; 15] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 14, 15];

/// I/O APIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC: u64 = 0xfee0_0000;
/// One page that KVM uses on Intel without unrestricted guest.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM uses on Intel.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// I/O port of the first serial port (16550A) and its GSI.
pub const SERIAL_PORT: u16 = 0x3f8;
/// See [`SERIAL_PORT`].
pub const SERIAL_GSI: u32 = 4;
/// I/O port of the keyboard controller's data register; the command register is four above.
pub const I8042_PORT: u16 = 0x60;
/// From the data register to the command register.
pub const I8042_COMMAND: u16 = 4;
/// GSI of the keyboard, where there is one.
pub const KEYBOARD_GSI: u32 = 1;
/// I/O ports of the CMOS clock: index, data.
pub const CMOS_PORT: u16 = 0x70;
/// Debug port: progress codes.
pub const DEBUG_PORT: u16 = 0x80;
/// pvpanic's I/O port.
pub const PVPANIC_PORT: u16 = 0x505;
/// Power management block: sleep control, sleep status, reset, event.
pub const PM_PORT: u16 = 0x600;
/// GSI of the power management block's events (the power button).
pub const PM_GSI: u32 = 9;
