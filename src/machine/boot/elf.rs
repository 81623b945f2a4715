//! ELF kernels: segments and the PVH entry note. Source: System V ABI, "Program Loading"; Xen, docs/misc/pvh.pandoc.
//!
//! The file is the user's own, yet every number in it is checked against the file's length.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::KernelError;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
/// Longest note segment that is searched, bytes.
const NOTES_MAX: u64 = 1 << 20;
/// "Xen" note that holds the 32-bit physical entry point (XEN_ELFNOTE_PHYS32_ENTRY).
const PHYS32_ENTRY: u32 = 18;

/// A loadable segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Bytes in memory; the rest is zero.
    pub memory_len: u64,
}

/// An ELF kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfKernel {
    /// Where the 64-bit boot protocol enters.
    pub entry: u64,
    /// Where PVH enters, if the kernel has that note.
    pub pvh_entry: Option<u32>,
    /// What to load.
    pub segments: Vec<Segment>,
}

impl ElfKernel {
    /// Reads the headers of an ELF file that starts with the right magic.
    pub fn parse(file: &File) -> Result<Self, KernelError> {
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0)?;
        if header[4] != 2 || header[5] != 1 || u16_at(&header, 18) != EM_X86_64 {
            return Err(KernelError::Unfit("it is an ELF file, but not a 64-bit x86-64 one".into()));
        }
        let (table, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
        if size != 56 {
            return Err(KernelError::Unfit("it is an ELF file without program headers".into()));
        }
        let mut headers = vec![0; usize::from(size) * usize::from(count)];
        file.read_exact_at(&mut headers, table)?;
        let file_len = file.metadata()?.len();
        let mut kernel = Self { entry: u64_at(&header, 24), pvh_entry: None, segments: Vec::new() };
        for header in headers.chunks_exact(56) {
            kernel.add(file, file_len, header)?;
        }
        if kernel.segments.is_empty() {
            return Err(KernelError::Unfit("it is an ELF file with nothing to load".into()));
        }
        Ok(kernel)
    }

    fn add(&mut self, file: &File, file_len: u64, header: &[u8]) -> Result<(), KernelError> {
        let kind = u32_at(header, 0);
        let segment = Segment {
            offset: u64_at(header, 8),
            gpa: u64_at(header, 24),
            file_len: u64_at(header, 32),
            memory_len: u64_at(header, 40),
        };
        if kind != PT_LOAD && kind != PT_NOTE || segment.memory_len == 0 && kind == PT_LOAD {
            return Ok(());
        }
        let end = segment.offset.checked_add(segment.file_len).filter(|end| *end <= file_len);
        if end.is_none() {
            return Err(KernelError::Unfit("it is an ELF file cut short: a segment ends past its end".into()));
        }
        if kind == PT_NOTE {
            // A later note segment must not lose what an earlier one said.
            self.pvh_entry = self.pvh_entry.or(pvh_entry(file, &segment)?);
        } else if segment.file_len > segment.memory_len {
            return Err(KernelError::Unfit("it is a malformed ELF file: a segment is larger than its memory".into()));
        } else {
            self.segments.push(segment);
        }
        Ok(())
    }
}

fn pvh_entry(file: &File, segment: &Segment) -> io::Result<Option<u32>> {
    let mut notes = vec![0; segment.file_len.min(NOTES_MAX) as usize];
    file.read_exact_at(&mut notes, segment.offset)?;
    Ok(find_phys32_entry(&notes))
}

/// Walks notes: name length, descriptor length, type, then both padded to 4 bytes.
fn find_phys32_entry(mut notes: &[u8]) -> Option<u32> {
    while notes.len() >= 12 {
        let (name_len, desc_len, kind) = (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8));
        let padded = |len: u32| len.checked_next_multiple_of(4).map(|len| len as usize);
        let name = notes.get(12..12usize.checked_add(name_len as usize)?)?;
        let desc_at = 12usize.checked_add(padded(name_len)?)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len as usize)?)?;
        if kind == PHYS32_ENTRY && name == b"Xen\0" {
            return desc.first_chunk().map(|entry| u32::from_le_bytes(*entry));
        }
        notes = notes.get(desc_at.checked_add(padded(desc_len)?)?..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    /// An ELF file with one segment of `code` at `gpa`, `bss` bytes of zeros after it, and the notes given.
    pub(crate) fn image(gpa: u64, code: &[u8], bss: u64, notes: &[&[u8]]) -> File {
        let mut file = vec![0u8; 64];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        file[16..18].copy_from_slice(&2u16.to_le_bytes()); // ET_EXEC
        file[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        file[24..32].copy_from_slice(&gpa.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&(1 + notes.len() as u16).to_le_bytes());
        let mut data = Vec::new();
        let start = 0x1000u64;
        let mut header = |kind: u32, bytes: &[u8], extra: u64| {
            let offset = start + data.len() as u64;
            data.extend_from_slice(bytes);
            let len = bytes.len() as u64;
            file.extend([kind.to_le_bytes(), 7u32.to_le_bytes()].concat());
            file.extend([offset, gpa, gpa, len, len + extra, 0x1000].map(u64::to_le_bytes).concat());
        };
        header(PT_LOAD, code, bss);
        notes.iter().for_each(|note| header(PT_NOTE, note, 0));
        file.resize(start as usize, 0);
        file.extend(data);
        let mut out = tempfile::tempfile().unwrap();
        out.write_all(&file).unwrap();
        out
    }

    /// A kernel whose code is at `gpa` and begins there, by PVH.
    pub(crate) fn pvh_kernel(gpa: u64, code: &[u8]) -> File {
        let entry = u32::try_from(gpa).unwrap();
        image(gpa, code, 0x1_0000, &[&note(b"Xen\0", PHYS32_ENTRY, &entry.to_le_bytes())])
    }

    pub(crate) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut note = [name.len() as u32, desc.len() as u32, kind].map(u32::to_le_bytes).concat();
        for part in [name, desc] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn reads_segments_and_the_pvh_note() {
        let xen = [note(b"GNU\0", 3, &[1; 20]), note(b"Xen\0", PHYS32_ENTRY, &0x123_4560u32.to_le_bytes())].concat();
        let later = note(b"Linux\0", 0x100, &[0; 4]);
        let kernel = ElfKernel::parse(&image(0x100_0000, &[0x90; 100], 50, &[&xen, &later])).unwrap();
        assert_eq!(kernel.pvh_entry, Some(0x123_4560));
        assert_eq!(kernel.entry, 0x100_0000);
        assert_eq!(kernel.segments, [Segment { offset: 0x1000, gpa: 0x100_0000, file_len: 100, memory_len: 150 }]);
        let without = ElfKernel::parse(&image(0x100_0000, &[0x90; 100], 0, &[&later])).unwrap();
        assert_eq!(without.pvh_entry, None);
    }

    #[test]
    fn broken_notes_end_the_search() {
        for notes in [&[0xff; 12][..], &[0xff; 40], &[4, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 18, 0, 0, 0, b'X'], b"short"]
        {
            assert_eq!(find_phys32_entry(notes), None);
        }
    }

    #[test]
    fn what_cannot_boot_is_refused_in_words() {
        let cut = image(0x100_0000, &[0x90; 100], 0, &[]);
        cut.set_len(0x1010).unwrap();
        assert!(ElfKernel::parse(&cut).unwrap_err().to_string().contains("cut short"));
        let arm = image(0, &[0; 4], 0, &[]);
        arm.write_all_at(&183u16.to_le_bytes(), 18).unwrap();
        assert!(ElfKernel::parse(&arm).unwrap_err().to_string().contains("not a 64-bit x86-64"));
    }
}
