//! The vsock device under a driver that speaks packets, honest ones and others.

mod credit;
mod lies;
mod limit;
mod saved;
mod streams;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::connection::{BUF_ALLOC, BUF_ALLOC_OF_MANY};
use super::packet::{HEADER, HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::*;
use crate::testing::{Buffer, PATIENCE, Rig};
use crate::virtio::transport::RING_FEATURES;

const CID: u64 = 3;
const PLENTY: u32 = 1 << 30;
/// Bytes of each receive buffer, as Linux has them.
const PLACE: u32 = 4096;

struct Guest {
    rig: Rig,
    folder: tempfile::TempDir,
    /// The receive buffers, by their heads.
    places: HashMap<u16, Buffer>,
    tx: u64,
}

impl Guest {
    fn new() -> Self {
        Self::with_places(&[PLACE; 128])
    }

    /// A guest that posts receive buffers of these sizes.
    fn with_places(sizes: &[u32]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(Box::new(Vsock::open(&config(folder.path().join("v"))).unwrap()));
        rig.drive(RING_FEATURES | F_STREAM);
        let tx = rig.alloc(128 << 10);
        let mut guest = Self { rig, folder, places: HashMap::new(), tx };
        for size in sizes {
            let place = guest.rig.writable(*size);
            guest.place(place);
        }
        guest.rig.kick(0);
        guest
    }

    fn place(&mut self, place: Buffer) {
        let head = self.rig.post(0, &[place]);
        self.places.insert(head, place);
    }

    fn path(&self, port: Option<u32>) -> PathBuf {
        self.folder.path().join(port.map_or("v".to_owned(), |port| format!("v_{port}")))
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(Some(port))).unwrap()
    }

    /// A host's connection, with its greeting.
    fn dial(&self, port: u32) -> UnixStream {
        let mut host = UnixStream::connect(self.path(None)).unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        host.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        host
    }

    fn send_raw(&mut self, bytes: &[u8]) {
        let memory = self.rig.memory();
        vm_memory::Bytes::write_slice(&**memory, bytes, vm_memory::GuestAddress(self.tx)).unwrap();
        let buffer = Buffer { addr: self.tx, len: u32::try_from(bytes.len()).unwrap(), writable: false };
        self.rig.request(1, &[buffer]);
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        self.send_raw(&[&header.to_bytes(), data].concat());
    }

    /// A packet of an honest guest with much room.
    fn say(&mut self, op: u16, ports: (u32, u32), flags: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.send(Header { op, flags, len, ..header(ports) }, data);
    }

    fn try_hear(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.rig.take_used(0)?;
        Some(self.read(head, len))
    }

    fn read(&mut self, head: u16, len: u32) -> (Header, Vec<u8>) {
        let place = self.places.remove(&head).unwrap();
        let bytes = self.rig.bytes(Buffer { len, ..place });
        let header = Header::parse(bytes[..HEADER].try_into().unwrap());
        assert_eq!(usize::try_from(header.len).unwrap(), bytes.len() - HEADER);
        assert_eq!(header.dst_cid, CID);
        self.place(place);
        self.rig.kick(0);
        (header, bytes[HEADER..].to_vec())
    }

    /// Waits for the next packet.
    fn hear(&mut self) -> (Header, Vec<u8>) {
        let (head, len) = self.rig.wait_used(0);
        self.read(head, len)
    }

    fn hears(&mut self, op: u16) -> Header {
        let (header, _) = self.hear();
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    /// No packet comes although the device had every chance.
    fn hears_nothing(&mut self) {
        self.rig.kick(0);
        self.rig.settle();
        assert_eq!(self.try_hear(), None);
    }

    /// A connection of the host that the guest accepted: guest port 5000, and the host's port.
    fn up(&mut self) -> (UnixStream, (u32, u32)) {
        let mut host = self.dial(5000);
        let request = self.hears(op::REQUEST);
        assert_eq!((request.src_cid, request.dst_port, request.kind), (HOST_CID, 5000, TYPE_STREAM));
        let ports = (5000, request.src_port);
        self.say(op::RESPONSE, ports, 0, &[]);
        assert_eq!(line(&mut host), format!("OK {}", ports.1));
        (host, ports)
    }
}

fn config(uds_path: PathBuf) -> VsockConfig {
    VsockConfig { guest_cid: u32::try_from(CID).unwrap(), uds_path, vsock_id: None }
}

/// From a port of the guest to one of the host.
fn header((src_port, dst_port): (u32, u32)) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port,
        dst_port,
        kind: TYPE_STREAM,
        buf_alloc: PLENTY,
        ..Header::default()
    }
}

