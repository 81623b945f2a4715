//! Bytes between guest memory and the file behind a disk, and holes and zeros in it. The disk's worker runs it.
//!
//! preadv(2) and pwritev(2) go straight to guest memory. With O_DIRECT the guest's buffers may be aligned less than the
//! host wants: their bytes then take a detour over a buffer that is, and sectors that are not whole blocks of the host
//! take one over the page cache.
#![allow(unsafe_code)] // preadv(2), pwritev(2), fallocate(2), fcntl(2) and ioctl(2)

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::Bytes;

use super::file::DiskFile;
use super::request::Extent;
use crate::memory::GuestRam;
use crate::virtio::chain::Segment;
use crate::virtio::pieces::{self, Direction, IOV_MAX, Pieces};

/// linux/fs.h: give a range of a block device back; make it zero. Both take an offset and a length.
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// Bytes of the buffer for detours.
const BOUNCE: usize = 256 << 10;
/// The largest alignment that is known to be asked for: a page.
const PAGE: usize = 4096;

/// What O_DIRECT asks of a file's requests, bytes: powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Of buffers in memory.
    pub memory: u64,
    /// Of places and lengths in the file.
    pub offset: u64,
}

/// A buffer that O_DIRECT takes.
#[derive(Debug, Default)]
pub struct Bounce(Vec<u8>);

impl Bounce {
    /// The buffer; made when it is used for the first time.
    fn bytes(&mut self) -> &mut [u8] {
        if self.0.is_empty() {
            self.0 = vec![0; BOUNCE.saturating_add(PAGE)];
        }
        let skip = self.0.as_ptr().align_offset(PAGE).min(PAGE);
        self.0.get_mut(skip..skip.saturating_add(BOUNCE)).unwrap_or_default()
    }
}

/// How the bytes of a request go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Between guest memory and the file.
    Straight,
    /// Over a buffer that is aligned as O_DIRECT wants it.
    Bounced,
    /// Over the host's page cache.
    Cached,
}

impl DiskFile {
    /// Moves all bytes of `segments` from or to the file at `offset`, or fails; it may have moved some of them then.
    pub fn transfer(
        &mut self,
        direction: Direction,
        memory: &GuestRam,
        segments: impl Iterator<Item = Segment> + Clone,
        offset: u64,
    ) -> io::Result<()> {
        let moved = match self.parts {
            None => self.move_file(direction, memory, segments.clone(), offset),
            Some(_) => self.move_parts(direction, memory, segments.clone(), offset),
        };
        self.pieces.clear();
        if direction == Direction::Read {
            pieces::mark_dirty(memory, segments); // some of it may have arrived even where the read failed
        }
        moved
    }

    fn move_file(
        &mut self,
        direction: Direction,
        memory: &GuestRam,
        segments: impl Iterator<Item = Segment> + Clone,
        offset: u64,
    ) -> io::Result<()> {
        self.pieces.clear();
        self.pieces.add(direction, memory, segments.clone())?;
        match self.way(offset) {
            Way::Straight => move_all(&self.file, &mut self.pieces, direction, offset),
            Way::Cached => self.cached(|disk| move_all(&disk.file, &mut disk.pieces, direction, offset)),
            Way::Bounced => self.bounce_all(direction, memory, segments, offset),
        }
    }

    /// How the bytes of `segments` would go.
    pub fn way_of(
        &mut self,
        direction: Direction,
        memory: &GuestRam,
        segments: impl Iterator<Item = Segment>,
        offset: u64,
    ) -> Way {
        if self.direct.is_none() {
            return Way::Straight;
        }
        self.pieces.clear();
        let way = self.pieces.add(direction, memory, segments).map_or(Way::Cached, |()| self.way(offset));
        self.pieces.clear();
        way
    }

    /// How the collected pieces can go.
    fn way(&mut self, offset: u64) -> Way {
        let Some(needs) = self.direct else { return Way::Straight };
        let (mut total, mut straight) = (0_u64, true);
        for piece in self.pieces.as_mut_slice() {
            let (base, len) = (piece.iov_base as u64, u64::try_from(piece.iov_len).unwrap_or(u64::MAX));
            straight &= base.is_multiple_of(needs.memory) && len.is_multiple_of(needs.offset);
            total = total.saturating_add(len);
        }
        match offset.is_multiple_of(needs.offset) && total.is_multiple_of(needs.offset) {
            true if straight => Way::Straight,
            true => Way::Bounced,
            false => Way::Cached,
        }
    }

    /// Runs `what` with the page cache in between, also where the file goes past it.
    fn cached<T>(&mut self, what: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.direct.is_none() {
            return what(self);
        }
        self.set_direct(false)?;
        let done = what(self);
        self.set_direct(true)?;
        done
    }

