//! A core file of the guest: its memory and the registers of its CPUs, for gdb and crash(8). The control thread writes it.
//!
//! An ELF file in the form of QEMU's dump-guest-memory: a PT_LOAD for each range of RAM by its physical addresses, and, so that
//! gdb finds the kernel's variables, more of them that say where the kernel's virtual addresses lie in it; a PT_NOTE with an
//! NT_PRSTATUS for each CPU, and the kernel's own note for crash(8). Sources: elf(5); Linux, include/uapi/linux/elfcore.h and arch/x86/include/asm/user_64.h; Intel
//! SDM vol. 3A, 4.5 (4-level paging).

mod vmcoreinfo;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use devices::memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRam};
use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::error::{Doing, HostError};

const PAGE: u64 = 4096;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const EM_X86_64: u16 = 62;
const ET_CORE: u16 = 4;
/// Bytes of Linux' struct elf_prstatus, and where in it the process id and the registers are.
const PRSTATUS: usize = 336;
const PRSTATUS_PID: usize = 32;
const PRSTATUS_REGISTERS: usize = 112;
/// Most ranges of virtual addresses: a guest can make any number.
const MAX_MAPPINGS: usize = 4096;

/// What a core file says of a CPU.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuState {
    /// General registers.
    pub general: kvm_regs,
    /// Segments and control registers.
    pub system: kvm_sregs,
}

/// A part of the file and where the guest has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    virt: u64,
    phys: u64,
    len: u64,
}

/// Writes the core file of a guest that stands still. The file must not be there yet; nobody but its owner can read it.
pub fn write(path: &Path, memory: &GuestRam, cpus: &[CpuState]) -> Result<(), HostError> {
    let doing = || format!("write the core file {}", path.display());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).doing(doing)?;
    let written = write_to(&file, memory, cpus).doing(doing);
    if written.is_err() {
        // A part of a core file is none.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn write_to(file: &File, memory: &GuestRam, cpus: &[CpuState]) -> io::Result<()> {
    let ram: Vec<_> = memory.iter().map(|region| (region.start_addr().raw_value(), region.len())).collect();
    let mut notes: Vec<u8> = cpus.iter().zip(1..).flat_map(|(cpu, id)| note(cpu, id)).collect();
    notes.extend(vmcoreinfo::find(memory).unwrap_or_default());
    let mut segments: Vec<_> =
        ram.iter().map(|(start, len)| Segment { virt: *start, phys: *start, len: *len }).collect();
    segments.extend(cpus.first().map(|cpu| kernel_mappings(memory, &ram, &cpu.system)).unwrap_or_default());
    let headers = HEADER + PROGRAM_HEADER * (segments.len() as u64 + 1);
    let data = (headers + notes.len() as u64).next_multiple_of(PAGE);

    let mut head = elf_header(segments.len() as u16 + 1);
    head.extend(program_header(PT_NOTE, headers, Segment { virt: 0, phys: 0, len: notes.len() as u64 }));
    for segment in &segments {
        let offset = offset_of(&ram, segment.phys).map_or(0, |offset| data + offset);
        head.extend(program_header(PT_LOAD, offset, *segment));
    }
    head.extend(notes);
    file.write_all_at(&head, 0)?;
    let size = ram.iter().map(|(_, len)| len).sum::<u64>();
    file.set_len(data + size)?;
    let mut offset = data;
    for (start, len) in ram {
        copy(file, offset, memory, start, len)?;
        offset += len;
    }
    Ok(())
}

/// Where in the file, behind its head, a physical address is.
fn offset_of(ram: &[(u64, u64)], phys: u64) -> Option<u64> {
    let mut before = 0;
    for (start, len) in ram {
        if let Some(inside) = phys.checked_sub(*start).filter(|inside| inside < len) {
            return Some(before + inside);
        }
        before += len;
    }
    None
}

/// Copies RAM into the file; what is zero stays a hole.
fn copy(file: &File, offset: u64, memory: &GuestRam, start: u64, len: u64) -> io::Result<()> {
    const PIECE: usize = 64 << 10;
    let mut piece = vec![0; PIECE];
    let mut done = 0;
    while done < len {
        let now = usize::try_from(len - done).unwrap_or(PIECE).min(PIECE);
        let (bytes, _) = piece.split_at_mut(now);
        memory.read_slice(bytes, GuestAddress(start + done)).map_err(io::Error::other)?;
        if bytes.iter().any(|byte| *byte != 0) {
            file.write_all_at(bytes, offset + done)?;
        }
        done += now as u64;
    }
    Ok(())
}

