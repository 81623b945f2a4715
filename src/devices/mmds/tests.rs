//! The stack against a client, without threads, and with a clock that the test turns.

use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};

use super::http::Answer;
use super::peer::{MAC, Peer, is_whole};
use super::stack::Stack;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Answers each line by itself and so many bytes; `bye` is the last.
fn serve(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&bytes[..end]).unwrap_or_default();
    let len = line.parse().unwrap_or(0);
    let body = "x".repeat(len);
    let answer = format!("{line}\r\nContent-Length: {len}\r\n\r\n{body}");
    Some(Answer { bytes: answer.into_bytes(), taken: end + 1, is_last: line == "bye" })
}

struct Both {
    stack: Stack,
    peer: Peer,
    now: Instant,
    /// Frames of the service so far, and those of them that are lost.
    count: usize,
    lost: fn(usize) -> bool,
}

impl Both {
    fn new() -> Self {
        let stack = Stack::new(ADDRESS, None, 1, Arc::default());
        Self { stack, peer: Peer::new(), now: Instant::from_secs(1), count: 0, lost: |_| false }
    }

    /// Frames go to and fro until there are none.
    fn talk(&mut self) {
        for _ in 0..10_000 {
            if self.stack.has_more() {
                self.stack.turn(self.now, &mut serve);
            }
            let frame = self.stack.next_frame();
            self.count += usize::from(frame.is_some());
            let is_quiet = frame.is_none();
            let frames = self.peer.turn(frame.filter(|_| !(self.lost)(self.count)), self.now);
            if frames.is_empty() && is_quiet {
                return;
            }
            frames.into_iter().for_each(|frame| self.stack.take(frame, self.now, &mut serve));
        }
        panic!("they do not come to an end");
    }

    /// Time goes by until both have nothing to do for so long; whoever has something to do is called.
    fn sleep(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(10);
            if self.stack.wait(self.now).is_some_and(|wait| wait.is_zero()) {
                self.stack.turn(self.now, &mut serve);
            }
            self.talk();
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let handle = self.peer.connect(80);
        self.talk();
        handle
    }

    /// What is answered, within a time that is enough for some repetitions.
    fn ask(&mut self, handle: SocketHandle, text: &str) -> String {
        self.peer.send(handle, text);
        let mut answer = String::new();
        for _ in 0..100 {
            self.talk();
            answer += &self.peer.received(handle);
            if is_whole(&answer) {
                return answer;
            }
            self.sleep(Duration::from_millis(500));
        }
        panic!("no answer: {answer:?}");
    }
}

#[test]
fn a_connection_serves_again_and_again_until_its_end() {
    let mut both = Both::new();
    let handle = both.connect();
    for len in [0, 1, 1000, 100_000] {
        let answer = both.ask(handle, &format!("{len}\n"));
        assert!(answer.len() > len && answer.ends_with(&"x".repeat(len)), "{len}");
    }
    both.peer.send(handle, "1\n2\nby");
    both.talk();
    both.peer.send(handle, "e\n");
    both.talk();
    assert_eq!(both.peer.received(handle).matches("Content-Length").count(), 3, "several at once");
    assert_eq!(both.peer.state(handle), State::CloseWait);
    both.peer.socket(handle).close();
    both.talk();
    assert_eq!(both.peer.state(handle), State::Closed);
}

/// Whatever frames get lost, TCP's own clock repeats them.
#[test]
fn what_is_lost_is_sent_again() {
    for lost in [|n| n == 3, |n| n % 3 == 0, |n| (4..12).contains(&n), |n| n < 3] as [fn(usize) -> bool; 4] {
        let mut both = Both { lost, ..Both::new() };
        let handle = both.connect();
        for _ in 0..20 {
            if both.peer.state(handle) == State::Established {
                break;
            }
            both.sleep(Duration::from_secs(1));
        }
        assert!(both.ask(handle, "20000\n").len() > 20_000);
    }
}

#[test]
fn when_nothing_happens_there_is_nothing_to_wait_for() {
    let mut both = Both::new();
    assert_eq!(both.stack.wait(both.now), None);
    let handle = both.connect();
    both.ask(handle, "5000\n");
    both.sleep(Duration::from_secs(100));
    assert_eq!(both.stack.wait(both.now), None);
    assert_eq!(both.peer.state(handle), State::Established, "a silent connection stays");
    both.ask(handle, "5000\n");
}