    fn set_direct(&self, direct: bool) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        // SAFETY: the descriptor is open, and these two commands take and give integers.
        let done = unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFL);
            let flags = if direct { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
            libc::fcntl(fd, libc::F_SETFL, flags)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn bounce_all(
        &mut self,
        direction: Direction,
        memory: &GuestRam,
        segments: impl Iterator<Item = Segment>,
        mut offset: u64,
    ) -> io::Result<()> {
        // One piece of guest memory after the other fills the buffer, or is filled from it.
        let mut rest: Vec<Segment> = segments.collect();
        rest.reverse();
        while !rest.is_empty() {
            let mut batch = Vec::new();
            let mut filled = 0_usize;
            while let Some(segment) = rest.pop() {
                let len = usize::try_from(segment.len).map_err(|_| pieces::bad_address())?;
                let now = len.min(BOUNCE.saturating_sub(filled));
                if now == 0 {
                    rest.push(segment);
                    break;
                }
                let taken = u32::try_from(now).map_err(|_| pieces::bad_address())?;
                batch.push((filled, Segment { addr: segment.addr, len: taken }, now));
                filled = filled.saturating_add(now);
                if now < len {
                    let addr = vm_memory::Address::checked_add(&segment.addr, u64::from(taken));
                    let addr = addr.ok_or_else(pieces::bad_address)?;
                    rest.push(Segment { addr, len: segment.len.saturating_sub(taken) });
                }
            }
            let buffer = self.bounce.bytes().get_mut(..filled).ok_or_else(pieces::bad_address)?;
            if direction == Direction::Read {
                self.file.read_exact_at(buffer, offset)?;
            }
            for (at, segment, len) in batch {
                let part = buffer.get_mut(at..at.saturating_add(len)).ok_or_else(pieces::bad_address)?;
                match direction {
                    Direction::Read => memory.write_slice(part, segment.addr),
                    Direction::Write => memory.read_slice(part, segment.addr),
                }
                .map_err(|_| pieces::bad_address())?;
            }
            if direction == Direction::Write {
                self.file.write_all_at(buffer, offset)?;
            }
            offset = offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Gives the bytes of `extent` back to the host. They may read as anything until they are written again.
    pub fn discard(&self, extent: Extent) -> io::Result<()> {
        if extent.len == 0 {
            return Ok(());
        }
        match self.is_block_device {
            true => self.block_ioctl(BLKDISCARD, extent),
            false => self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, extent),
        }
    }

    /// Makes the bytes of `extent` zero, in the cheapest way that the host has; at worst by writing zeros.
    pub fn zero(&mut self, extent: Extent) -> io::Result<()> {
        if extent.len == 0 {
            return Ok(());
        }
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let mut done = Err(unsupported());
        if extent.unmap {
            done = self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | keep, extent);
        }
        if is_unsupported(&done) {
            done = match self.is_block_device {
                true => self.block_ioctl(BLKZEROOUT, extent),
                false => self.fallocate(libc::FALLOC_FL_ZERO_RANGE | keep, extent),
            };
        }
        if is_unsupported(&done) {
            done = self.cached(|disk| disk.write_zeros(extent));
        }
        done
    }

    fn write_zeros(&mut self, extent: Extent) -> io::Result<()> {
        static ZERO: [u8; 64 << 10] = [0; 64 << 10];
        let (mut offset, mut left) = (extent.offset, extent.len);
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(ZERO.len());
            self.file.write_all_at(ZERO.get(..now).unwrap_or_default(), offset)?;
            let now = u64::try_from(now).unwrap_or(u64::MAX);
            (offset, left) = (offset.saturating_add(now), left.saturating_sub(now));
        }
        Ok(())
    }

    fn fallocate(&self, mode: libc::c_int, extent: Extent) -> io::Result<()> {
        let place = |bytes| libc::off_t::try_from(bytes).map_err(|_| pieces::bad_address());
        let (offset, len) = (place(extent.offset)?, place(extent.len)?);
        // SAFETY: the descriptor is open; the rest are integers.
        retried(|| unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) })
    }

    fn block_ioctl(&self, request: libc::Ioctl, extent: Extent) -> io::Result<()> {
        let range: [u64; 2] = [extent.offset, extent.len];
        // SAFETY: both requests read two u64 through the pointer, which lives across the call.
        retried(|| unsafe { libc::ioctl(self.file.as_raw_fd(), request, range.as_ptr()) })
    }
}

/// Moves all bytes of `pieces`, which are those of RAM that the caller borrows, from or to `file` at `offset`.
pub fn move_all(file: &File, pieces: &mut Pieces, direction: Direction, offset: u64) -> io::Result<()> {
    let mut offset = libc::off_t::try_from(offset).map_err(|_| pieces::bad_address())?;
    let mut rest = pieces.as_mut_slice();
    while !rest.is_empty() {
        let count = libc::c_int::try_from(rest.len().min(IOV_MAX)).unwrap_or(0);
        let fd = file.as_raw_fd();
        // SAFETY: the first `count` entries of `rest` are ranges of guest RAM that vm-memory checked as they were
        // added; the RAM stays mapped while `memory` is borrowed by our caller, and no Rust reference into it exists.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::preadv(fd, rest.as_ptr(), count, offset),
                Direction::Write => libc::pwritev(fd, rest.as_ptr(), count, offset),
            }
        };
        let Ok(moved) = usize::try_from(moved) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into()); // the file shrank
        }
        offset = offset.saturating_add(libc::off_t::try_from(moved).unwrap_or(libc::off_t::MAX));
        rest = pieces::advance(rest, moved);
    }
    Ok(())
}

/// Repeats a system call that a signal interrupts.
fn retried(call: impl Fn() -> libc::c_int) -> io::Result<()> {
    loop {
        if call() == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn unsupported() -> io::Error {
    io::Error::from_raw_os_error(libc::EOPNOTSUPP)
}

/// Whether the host says that the file, not the disk, is at fault.
pub fn is_unsupported(done: &io::Result<()>) -> bool {
    let number = done.as_ref().err().and_then(io::Error::raw_os_error);
    matches!(number, Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY))
}