fn elf_header(headers: u16) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec(); // 64 bits, little-endian, version 1
    elf.resize(16, 0);
    elf.extend(ET_CORE.to_le_bytes());
    elf.extend(EM_X86_64.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for word in [0, HEADER, 0u64] {
        elf.extend(word.to_le_bytes()); // entry, program headers, sections
    }
    elf.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, headers, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf
}

fn program_header(kind: u32, offset: u64, segment: Segment) -> Vec<u8> {
    const READ_WRITE_EXECUTE: u32 = 7;
    let flags = if kind == PT_LOAD { READ_WRITE_EXECUTE } else { 0 };
    let mut header = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    let Segment { virt, phys, len } = segment;
    for word in [offset, virt, phys, len, len, 0] {
        header.extend(word.to_le_bytes());
    }
    header
}

/// An NT_PRSTATUS; `id` is what gdb numbers its threads by.
fn note(cpu: &CpuState, id: u32) -> Vec<u8> {
    let (r, s) = (&cpu.general, &cpu.system);
    let selector = |segment: kvm_bindings::kvm_segment| u64::from(segment.selector);
    let registers = [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        u64::MAX, // no system call
        r.rip,
        selector(s.cs),
        r.rflags,
        r.rsp,
        selector(s.ss),
        s.fs.base,
        s.gs.base,
        selector(s.ds),
        selector(s.es),
        selector(s.fs),
        selector(s.gs),
    ];
    let mut status = vec![0; PRSTATUS];
    put(&mut status, PRSTATUS_PID, &id.to_le_bytes());
    put(&mut status, PRSTATUS_REGISTERS, &registers.map(u64::to_le_bytes).concat());
    let sizes = [5, PRSTATUS as u32, NT_PRSTATUS].map(u32::to_le_bytes).concat();
    [sizes.as_slice(), b"CORE\0\0\0\0", &status].concat()
}

fn put(to: &mut [u8], at: usize, from: &[u8]) {
    to.iter_mut().skip(at).zip(from).for_each(|(to, from)| *to = *from);
}

/// The ranges of virtual addresses of the upper half, the kernel's, that are mapped to RAM, in order.
fn kernel_mappings(memory: &GuestRam, ram: &[(u64, u64)], system: &kvm_sregs) -> Vec<Segment> {
    const PG: u64 = 1 << 31;
    const LONG_MODE_ACTIVE: u64 = 1 << 10;
    const FIVE_LEVELS: u64 = 1 << 12;
    if system.cr0 & PG == 0 || system.efer & LONG_MODE_ACTIVE == 0 || system.cr4 & FIVE_LEVELS != 0 {
        return Vec::new();
    }
    let mut walk = Walk { memory, ram, found: Vec::new(), tables: 0 };
    walk.table(system.cr3, 3, 0);
    walk.found
}

struct Walk<'a> {
    memory: &'a GuestRam,
    ram: &'a [(u64, u64)],
    found: Vec<Segment>,
    tables: usize,
}

