//! Guest RAM on the host: one mapping per range of guest-physical addresses, of anonymous memory, or of one memfd where
//! another process serves a device (vhost-user).
//!
//! Mapped by the control thread before anything runs. Nothing here scales with the size: pages appear when touched.
#![allow(unsafe_code)] // mmap(2), madvise(2) and munmap(2) of memory that the guest will use

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use devices::memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRam, SharedRam};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::{FileOffset, GuestRegionMmap, MmapRegion};

use crate::config::HugePages;
use crate::error::{Doing, HostError};
use crate::plan::RamRange;
use crate::resident::touched;
use crate::sparse;

/// Ranges are aligned on the host as huge pages are, so that a guest's huge page can be one of the host's.
const ALIGN: usize = 2 << 20;

/// Bytes of a page of the host.
pub const PAGE: u64 = 4096;

/// Guest RAM and the host mappings behind it.
///
/// Dropping it unmaps the memory. Whoever holds a [`SharedRam`] must be gone by then; the machine joins all threads
/// first.
pub struct Ram {
    guest: SharedRam,
    mappings: Vec<Mapping>,
    kind: RamKind,
    /// Where files are mapped: guest address and length.
    shown: Mutex<Vec<(u64, u64)>>,
}

/// What kind of memory guest RAM is.
#[derive(Debug, Clone, Copy, Default)]
pub struct RamKind {
    /// The host's pages.
    pub pages: HugePages,
    /// The monitor's own writes are recorded page by page.
    pub dirty: bool,
    /// Another process can be given the memory: it is a memfd's, of which each region knows its part.
    pub shared: bool,
}

/// A mapping of this process, unmapped on drop.
struct Mapping {
    addr: *mut libc::c_void,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; this is only its address and its owner.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `addr..addr + len` was mapped by `map_aligned` and belongs to this value alone.
        unsafe { libc::munmap(self.addr, self.len) };
    }
}

impl Ram {
    /// Maps `ranges`.
    pub fn map(ranges: &[RamRange], kind: RamKind) -> Result<Self, HostError> {
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        let file = kind.shared.then(|| memory_file(ranges, kind.pages)).transpose()?.map(Arc::new);
        let mut offset = 0;
        for range in ranges {
            let len = usize::try_from(range.len).doing(|| "map guest memory")?;
            let part = file.as_ref().map(|file| FileOffset::from_arc(file.clone(), offset));
            offset += range.len;
            let mapping = map_aligned(len, kind.pages, part.as_ref()).doing(|| refusal(len, kind.pages))?;
            let bitmap = kind.dirty.then(|| AtomicBitmap::with_len(len));
            let backing = if kind.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
            // SAFETY: the mapping was just made, is `len` bytes long and outlives the region (see `Ram`).
            let mut builder = unsafe {
                vm_memory::mmap::MmapRegionBuilder::new_with_bitmap(len, bitmap)
                    .with_raw_mmap_pointer(mapping.addr.cast())
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(backing | libc::MAP_NORESERVE)
            };
            if let Some(part) = part {
                builder = builder.with_file_offset(part);
            }
            let region: MmapRegion<Option<AtomicBitmap>> = builder.build().doing(|| "map guest memory")?;
            let region = GuestRegionMmap::new(region, GuestAddress(range.start))
                .ok_or_else(|| HostError::new("map guest memory", io::Error::from_raw_os_error(libc::EINVAL)))?;
            regions.push(region);
            mappings.push(mapping);
        }
        let guest = GuestRam::from_regions(regions).doing(|| "map guest memory")?;
        Ok(Self { guest: Arc::new(guest), mappings, kind, shown: Mutex::default() })
    }

    /// The memory as devices and loaders use it.
    pub fn guest(&self) -> &SharedRam {
        &self.guest
    }

    /// Bytes mapped.
    pub fn size(&self) -> u64 {
        self.mappings.iter().map(|mapping| mapping.len as u64).sum()
    }

    /// Guest address, length and host address of every range: what KVM wants to know.
    pub fn slots(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.guest.iter().map(|region| (region.start_addr().0, region.len(), region.as_ptr() as u64))
    }

    /// Puts `len` bytes of `file` from `offset` at `gpa`.
    ///
    /// On ordinary pages, whole pages are mapped privately from the host's page cache: nothing is copied until someone
    /// writes to a page, and several VMs share one copy of their kernel. On huge pages everything is read, so that a
    /// few faults of the guest bring in all of it; in shared memory too, so that who else maps it sees it.
    pub fn place(&self, file: &File, offset: u64, len: u64, gpa: u64) -> io::Result<()> {
        let end = gpa.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let head = gpa.next_multiple_of(PAGE).min(end) - gpa;
        let whole = (len - head) / PAGE * PAGE;
        let mappable = self.kind.pages == HugePages::None && offset % PAGE == gpa % PAGE && whole > 0;
        if !mappable || !self.show(file, offset + head, whole, gpa + head)? {
            return self.read_in(file, offset, len, gpa);
        }
        self.read_in(file, offset, head, gpa)?;
        self.read_in(file, offset + head + whole, len - head - whole, gpa + head + whole)
    }

