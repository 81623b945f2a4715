//! From files to a guest ready to run its first instruction: kernel, initrd, command line, boot parameters.
//!
//! The control thread does this before the vCPUs run. Nothing is asked of the user: the kernel's format is detected.

mod bzimage;
mod elf;
mod initrd;
pub mod inspect;
mod params;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use devices::memory::{Bytes, GuestAddress};

use crate::config::BootSource;
use crate::error::{Doing, HostError};
use crate::memory::Ram;
use crate::x86_64::layout;
use crate::x86_64::regs::Entry;
use bzimage::BzImage;
use elf::ElfKernel;
#[cfg(test)]
pub(crate) use elf::tests::pvh_kernel;
pub use params::E820;

/// Why a kernel image was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The host could not read it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no kernel, or none that can boot here.
    #[error("{0}")]
    Unfit(String),
}

/// A kernel in guest memory.
#[derive(Debug, Clone)]
struct Kernel {
    entry: Entry,
    /// First byte after the memory that the kernel needs while it unpacks and relocates itself.
    end: u64,
    /// Highest address that an initrd may occupy.
    initrd_max: u64,
    /// The setup header of a bzImage; the zero page starts from it.
    header: Option<Box<linux_loader::bootparam::setup_header>>,
}

/// Loads what `source` names into `ram` and returns how the boot processor starts.
///
/// `acpi_rsdp` is the guest-physical address of the RSDP.
pub fn load(ram: &Ram, source: &BootSource, cmdline: &str, acpi_rsdp: u64) -> Result<Entry, HostError> {
    let path = &source.kernel_image_path;
    let kernel =
        open(path).and_then(|file| load_kernel(ram, &file)).doing(|| format!("load kernel {}", path.display()))?;
    let initrd = match &source.initrd_path {
        None => None,
        Some(path) => Some(initrd::load(ram, path, &kernel).doing(|| format!("load initrd {}", path.display()))?),
    };
    put_cmdline(ram, cmdline)?;
    let e820 = params::e820(ram);
    match kernel.entry {
        Entry::Linux64 { .. } => params::write_zero_page(ram, &kernel, initrd, cmdline, &e820, acpi_rsdp)?,
        Entry::Pvh { .. } => params::write_start_info(ram, initrd, &e820, acpi_rsdp)?,
    }
    Ok(kernel.entry)
}

fn open(path: &Path) -> Result<File, KernelError> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(KernelError::Unfit("it is a directory".into()));
    }
    Ok(file)
}

fn load_kernel(ram: &Ram, file: &File) -> Result<Kernel, KernelError> {
    match identify(file)? {
        (inspect::ImageKind::BzImage, head) => bzimage::load(ram, file, &BzImage::parse(&head)?),
        _ => load_elf(ram, file),
    }
}

/// Looks at a file's beginning: which kernel image it is, and those bytes. What is none is an error in words.
pub fn identify(file: &File) -> Result<(inspect::ImageKind, Vec<u8>), KernelError> {
    let mut head = vec![0; inspect::HEADER_LEN];
    let len = read_up_to(file, &mut head)?;
    head.truncate(len);
    match inspect::identify(&head, file.metadata()?.len()) {
        kind @ (inspect::ImageKind::ElfVmlinux | inspect::ImageKind::BzImage) => Ok((kind, head)),
        other => Err(KernelError::Unfit(format!(
            "it looks like {other}; expected is an x86-64 Linux kernel: an ELF vmlinux or a bzImage (a distribution's \
             /boot/vmlinuz-*)"
        ))),
    }
}

fn load_elf(ram: &Ram, file: &File) -> Result<Kernel, KernelError> {
    let elf = ElfKernel::parse(file)?;
    let mut end = 0;
    for segment in &elf.segments {
        let last = segment.gpa.checked_add(segment.memory_len).filter(|last| *last <= low_ram_end(ram));
        let last = last.filter(|_| segment.gpa >= layout::HIGH_RAM).ok_or_else(|| {
            KernelError::Unfit(format!(
                "its segment at {:#x} ({} KiB) is outside guest memory; give the VM more (machine-config.mem_size_mib)",
                segment.gpa,
                segment.memory_len >> 10
            ))
        })?;
        ram.place(file, segment.offset, segment.file_len, segment.gpa)?;
        end = end.max(last);
    }
    let entry = match elf.pvh_entry {
        Some(eip) => Entry::Pvh { eip },
        None => Entry::Linux64 { rip: elf.entry },
    };
    Ok(Kernel { entry, end, initrd_max: low_ram_end(ram) - 1, header: None })
}

/// First address after the RAM below the 32-bit gap.
fn low_ram_end(ram: &Ram) -> u64 {
    ram.slots().next().map_or(0, |(start, len, _)| start + len)
}

fn put_cmdline(ram: &Ram, cmdline: &str) -> Result<(), HostError> {
    if cmdline.len() >= layout::CMDLINE_MAX {
        let limit = layout::CMDLINE_MAX - 1;
        return Err(HostError::new("write the kernel command line", format!("it is longer than {limit} bytes")));
    }
    let bytes = [cmdline.as_bytes(), b"\0"].concat();
    ram.guest().write_slice(&bytes, GuestAddress(layout::CMDLINE)).doing(|| "write the kernel command line")
}

/// Reads until `buffer` is full or the file ends.
pub fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], len as u64) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}
