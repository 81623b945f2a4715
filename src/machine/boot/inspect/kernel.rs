//! A closer look at a kernel image: version, format, compression, PVH, the configuration inside it. Pure.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst (offsets), kernel/configs.c (IKCFG), include/linux/elfnote.h.

use super::payload;
use super::{ImageKind, identify};

/// Bits of `xloadflags`.
const XLOADFLAGS: [(u16, &str); 7] = [
    (1, "64-bit entry"),
    (2, "loadable above 4 GiB"),
    (4, "EFI handover 32"),
    (8, "EFI handover 64"),
    (16, "EFI kexec"),
    (32, "5-level paging"),
    (64, "5-level paging enabled"),
];

/// What a kernel image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelReport {
    /// Its format, or what it is instead.
    pub kind: ImageKind,
    /// Its release, like `6.12.1-amd64`.
    pub release: Option<String>,
    /// Its whole version string.
    pub version: Option<String>,
    /// Version of the boot protocol of a bzImage.
    pub protocol: Option<(u8, u8)>,
    /// What the boot protocol offers, in words.
    pub load_flags: Vec<&'static str>,
    /// Whether a bzImage has the 64-bit entry point that is used here; an ELF file always has one.
    pub entry_64: bool,
    /// A bzImage's compression.
    pub compression: Option<&'static str>,
    /// Whether the ELF file, or the one inside a bzImage, has a PVH entry point. `None`: it could not be seen.
    pub pvh: Option<bool>,
    /// The configuration that the kernel carries (CONFIG_IKCONFIG).
    pub config: Option<String>,
    /// Why some of this is not known.
    pub notes: Vec<String>,
}

/// Looks at the whole of a kernel image.
pub fn inspect(image: &[u8]) -> KernelReport {
    let kind = identify(image.get(..super::HEADER_LEN).unwrap_or(image), image.len() as u64);
    let mut report = KernelReport {
        kind,
        release: None,
        version: None,
        protocol: None,
        load_flags: Vec::new(),
        entry_64: false,
        compression: None,
        pvh: None,
        config: None,
        notes: Vec::new(),
    };
    match kind {
        ImageKind::ElfVmlinux => {
            report.entry_64 = true;
            report.look_into(image);
        }
        ImageKind::BzImage => report.look_at_setup(image),
        _ => {}
    }
    let release = report.version.as_deref().and_then(|version| version.split_whitespace().next());
    report.release = release.map(str::to_owned);
    report
}