fn line(host: &mut UnixStream) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while host.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        text.push(char::from(byte[0]));
    }
    text
}

#[test]
fn the_host_connects_and_bytes_go_both_ways() {
    let mut guest = Guest::new();
    assert_eq!(guest.rig.config(0, 8), CID.to_le_bytes());
    let (mut host, ports) = guest.up();
    host.write_all(b"from the host").unwrap();
    let (header, data) = guest.hear();
    assert_eq!((header.op, data.as_slice()), (op::RW, b"from the host".as_slice()));
    guest.say(op::RW, ports, 0, b"from the guest");
    let mut got = [0; 14];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"from the guest");
}

#[test]
fn the_guest_connects_and_bytes_go_both_ways() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    guest.say(op::REQUEST, (1234, 80), 0, &[]);
    let response = guest.hears(op::RESPONSE);
    assert_eq!((response.src_port, response.dst_port, response.buf_alloc), (80, 1234, BUF_ALLOC));
    let (mut host, _) = listener.accept().unwrap();
    guest.say(op::RW, (1234, 80), 0, b"hello");
    let mut got = [0; 5];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.hear().1, b"answer");
}

#[test]
fn what_nobody_listens_for_is_refused_on_both_sides() {
    let mut guest = Guest::new();
    guest.say(op::REQUEST, (1234, 81), 0, &[]);
    assert_eq!(guest.hears(op::RST).dst_port, 1234);
    let mut host = guest.dial(9);
    let request = guest.hears(op::REQUEST);
    guest.say(op::RST, (9, request.src_port), 0, &[]);
    assert_eq!(line(&mut host), "", "closed without OK");
    for greeting in ["HELLO 5\n", "CONNECT x\n", "CONNECT 4294967296\n", "\n", "CONNECT 5 and no end of line"] {
        let mut host = UnixStream::connect(guest.path(None)).unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        host.write_all(greeting.as_bytes()).unwrap();
        assert!(matches!(host.read(&mut [0; 8]), Ok(0) | Err(_)), "{greeting}");
    }
    guest.hears_nothing();
}

#[test]
fn a_greeting_may_come_in_pieces_with_data_behind_it() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.path(None)).unwrap();
    for part in ["CONN", "ECT 50", "00\nand data"] {
        guest.rig.settle();
        host.write_all(part.as_bytes()).unwrap();
    }
    let request = guest.hears(op::REQUEST);
    guest.say(op::RESPONSE, (5000, request.src_port), 0, &[]);
    assert_eq!(guest.hear().1, b"and data");
}

#[test]
fn the_guest_s_half_close_is_answered() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.up();
    guest.say(op::RW, ports, 0, b"question");
    guest.say(op::SHUTDOWN, ports, SHUTDOWN_SEND, &[]);
    let mut question = String::new();
    host.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.hear().1, b"answer");
    drop(host);
    assert_eq!(guest.hears(op::SHUTDOWN).flags & SHUTDOWN_SEND, SHUTDOWN_SEND);
    guest.say(op::SHUTDOWN, ports, SHUTDOWN_BOTH, &[]);
    while guest.hear().0.op != op::RST {}
    guest.hears_nothing();
}

#[test]
fn the_host_s_half_close_is_passed_on() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.up();
    host.write_all(b"question").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.hear().1, b"question");
    assert_eq!(guest.hears(op::SHUTDOWN).flags, SHUTDOWN_SEND);
    guest.say(op::RW, ports, 0, b"answer");
    guest.say(op::SHUTDOWN, ports, SHUTDOWN_BOTH, &[]);
    guest.hears(op::RST);
    let mut answer = String::new();
    host.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}

#[test]
fn a_receiver_that_is_gone_is_known_at_the_other_end() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.up();
    guest.say(op::SHUTDOWN, ports, SHUTDOWN_RECEIVE, &[]);
    assert!(host.write_all(b"to nobody").is_err());
    let (host, _) = guest.up();
    drop(host);
    let (header, _) = guest.hear();
    assert_eq!(header.op, op::SHUTDOWN);
}

#[test]
fn resets_end_a_connection_on_both_sides() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.up();
    guest.say(op::RST, ports, 0, &[]);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    guest.say(op::RW, ports, 0, b"late");
    guest.hears(op::RST);
    // A driver that starts anew knows no connections.
    let (mut host, ports) = guest.up();
    guest.rig.drive(RING_FEATURES | F_STREAM);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    guest.places.clear();
    let place = guest.rig.writable(PLACE);
    guest.place(place);
    guest.say(op::RW, ports, 0, b"late");
    guest.hears(op::RST);
}

