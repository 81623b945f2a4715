//! Tests of published ports, with callers on loopback and an agent that is a thread: a container behind it echoes.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use protocol::frame::{Decoder, Frame, Kind};
use protocol::message::{Done, Failure, Order};

use super::*;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// A port of the container that nobody listens at.
const CLOSED: u16 = 81;

/// Follows one order.
fn follow(mut stream: UnixStream) {
    let mut line = String::new();
    // No more than the line may be taken.
    BufReader::with_capacity(1, &stream).read_line(&mut line).unwrap();
    assert_eq!(line, "CONNECT 1024\n");
    stream.write_all(b"OK 1073741824\n").unwrap();
    let mut decoder = Decoder::default();
    let Some(first) = decoder.read_frame(&mut stream).unwrap() else { return };
    let Order::Connect { id, port, udp } = first.open().unwrap() else { panic!("another order") };
    assert_eq!(id, "web");
    let mut say = |frame: Frame| stream.write_all(&frame.bytes().unwrap());
    if port == CLOSED {
        let why = Failure::engine("connect to 172.17.0.2:81: Connection refused");
        return say(Frame::message(&Done::Failed(why)).unwrap()).unwrap();
    }
    say(Frame::message(&Done::Ok).unwrap()).unwrap();
    let mut from = stream.try_clone().unwrap();
    while let Ok(Some(frame)) = decoder.read_frame(&mut from) {
        assert_eq!(frame.kind, Kind::Stdin);
        let is_end = frame.body.is_empty() && !udp;
        if stream.write_all(&Frame { kind: Kind::Stdout, body: frame.body }.bytes().unwrap()).is_err() || is_end {
            return;
        }
    }
}

/// The agent's socket.
fn agent() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listening = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listening.incoming() {
            thread::spawn(move || follow(stream.unwrap()));
        }
    });
    (folder, path)
}

/// A port that is free, as far as one can know.
fn port(container: u16, udp: bool) -> Port {
    let host = match udp {
        true => UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port(),
        false => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port(),
    };
    Port { address: Some(Ipv4Addr::LOCALHOST), host, container, udp }
}

fn serve(ports: &[&Port], agent: &Path) -> Served {
    let ports = ports.iter().map(|port| (*port).clone()).collect();
    Ports::take(ports).unwrap().unwrap().serve(agent.to_owned(), "web".to_owned()).unwrap()
}

/// The same, with so many callers at a time.
fn serve_at_most(most: usize, port: &Port, agent: PathBuf) -> Served {
    let Ports(taken) = Ports::take(vec![port.clone()]).unwrap().unwrap();
    let mailbox = Mailbox::new().unwrap();
    let mut serving = Serving::new(taken, most, agent, "web".to_owned(), Arc::clone(&mailbox)).unwrap();
    let thread = thread::spawn(move || serving.run().unwrap());
    Served { mailbox, thread: Some(thread) }
}

fn call(port: &Port) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.host)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Says something and hears it.
fn echoes(mut stream: &TcpStream, words: &[u8]) {
    stream.write_all(words).unwrap();
    let mut heard = vec![0; words.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard, words);
}

#[test]
fn callers_reach_the_container_and_hear_its_end() {
    let (_folder, agent) = agent();
    let (open, closed) = (port(80, false), port(CLOSED, false));
    let taken = Ports::take(vec![open.clone(), closed.clone()]).unwrap().unwrap();
    let mut early = call(&open); // it waits until the container runs
    let served = taken.serve(agent, "web".to_owned()).unwrap();
    echoes(&early, b"hello");
    let sent = vec![7; 3 << 20];
    let mouth = early.try_clone().unwrap();
    let saying = thread::spawn(move || {
        (&mouth).write_all(&vec![7; 3 << 20]).unwrap();
        mouth.shutdown(Shutdown::Write).unwrap();
    });
    let mut heard = Vec::new();
    early.read_to_end(&mut heard).unwrap();
    assert!(heard == sent);
    saying.join().unwrap();
    let refused = call(&closed).read(&mut [0]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    drop(served);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, open.host)).is_err(), "nobody listens any more");
    drop(Ports::take(vec![open, closed]).unwrap());
}

#[test]
fn a_port_is_had_once() {
    let port = port(80, false);
    let _taken = Ports::take(vec![port.clone()]).unwrap();
    let why = Ports::take(vec![port.clone()]).unwrap_err().to_string();
    assert_eq!(why, format!("publish port {} of 127.0.0.1: another program uses it", port.host));
    let nowhere = Port { address: Some(Ipv4Addr::new(203, 0, 113, 9)), ..port };
    let why = Ports::take(vec![nowhere]).unwrap_err().to_string();
    assert!(why.ends_with("of 203.0.113.9: this host has no such address"), "{why}");
    assert!(Ports::take(vec![]).unwrap().is_none());
}

