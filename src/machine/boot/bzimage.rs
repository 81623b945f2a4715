//! bzImage: the boot sector's setup header and the compressed kernel behind it, which unpacks itself in the guest.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst. Offsets are from the start of the file.

use std::fs::File;
use std::mem::size_of;

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::{Kernel, KernelError, low_ram_end};
use crate::memory::Ram;
use crate::x86_64::regs::Entry;

/// Offset of the setup header.
const HEADER: usize = 0x1f1;
/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// Oldest protocol with the fields used here: `xloadflags` came with 2.12.
const VERSION_MIN: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
const LOADED_HIGH: u8 = 1;
/// The 64-bit entry point, from the start of the loaded kernel.
const ENTRY_64: u64 = 0x200;
/// Where a kernel that cannot be moved wants to be.
const LOAD_HIGH: u64 = 0x10_0000;

/// The setup header of a bzImage.
#[derive(Debug, Clone)]
pub(super) struct BzImage {
    header: setup_header,
}

impl BzImage {
    /// Reads the header from the first KiBs of the file.
    pub(super) fn parse(head: &[u8]) -> Result<Self, KernelError> {
        let unfit = |why: &str| KernelError::Unfit(format!("it is a bzImage {why}"));
        let bytes = head.get(HEADER..).ok_or_else(|| unfit("cut short"))?;
        let mut header = setup_header::default();
        let size = size_of::<setup_header>().min(bytes.len());
        header.as_mut_slice()[..size].copy_from_slice(&bytes[..size]);
        // The header ends where the jump at 0x200 lands; what lies behind it is code, not fields (0x201).
        let len = 0x202 + usize::from(head.get(0x201).copied().unwrap_or_default()) - HEADER;
        if let Some(rest) = header.as_mut_slice().get_mut(len..) {
            rest.fill(0);
        }
        let (magic, version, xloadflags, loadflags) =
            (header.header, header.version, header.xloadflags, header.loadflags);
        if magic != MAGIC {
            return Err(unfit("without a setup header"));
        }
        if version < VERSION_MIN || xloadflags & XLF_KERNEL_64 == 0 || loadflags & LOADED_HIGH == 0 {
            return Err(unfit("without a 64-bit entry point (boot protocol 2.12 and an x86-64 kernel are needed)"));
        }
        Ok(Self { header })
    }

    /// Offset of the kernel in the file.
    fn offset(&self) -> u64 {
        let sectors = match self.header.setup_sects {
            0 => 4,
            sectors => u64::from(sectors),
        };
        (sectors + 1) * 512
    }

    /// Where to load it: where it wants to be, so that it need not move before it unpacks.
    fn address(&self) -> u64 {
        match (self.header.relocatable_kernel, self.header.pref_address) {
            (0, _) | (_, 0) => LOAD_HIGH,
            (_, preferred) => preferred,
        }
    }

    /// Where it unpacks itself to: a kernel that cannot be loaded elsewhere still moves to its preferred address.
    fn runtime_start(&self) -> u64 {
        self.address().max(self.header.pref_address)
    }
}

pub(super) fn load(ram: &Ram, file: &File, image: &BzImage) -> Result<Kernel, KernelError> {
    let address = image.address();
    let offset = image.offset();
    let len = file.metadata()?.len().saturating_sub(offset);
    // init_size is what the kernel needs, from where it runs, until it has read its memory map.
    let unpacked = image.runtime_start().saturating_add(u64::from(image.header.init_size));
    let end = address.saturating_add(len).max(unpacked);
    if len == 0 {
        return Err(KernelError::Unfit("it is a bzImage cut short".into()));
    }
    if end > low_ram_end(ram) {
        let mib = end.div_ceil(1 << 20);
        return Err(KernelError::Unfit(format!(
            "it needs at least {mib} MiB of guest memory (machine-config.mem_size_mib) to unpack itself"
        )));
    }
    ram.place(file, offset, len, address)?;
    Ok(Kernel {
        entry: Entry::Linux64 { rip: address + ENTRY_64 },
        end,
        initrd_max: u64::from(image.header.initrd_addr_max),
        header: Some(Box::new(image.header)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Vec<u8> {
        let mut head = vec![0; 0x300];
        head[0x1f1] = 3;
        head[0x201] = 0x66;
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        head[0x211] = LOADED_HIGH;
        head[0x234] = 1;
        head[0x236..0x238].copy_from_slice(&XLF_KERNEL_64.to_le_bytes());
        head[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        head[0x268..].fill(0xcc);
        head
    }

    #[test]
    fn reads_the_header_and_stops_where_it_ends() {
        let image = BzImage::parse(&head()).unwrap();
        assert_eq!((image.offset(), image.address()), (2048, 0x100_0000));
        let (handover, info) = (image.header.handover_offset, image.header.kernel_info_offset);
        assert_eq!((handover, info), (0, 0));
    }

    #[test]
    fn a_fixed_kernel_goes_to_1_mib() {
        let mut head = head();
        head[0x234] = 0;
        head[0x1f1] = 0;
        let image = BzImage::parse(&head).unwrap();
        assert_eq!((image.offset(), image.address(), image.runtime_start()), (2560, LOAD_HIGH, 0x100_0000));
    }

    #[test]
    fn old_and_32_bit_kernels_are_refused() {
        for (at, value) in [(0x206, 0x0b), (0x236, 0), (0x211, 0)] {
            let mut head = head();
            head[at] = value;
            head[0x207] = 2;
            assert!(BzImage::parse(&head).unwrap_err().to_string().contains("64-bit entry"), "{at:#x}");
        }
        let mut head = head();
        head[0x202] = 0;
        assert!(BzImage::parse(&head).is_err());
        assert!(BzImage::parse(&head[..0x100]).is_err());
    }
}