impl Walk<'_> {
    /// Looks at one table; `level` 3 is the highest. The guest wrote it: it may be anything, itself included.
    fn table(&mut self, entry: u64, level: u32, base: u64) {
        const PRESENT: u64 = 1;
        const LARGE: u64 = 1 << 7;
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        /// As many tables as map 512 GiB by small pages.
        const MAX_TABLES: usize = 1 << 18;
        self.tables += 1;
        let mut entries = [0; PAGE as usize];
        let there = self.memory.read_slice(&mut entries, GuestAddress(entry & ADDRESS)).is_ok();
        if !there || self.tables > MAX_TABLES {
            return;
        }
        let size = PAGE << (9 * level);
        let first = if level == 3 { 256 } else { 0 };
        for (place, bytes) in entries.as_chunks::<8>().0.iter().enumerate().skip(first) {
            let entry = u64::from_le_bytes(*bytes);
            if entry & PRESENT == 0 || self.found.len() >= MAX_MAPPINGS {
                continue;
            }
            let virt = match level {
                3 => 0xffff_0000_0000_0000 | (place as u64 * size),
                _ => base + place as u64 * size,
            };
            match level {
                0 => self.page(virt, entry & ADDRESS, size),
                1 | 2 if entry & LARGE != 0 => self.page(virt, entry & ADDRESS & !(size - 1), size),
                _ => self.table(entry, level - 1, virt),
            }
        }
    }

    fn page(&mut self, virt: u64, phys: u64, size: u64) {
        // The file has what is RAM only; a page is so as a whole, or up to the end of its range.
        let range = self.ram.iter().find(|(start, len)| phys >= *start && phys - start < *len);
        let Some((start, len)) = range else { return };
        let len = size.min(start + len - phys);
        match self.found.last_mut() {
            // A new range of RAM is elsewhere in the file, perhaps, though not in the guest.
            Some(last) if last.virt + last.len == virt && last.phys + last.len == phys && phys != *start => {
                last.len += len;
            }
            _ => self.found.push(Segment { virt, phys, len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::config::HugePages;
    use crate::memory::{Ram, RamKind};
    use crate::plan::RamRange;

    fn ram() -> Ram {
        let ranges = [RamRange { start: 0, len: 4 << 20 }, RamRange { start: 1 << 32, len: 1 << 20 }];
        Ram::map(&ranges, RamKind { pages: HugePages::None, dirty: false, shared: false }).unwrap()
    }

    fn word(file: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
    }

    /// Page tables that map ffff8880_00000000 to 0 by a page of 2 MiB, and ffffffff81000000 to 1 MiB by one of 4 KiB.
    fn tables(memory: &GuestRam) -> kvm_sregs {
        let set =
            |table: u64, place: u64, entry: u64| memory.write_obj(entry, GuestAddress(table + 8 * place)).unwrap();
        set(0x1000, 273, 0x2000 | 3);
        set(0x2000, 0, 0x3000 | 3);
        set(0x3000, 0, 0x83);
        set(0x1000, 511, 0x4000 | 3);
        set(0x4000, 510, 0x5000 | 3);
        set(0x5000, 8, 0x6000 | 3);
        set(0x6000, 0, 0x10_0000 | 3);
        set(0x6000, 1, 0xdead_beef_f000 | 3); // no RAM
        set(0x1000, 510, 0x1000 | 3); // the table itself
        kvm_sregs { cr0: 0x8000_0001, cr3: 0x1000, efer: 0x500, ..Default::default() }
    }

    #[test]
    fn memory_and_registers_are_where_the_headers_say() {
        let ram = ram();
        let memory = ram.guest();
        memory.write_slice(b"low", GuestAddress(0x10_0000)).unwrap();
        memory.write_slice(b"high", GuestAddress(1 << 32)).unwrap();
        let general = kvm_regs { rip: 0x1234, rbx: 7, ..Default::default() };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core");
        let cpus = [CpuState { general, ..Default::default() }; 2];
        write(&path, memory, &cpus).unwrap();
        let file = std::fs::read(&path).unwrap();
        assert_eq!((&file[..4], file[16], file[56]), (b"\x7fELF".as_slice(), 4, 3), "a core, with three headers");
        let header = |place: usize| {
            let at = 64 + 56 * place;
            [0, 8, 16, 24, 32].map(|field| word(&file, at + field))
        };
        let [_, notes, .., len] = header(0);
        assert_eq!(len as usize, 2 * (12 + 8 + PRSTATUS));
        assert_eq!(word(&file, notes as usize + 20 + PRSTATUS_REGISTERS + 16 * 8), 0x1234);
        let [_, low, 0, 0, 0x40_0000] = header(1) else { panic!("{:x?}", header(1)) };
        let [_, high, 0x1_0000_0000, 0x1_0000_0000, 0x10_0000] = header(2) else { panic!("{:x?}", header(2)) };
        assert_eq!(&file[low as usize + 0x10_0000..][..3], b"low");
        assert_eq!(&file[high as usize..][..4], b"high");
        let found = path.metadata().unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (high + 0x10_0000, 0o600));
        assert!(found.blocks() * 512 < 1 << 20, "zeros are holes");
        let again = write(&path, memory, &cpus).unwrap_err();
        assert!(crate::error::chain(&again).contains("File exists"), "nothing is written over");
    }

    #[test]
    fn the_kernel_s_addresses_are_found_and_no_table_leads_astray() {
        let ram = ram();
        let memory = ram.guest();
        let system = tables(memory);
        let ranges = [(0, 4 << 20), (1 << 32, 1 << 20)];
        let found = kernel_mappings(memory, &ranges, &system);
        let direct = Segment { virt: 0xffff_8880_0000_0000, phys: 0, len: 2 << 20 };
        let text = Segment { virt: 0xffff_ffff_8100_0000, phys: 0x10_0000, len: PAGE };
        assert!(found.contains(&direct) && found.contains(&text), "{found:x?}");
        assert!(found.len() <= MAX_MAPPINGS && found.is_sorted_by_key(|segment| segment.virt));
        assert_eq!(kernel_mappings(memory, &ranges, &kvm_sregs::default()), []);
        let nowhere = kvm_sregs { cr3: 0xdead_beef_f000, ..system };
        assert_eq!(kernel_mappings(memory, &ranges, &nowhere), []);
    }
}