#[test]
fn a_caller_too_many_waits_for_one_who_goes() {
    let (_folder, agent) = agent();
    let port = port(80, false);
    let _served = serve_at_most(3, &port, agent);
    let mut inside: Vec<TcpStream> = (0..3).map(|_| call(&port)).collect();
    inside.iter().for_each(|stream| echoes(stream, b"inside"));
    let waiting = call(&port);
    (&waiting).write_all(b"patient").unwrap();
    waiting.set_nonblocking(true).unwrap();
    for _ in 0..20 {
        // The others go on, and this one is not heard.
        inside.iter().for_each(|stream| echoes(stream, b"still"));
        assert_eq!((&waiting).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    inside.pop();
    waiting.set_nonblocking(false).unwrap();
    let mut heard = [0; 7];
    (&waiting).read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"patient");
}

/// A container may have answered and ended before it is known here that it was reached.
#[test]
fn an_answer_that_overtakes_the_connection_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listening = UnixListener::bind(&path).unwrap();
    let port = port(80, false);
    let served = serve(&[&port], &path);
    let caller = call(&port);
    let (mut agent, _) = listening.accept().unwrap();
    let ending = thread::spawn(move || drop(served));
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port.host)).is_ok() {
        thread::yield_now(); // until it listens no more
    }
    let words = Frame { kind: Kind::Stdout, body: b"last words".to_vec() };
    let end = Frame { kind: Kind::Stdout, body: Vec::new() };
    let frames = [Frame::message(&Done::Ok).unwrap(), words, end].map(|frame| frame.bytes().unwrap()).concat();
    agent.write_all(&[&b"OK 1\n"[..], &frames].concat()).unwrap();
    let mut heard = String::new();
    (&caller).read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "last words");
    ending.join().unwrap();
}

#[test]
fn datagrams_go_to_who_sent_them() {
    let (_folder, agent) = agent();
    let port = Port { address: None, ..port(53, true) };
    let _served = serve(&[&port], &agent);
    // By one address of the host and by another one.
    let callers = [1, 1, 9].map(|last| {
        let caller = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        caller.connect((Ipv4Addr::new(127, 0, 0, last), port.host)).unwrap();
        caller.set_read_timeout(Some(PATIENCE)).unwrap();
        caller
    });
    for round in 0..3_u8 {
        for (number, caller) in (0_u8..).zip(&callers) {
            caller.send(&[round, number]).unwrap();
        }
        for (number, caller) in (0_u8..).zip(&callers) {
            let mut heard = [0; 9];
            let len = caller.recv(&mut heard).unwrap();
            assert_eq!(heard[..len], [round, number]);
        }
    }
}

/// More callers by UDP than there may be: the one who was silent for longest makes room.
#[test]
fn a_new_caller_takes_the_place_of_a_silent_one() {
    let (_folder, agent) = agent();
    let port = port(53, true);
    let _served = serve_at_most(2, &port, agent);
    for number in 0..10_u8 {
        let caller = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        caller.connect((Ipv4Addr::LOCALHOST, port.host)).unwrap();
        caller.set_read_timeout(Some(PATIENCE)).unwrap();
        caller.send(&[number]).unwrap();
        let mut heard = [0; 9];
        assert_eq!((caller.recv(&mut heard).unwrap(), heard[0]), (1, number));
    }
}

/// Connections to a container that is started again end; its port stays, and leads to the next one.
#[test]
fn a_restart_ends_connections_and_keeps_ports() {
    let (_folder, agent) = agent();
    let (tcp, udp) = (port(80, false), port(53, true));
    let served = serve(&[&tcp, &udp], &agent);
    let mut before = call(&tcp);
    echoes(&before, b"before");
    served.restarts();
    let caller = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    caller.connect((Ipv4Addr::LOCALHOST, udp.host)).unwrap();
    caller.set_read_timeout(Some(PATIENCE)).unwrap();
    caller.send(b"after").unwrap();
    assert_eq!(caller.recv(&mut [0; 9]).unwrap(), 5);
    echoes(&call(&tcp), b"after");
    // This container never ends, so it has its last words' time.
    assert!(matches!(before.read(&mut [0]), Err(error) if error.kind() == ErrorKind::ConnectionReset));
}
