//! Guest memory goes back to the host, page by page or in runs of pages. Worker thread.
//!
//! madvise(MADV_DONTNEED, or MADV_REMOVE of shared memory): the host has the pages again, and the guest finds zeros should it
//! use them. Where a page was a private mapping of the kernel's file, it finds the file's bytes, and where one of a
//! snapshot's, what it had there itself at the save.
#![allow(unsafe_code)] // madvise(2) of guest memory

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions};

use crate::memory::GuestRam;
use crate::virtio::io::{Counters, count};

/// Bytes of a balloon page, whatever the guest's page size (5.5.6).
pub const PAGE: u64 = 4096;

/// Neighbouring page numbers, ascending or descending, that can be released at once: the first and how many.
#[derive(Debug, Default)]
pub struct Run(Option<(u64, u64)>);

impl Run {
    /// Adds a page; returns the run before, if the page is not its neighbour.
    pub fn add(&mut self, page: u64) -> Option<(u64, u64)> {
        match &mut self.0 {
            Some((first, len)) if page == first.saturating_add(*len) => *len = len.saturating_add(1),
            Some((first, len)) if page.saturating_add(1) == *first => (*first, *len) = (page, len.saturating_add(1)),
            run => return run.replace((page, 1)),
        }
        None
    }

    /// The run that has not been returned yet.
    pub fn take(&mut self) -> Option<(u64, u64)> {
        self.0.take()
    }
}

/// Gives pages back to the host. Those that are not RAM are passed over.
pub fn release(memory: &GuestRam, (first, pages): (u64, u64), counters: &Counters) {
    let (Some(start), Some(bytes)) = (first.checked_mul(PAGE), pages.checked_mul(PAGE)) else { return };
    let Ok(len) = usize::try_from(bytes) else { return };
    let Ok(slices) = GuestMemory::get_slices(memory, GuestAddress(start), len, Permissions::Write) else { return };
    // What other processes may map as well is a file's: a hole in it is what gives the pages back.
    let is_file = memory.iter().any(|region| region.file_offset().is_some());
    let advice = if is_file { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    for slice in slices.map_while(Result::ok) {
        let address = slice.ptr_guard_mut().as_ptr().cast();
        // SAFETY: the slice is whole pages of guest RAM, which stays mapped while `memory` is borrowed; no Rust
        // reference into it exists, and the guest gave up what is in it.
        let done = unsafe { libc::madvise(address, slice.len(), advice) };
        match done {
            0 => {
                slice.bitmap().mark_dirty(0, slice.len()); // its content has changed
                counters.moved_out(u64::try_from(slice.len()).unwrap_or(0));
            }
            _ => _ = count(&counters.failed, 1), // the host's 2 MiB pages can not be given back in parts
        }
    }
}
