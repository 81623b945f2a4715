//! The standard streams of a process: from its pipes or terminal to the host, until the process has ended and all that
//! it wrote has gone; and from the host to it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use protocol::frame::{Kind, MOST_DATA};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::connection::Connection;

/// Sends what `from` gives until its end; after `ended` has closed, until nothing is left to read at once: a process may
/// have left the stream to children that live on. A host that no longer listens does not stop the process.
pub fn pump(connection: &Connection, kind: Kind, from: OwnedFd, ended: &OwnedFd) {
    let mut from = File::from(from);
    let mut bytes = vec![0; MOST_DATA];
    let mut heard = true;
    loop {
        let mut watched = [PollFd::new(&from, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        match poll(&mut watched, None) {
            Ok(_) => (),
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        let [stream, _] = watched;
        if stream.revents().is_empty() {
            return; // it has ended, and nothing is left
        }
        // A terminal without a process says EIO: its end.
        let count = match from.read(&mut bytes) {
            Ok(0) => return,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
            Ok(count) => count,
        };
        heard = heard && connection.data(kind, bytes.get(..count).unwrap_or_default()).is_ok();
    }
}

/// Where a process's input goes.
pub struct Input {
    to: Option<File>,
    is_terminal: bool,
}

impl Input {
    /// This pipe or terminal; none: nobody reads.
    pub fn new(to: Option<OwnedFd>, is_terminal: bool) -> Self {
        Self { to: to.map(File::from), is_terminal }
    }

    /// Gives the process bytes; none: there will be no more. A process that does not read any more does not mind.
    pub fn give(&mut self, bytes: &[u8]) {
        /// What a terminal takes for the end: control-D.
        const END: &[u8] = &[4];
        let Some(to) = &mut self.to else { return };
        let bytes = if bytes.is_empty() && self.is_terminal { END } else { bytes };
        if bytes.is_empty() || to.write_all(bytes).is_err() {
            self.to = None;
        }
    }

    /// The terminal, where it is one.
    pub fn terminal(&self) -> Option<impl AsFd + '_> {
        self.to.as_ref().filter(|_| self.is_terminal)
    }
}