    /// Puts whole pages of `file` at `gpa` as [`Self::place`] does on ordinary pages, whatever the others are. Pages of the host's
    /// pool, and memory that others map, are read in.
    pub fn place_lazily(&self, file: &File, offset: u64, len: u64, gpa: u64) -> io::Result<()> {
        let mappable = self.kind.pages != HugePages::TwoMib;
        if mappable && self.show(file, offset, len, gpa)? { Ok(()) } else { self.read_in(file, offset, len, gpa) }
    }

    /// Maps whole pages of a file privately over memory; false where that can not be.
    fn show(&self, file: &File, offset: u64, len: u64, gpa: u64) -> io::Result<bool> {
        if self.kind.shared {
            return Ok(false);
        }
        let Ok(slice) = self.guest.get_slice(GuestAddress(gpa), len as usize) else { return Ok(false) };
        let addr = slice.ptr_guard_mut().as_ptr();
        // SAFETY: `addr..addr + len` lies in one region of guest RAM (get_slice checked it) that this value owns, both
        // ends are page-aligned, and no Rust reference into guest RAM exists anywhere; only its backing changes.
        let mapped = unsafe {
            libc::mmap(
                addr.cast(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            // MAP_FIXED may have removed the old mapping already: whoever asked must give up.
            return Err(io::Error::last_os_error());
        }
        keep_private(mapped, len as usize);
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).push((gpa, len));
        Ok(true)
    }

    /// Where there may be something else than zeros: guest addresses and lengths, whole pages, not in order, some more than once.
    pub fn used(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut used = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for region in self.guest.iter() {
            let (gpa, len) = (region.start_addr().0, region.len());
            let found = match region.file_offset() {
                Some(part) => sparse::data(part.file(), part.start()..part.start() + len)?,
                None => touched(region.as_ptr() as u64, len)?,
            };
            used.extend(found.into_iter().map(|range| (gpa + range.start, range.end - range.start)));
        }
        Ok(used)
    }

    fn read_in(&self, mut file: &File, offset: u64, len: u64, gpa: u64) -> io::Result<()> {
        file.seek(SeekFrom::Start(offset))?;
        // In pieces: one read may not span two regions.
        let mut done = 0;
        while done < len {
            let at = GuestAddress(gpa + done);
            let region = self.guest.find_region(at).ok_or(io::ErrorKind::InvalidInput)?;
            let room = region.last_addr().0 - at.0 + 1;
            let piece = room.min(len - done);
            self.guest.read_exact_volatile_from(at, &mut file, piece as usize).map_err(io::Error::other)?;
            done += piece;
        }
        Ok(())
    }
}

fn refusal(len: usize, pages: HugePages) -> String {
    let mib = len >> 20;
    match pages {
        HugePages::TwoMib => format!(
            "map {mib} MiB of guest memory from the host's 2 MiB page pool (machine-config.huge_pages is \"2M\"; the \
             pool's free pages are HugePages_Free in /proc/meminfo, and vm.nr_hugepages sets its size)"
        ),
        _ => format!("map {mib} MiB of guest memory (machine-config.mem_size_mib)"),
    }
}

/// A file in memory for all of `ranges`. Nobody can change its size: a process that it is given to could else take pages
/// from under the monitor's feet (SIGBUS).
fn memory_file(ranges: &[RamRange], pages: HugePages) -> Result<File, HostError> {
    let doing = || "create guest memory that another process can map (memfd_create)";
    let huge =
        if pages == HugePages::TwoMib { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | huge;
    let file = File::from(memfd_create("guest-ram", flags).map_err(io::Error::from).doing(doing)?);
    file.set_len(ranges.iter().map(|range| range.len).sum()).doing(doing)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(io::Error::from).doing(doing)?;
    Ok(file)
}

/// Maps `len` bytes, of `part` where there is one.
fn map_aligned(len: usize, pages: HugePages, part: Option<&FileOffset>) -> io::Result<Mapping> {
    if pages == HugePages::TwoMib {
        // Reserved at once, so that a pool that is too small is an error here and not a SIGBUS later.
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        let mapping = map_raw(ptr::null_mut(), len, if part.is_some() { libc::MAP_SHARED } else { private }, part)?;
        keep_private(mapping.addr, len);
        return Ok(mapping);
    }
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let slack = len.checked_add(ALIGN).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let whole = map_raw(ptr::null_mut(), slack, anonymous, None)?;
    let start = whole.addr as usize;
    let aligned = start.next_multiple_of(ALIGN);
    let whole_end = start + slack;
    std::mem::forget(whole);
    for (from, to) in [(start, aligned), (aligned + len, whole_end)] {
        if from < to {
            // SAFETY: the slack before and after the aligned part of the mapping just made; nothing uses it.
            unsafe { libc::munmap(from as *mut libc::c_void, to - from) };
        }
    }
    let mapping = Mapping { addr: aligned as *mut libc::c_void, len };
    if part.is_some() {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        std::mem::forget(map_raw(mapping.addr, len, flags, part)?); // the same range: it has its owner
    }
    if pages == HugePages::Transparent {
        // SAFETY: advice about the mapping just made. A kernel without transparent huge pages refuses: no harm done.
        unsafe { libc::madvise(mapping.addr, len, libc::MADV_HUGEPAGE) };
    }
    keep_private(mapping.addr, len);
    Ok(mapping)
}

/// Guest memory has no place in a core dump of the monitor, nor in a child.
fn keep_private(addr: *mut libc::c_void, len: usize) {
    // SAFETY: advice about a mapping that the caller just made; neither kind changes what is in it.
    unsafe {
        libc::madvise(addr, len, libc::MADV_DONTDUMP);
        libc::madvise(addr, len, libc::MADV_DONTFORK);
    }
}

/// With MAP_FIXED, `over` must be a mapping that nothing uses.
fn map_raw(over: *mut libc::c_void, len: usize, flags: libc::c_int, part: Option<&FileOffset>) -> io::Result<Mapping> {
    let (fd, offset) = part.map_or((-1, 0), |part| (part.file().as_raw_fd(), part.start()));
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping touches nothing that exists: its address is the kernel's choice, or that of an unused mapping
    // which the caller gives up.
    let addr = unsafe { libc::mmap(over, len, access, flags, fd, offset as libc::off_t) };
    if addr == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Mapping { addr, len }) }
}