#[test]
fn a_thousand_connections_at_once() {
    let mut guest = Guest::new();
    socket::allow_many_descriptors();
    let mut hosts = Vec::new();
    for _ in 0..1000 {
        hosts.push(guest.up());
    }
    for (index, (host, _)) in hosts.iter_mut().enumerate() {
        host.write_all(&u32::try_from(index).unwrap().to_le_bytes()).unwrap();
    }
    let mut seen = HashMap::new();
    for _ in 0..1000 {
        let (header, data) = guest.hear();
        seen.insert(header.src_port, data);
    }
    for (index, (_, ports)) in hosts.iter().enumerate() {
        assert_eq!(seen[&ports.1], u32::try_from(index).unwrap().to_le_bytes());
    }
    drop(hosts);
    for _ in 0..1000 {
        while guest.hear().0.flags & SHUTDOWN_SEND == 0 {}
    }
}

#[test]
fn the_socket_s_file_comes_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    drop(UnixListener::bind(&path).unwrap()); // stale: its file stays
    assert!(path.exists());
    let first = Vsock::open(&config(path.clone())).unwrap();
    let refused = Vsock::open(&config(path.clone())).map(drop).unwrap_err().to_string();
    assert!(refused.contains("another process listens there") && refused.contains("/v"), "{refused}");
    assert!(UnixStream::connect(&path).is_ok(), "the first one goes on");
    drop(first);
    assert!(!path.exists());
    std::fs::write(&path, "a note").unwrap();
    let refused = Vsock::open(&config(path.clone())).map(drop).unwrap_err().to_string();
    assert!(refused.contains("a file that is no socket"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a note");
    let refused = Vsock::open(&config(folder.path().join("no/v"))).map(drop).unwrap_err().to_string();
    assert!(refused.contains("No such file"), "{refused}");
    // Somebody else's file is not removed.
    std::fs::remove_file(&path).unwrap();
    let replaced = Vsock::open(&config(path.clone())).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "another").unwrap();
    drop(replaced);
    assert!(path.exists());
}

/// Many find the socket of a monitor that was killed: one gets it, and none takes it away from who has it already.
#[test]
fn a_stale_socket_is_taken_over_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    for _ in 0..50 {
        drop(UnixListener::bind(&path).unwrap());
        let start = std::sync::Barrier::new(4);
        let open = || {
            start.wait();
            Vsock::open(&config(path.clone())).map_err(|error| error.to_string())
        };
        let opened: Vec<_> = std::thread::scope(|scope| {
            let opening: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            opening.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(opened.iter().flatten().count(), 1);
        for refused in opened.iter().filter_map(|opened| opened.as_ref().err()) {
            assert!(refused.contains("another process listens there"), "{refused}");
        }
        assert!(UnixStream::connect(&path).is_ok());
    }
}

#[test]
fn connections_outlive_a_pause_and_no_reset() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.up();
    let kicks = ["receive_kicks", "transmit_kicks"].map(|name| guest.rig.counted(name));
    assert!(kicks.iter().all(|kicks| *kicks > 0), "{kicks:?}");
    assert_eq!(kicks.iter().sum::<u64>(), guest.rig.counted("kicks"));
    let counted = |guest: &Guest| ["conns_added", "conns_removed"].map(|name| guest.rig.counted(name));
    assert_eq!(counted(&guest), [1, 0]);
    guest.rig.pause();
    host.write_all(b"meanwhile").unwrap();
    let mut late = guest.dial(5001);
    guest.rig.resume();
    let mut heard = [guest.hear(), guest.hear()];
    heard.sort_by_key(|(header, _)| header.op);
    assert_eq!((heard[0].0.op, heard[1].0.op), (op::REQUEST, op::RW));
    assert_eq!(heard[1].1, b"meanwhile");
    guest.say(op::RESPONSE, (5001, heard[0].0.src_port), 0, &[]);
    assert!(line(&mut late).starts_with("OK "));
    guest.say(op::RW, ports, 0, b"after it");
    let mut got = [0; 8];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"after it");
    guest.rig.begin();
    assert_eq!(host.read(&mut got).unwrap(), 0, "a reset ends it");
    assert_eq!(counted(&guest), [2, 2]);
}
