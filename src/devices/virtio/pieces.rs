//! Guest memory as the I/O vectors of readv(2), writev(2) and their kin. Worker threads.
#![allow(unsafe_code)] // pointers into guest memory, for the kernel only

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemory, Permissions};

use super::chain::Segment;
use crate::memory::GuestRam;

/// Most pieces of one system call (IOV_MAX).
pub const IOV_MAX: usize = 1024;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host to guest memory.
    Read,
    /// From guest memory to the host.
    Write,
}

/// Room for the pieces of one transfer, reused. Between transfers it is empty.
#[derive(Debug, Default)]
pub struct Pieces(Vec<libc::iovec>);

// SAFETY: the vector is empty between transfers, and within one, however long it is in flight, it does not change
// threads; an empty vector holds no pointer that could be used.
unsafe impl Send for Pieces {}

impl Pieces {
    /// Forgets all pieces. To be called at the end of a transfer.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds the pieces of guest RAM that make up `segments`; an error where one of them is not RAM.
    pub fn add(
        &mut self,
        direction: Direction,
        memory: &GuestRam,
        segments: impl Iterator<Item = Segment>,
    ) -> io::Result<()> {
        for segment in segments {
            for slice in slices(memory, segment, direction) {
                let slice = slice.map_err(|_| bad_address())?;
                let base = slice.ptr_guard_mut().as_ptr().cast();
                self.0.push(libc::iovec { iov_base: base, iov_len: slice.len() });
            }
        }
        Ok(())
    }

    /// The vectors, for a system call while the memory that they were made of is borrowed.
    pub fn as_mut_slice(&mut self) -> &mut [libc::iovec] {
        self.0.as_mut_slice()
    }

    /// Reads once: first into `before`, then into the pieces, then into `after`. Afterwards there are only the pieces
    /// again. They are those of RAM that the caller borrows.
    pub fn read_between(&mut self, fd: BorrowedFd<'_>, before: &mut [u8], after: &mut [u8]) -> io::Result<usize> {
        let own = |bytes: &mut [u8]| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        self.0.insert(0, own(before));
        self.0.push(own(after));
        let count = libc::c_int::try_from(self.0.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the first and the last vector are two slices that are borrowed for this call, the others ranges of guest
        // RAM that vm-memory checked when they were added and that stays mapped while it is borrowed; no Rust
        // reference into it exists.
        let read = unsafe { libc::readv(fd.as_raw_fd(), self.0.as_ptr(), count) };
        let result = usize::try_from(read).map_err(|_| io::Error::last_os_error());
        self.0.pop();
        self.0.remove(0);
        result
    }

    /// Leaves out the first `moved` bytes, for good.
    pub fn skip(&mut self, moved: usize) {
        let rest = advance(&mut self.0, moved).len();
        let gone = self.0.len().saturating_sub(rest);
        self.0.drain(..gone);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Notes that the kernel wrote to guest memory behind vm-memory's back.
pub fn mark_dirty(memory: &GuestRam, segments: impl Iterator<Item = Segment>) {
    for segment in segments {
        for slice in slices(memory, segment, Direction::Read).map_while(Result::ok) {
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
}

/// Leaves out the first `moved` bytes.
pub fn advance(mut pieces: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = pieces.first_mut() {
        if moved < first.iov_len {
            // SAFETY: `moved` is less than the piece's length, so the pointer stays inside the piece.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(moved) }.cast();
            first.iov_len = first.iov_len.saturating_sub(moved);
            break;
        }
        moved = moved.saturating_sub(first.iov_len);
        pieces = pieces.split_first_mut().map(|(_, rest)| rest).unwrap_or_default();
    }
    pieces
}

type Slice<'a> = vm_memory::VolatileSlice<'a, vm_memory::bitmap::BS<'a, <GuestRam as GuestMemory>::Bitmap>>;

/// The pieces of guest RAM that make up `segment`; an error where it is not RAM.
fn slices<'a>(
    memory: &'a GuestRam,
    segment: Segment,
    direction: Direction,
) -> impl Iterator<Item = Result<Slice<'a>, vm_memory::GuestMemoryError>> {
    let access = match direction {
        Direction::Read => Permissions::Write,
        Direction::Write => Permissions::Read,
    };
    let (found, failed) = match GuestMemory::get_slices(memory, segment.addr, length(segment.len), access) {
        Ok(found) => (Some(found), None),
        Err(error) => (None, Some(Err(error))),
    };
    found.into_iter().flatten().chain(failed)
}

fn length(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The error of a segment that is not RAM.
pub fn bad_address() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_transfer_goes_on_where_it_stopped() {
        let mut bytes = [0_u8; 12];
        let base = bytes.as_mut_ptr();
        let lens = |pieces: &[libc::iovec]| {
            pieces.iter().map(|it| (it.iov_base as usize - base as usize, it.iov_len)).collect::<Vec<_>>()
        };
        let piece = |at: usize, len| libc::iovec { iov_base: base.wrapping_add(at).cast(), iov_len: len };
        let whole = || [piece(0, 4), piece(4, 0), piece(4, 8)];
        assert_eq!(lens(advance(&mut whole(), 0)), [(0, 4), (4, 0), (4, 8)]);
        assert_eq!(lens(advance(&mut whole(), 3)), [(3, 1), (4, 0), (4, 8)]);
        assert_eq!(lens(advance(&mut whole(), 4)), [(4, 8)]);
        assert_eq!(lens(advance(&mut whole(), 11)), [(11, 1)]);
        assert_eq!(lens(advance(&mut whole(), 12)), []);
        assert_eq!(lens(advance(&mut whole(), 13)), []);
    }
}
