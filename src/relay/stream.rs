//! The side of a TCP connection that is a socket, with what it did not take yet, and where its directions are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay};
use rustix::net::{Shutdown, shutdown};

use crate::line::{receive_now, send_now};

/// A socket and what becomes of it.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    /// Bytes for it.
    kept: Vec<u8>,
    /// It will say no more.
    has_ended: bool,
    /// It takes no more: whoever is there has gone, and what they said may still be read.
    is_deaf: bool,
    /// The other side will say no more, and the socket was told so.
    is_to_end: bool,
    is_told: bool,
}

impl Stream {
    /// With this socket.
    pub fn new(socket: OwnedFd) -> Self {
        let _ = set_tcp_nodelay(&socket, true); // what is to be sent together came together
        Self { socket, kept: Vec::new(), has_ended: false, is_deaf: false, is_to_end: false, is_told: false }
    }

    /// Whether it will say no more.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether nobody is there any more, who did not hear all.
    pub fn is_lost(&self) -> bool {
        self.is_deaf && self.has_ended
    }

    /// Whether it has heard all that there was, and that there is no more.
    pub fn is_told(&self) -> bool {
        self.is_told
    }

    /// What it says, into `buffer`; none: nothing now. No bytes are its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let got = receive_now(&self.socket, buffer)?;
        if got == Some(0) {
            self.has_ended = true;
            if self.is_deaf {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
        Ok(got)
    }

    /// Gives it bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.is_deaf {
            return;
        }
        let sent = if self.kept.is_empty() { send_now(&self.socket, bytes) } else { Ok(None) };
        match sent {
            Ok(sent) => self.kept.extend_from_slice(bytes.get(sent.unwrap_or(0)..).unwrap_or_default()),
            Err(_) => self.is_deaf = true,
        }
    }

    /// There is no more for it.
    pub fn end(&mut self) {
        self.is_to_end = true;
    }

    /// Whether there is more for it than this.
    pub fn is_to_end(&self) -> bool {
        self.is_to_end
    }

    /// Gives it what was kept. True when nothing is kept any more.
    pub fn flush(&mut self) -> bool {
        let mut gone = 0;
        while let Some(left) = self.kept.get(gone..).filter(|left| !left.is_empty() && !self.is_deaf) {
            match send_now(&self.socket, left) {
                Ok(Some(sent)) => gone = gone.saturating_add(sent),
                Ok(None) => {
                    self.kept.drain(..gone.min(self.kept.len()));
                    return false;
                }
                Err(_) => self.is_deaf = true,
            }
        }
        self.kept = Vec::new();
        if self.is_to_end && !self.is_told && !self.is_deaf {
            let _ = shutdown(&self.socket, Shutdown::Write);
            self.is_told = true;
        }
        true
    }

    /// Whoever is there shall not take this for an orderly end: closed, it resets the connection.
    pub fn reset(&self) {
        let _ = set_socket_linger(&self.socket, Some(Duration::ZERO));
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
