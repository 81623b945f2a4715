//! The asynchronous engine: requests in flight in an io_uring(7). The disk's worker runs it.
//!
//! The kernel reads and writes guest memory until a request's completion was seen. So a ring is left only when nothing
//! is in flight, and the I/O vectors of a request stay where they are until then.
#![allow(unsafe_code)] // submission queue entries are pointers for the kernel

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::file::DiskFile;
use super::request::Request;
use crate::memory::GuestRam;
use crate::virtio::pieces::{self, Direction, IOV_MAX, Pieces};
use crate::virtio::{Held, Source};

/// Most requests in flight, and a power of two.
const DEPTH: u16 = 256;

/// A request of the driver, while it is in flight.
pub struct Job {
    /// The queue that it came from.
    pub queue: usize,
    /// Its chain.
    pub held: Held,
    /// Where its status byte belongs.
    pub status_at: u64,
    /// What it asks.
    pub request: Request,
    /// A write that is done when it is safe.
    pub through: bool,
    /// When it was taken from its queue.
    pub begun: Instant,
}

/// One place in flight. Its vectors are the kernel's while `job` is there.
#[derive(Default)]
struct Place {
    job: Option<Job>,
    pieces: Pieces,
    /// Bytes of the pieces that are moved.
    moved: usize,
    /// It is a flush, or has become one.
    flushing: bool,
}

/// The ring and what is in it.
pub struct Ring {
    uring: IoUring,
    event: EventFd,
    places: Vec<Place>,
    free: Vec<u16>,
    /// What the kernel has done and nobody has asked for yet.
    done: VecDeque<(u16, i32)>,
}

impl Ring {
    /// Asks the host for one.
    pub fn new() -> io::Result<Self> {
        let uring = IoUring::new(u32::from(DEPTH))?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        let places = std::iter::repeat_with(Place::default).take(usize::from(DEPTH)).collect();
        Ok(Self { uring, event, places, free: (0..DEPTH).rev().collect(), done: VecDeque::new() })
    }

    /// Ready when something is done. Nothing needs to be read.
    pub fn source(&self, token: u16) -> Source {
        Source { token, fd: self.event.as_raw_fd() }
    }

    /// Whether no more requests fit.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Takes a read, a write or a flush in, to be sent by [`Self::submit`]. Where that fails the job comes back, with
    /// the reason; nothing has happened then.
    pub fn begin(&mut self, file: &DiskFile, memory: &GuestRam, job: Job) -> Result<(), Box<(Job, io::Error)>> {
        let Some(index) = self.free.pop() else {
            return Err(Box::new((job, io::Error::other("too many requests are in flight"))));
        };
        let Some(place) = self.places.get_mut(usize::from(index)) else {
            return Err(Box::new((job, io::Error::other("there is no such place"))));
        };
        place.pieces.clear();
        let chain = job.held.chain(memory);
        let collected = match &job.request {
            Request::In { len, .. } => place.pieces.add(Direction::Read, memory, chain.writable_part(0..*len)),
            Request::Out { len, .. } => {
                let header = super::request::HEADER;
                place.pieces.add(Direction::Write, memory, chain.readable_part(header..len.saturating_add(header)))
            }
            _ => Ok(()),
        };
        if let Err(error) = collected {
            place.pieces.clear();
            self.free.push(index);
            return Err(Box::new((job, error)));
        }
        (place.moved, place.flushing) = (0, matches!(job.request, Request::Flush));
        // Nothing to move is done already; so that there is one way only, it is a no-op of the kernel.
        place.job = Some(job);
        self.push(index, file);
        Ok(())
    }

    /// Puts the rest of a place's work into the submission queue.
    fn push(&mut self, index: u16, file: &DiskFile) {
        let Some(place) = self.places.get_mut(usize::from(index)) else { return };
        let entry = place.entry(file).user_data(u64::from(index));
        loop {
            // SAFETY: the entry's vectors are the place's own, which stay as they are until its completion was seen
            // (`finish` is the only one who clears them); they point into guest RAM, which outlives the device; the
            // descriptor is the disk's, which is closed after the ring was emptied (`Block::stopping`, `Block::change`).
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit(); // it is full: not with as many entries as places, but then this makes room
        }
    }

