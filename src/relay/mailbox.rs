//! What other threads hand to one that waits for files: a list, and a file that can be read when something was put there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Where it is put, and taken from.
#[derive(Debug)]
pub struct Mailbox<T> {
    event: OwnedFd,
    inside: Mutex<Vec<T>>,
}

impl<T> Mailbox<T> {
    /// An empty one.
    pub fn new() -> io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { event, inside: Mutex::new(Vec::new()) }))
    }

    /// Puts something there.
    pub fn put(&self, one: T) {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        // It can be full only of calls that nobody has heard yet.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Takes all that is there.
    pub fn take(&self) -> Vec<T> {
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        std::mem::take(&mut *self.inside.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
