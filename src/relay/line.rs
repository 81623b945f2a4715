//! The side of a connection that goes by frames: a stream, UNIX or vsock, that is never waited for, and what waits to go
//! there or to be taken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::frame::{HEADER, Kind, header};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// A conversation between host and guest from which on it carries bytes.
#[derive(Debug)]
pub struct Line {
    stream: OwnedFd,
    says: Kind,
    hears: Kind,
    /// Bytes that the stream did not take yet, and how many of them have gone.
    out: Vec<u8>,
    gone: usize,
    /// What was heard before.
    rest: Vec<u8>,
}

impl Line {
    /// The host's end of it; `rest` was read from it already.
    pub fn of_host(stream: OwnedFd, rest: Vec<u8>) -> Self {
        Self { stream, says: Kind::Stdin, hears: Kind::Stdout, out: Vec::new(), gone: 0, rest }
    }

    /// The guest's.
    pub fn of_guest(stream: OwnedFd, rest: Vec<u8>) -> Self {
        Self { stream, says: Kind::Stdout, hears: Kind::Stdin, out: Vec::new(), gone: 0, rest }
    }

    /// The kind of frames that come.
    pub(crate) fn hears(&self) -> Kind {
        self.hears
    }

    /// Whether everything has gone that was said.
    pub(crate) fn is_clear(&self) -> bool {
        self.out.is_empty()
    }

    /// Hands on what waits. True when nothing waits any more.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        while let Some(left) = self.out.get(self.gone..).filter(|left| !left.is_empty()) {
            match send_now(&self.stream, left)? {
                None => return Ok(false),
                Some(sent) => self.gone = self.gone.saturating_add(sent),
            }
        }
        (self.out, self.gone) = (Vec::new(), 0);
        Ok(true)
    }

    /// Says a frame, whose body is behind `HEADER` bytes of `buffer`. To be called when all else has gone.
    pub(crate) fn say(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let head = header(self.says, buffer.len().saturating_sub(HEADER)).map_err(io::Error::other)?;
        buffer.iter_mut().zip(head).for_each(|(to, from)| *to = from);
        let sent = send_now(&self.stream, buffer)?.unwrap_or(0);
        self.out.extend_from_slice(buffer.get(sent..).unwrap_or_default());
        Ok(())
    }

    /// What has come, into `buffer`; none: nothing has come. No bytes are the stream's end.
    pub(crate) fn hear(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if self.rest.is_empty() {
            return receive_now(&self.stream, buffer);
        }
        let len = self.rest.len().min(buffer.len());
        buffer.iter_mut().zip(self.rest.drain(..len)).for_each(|(to, from)| *to = from);
        Ok(Some(len))
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Sends what a socket takes at once; none: nothing.
pub fn send_now(to: impl AsFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match send(to.as_fd(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(Some(sent)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives what a socket has; none: nothing.
pub fn receive_now(from: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match recv(from.as_fd(), &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((got, _)) => return Ok(Some(got)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
}
