//! The metadata service at an interface: a client of TCP in the guest, and a host that hears nothing of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use super::*;
use crate::mmds::config::MmdsConfig;
use crate::mmds::peer::{MAC, Peer, is_whole};
use crate::mmds::store::Store;

/// Buffers for what the guest receives.
const ROOM: u32 = HEADER as u32 + 1514;

struct Guest {
    rig: Rig,
    host: UnixDatagram,
    store: Arc<Store>,
    peer: Peer,
    /// The guest's receive buffers by their heads.
    buffers: HashMap<u16, Buffer>,
    out: Buffer,
    since: Instant,
    /// Frames that come are lost.
    deaf: bool,
}

impl Guest {
    fn new(version: &str, config: NetConfig) -> Self {
        let (ours, host) = UnixDatagram::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let config = NetConfig { iface_id: "eth0".into(), host_fd: Some(ours.as_raw_fd()), ..config };
        let mmds = serde_json::json!({ "network_interfaces": ["eth0"], "version": version });
        let mmds: MmdsConfig = serde_json::from_value(mmds).unwrap();
        let store = Arc::new(Store::new(100_000).unwrap());
        let net = Net::open(&config).unwrap().with_metadata(&mmds, &store).unwrap();
        let mut guest = Self {
            rig: Rig::new(Box::new(net)),
            host,
            store,
            peer: Peer::new(),
            buffers: HashMap::new(),
            out: Buffer { addr: 0, len: 0, writable: false },
            since: Instant::now(),
            deaf: false,
        };
        guest.start();
        guest
    }

    /// The driver begins anew, without buffers for what comes.
    fn start(&mut self) {
        self.rig.free_all();
        self.buffers.clear();
        self.out = self.rig.readable(&[0; 2000]);
        self.rig.drive(RING_FEATURES | MRG);
    }

    fn post(&mut self, count: usize) {
        for _ in 0..count {
            let buffer = self.rig.writable(ROOM);
            let head = self.rig.post(0, &[buffer]);
            self.buffers.insert(head, buffer);
        }
        self.rig.kick(0);
    }

    /// Frames that have come, whose buffers are posted again.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some((head, len)) = self.rig.take_used(0) {
            let buffer = self.buffers.remove(&head).unwrap();
            let bytes = self.rig.bytes(buffer);
            assert_eq!(bytes[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            frames.push(bytes[HEADER..len as usize].to_vec());
            let head = self.rig.post(0, &[buffer]);
            self.buffers.insert(head, buffer);
        }
        self.rig.kick(0);
        frames
    }

    fn send(&mut self, frame: &[u8]) {
        let bytes = [&[0; HEADER][..], frame].concat();
        let out = Buffer { len: bytes.len() as u32, ..self.out };
        vm_memory::Bytes::write_slice(&**self.rig.memory(), &bytes, vm_memory::GuestAddress(out.addr)).unwrap();
        self.rig.request(1, &[out]);
    }

    /// What has come, and what the guest says to it.
    fn turn(&mut self) {
        self.rig.settle();
        let now = smoltcp::time::Instant::from_micros(self.since.elapsed().as_micros() as i64);
        let mut frames = self.frames();
        frames.retain(|frame| !self.deaf && (frame.starts_with(&MAC) || frame.starts_with(&[0xff; 6])));
        let mut out = self.peer.turn(None, now);
        out.extend(frames.into_iter().flat_map(|frame| self.peer.turn(Some(frame), now)));
        out.iter().for_each(|frame| self.send(frame));
    }