impl KernelReport {
    fn look_at_setup(&mut self, image: &[u8]) {
        let (minor, major) = (byte(image, 0x206), byte(image, 0x207));
        self.protocol = Some((major, minor));
        let flags = if (major, minor) >= (2, 12) { half(image, 0x236) } else { 0 };
        self.load_flags = XLOADFLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
        self.entry_64 = flags & 1 != 0;
        let at = usize::from(half(image, 0x20e));
        self.version = (at != 0).then(|| text(image.get(at + 0x200..).unwrap_or_default(), 0)).flatten();
        if (major, minor) < (2, 8) {
            self.notes.push("its boot protocol is too old to say where the payload is".into());
            return;
        }
        let sectors = match byte(image, 0x1f1) {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = (sectors + 1) * 512 + word(image, 0x248) as usize;
        let payload = image.get(start..).and_then(|rest| rest.get(..word(image, 0x24c) as usize));
        let Some(payload) = payload.filter(|payload| !payload.is_empty()) else {
            self.notes.push("its payload lies past the end of the file: the file is cut short".into());
            return;
        };
        self.compression = payload::compression(payload);
        match payload::unpack(payload) {
            Ok(kernel) => self.look_into(&kernel),
            Err(why) => self.notes.push(format!("the kernel inside was not looked at: {why}")),
        }
    }

    /// Looks into an ELF kernel.
    fn look_into(&mut self, elf: &[u8]) {
        if !elf.starts_with(b"\x7fELF") {
            self.notes.push("what is inside is no ELF file".into());
            return;
        }
        self.pvh = Some(has_pvh(elf));
        const BANNER: &[u8] = b"Linux version ";
        let banner = find(elf, BANNER).and_then(|at| text(elf, at + BANNER.len()));
        // A format string has the same beginning.
        // What the setup header says is complete; here the build may have left parts out.
        self.version = self.version.take().or(banner.filter(|banner| !banner.starts_with('%')));
        self.config = embedded_config(elf);
    }
}

/// The configuration between IKCFG_ST and IKCFG_ED.
fn embedded_config(elf: &[u8]) -> Option<String> {
    const START: &[u8] = b"IKCFG_ST";
    let mut from = 0;
    loop {
        let at = from + find(elf.get(from..)?, START)? + START.len();
        let packed = elf.get(at..)?;
        if packed.starts_with(b"\x1f\x8b") {
            let end = find(packed, b"IKCFG_ED").unwrap_or(packed.len());
            let bytes = payload::unpack(packed.get(..end)?).ok()?;
            return String::from_utf8(bytes).ok();
        }
        from = at;
    }
}

/// Whether a note segment holds "Xen" note 18, the PVH entry point.
fn has_pvh(elf: &[u8]) -> bool {
    let (table, size, count) = (long(elf, 32), usize::from(half(elf, 54)), usize::from(half(elf, 56)));
    (0..count).any(|index| {
        let at = usize::try_from(table).ok().and_then(|table| table.checked_add(index.checked_mul(size)?));
        let Some(header) = at.and_then(|at| elf.get(at..)) else { return false };
        let range = (usize::try_from(long(header, 8)), usize::try_from(long(header, 32)));
        let (4, (Ok(start), Ok(len))) = (word(header, 0), range) else { return false };
        elf.get(start..).and_then(|rest| rest.get(..len)).is_some_and(has_pvh_note)
    })
}

fn has_pvh_note(mut notes: &[u8]) -> bool {
    let padded = |len: u32| (len as usize).next_multiple_of(4);
    while notes.len() >= 12 {
        let (name, desc, kind) = (word(notes, 0), word(notes, 4), word(notes, 8));
        if kind == 18 && notes.get(12..).is_some_and(|rest| rest.starts_with(b"Xen\0")) {
            return true;
        }
        notes = notes.get(12 + padded(name) + padded(desc)..).unwrap_or_default();
    }
    false
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The printable text at `at`, up to the first NUL or newline.
fn text(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().take(512).position(|byte| *byte == 0 || *byte == b'\n')?;
    let text = std::str::from_utf8(rest.get(..end)?).ok()?;
    (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    /// An ELF file with a PVH note (or another), a banner and a configuration.
    fn vmlinux(note: u32) -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16] = 2;
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        let notes = [4u32, 4, 1, 0x55_4e47, 0, 4, 4, note, u32::from_le_bytes(*b"Xen\0"), 0x100_0000]
            .map(u32::to_le_bytes)
            .concat();
        let mut header = [4u32, 0].map(u32::to_le_bytes).concat();
        header.extend([120u64, 0, 0, notes.len() as u64, 0, 4].map(u64::to_le_bytes).concat());
        elf.extend(header);
        elf.extend(notes);
        elf.extend(b"Linux version 6.1.0-test (a@b) #1 SMP\n\0IKCFG_ST\0 a mention IKCFG_ST");
        elf.extend(gzip(b"CONFIG_ACPI=y\n"));
        elf.extend(b"IKCFG_ED\0");
        elf
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
        image[0x20e..0x210].copy_from_slice(&0x80u16.to_le_bytes());
        image[0x236] = 0b1011;
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image[0x280..0x28f].copy_from_slice(b"6.1.0-test (c) ");
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn a_vmlinux_tells_all() {
        let report = inspect(&vmlinux(18));
        assert_eq!((report.kind, report.pvh, report.entry_64), (ImageKind::ElfVmlinux, Some(true), true));
        assert_eq!(report.version.as_deref(), Some("6.1.0-test (a@b) #1 SMP"));
        assert_eq!(report.release.as_deref(), Some("6.1.0-test"));
        assert_eq!(report.config.as_deref(), Some("CONFIG_ACPI=y\n"));
        assert_eq!(inspect(&vmlinux(17)).pvh, Some(false));
    }

    #[test]
    fn a_bzimage_tells_what_is_inside() {
        let report = inspect(&bzimage(&gzip(&vmlinux(18))));
        assert_eq!((report.protocol, report.compression, report.pvh), (Some((2, 15)), Some("gzip"), Some(true)));
        assert_eq!(report.load_flags, ["64-bit entry", "loadable above 4 GiB", "EFI handover 64"]);
        assert!(report.entry_64 && report.config.is_some() && report.notes.is_empty());
    }

    #[test]
    fn what_cannot_be_seen_is_said() {
        let report = inspect(&bzimage(b"BZh91AY"));
        assert_eq!((report.compression, report.release.as_deref()), (Some("bzip2"), Some("6.1.0-test")));
        assert_eq!(report.notes, ["the kernel inside was not looked at: bzip2 cannot be unpacked here"]);
        let mut cut = bzimage(&[1; 100]);
        cut.truncate(1050);
        assert!(inspect(&cut).notes[0].contains("cut short"));
        assert_eq!(inspect(&bzimage(&gzip(b"not ELF"))).notes, ["what is inside is no ELF file"]);
        assert!(matches!(inspect(b"#!/bin/sh").kind, ImageKind::Other("a script")));
    }

    #[test]
    fn hostile_headers_do_not_panic() {
        for at in 0..vmlinux(18).len() {
            let mut elf = vmlinux(18);
            elf[at] = 0xff;
            inspect(&elf);
            elf.truncate(at);
            inspect(&elf);
        }
    }
}
