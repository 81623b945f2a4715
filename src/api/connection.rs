//! One client of the API server: what came from it, what is to be sent to it. Nothing here waits.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use machine::journal::Journal;
use rustix::event::PollFlags;

use crate::message::{self, CONTINUE, Parsed, Request, Response, Then};

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

/// A connection.
pub struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// The client sends no more, or is not listened to any more.
    ended: bool,
    /// It was told to send the body.
    continued: bool,
    /// It follows what happens, and this is the number of the next event that it gets. Nothing else is done for it.
    follows: Option<u64>,
    /// When it last did anything.
    pub active: Instant,
}

impl Connection {
    /// A client that has just come.
    pub fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (incoming, outgoing) = (Vec::new(), Vec::new());
        Ok(Self { stream, incoming, outgoing, ended: false, continued: false, follows: None, active: Instant::now() })
    }

    /// Whether it waits to be read from; else it waits until it takes what is to be sent. A client that does not take its
    /// answers is not listened to: that bounds what is kept for it.
    fn is_listening(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// What it waits for. Who follows and sends no more is only waited for to go away (which needs no flag).
    pub fn waits_for(&self) -> PollFlags {
        match (self.is_listening(), self.follows.is_some() && self.ended) {
            (false, _) => PollFlags::OUT,
            (true, true) => PollFlags::empty(),
            (true, false) => PollFlags::IN,
        }
    }

    /// Sends the events that it has not had yet, as far as it takes them; at the end of the VM also that there will be no
    /// more. False when it is gone.
    pub fn follow(&mut self, journal: &Journal, last: bool) -> bool {
        while self.outgoing.is_empty()
            && let Some(next) = self.follows
        {
            let (text, next) = journal.since(next, CHUNK);
            if text.is_empty() {
                break;
            }
            self.active = Instant::now();
            self.follows = Some(next);
            self.outgoing = message::chunk(&text);
            if !self.send() {
                return false;
            }
        }
        if last && self.outgoing.is_empty() && self.follows.take().is_some() {
            self.outgoing.extend(message::chunk(""));
            return self.send();
        }
        true
    }

    /// Who follows can be written to, has said something, or is gone. False when it is gone.
    fn attend(&mut self, journal: &Journal) -> bool {
        if !self.outgoing.is_empty() {
            return self.send() && self.follow(journal, false);
        }
        // It was only waited for to go away.
        if self.ended || !self.read() {
            return false;
        }
        self.incoming.clear();
        self.follow(journal, false)
    }

    /// How many bytes came that were not answered yet.
    #[cfg(any(test, feature = "testing"))]
    pub fn kept(&self) -> usize {
        self.incoming.len()
    }

    /// Does what can be done now. False when the connection is over.
    pub fn turn(
        &mut self,
        body_max: usize,
        journal: &Journal,
        mut serve: impl FnMut(&Request, &UnixStream) -> Response,
    ) -> bool {
        if self.follows.is_some() {
            return self.attend(journal);
        }
        self.active = Instant::now();
        if self.is_listening() && !self.read() {
            return false;
        }
        loop {
            if !self.send() {
                return false;
            }
            if !self.outgoing.is_empty() {
                return true; // the rest when it can be written
            }
            if self.follows.is_some() {
                return self.follow(journal, false);
            }
            if self.incoming.is_empty() || !self.answer(body_max, &mut serve) {
                return !self.ended;
            }
        }
    }

    /// Reads once. False when nothing can come any more from a connection that is broken.
    fn read(&mut self) -> bool {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(len) => self.incoming.extend_from_slice(chunk.get(..len).unwrap_or_default()),
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
        true
    }

    /// Answers the next request, if it is whole. False when there is none.
    fn answer(&mut self, body_max: usize, serve: &mut impl FnMut(&Request, &UnixStream) -> Response) -> bool {
        match message::parse(&self.incoming, body_max) {
            Parsed::Partial { wants_continue } => {
                if !wants_continue || std::mem::replace(&mut self.continued, true) {
                    return false;
                }
                self.outgoing.extend_from_slice(CONTINUE);
            }
            Parsed::Whole(request, len) => {
                self.incoming.drain(..len);
                self.continued = false;
                let begun = Instant::now();
                let response = serve(&request, &self.stream);
                let took = begun.elapsed();
                note(&request, &response, took);
                if response.then != Then::Leave {
                    self.outgoing = response.bytes(request.is_last, took);
                }
                if response.then == Then::Follow {
                    self.follows = Some(0);
                    self.incoming.clear();
                } else {
                    self.end_if(request.is_last || response.then == Then::Leave);
                }
            }
            Parsed::Bad(status, text) => {
                self.outgoing = Response::fault(status, &text).bytes(true, Duration::ZERO);
                self.end_if(true);
            }
        }
        true
    }

    fn end_if(&mut self, last: bool) {
        if last {
            self.ended = true;
            self.incoming.clear();
        }
    }

    /// Sends what the client takes. False when it is gone.
    fn send(&mut self) -> bool {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(len) => drop(self.outgoing.drain(..len)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// Logs a request without its body, in which there may be secrets (PUT /mmds). Who only asks does so often.
fn note(request: &Request, response: &Response, took: Duration) {
    let Request { method, path, .. } = request;
    let (status, took_us) = (response.status, took.as_micros());
    match method.as_str() {
        "GET" => tracing::debug!(status, took_us, "{method} {path}"),
        _ => tracing::info!(status, took_us, "{method} {path}"),
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