    fn until(&mut self, mut what: impl FnMut(&mut Self) -> bool) {
        while !what(self) {
            assert!(self.since.elapsed() < PATIENCE, "it does not come");
            self.turn();
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let handle = self.peer.connect(80);
        self.until(|guest| guest.peer.state(handle) == State::Established);
        handle
    }

    fn ask(&mut self, handle: SocketHandle, request: &str) -> String {
        self.peer.send(handle, request);
        let mut answer = String::new();
        self.until(|guest| {
            answer += &guest.peer.received(handle);
            is_whole(&answer)
        });
        answer
    }

    /// The body of what is answered on a new connection.
    fn get(&mut self, path: &str, header: &str) -> String {
        let handle = self.connect();
        let answer = self.ask(handle, &format!("GET {path} HTTP/1.1\r\n{header}Connection: close\r\n\r\n"));
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn host_heard(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2000];
        let len = self.host.recv(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }
}

#[test]
fn a_guest_reads_and_the_host_hears_nothing() {
    let mut guest = Guest::new("V1", NetConfig::default());
    guest.post(16);
    guest.store.put(serde_json::json!({ "a": { "b": "c" } })).unwrap();
    assert_eq!(guest.get("/a", ""), "b");
    assert_eq!(guest.get("/a", "Accept: application/json\r\n"), "{\"b\":\"c\"}");
    guest.store.patch(&serde_json::json!({ "a": { "b": null, "d": "e" } })).unwrap();
    assert_eq!(guest.get("/a/d", ""), "e");
    let counts = guest.store.counts();
    let counted = [&counts.requests, &counts.connections_created, &counts.connections_destroyed];
    assert_eq!(counted.map(|count| count.load(Ordering::Relaxed)), [3, 3, 0], "the guest has not closed its side");
    let frames = [&counts.rx_accepted, &counts.tx_frames].map(|count| count.load(Ordering::Relaxed));
    assert!(frames.iter().all(|count| (6..100).contains(count)), "{frames:?}");
    assert_eq!(guest.host_heard(), None);
}

#[test]
fn everything_else_goes_to_the_host_and_comes_from_it() {
    let mut guest = Guest::new("V1", NetConfig::default());
    guest.post(16);
    guest.store.put(serde_json::json!("text")).unwrap();
    let handle = guest.connect();
    let other = frame(60);
    for _ in 0..10 {
        guest.send(&other);
        assert_eq!(guest.host_heard(), Some(other.clone()));
        guest.host.send(&frame(100)).unwrap();
        guest.ask(handle, "GET / HTTP/1.1\r\n\r\n");
    }
    guest.rig.settle();
    guest.host.send(&frame(100)).unwrap();
    let mut seen = Vec::new();
    while !seen.contains(&frame(100)) {
        assert!(guest.since.elapsed() < PATIENCE);
        seen.extend(guest.frames());
    }
    assert_eq!(guest.host_heard(), None);
}

#[test]
fn with_v2_a_token_is_needed() {
    let mut guest = Guest::new("V2", NetConfig::default());
    guest.post(16);
    guest.store.put(serde_json::json!({ "a": "b" })).unwrap();
    assert!(guest.get("/a", "").starts_with("No MMDS token"));
    let handle = guest.connect();
    let answer = guest.ask(handle, "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n");
    let token = answer.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(guest.get("/a", &format!("X-metadata-token: {token}\r\n")), "b");
}

/// A guest that has no buffers for a while gets everything when it has.
#[test]
fn answers_wait_for_buffers() {
    let mut guest = Guest::new("V1", NetConfig::default());
    guest.store.put(serde_json::json!("z".repeat(90_000))).unwrap();
    let handle = guest.peer.connect(80);
    for _ in 0..5 {
        guest.turn();
    }
    assert_eq!(guest.peer.state(handle), State::SynSent);
    guest.post(1);
    guest.until(|guest| guest.peer.state(handle) == State::Established);
    assert_eq!(guest.ask(handle, "GET / HTTP/1.1\r\n\r\n").matches('z').count(), 90_000);
}

/// The service repeats by its own timer what the guest did not get.
#[test]
fn what_got_lost_comes_again() {
    let mut guest = Guest::new("V1", NetConfig::default());
    guest.post(16);
    guest.store.put(serde_json::json!("there")).unwrap();
    let handle = guest.connect();
    guest.deaf = true;
    guest.peer.send(handle, "GET / HTTP/1.1\r\n\r\n");
    guest.turn();
    guest.rig.settle();
    assert_eq!(guest.frames().iter().filter(|frame| frame.ends_with(b"there")).count(), 1);
    // The guest sends nothing more: only time brings it.
    let mut answers = 0;
    while answers == 0 {
        assert!(guest.since.elapsed() < PATIENCE, "it does not come again");
        answers = guest.frames().iter().filter(|frame| frame.ends_with(b"there")).count();
    }
}

#[test]
fn a_pause_is_lived_through_and_a_reset_ends_everything() {
    let mut guest = Guest::new("V1", NetConfig::default());
    guest.post(16);
    guest.store.put(serde_json::json!("there")).unwrap();
    let handle = guest.connect();
    guest.rig.pause();
    guest.rig.resume();
    assert!(guest.ask(handle, "GET / HTTP/1.1\r\n\r\n").ends_with("there"));
    guest.start();
    assert_eq!(guest.store.counts().connections_destroyed.load(Ordering::Relaxed), 1);
    guest.post(16);
    guest.peer.send(handle, "GET / HTTP/1.1\r\n\r\n");
    guest.until(|guest| guest.peer.state(handle) == State::Closed);
    assert_eq!(guest.get("/", ""), "there");
}

/// Neither limits nor a host that takes nothing are in the service's way.
#[test]
fn limits_are_for_the_network() {
    use crate::rate_limit::TokenBucketConfig;
    let ops = TokenBucketConfig { size: 1, one_time_burst: None, refill_time: 3_600_000 };
    let limit = Some(RateLimiterConfig { bandwidth: None, ops: Some(ops) });
    let mut guest =
        Guest::new("V1", NetConfig { tx_rate_limiter: limit, rx_rate_limiter: limit, ..NetConfig::default() });
    guest.post(16);
    guest.store.put(serde_json::json!("there")).unwrap();
    for _ in 0..3 {
        assert_eq!(guest.get("/", ""), "there");
    }
    guest.send(&frame(60));
    assert_eq!(guest.host_heard(), Some(frame(60)), "the one that is allowed");
}

/// Frames cut off anywhere, too long ones, and a chain that is not in RAM.
#[test]
fn broken_frames_are_for_nobody() {
    let mut guest = Guest::new("V1", NetConfig::default());
    guest.post(4);
    let mut tcp = frame(1900);
    tcp[12..14].copy_from_slice(&[8, 0]);
    (tcp[23], tcp[14]) = (6, 0x45);
    tcp[30..34].copy_from_slice(&[169, 254, 169, 254]);
    for len in [34, 35, 42, 54, 1900] {
        guest.send(&tcp[..len]);
    }
    assert_eq!(guest.host_heard(), None);
    for len in [20_000, 65_000] {
        let mut long = vec![0; HEADER];
        long.extend(tcp.iter().chain(std::iter::repeat(&0)).take(len));
        let long = guest.rig.readable(&long);
        guest.rig.request(1, &[long]);
    }
    assert_eq!(guest.store.counts().rx_accepted_err.load(Ordering::Relaxed), 2);
    guest.rig.request(1, &[Buffer { addr: RAM - 60, len: 100, writable: false }]);
    assert_eq!(guest.host_heard(), None);
    assert!(!guest.rig.needs_reset());
    guest.send(&frame(60));
    assert_eq!(guest.host_heard(), Some(frame(60)));
}
