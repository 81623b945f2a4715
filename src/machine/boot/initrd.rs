//! The initial RAM disk: as high as the kernel allows, so that it is out of the way of everything else.

use std::path::Path;

use super::{Kernel, KernelError, low_ram_end, open};
use crate::memory::{PAGE, Ram};

/// An initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Places the file at `path` below the lower of the end of low RAM and the kernel's limit.
pub(super) fn load(ram: &Ram, path: &Path, kernel: &Kernel) -> Result<Initrd, KernelError> {
    let file = open(path)?;
    let len = file.metadata()?.len();
    if len == 0 {
        return Err(KernelError::Unfit("it is empty".into()));
    }
    let start = address(len, kernel.end, low_ram_end(ram), kernel.initrd_max).ok_or_else(|| {
        let mib = len.div_ceil(1 << 20);
        KernelError::Unfit(format!(
            "its {mib} MiB do not fit beside the kernel; give the VM more memory (machine-config.mem_size_mib)"
        ))
    })?;
    ram.place(&file, 0, len, start)?;
    Ok(Initrd { start, len })
}

fn address(len: u64, kernel_end: u64, ram_end: u64, kernel_max: u64) -> Option<u64> {
    let top = ram_end.min(kernel_max.checked_add(1)?);
    let start = top.checked_sub(len)? / PAGE * PAGE;
    (start >= kernel_end).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn goes_as_high_as_ram_and_kernel_allow() {
        assert_eq!(address(MIB, 32 * MIB, 128 * MIB, 0x7fff_ffff), Some(127 * MIB));
        assert_eq!(address(MIB + 1, 32 * MIB, 128 * MIB, 0x7fff_ffff), Some(127 * MIB - PAGE));
        assert_eq!(address(500 * MIB, 32 * MIB, 3072 * MIB, 0x7fff_ffff), Some(1548 * MIB));
    }

    #[test]
    fn does_not_overlap_the_kernel() {
        assert_eq!(address(96 * MIB, 32 * MIB, 128 * MIB, 0x7fff_ffff), Some(32 * MIB));
        assert_eq!(address(97 * MIB, 32 * MIB, 128 * MIB, 0x7fff_ffff), None);
        assert_eq!(address(200 * MIB, 32 * MIB, 128 * MIB, 0x7fff_ffff), None);
    }
}