    /// Sends everything to the kernel.
    pub fn submit(&mut self) {
        self.enter(0);
    }

    /// Sends everything, and waits for `want` completions. Where the host is short of memory it asks again.
    fn enter(&mut self, want: usize) {
        while let Err(error) = self.uring.submit_and_wait(want) {
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            if want > 0 && !self.uring.completion().is_empty() {
                return;
            }
        }
    }

    /// The next job that is done, and how it ended. A job that was done in part goes on.
    pub fn next(&mut self, file: &DiskFile) -> Option<(Job, io::Result<()>)> {
        loop {
            if self.done.is_empty() {
                let ended =
                    self.uring.completion().map(|it| (u16::try_from(it.user_data()).unwrap_or(DEPTH), it.result()));
                self.done.extend(ended);
            }
            let (index, result) = self.done.pop_front()?;
            let Some(place) = self.places.get_mut(usize::from(index)) else { continue };
            if let Some(ended) = place.went(result) {
                return self.finish(index).map(|job| (job, ended));
            }
            self.push(index, file);
            self.submit();
        }
    }

    /// As [`Self::next`], but waits for it. Nothing when nothing is in flight.
    pub fn wait(&mut self, file: &DiskFile) -> Option<(Job, io::Result<()>)> {
        loop {
            if let Some(ended) = self.next(file) {
                return Some(ended);
            }
            if self.is_idle() {
                return None;
            }
            self.enter(1);
        }
    }

    /// Frees a place whose work the kernel has ended.
    fn finish(&mut self, index: u16) -> Option<Job> {
        let place = self.places.get_mut(usize::from(index))?;
        place.pieces.clear();
        let job = place.job.take();
        if job.is_some() {
            self.free.push(index);
        }
        job
    }
}

impl Place {
    /// What the kernel is asked to do next.
    fn entry(&mut self, file: &DiskFile) -> Entry {
        let fd = Fd(file.file.as_raw_fd());
        if self.flushing {
            return opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
        }
        let rest = pieces::advance(self.pieces.as_mut_slice(), 0);
        let count = u32::try_from(rest.len().min(IOV_MAX)).unwrap_or(0);
        let moved = u64::try_from(self.moved).unwrap_or(0);
        match self.job.as_ref().map(|job| &job.request) {
            Some(Request::In { offset, .. }) if count > 0 => {
                opcode::Readv::new(fd, rest.as_ptr(), count).offset(offset.saturating_add(moved)).build()
            }
            Some(Request::Out { offset, .. }) if count > 0 => {
                opcode::Writev::new(fd, rest.as_ptr(), count).offset(offset.saturating_add(moved)).build()
            }
            _ => opcode::Nop::new().build(),
        }
    }

    /// The kernel did `result`: how the job ended, or nothing when there is more to do.
    fn went(&mut self, result: i32) -> Option<io::Result<()>> {
        if matches!(result.wrapping_neg(), libc::EINTR | libc::EAGAIN) {
            return None;
        }
        let Ok(moved) = usize::try_from(result) else {
            return Some(Err(io::Error::from_raw_os_error(result.wrapping_neg())));
        };
        if self.flushing {
            return Some(Ok(()));
        }
        let wanted = match self.job.as_ref().map(|job| &job.request) {
            Some(Request::In { len, .. } | Request::Out { len, .. }) => usize::try_from(*len).unwrap_or(usize::MAX),
            _ => 0,
        };
        self.moved = self.moved.saturating_add(moved);
        if self.moved < wanted {
            if moved == 0 {
                return Some(Err(io::ErrorKind::UnexpectedEof.into())); // the file shrank
            }
            self.pieces.skip(moved);
            return None;
        }
        if self.job.as_ref().is_some_and(|job| job.through) {
            self.flushing = true;
            return None;
        }
        Some(Ok(()))
    }
}