/// One more connection than there can be takes the place of the one that was silent for longest.
#[test]
fn connections_are_bounded() {
    let mut both = Both::new();
    let handles: Vec<_> = (0..29).map(|_| both.connect()).collect();
    both.sleep(Duration::from_secs(1));
    both.ask(handles[0], "1\n");
    assert!(handles.iter().all(|handle| both.peer.state(*handle) == State::Established));
    let more: Vec<_> = (0..3).map(|_| both.connect()).collect();
    let states: Vec<_> = handles.iter().chain(&more).map(|handle| both.peer.state(*handle)).collect();
    assert_eq!(states.iter().filter(|state| **state == State::Established).count(), 29);
    assert_eq!(both.peer.state(handles[0]), State::Established, "it has spoken since");
    both.ask(more[2], "1\n");
    for handle in handles.iter().chain(&more) {
        if both.peer.state(*handle) == State::Established {
            both.sleep(Duration::from_secs(1));
            both.ask(*handle, "1\n");
        }
    }
    let newest = both.connect();
    both.ask(newest, "1\n");
    for _ in 0..200 {
        let handle = both.connect();
        both.ask(handle, "bye\n");
        both.peer.socket(handle).close();
        both.talk();
    }
    both.ask(more[2], "1\n");
}

/// Somebody who opens, and says or hears nothing more, does not keep others out; nor does one who never receives.
#[test]
fn half_open_connections_go() {
    let mut both = Both { lost: |n| n > 1, ..Both::new() };
    for _ in 0..100 {
        both.connect();
    }
    let mut frames = 0;
    both.lost = |_| false;
    both.peer = Peer::new();
    while both.stack.next_frame().is_some() {
        frames += 1;
    }
    assert!(frames <= 200, "{frames}");
    both.sleep(Duration::from_secs(60));
    let handle = both.connect();
    both.ask(handle, "1\n");
}

#[test]
fn frames_for_a_guest_that_takes_none_are_bounded() {
    let mut both = Both::new();
    let handle = both.connect();
    both.peer.send(handle, "1000000\n");
    // Nothing reaches the guest, which asks again and again.
    for _ in 0..1000 {
        both.now += Duration::from_millis(300);
        let frames = both.peer.turn(None, both.now);
        frames.into_iter().for_each(|frame| both.stack.take(frame, both.now, &mut serve));
        both.stack.turn(both.now, &mut serve);
    }
    let waiting = std::iter::from_fn(|| both.stack.next_frame()).count();
    assert!((1..=128).contains(&waiting), "{waiting}");
}

/// A guest whose way here leads past a router, and which answers no ARP.
#[test]
fn a_sender_is_known_by_its_frames() {
    let mut both = Both::new();
    let handle = both.peer.connect(80);
    let mut sent = both.peer.turn(None, both.now);
    for _ in 0..10 {
        for mut frame in std::mem::take(&mut sent) {
            if frame[12..14] == [8, 6] {
                let mut reply = [&MAC[..], &[2, 0, 0, 0, 0, 1], &frame[12..20], &[0, 2, 2, 0, 0, 0, 0, 1]].concat();
                reply.extend([&frame[38..42], &MAC, &frame[28..32]].concat());
                sent.extend(both.peer.turn(Some(reply), both.now));
            } else {
                assert_eq!(frame[..6], [2, 0, 0, 0, 0, 1], "to the router");
                frame.extend([0; 6]); // as Ethernet pads what is short
                both.stack.take(frame, both.now, &mut serve);
            }
        }
        while let Some(frame) = both.stack.next_frame() {
            assert_eq!((&frame[..6], &frame[12..14]), (&MAC[..], &[8, 0][..]), "nobody is asked by ARP");
            sent.extend(both.peer.turn(Some(frame), both.now));
        }
    }
    assert_eq!(both.peer.state(handle), State::Established);
}

#[test]
fn other_ports_are_closed() {
    let mut both = Both::new();
    let handle = both.peer.connect(81);
    both.talk();
    assert_eq!(both.peer.state(handle), State::Closed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Bytes of right frames changed anywhere, frames cut off, repeated, and out of order.
    #[test]
    fn no_frame_does_harm(changes in prop::collection::vec((0usize..40, 0usize..80, any::<u8>(), 0u8..4), 0..60)) {
        let mut both = Both::new();
        let (first, second) = (both.connect(), both.connect());
        let mut seen = Vec::new();
        for text in ["1500\n", "bye\n", "3\n"] {
            for handle in [first, second] {
                let _ = both.peer.socket(handle).send_slice(text.as_bytes());
            }
            for _ in 0..20 {
                let frame = both.stack.next_frame();
                let frames = both.peer.turn(frame, both.now);
                seen.extend(frames.iter().cloned());
                frames.into_iter().for_each(|frame| both.stack.take(frame, both.now, &mut serve));
            }
            for (which, at, byte, how) in &changes {
                let mut frame = seen[which % seen.len()].clone();
                let at = at % frame.len();
                match how {
                    0 => frame.truncate(at),
                    1 => {}
                    _ => frame[at] = *byte,
                }
                both.stack.take(frame, both.now, &mut serve);
                both.now += Duration::from_millis(7);
                both.stack.turn(both.now, &mut serve);
                while both.stack.next_frame().is_some() {}
            }
        }
        both.peer = Peer::new();
        both.sleep(Duration::from_secs(130));
        let handle = both.connect();
        both.ask(handle, "1\n");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn no_client_does_harm(data in prop::collection::vec(any::<u8>(), 0..600)) {
        super::fuzzing::converse(&data);
    }
}
