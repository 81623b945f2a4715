//! A window: memory of this process, backed by a file, that the guest will see at addresses of its own.
//!
//! A device makes it and lists it in its `Facts`; the machine gives it a place and keeps it as long as the VM has it. The
//! monitor itself never goes through the mapping (`changes.rs` has another way), and guest RAM does not contain it: a file that
//! someone truncates meanwhile can therefore stop the guest, but not kill the monitor by SIGBUS, whatever addresses a guest puts
//! into its rings.
#![allow(unsafe_code)] // mmap(2), madvise(2) and munmap(2)

mod changes;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use crate::bus::BusDevice;
use crate::log_limit::LogLimit;

/// A window's length, and its address on the host, are multiples of this: Linux maps persistent memory by the pages of
/// 2 MiB, and KVM can then do so, too.
pub const WINDOW_ALIGN: u64 = 2 << 20;

/// What becomes of the guest's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// They are in the file.
    Shared,
    /// They stay in this VM, and nobody else sees them.
    Private,
    /// There are none.
    Refused,
}

/// A mapping of this process, unmapped on drop.
#[derive(Debug)]
pub struct Window {
    addr: *mut libc::c_void,
    len: usize,
    writes: Writes,
}

// SAFETY: a mapping belongs to the process, not to a thread; this is only its address, and nothing here goes through it.
unsafe impl Send for Window {}
// SAFETY: as above; no method changes anything.
unsafe impl Sync for Window {}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: `addr..addr + len` was mapped by `of_file` and belongs to this value alone; no reference into it exists.
        unsafe { libc::munmap(self.addr, self.len) };
    }
}

/// The length of a window that holds `len` bytes of a file.
pub fn window_len(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(WINDOW_ALIGN)
}

impl Window {
    /// Maps the first `len` bytes of `file`, at least one. The rest of the last 2 MiB is memory of zeros without a file.
    pub fn of_file(file: &File, len: u64, writes: Writes) -> io::Result<Arc<Self>> {
        let too_long = || io::Error::from_raw_os_error(libc::EOVERFLOW);
        let whole = window_len(len).and_then(|len| usize::try_from(len).ok()).ok_or_else(too_long)?;
        let align = usize::try_from(WINDOW_ALIGN).unwrap_or(usize::MAX);
        let reserved = whole.checked_add(align).ok_or_else(too_long)?;
        let protection = libc::PROT_READ | if writes == Writes::Refused { 0 } else { libc::PROT_WRITE };
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), reserved, protection, anonymous, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ahead = base.addr().next_multiple_of(align).saturating_sub(base.addr());
        let addr = base.wrapping_byte_add(ahead);
        let behind = align.saturating_sub(ahead);
        for (start, unused) in [(base, ahead), (addr.wrapping_byte_add(whole), behind)] {
            if unused > 0 {
                // SAFETY: the parts before and behind the aligned `whole` bytes of the new mapping; nothing uses them.
                unsafe { libc::munmap(start, unused) };
            }
        }
        // From here on dropping it unmaps what is left.
        let window = Self { addr, len: whole, writes };
        let of_file = libc::MAP_FIXED
            | libc::MAP_NORESERVE
            | if writes == Writes::Private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        let len = usize::try_from(len).map_err(|_| too_long())?;
        // SAFETY: `len` bytes, and what rounds them up to a page, lie in the mapping that this value owns.
        let mapped = unsafe { libc::mmap(addr, len, protection, of_file, file.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: advice about the mapping of this value; neither kind changes what is in it. A child that had the mapping
        // would hold the file's lock.
        unsafe {
            libc::madvise(addr, whole, libc::MADV_DONTDUMP);
            libc::madvise(addr, whole, libc::MADV_DONTFORK);
        }
        Ok(Arc::new(window))
    }

    /// Where it is in this process, for KVM.
    pub fn host_address(&self) -> u64 {
        self.addr as u64
    }

    /// Bytes: a multiple of [`WINDOW_ALIGN`], at least one.
    pub fn size(&self) -> u64 {
        u64::try_from(self.len).unwrap_or(u64::MAX)
    }

    /// What becomes of the guest's writes.
    pub fn writes(&self) -> Writes {
        self.writes
    }
}

/// Where the guest's writes to a window that refuses them end: each one is an exit, and does nothing. vCPU threads.
pub struct Refusal {
    id: String,
}

impl Refusal {
    /// For the window of the device `id`.
    pub fn new(id: &str) -> Self {
        Self { id: id.to_owned() }
    }
}

impl BusDevice for Refusal {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff); // reads of such a window make no exit
    }

    fn write(&mut self, offset: u64, _data: &[u8]) {
        static LIMIT: LogLimit = LogLimit::new();
        if let Some(suppressed) = LIMIT.check() {
            let device = &self.id;
            tracing::warn!(device, offset, suppressed, "the guest writes to read-only memory; nothing is written");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: u64 = 1 << 20;

    pub(super) fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    pub(super) fn peek(window: &Window, at: usize) -> u8 {
        // SAFETY: the window is readable, and the tests stay inside.
        unsafe { window.addr.cast::<u8>().add(at).read_volatile() }
    }

    pub(super) fn poke(window: &Window, at: usize, byte: u8) {
        // SAFETY: the tests write to writable windows only, and stay inside.
        unsafe { window.addr.cast::<u8>().add(at).write_volatile(byte) };
    }

    #[test]
    fn is_the_file_and_zeros_behind_it() {
        for (len, whole) in [(1, 2 * MIB), (5000, 2 * MIB), (2 * MIB, 2 * MIB), (2 * MIB + 1, 4 * MIB)] {
            let file = file(&vec![0x5a; usize::try_from(len).unwrap()]);
            let window = Window::of_file(&file, len, Writes::Refused).unwrap();
            assert_eq!(window.size(), whole);
            assert_eq!(window.host_address() % WINDOW_ALIGN, 0);
            let len = usize::try_from(len).unwrap();
            assert_eq!((peek(&window, 0), peek(&window, len - 1)), (0x5a, 0x5a));
            let last = usize::try_from(whole).unwrap() - 1;
            assert_eq!(peek(&window, last), if len > last { 0x5a } else { 0 }, "{len}");
        }
    }

    #[test]
    fn writes_go_where_they_shall() {
        use std::os::unix::fs::FileExt;
        for (writes, reaches) in [(Writes::Shared, 7), (Writes::Private, 1)] {
            let file = file(&[1; 4096]);
            let window = Window::of_file(&file, 4096, writes).unwrap();
            poke(&window, 100, 7);
            poke(&window, 5000, 8); // behind the file: memory
            assert_eq!((peek(&window, 100), peek(&window, 5000)), (7, 8));
            let mut byte = [0];
            file.read_exact_at(&mut byte, 100).unwrap();
            assert_eq!(byte[0], reaches, "{writes:?}");
            assert_eq!(file.metadata().unwrap().len(), 4096);
        }
    }

    #[test]
    fn a_file_that_can_not_be_mapped_is_an_error() {
        assert!(Window::of_file(&File::open("/").unwrap(), 4096, Writes::Refused).is_err());
        assert!(Window::of_file(&file(b"x"), u64::MAX, Writes::Refused).is_err());
        assert_eq!(window_len(u64::MAX), None);
    }
}
