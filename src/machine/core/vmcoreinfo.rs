//! The kernel's own note for crash(8): its release, its offset by KASLR, the sizes of its structures. Control thread.
//!
//! Linux keeps it ready in guest memory, at the beginning of a page, for the day it panics, and has nobody to tell where: so
//! it is looked for. Source: Linux, kernel/crash_core.c (`update_vmcoreinfo_note`).

use devices::memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRam};

const PAGE: usize = 4096;
/// Length of the name, with its NUL; then, behind the length of the text, the note's type and the padded name.
const NAME_LEN: [u8; 4] = 11_u32.to_le_bytes();
const TYPE_AND_NAME: [u8; 16] = *b"\0\0\0\0VMCOREINFO\0\0";
const HEADER: usize = 24;
/// How the text begins.
const BEGIN: &[u8] = b"OSRELEASE=";

/// The note as the guest has it, all of it; none where the kernel keeps none. The guest may have written anything: what is
/// found says what a kernel of its own would say, and is a page long at most.
pub fn find(memory: &GuestRam) -> Option<Vec<u8>> {
    memory.iter().find_map(|region| {
        let (start, len) = (region.start_addr().raw_value(), region.len());
        (start..start + len).step_by(PAGE).find_map(|at| note(memory, GuestAddress(at)))
    })
}

fn note(memory: &GuestRam, at: GuestAddress) -> Option<Vec<u8>> {
    let mut head = [0; HEADER + BEGIN.len()];
    memory.read_slice(&mut head, at).ok()?;
    let (name_len, rest) = head.split_first_chunk::<4>()?;
    let (text_len, rest) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*text_len)).ok().filter(|len| *len <= PAGE)?;
    if *name_len != NAME_LEN || rest[..TYPE_AND_NAME.len()] != TYPE_AND_NAME || !rest.ends_with(BEGIN) {
        return None;
    }
    let mut note = vec![0; HEADER + len];
    memory.read_slice(&mut note, at).ok()?;
    note.resize(note.len().next_multiple_of(4), 0);
    Some(note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HugePages;
    use crate::memory::{Ram, RamKind};
    use crate::plan::RamRange;

    #[test]
    fn the_note_is_found_where_linux_puts_it() {
        let ranges = [RamRange { start: 0, len: 1 << 20 }, RamRange { start: 1 << 32, len: 1 << 20 }];
        let ram = Ram::map(&ranges, RamKind { pages: HugePages::None, dirty: false, shared: false }).unwrap();
        let memory = ram.guest();
        assert_eq!(find(memory), None);
        let text = b"OSRELEASE=6.1.0-1-test\nKERNELOFFSET=0\n";
        let head = |len: u32| [&NAME_LEN[..], &len.to_le_bytes(), &TYPE_AND_NAME].concat();
        let note = [head(text.len() as u32), text.to_vec()].concat();
        let at = GuestAddress((1 << 32) + (5 << 12));
        memory.write_slice(&note, GuestAddress(0x2010)).unwrap();
        assert_eq!(find(memory), None, "not at the beginning of a page");
        memory.write_slice(&head(u32::MAX), GuestAddress(0x4000)).unwrap();
        memory.write_slice(text, GuestAddress(0x4000 + HEADER as u64)).unwrap();
        assert_eq!(find(memory), None, "longer than a page");
        memory.write_slice(&note, at).unwrap();
        let found = find(memory).unwrap();
        assert_eq!((found.len() % 4, &found[..note.len()]), (0, &note[..]));
        memory.write_slice(b"x", GuestAddress(at.0 + HEADER as u64)).unwrap();
        assert_eq!(find(memory), None, "another text");
    }
}