/// `len` bytes of ordinary guest RAM from address 0, for tests.
#[cfg(test)]
pub(crate) fn test_ram(len: u64) -> Ram {
    let kind = RamKind { pages: HugePages::None, ..RamKind::default() };
    Ram::map(&[RamRange { start: 0, len }], kind).expect("memory for a test")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn ram() -> Ram {
        ram_of(HugePages::None, false)
    }

    fn ram_of(pages: HugePages, shared: bool) -> Ram {
        let ranges = [RamRange { start: 0, len: 4 << 20 }, RamRange { start: 1 << 32, len: 2 << 20 }];
        Ram::map(&ranges, RamKind { pages, dirty: false, shared }).unwrap()
    }

    #[test]
    fn shared_memory_is_one_file_of_a_fixed_size() {
        use std::os::unix::fs::FileExt;

        let ram = ram_of(HugePages::Transparent, true);
        assert!(ram.slots().all(|(.., host)| host % ALIGN as u64 == 0));
        let parts: Vec<_> = ram.guest().iter().map(|region| region.file_offset().unwrap()).collect();
        assert_eq!(parts.iter().map(|part| part.start()).collect::<Vec<_>>(), [0, 4 << 20]);
        ram.guest().write_slice(b"high", GuestAddress((1 << 32) + 8)).unwrap();
        let mut seen = [0; 4];
        parts[0].file().read_exact_at(&mut seen, (4 << 20) + 8).unwrap();
        assert_eq!(&seen, b"high");
        assert!(parts[0].file().set_len(0).is_err() && parts[0].file().set_len(8 << 20).is_err());
    }

    #[test]
    fn slots_are_aligned_like_huge_pages() {
        let ram = ram();
        assert_eq!(ram.size(), 6 << 20);
        let slots: Vec<_> = ram.slots().collect();
        assert_eq!(slots.len(), 2);
        assert!(slots.iter().all(|&(_, _, host)| host % ALIGN as u64 == 0));
    }

    #[test]
    fn places_a_file_whatever_its_alignment() {
        for (pages, shared) in [(HugePages::None, false), (HugePages::Transparent, false), (HugePages::None, true)] {
            places_a_file(&ram_of(pages, shared));
        }
    }

    fn places_a_file(ram: &Ram) {
        let bytes: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        for (offset, len, gpa) in [(0, 20_000, 0x10_0000), (4096, 8192, 0x11_0000), (100, 9000, 0x12_0064), (7, 50, 3)]
        {
            ram.place(&file, offset, len, gpa).unwrap();
            let mut seen = vec![0; len as usize];
            ram.guest().read_slice(&mut seen, GuestAddress(gpa)).unwrap();
            assert_eq!(seen, bytes[offset as usize..(offset + len) as usize], "{offset} {len} {gpa:#x}");
        }
        // Guest writes stay private.
        ram.guest().write_slice(&[0xee; 4], GuestAddress(0x10_0000)).unwrap();
        ram.place(&file, 0, 4096, 0x18_0000).unwrap();
        let first: u8 = ram.guest().read_obj(GuestAddress(0x18_0000)).unwrap();
        assert_eq!(first, 0);
    }

    #[test]
    fn a_short_file_and_an_address_outside_ram_are_errors() {
        let ram = ram();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 100]).unwrap();
        assert!(ram.place(&file, 0, 200, 0x1001).is_err());
        assert!(ram.place(&file, 0, 100, 1 << 30).is_err());
    }

    #[test]
    fn a_refused_mapping_says_what_to_look_at() {
        let ranges = [RamRange { start: 0, len: 1 << 60 }];
        let error = Ram::map(&ranges, RamKind::default()).err().unwrap();
        assert!(error.to_string().contains("machine-config.mem_size_mib"), "{error}");
    }
}
