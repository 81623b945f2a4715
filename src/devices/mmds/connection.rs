//! One TCP connection of a guest to the metadata service: what came, what is to be sent. The interface's worker thread.

use std::sync::Arc;

use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::Instant;

use super::counts::{Counted, Counts};
use super::http::{Answer, REQUEST_MAX};

/// A connection above its socket; a new one for each that the socket accepts.
pub struct Connection {
    /// At most [`REQUEST_MAX`] bytes of requests without an answer.
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// So much of it the socket has.
    sent: usize,
    /// Nothing is answered any more.
    is_ending: bool,
    /// When it last did anything.
    pub active: Instant,
    _counted: Counted,
}

impl Connection {
    /// One that has done nothing yet.
    pub fn new(now: Instant, counts: &Arc<Counts>) -> Self {
        let (incoming, outgoing) = (Vec::new(), Vec::new());
        Self { incoming, outgoing, sent: 0, is_ending: false, active: now, _counted: Counted::begin(counts) }
    }

    /// Does what can be done now. A guest that does not take its answer is not listened to: that bounds what is kept for
    /// it. Whether anything was done.
    pub fn turn(&mut self, socket: &mut Socket<'_>, serve: &mut dyn FnMut(&[u8]) -> Option<Answer>) -> bool {
        let mut progress = false;
        loop {
            progress |= self.send(socket);
            if self.sent < self.outgoing.len() {
                return progress;
            }
            (self.outgoing, self.sent) = (Vec::new(), 0);
            if self.is_ending {
                socket.close();
                return progress;
            }
            progress |= self.read(socket);
            match serve(&self.incoming).filter(|_| !self.incoming.is_empty()) {
                Some(answer) => {
                    self.incoming.drain(..answer.taken.min(self.incoming.len()));
                    (self.outgoing, self.is_ending) = (answer.bytes, answer.is_last);
                }
                // The guest sends no more, and what it sent is no whole request.
                None if socket.state() == State::CloseWait && !socket.can_recv() => self.is_ending = true,
                None => return progress,
            }
        }
    }

    fn send(&mut self, socket: &mut Socket<'_>) -> bool {
        let rest = self.outgoing.get(self.sent..).unwrap_or_default();
        if rest.is_empty() || !socket.can_send() {
            return false;
        }
        let sent = socket.send_slice(rest).unwrap_or(0);
        self.sent = self.sent.saturating_add(sent);
        sent > 0
    }

    fn read(&mut self, socket: &mut Socket<'_>) -> bool {
        let before = self.incoming.len();
        while socket.can_recv() && self.incoming.len() < REQUEST_MAX {
            let room = REQUEST_MAX.saturating_sub(self.incoming.len());
            let incoming = &mut self.incoming;
            let taken = socket.recv(|bytes| {
                let now = bytes.get(..room.min(bytes.len())).unwrap_or_default();
                incoming.extend_from_slice(now);
                (now.len(), now.len())
            });
            if !taken.is_ok_and(|len| len > 0) {
                break;
            }
        }
        self.incoming.len() > before
    }
}
