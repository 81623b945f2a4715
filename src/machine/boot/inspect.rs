//! What a file is, by its first bytes: a kernel that can boot here, or what was taken for one by mistake. Pure.
//!
//! Sources: each format's own magic; Linux, Documentation/arch/x86/boot.rst and Documentation/arch/arm64/booting.rst.

mod kernel;
mod options;
mod payload;

use std::fmt;

pub use kernel::{KernelReport, inspect};
pub use options::{KernelOption, State, Weight, check as check_options};

/// Bytes of a file's beginning that [`identify`] wants to see; fewer are enough where the file is shorter.
pub const HEADER_LEN: usize = 64 << 10;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// An ELF executable or kernel for x86-64.
    ElfVmlinux,
    /// A Linux kernel with a setup header and a compressed payload.
    BzImage,
    /// Nothing at all.
    Empty,
    /// Something else: its name, with its article.
    Other(&'static str),
}

impl fmt::Display for ImageKind {
    /// Reads after "it looks like".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ElfVmlinux => "an ELF vmlinux",
            Self::BzImage => "a bzImage",
            Self::Empty => "an empty file",
            Self::Other(name) => name,
        })
    }
}

/// Magic numbers by offset, the most telling first.
const MAGICS: [(usize, &[u8], &str); 36] = [
    (0x38, b"ARM\x64", "an arm64 Image"),
    (0x38, b"RSC\x05", "a RISC-V Image"),
    (0x24, &[0x18, 0x28, 0x6f, 0x01], "an arm zImage"),
    (4, b"zimg", "an EFI zboot image (arm64, RISC-V or LoongArch)"),
    (0, b"\x27\x05\x19\x56", "a U-Boot uImage"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image"),
    (0, b"\x1f\x8b", "gzip data; unpack it first (an initrd? a vmlinux.gz?)"),
    (0, b"\xfd7zXZ\0", "xz data; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data; unpack it first (an initrd?)"),
    (0, b"\x04\x22\x4d\x18", "lz4 data; unpack it first"),
    (0, b"\x02\x21\x4c\x18", "lz4 data; unpack it first"),
    (0, b"BZh", "bzip2 data; unpack it first"),
    (0, b"\x89LZO", "lzo data; unpack it first"),
    (0, b"\x5d\0\0", "lzma data; unpack it first"),
    (0, b"070701", "a cpio archive: an initrd (--initrd)"),
    (0, b"070702", "a cpio archive: an initrd (--initrd)"),
    (0, b"070707", "a cpio archive"),
    (0, b"\xc7\x71", "a cpio archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"vhdxfile", "a VHDX disk image"),
    (0, b"conectix", "a VHD disk image"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI disk image"),
    (0, b"hsqs", "a squashfs image: a root file system (--rootfs)"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an erofs image: a root file system (--rootfs)"),
    (0x438, b"\x53\xef", "an ext4 image: a root file system (--rootfs)"),
    (0, b"XFSB", "an XFS image: a root file system (--rootfs)"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0x200, b"EFI PART", "a disk image with a GPT partition table"),
    (0, b"!<arch>\ndebian", "a Debian package; the kernel is inside it"),
    (0, b"\xed\xab\xee\xdb", "an RPM package; the kernel is inside it"),
    (0, b"!<arch>\n", "an ar archive"),
    (0x101, b"ustar", "a tar archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"#!", "a script"),
    (0, b"MZ", "an EFI program without a Linux setup header"),
];

/// Says what a file of `len` bytes is whose first bytes are `header`.
pub fn identify(header: &[u8], len: u64) -> ImageKind {
    let has = |at: usize, magic: &[u8]| header.get(at..).is_some_and(|bytes| bytes.starts_with(magic));
    if len == 0 || header.is_empty() {
        return ImageKind::Empty;
    }
    if has(0, b"\x7fELF") {
        return elf(header);
    }
    if has(0x202, b"HdrS") {
        return ImageKind::BzImage;
    }
    if let Some((_, _, name)) = MAGICS.iter().find(|(at, magic, _)| has(*at, magic)) {
        return ImageKind::Other(name);
    }
    if has(0x1fe, b"\x55\xaa") {
        return ImageKind::Other("a boot sector: a disk image?");
    }
    if header.iter().all(|byte| *byte == 0) {
        return ImageKind::Other("zeros: an empty disk image?");
    }
    let text =
        std::str::from_utf8(header).is_ok() || std::str::from_utf8(header).is_err_and(|e| e.error_len().is_none());
    match text && header.iter().all(|byte| *byte >= b' ' || b"\t\n\r\x0c".contains(byte)) {
        true => ImageKind::Other("a text"),
        false => ImageKind::Other("nothing that is known here"),
    }
}

/// ELF: class at 4, byte order at 5, type at 16, machine at 18 (System V ABI).
fn elf(header: &[u8]) -> ImageKind {
    let half = |at: usize| match header.get(at..at + 2) {
        Some([low, high]) if header.get(5) == Some(&2) => u16::from_be_bytes([*low, *high]),
        Some([low, high]) => u16::from_le_bytes([*low, *high]),
        _ => 0,
    };
    match (half(18), half(16)) {
        (62, 2 | 3) => ImageKind::ElfVmlinux,
        (62, 1) => ImageKind::Other("an ELF object file: a kernel module?"),
        (62, _) => ImageKind::Other("an ELF file that is no executable"),
        (3, _) => ImageKind::Other("a 32-bit x86 ELF file"),
        (183, _) => ImageKind::Other("an arm64 ELF file"),
        (40, _) => ImageKind::Other("an arm ELF file"),
        (243, _) => ImageKind::Other("a RISC-V ELF file"),
        _ => ImageKind::Other("an ELF file for another architecture"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut header = vec![0x90; HEADER_LEN];
        header[offset..offset + magic.len()].copy_from_slice(magic);
        header
    }

    fn elf_file(machine: u16, kind: u16) -> Vec<u8> {
        let mut header = at(0, b"\x7fELF\x02\x01\x01");
        header[16..18].copy_from_slice(&kind.to_le_bytes());
        header[18..20].copy_from_slice(&machine.to_le_bytes());
        header
    }

    #[test]
    fn kernels_are_known() {
        assert_eq!(identify(&elf_file(62, 2), 1), ImageKind::ElfVmlinux);
        assert_eq!(identify(&at(0x202, b"HdrS"), 1), ImageKind::BzImage);
        let mut efi = at(0x202, b"HdrS");
        efi[..2].copy_from_slice(b"MZ");
        assert_eq!(identify(&efi, 1), ImageKind::BzImage);
    }

    #[test]
    fn every_magic_has_its_name() {
        for (offset, magic, name) in MAGICS {
            let known = identify(&at(offset, magic), HEADER_LEN as u64).to_string();
            assert!(known == name || name == "an ar archive" || known.contains("lz4"), "{known} for {name}");
        }
        for (machine, kind, name) in [
            (183, 2, "an arm64 ELF file"),
            (3, 2, "a 32-bit x86 ELF file"),
            (62, 1, "an ELF object file: a kernel module?"),
            (9, 2, "an ELF file for another architecture"),
        ] {
            assert_eq!(identify(&elf_file(machine, kind), 1).to_string(), name);
        }
    }

    #[test]
    fn what_has_no_magic_is_described() {
        for (header, name) in [
            (&b""[..], "an empty file"),
            (b"hello, world\n", "a text"),
            ("gr\u{fc}n\n".as_bytes(), "a text"),
            (&[0; 4096], "zeros: an empty disk image?"),
            (&[0x90; 700], "nothing that is known here"),
            (b"\x7fELF", "an ELF file for another architecture"),
        ] {
            assert_eq!(identify(header, header.len() as u64).to_string(), name);
        }
        assert_eq!(identify(&at(0x1fe, b"\x55\xaa"), 1).to_string(), "a boot sector: a disk image?");
    }
}
