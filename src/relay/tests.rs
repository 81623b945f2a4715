//! Tests of what is carried, with sockets of this host: a caller, the host's end, the guest's end, a server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{HEADROOM, Line, Mailbox, Pair, Relay};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a thread that carries is told.
enum Said {
    Carry(Pair),
    Part,
    Stop,
}

/// A thread that carries.
struct End {
    mailbox: Arc<Mailbox<Said>>,
    thread: Option<JoinHandle<usize>>,
}

impl End {
    fn new() -> Self {
        let mailbox = Mailbox::new().unwrap();
        let mut relay = Relay::new().unwrap();
        relay.watch(&*mailbox, 0).unwrap();
        let inside = Arc::clone(&mailbox);
        let carry = move || {
            loop {
                if !relay.wait(Some(PATIENCE)).unwrap().is_empty() {
                    for said in inside.take() {
                        match said {
                            Said::Carry(pair) => _ = relay.add(pair).unwrap(),
                            Said::Part => relay.part(Instant::now() + PATIENCE),
                            Said::Stop => return relay.len(),
                        }
                    }
                }
                relay.turn();
            }
        };
        Self { mailbox, thread: Some(thread::spawn(carry)) }
    }

    /// How many connections it had at its end.
    fn stop(mut self) -> usize {
        self.mailbox.put(Said::Stop);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Two connected sockets.
fn tcp() -> (TcpStream, TcpStream) {
    let listening = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let one = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
    let (other, _) = listening.accept().unwrap();
    for stream in [&one, &other] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    (one, other)
}

fn line() -> (Line, Line) {
    let (host, guest) = UnixStream::pair().unwrap();
    (Line::of_host(host.into(), vec![]), Line::of_guest(guest.into(), vec![]))
}

/// Both ends of the way, and a caller and a server at it.
struct Way {
    host: End,
    guest: End,
}

impl Way {
    fn new() -> Self {
        Self { host: End::new(), guest: End::new() }
    }

    fn connect(&self) -> (TcpStream, TcpStream) {
        let ((caller, at_host), (server, at_guest), (host, guest)) = (tcp(), tcp(), line());
        self.host.mailbox.put(Said::Carry(Pair::stream(at_host.into(), host)));
        self.guest.mailbox.put(Said::Carry(Pair::stream(at_guest.into(), guest)));
        (caller, server)
    }
}

/// Bytes in which each place can be told from others.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let next = move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(next).collect()
}

fn all(mut from: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Reads until the end or an error.
fn until_reset(mut from: &TcpStream) -> (Vec<u8>, ErrorKind) {
    let mut bytes = Vec::new();
    let error = from.read_to_end(&mut bytes).expect_err("an orderly end");
    (bytes, error.kind())
}

#[test]
fn all_arrives_and_each_direction_ends_for_itself() {
    let way = Way::new();
    let (caller, server) = way.connect();
    let echo = thread::spawn(move || {
        let heard = all(&server); // until the caller's half close
        (&server).write_all(&heard).unwrap();
        (&server).write_all(b"and more").unwrap();
    });
    let sent = noise(3 << 20, 7);
    (&caller).write_all(&sent).unwrap();
    caller.shutdown(Shutdown::Write).unwrap();
    let mut wanted = sent;
    wanted.extend_from_slice(b"and more");
    assert!(all(&caller) == wanted);
    echo.join().unwrap();
    assert_eq!((way.host.stop(), way.guest.stop()), (0, 0));
}

#[test]
fn both_directions_go_at_once_on_many_connections() {
    let way = Way::new();
    let talks = (0..100).map(|number| {
        let (caller, server) = way.connect();
        let talk = |stream: TcpStream, own: u32, other: u32| {
            move || {
                let mouth = stream.try_clone().unwrap();
                let speaking = thread::spawn(move || {
                    (&mouth).write_all(&noise(100_000, own)).unwrap();
                    mouth.shutdown(Shutdown::Write).unwrap();
                });
                assert!(all(&stream) == noise(100_000, other));
                speaking.join().unwrap();
            }
        };
        [thread::spawn(talk(caller, number, number + 1000)), thread::spawn(talk(server, number + 1000, number))]
    });
    talks.collect::<Vec<_>>().into_iter().flatten().for_each(|talk| talk.join().unwrap());
    assert_eq!((way.host.stop(), way.guest.stop()), (0, 0));
}

/// Whoever goes without a word is not taken for one who has said all.
#[test]
fn a_reset_is_a_reset_on_the_other_side() {
    let way = Way::new();
    let (caller, server) = way.connect();
    (&caller).write_all(b"half of it").unwrap();
    let mut heard = [0; 10];
    (&server).read_exact(&mut heard).unwrap();
    (&server).write_all(b"never read").unwrap();
    let mut some = [0; 1];
    (&caller).read_exact(&mut some).unwrap();
    drop(caller); // with bytes unread
    assert_eq!(until_reset(&server).1, ErrorKind::ConnectionReset);
    assert_eq!((way.host.stop(), way.guest.stop()), (0, 0));
}

#[test]
fn an_end_that_dies_resets_both() {
    for host_dies in [true, false] {
        let way = Way::new();
        let (caller, server) = way.connect();
        for (from, to) in [(&caller, &server), (&server, &caller)] {
            let (mut from, mut to, mut heard) = (from, to, [0]);
            from.write_all(b"x").unwrap();
            to.read_exact(&mut heard).unwrap();
        }
        let Way { host, guest } = way;
        let (dies, lives, seen) = if host_dies { (host, guest, &server) } else { (guest, host, &caller) };
        assert_eq!(dies.stop(), 1);
        assert_eq!(until_reset(seen).1, ErrorKind::ConnectionReset);
        assert_eq!(lives.stop(), 0);
    }
}

/// What a server says before it hangs up on a caller who goes on is heard.
#[test]
fn an_early_answer_is_heard() {
    let way = Way::new();
    let (caller, server) = way.connect();
    (&server).write_all(b"too large").unwrap();
    drop(server);
    assert_eq!(all(&caller), b"too large");
    // The caller finds out that nobody listens.
    let mut sent = Ok(());
    let since = Instant::now();
    while sent.is_ok() && since.elapsed() < PATIENCE {
        sent = (&caller).write_all(&[0; 1 << 16]);
    }
    assert!(sent.is_err());
    assert_eq!((way.host.stop(), way.guest.stop()), (0, 0));
}

/// A reader who does not read stops the writer, and nothing else; and then gets all.
#[test]
fn a_slow_reader_stops_the_writer() {
    let way = Way::new();
    let (caller, server) = way.connect();
    caller.set_nonblocking(true).unwrap();
    let (piece, mut sent, mut pauses) = (noise(1 << 16, 3), 0_usize, 0);
    while pauses < 20 {
        match (&caller).write(&piece[sent % piece.len()..]) {
            Ok(len) => sent += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                pauses += 1;
                // Others go on.
                let (mut other, mut end) = way.connect();
                other.write_all(b"others").unwrap();
                let mut heard = [0; 6];
                end.read_exact(&mut heard).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 200 << 20, "{sent} bytes are kept somewhere");
    }
    caller.shutdown(Shutdown::Write).unwrap();
    let heard = all(&server);
    assert_eq!(heard.len(), sent);
    assert!(heard.iter().zip(piece.iter().cycle()).all(|(one, other)| one == other));
    drop((caller, server));
}

/// When the container has gone, what it said is still carried, and who has said nothing more to it is let go.
#[test]
fn what_was_said_before_the_end_is_heard() {
    let way = Way::new();
    let (caller, server) = way.connect();
    let said = noise(2 << 20, 5);
    let speaking = {
        let said = said.clone();
        thread::spawn(move || (&server).write_all(&said).unwrap())
    };
    way.host.mailbox.put(Said::Part);
    assert!(all(&caller) == said);
    speaking.join().unwrap();
    assert_eq!(way.host.stop(), 0, "a caller who has not ended is not waited for");
}

#[test]
fn a_line_that_says_nonsense_is_broken() {
    for nonsense in [&[0, 0, 0, 0, 1][..], &[0, 0, 0, 0, 77], &[0, 0, 0, 0, 2, 1, 0, 0, 0, 2, 1], &[1, 0, 1, 0, 2]] {
        let (caller, at_host) = tcp();
        let (mut guest, host) = UnixStream::pair().unwrap();
        guest.write_all(nonsense).unwrap();
        let end = End::new();
        end.mailbox.put(Said::Carry(Pair::stream(at_host.into(), Line::of_host(host.into(), vec![]))));
        let mut heard = Vec::new();
        let _ = guest.read_to_end(&mut heard); // until it closes
        drop(caller);
        assert_eq!(end.stop(), 0, "{nonsense:?}");
    }
}

/// Two datagrams with nothing between them stay two; an empty one is one; the largest one goes.
#[test]
fn datagrams_stay_what_they_are() {
    let (host, guest) = line();
    let (asked, at_guest) =
        (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    at_guest.connect(asked.local_addr().unwrap()).unwrap();
    asked.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = End::new();
    end.mailbox.put(Said::Carry(Pair::datagrams(at_guest.into(), guest)));

    let (answers, answered) = std::sync::mpsc::channel();
    let mut relay = Relay::new().unwrap();
    let caller = Pair::caller(Box::new(move |bytes| answers.send(bytes.to_vec()).unwrap()), host);
    let id = relay.add(caller).unwrap();
    for datagram in [&b"one"[..], b"", &noise(65_507, 9)] {
        relay.buffer()[HEADROOM..HEADROOM + datagram.len()].copy_from_slice(datagram);
        assert!(relay.say(id, datagram.len()));
        let mut heard = vec![0; 70_000];
        let (len, from) = asked.recv_from(&mut heard).unwrap();
        assert_eq!(&heard[..len], datagram);
        asked.send_to(&heard[..len], from).unwrap();
        let since = Instant::now();
        let answer = loop {
            match answered.try_recv() {
                Ok(answer) => break answer,
                Err(_) => assert!(since.elapsed() < PATIENCE),
            }
            relay.wait(Some(Duration::from_millis(100))).unwrap();
            assert!(relay.turn().is_empty());
        };
        assert_eq!(answer, datagram);
    }
    assert_eq!(end.stop(), 1);
    while relay.turn().is_empty() {
        relay.wait(Some(PATIENCE)).unwrap(); // until it hears that the other end has gone
    }
    assert!(relay.is_empty());
}

/// What came before the conversation became a line is carried first.
#[test]
fn what_was_read_too_early_is_not_lost() {
    let (caller, at_host) = tcp();
    let (guest, host) = UnixStream::pair().unwrap();
    let frame = [&[5, 0, 0, 0, 2][..], b"early", &[0, 0, 0, 0, 2]].concat();
    let end = End::new();
    end.mailbox.put(Said::Carry(Pair::stream(at_host.into(), Line::of_host(host.into(), frame))));
    assert_eq!(all(&caller), b"early");
    drop(guest);
    end.stop();
}
