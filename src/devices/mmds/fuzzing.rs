//! A client of the metadata service that does what arbitrary bytes say, for fuzzing: connections that are opened and left,
//! requests that are none, frames that are lost, repeated, changed, or of any bytes.
//!
//! Tests only. It fails when the service panics, keeps more than it may, or does not serve a proper client afterwards.
#![allow(clippy::panic, clippy::expect_used, clippy::arithmetic_side_effects)] // it is for tests: failing is its job

use std::net::Ipv4Addr;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};

use super::config::MmdsVersion;
use super::http::{Answer, Rules, answer};
use super::peer::{Peer, is_whole};
use super::stack::Stack;
use super::store::Store;

/// Most steps of one run: bounds its time.
const STEPS: usize = 256;
/// Most connections of the client: more than the service has.
const CONNECTIONS: usize = 60;
/// Most frames that may wait for a guest.
const FRAMES: usize = 128;
/// Requests, and parts of one.
const REQUESTS: [&str; 8] = [
    "GET / HTTP/1.1\r\n\r\n",
    "GET /long HTTP/1.1\r\nAccept: application/json\r\n\r\n",
    "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n",
    "GET /",
    "Content-Length: 10\r\n\r\n",
    "POST / HTTP/1.0\r\n\r\n",
    "\r\n\r\n",
];

struct Conversation {
    stack: Stack,
    store: Store,
    peer: Peer,
    connections: Vec<SocketHandle>,
    /// Frames of the client so far, the last ones.
    seen: Vec<Vec<u8>>,
    now: Instant,
}

/// Lets a client made of `data` loose on the service, then has a proper one take over.
pub fn converse(mut data: &[u8]) {
    let store = Store::new(100_000).expect("random numbers");
    store.put(serde_json::json!({ "a": "b", "long": "x".repeat(30_000) })).expect("it fits");
    let stack = Stack::new(Ipv4Addr::new(169, 254, 169, 254), None, 1, store.counts());
    let now = Instant::from_secs(1);
    let mut talk = Conversation { stack, store, peer: Peer::new(), connections: Vec::new(), seen: Vec::new(), now };
    for _ in 0..STEPS {
        let Some(([what, which], rest)) = data.split_first_chunk::<2>() else { break };
        data = talk.step(*what, usize::from(*which), rest);
        assert!(talk.stack.waiting() <= FRAMES, "{} frames wait", talk.stack.waiting());
    }
    talk.ends_well();
}

impl Conversation {
    /// Does one thing with the bytes in front and returns the others.
    fn step<'a>(&mut self, what: u8, which: usize, data: &'a [u8]) -> &'a [u8] {
        let handle = which.checked_rem(self.connections.len()).and_then(|at| self.connections.get(at)).copied();
        match (what % 12, handle) {
            (0, _) if self.connections.len() < CONNECTIONS => self.connections.push(self.peer.connect(80)),
            (1, Some(handle)) => {
                let text = REQUESTS.get(which % REQUESTS.len()).copied().unwrap_or_default();
                let _ = self.peer.socket(handle).send_slice(text.as_bytes());
            }
            (2, Some(handle)) => {
                let (text, rest) = data.split_at(data.len().min(which));
                let _ = self.peer.socket(handle).send_slice(text);
                return rest;
            }
            (3, Some(handle)) if which.is_multiple_of(2) => self.peer.socket(handle).close(),
            (3, Some(handle)) => self.peer.socket(handle).abort(),
            (4, _) => self.pass(Duration::from_millis(u64::try_from(which).unwrap_or(0).saturating_mul(10))),
            (5, _) => drop(self.stack.next_frame()),
            (6, _) => {
                let (frame, rest) = data.split_at(data.len().min(which));
                self.give(frame.to_vec());
                return rest;
            }
            (7 | 8, _) => {
                let Some((change, rest)) = data.split_first_chunk::<3>() else { return &[] };
                self.again(which, *change);
                return rest;
            }
            _ => (0..=which % 8).for_each(|_| self.exchange()),
        }
        data
    }

    fn serve(&mut self, what: impl FnOnce(&mut Stack, Instant, &mut dyn FnMut(&[u8]) -> Option<Answer>)) {
        let rules = Rules { version: MmdsVersion::V1, imds_compat: false };
        let store = &self.store;
        what(&mut self.stack, self.now, &mut |bytes| answer(bytes, rules, store));
    }

    fn give(&mut self, frame: Vec<u8>) {
        self.serve(|stack, now, serve| stack.take(frame, now, serve));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.serve(|stack, now, serve| stack.turn(now, serve));
    }

    /// A frame to the client, and what that sends.
    fn exchange(&mut self) {
        if self.stack.has_more() {
            self.serve(|stack, now, serve| stack.turn(now, serve));
        }
        let frame = self.stack.next_frame();
        for frame in self.peer.turn(frame, self.now) {
            self.seen.truncate(63);
            self.seen.insert(0, frame.clone());
            self.give(frame);
        }
    }

    /// One of the last frames once more, with a byte changed.
    fn again(&mut self, which: usize, [at, byte, len]: [u8; 3]) {
        let Some(frame) = which.checked_rem(self.seen.len()).and_then(|at| self.seen.get(at)) else { return };
        let mut frame = frame.clone();
        if let Some(place) = frame.get_mut(usize::from(at)) {
            *place = byte;
        }
        frame.truncate(usize::from(len).saturating_mul(8).max(1));
        self.give(frame);
    }

    fn ends_well(&mut self) {
        // Another client: its ports are not those of connections that the first one left.
        (self.peer, self.connections) = (Peer::from_port(60_000), Vec::new());
        for _ in 0..300 {
            while self.stack.next_frame().is_some() {}
            self.pass(Duration::from_millis(500));
        }
        let handle = self.peer.connect(80);
        let mut answer = String::new();
        for step in 0..2000 {
            self.exchange();
            if step % 20 == 0 {
                self.pass(Duration::from_millis(100));
            }
            if self.peer.state(handle) == State::Established && answer.is_empty() {
                answer.push(' ');
                self.peer.send(handle, "GET /a HTTP/1.1\r\n\r\n");
            }
            answer += &self.peer.received(handle);
            if is_whole(&answer) {
                assert!(answer.ends_with("\r\n\r\nb"), "{answer}");
                return;
            }
        }
        panic!("a proper client is not served: {answer}");
    }
}
