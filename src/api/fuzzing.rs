//! A client of the API that sends what arbitrary bytes say, for fuzzing: requests that are right, wrong, in pieces, or none.
//!
//! Tests only. Connection, HTTP and routes are the real ones; the control thread is the real one of a VM that is not
//! started, or one that answers for a VM that runs. It fails when anything panics, when what comes back is no row of HTTP
//! answers, when more is kept for a client than it may, or when a proper client is not served afterwards.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)] // it is for tests: failing is its job

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use machine::config::{Draft, VmConfig};
use machine::control::{self, Answer, Begin, Mailbox, Refusal, Remote, Reply, Request as Order, State};
use machine::journal::{Happening, Journal};
use machine::metadata::Store;
use machine::metrics::Metrics;
use machine::signals::Signals;
use rustix::event::{PollFd, Timespec, poll};
use serde_json::json;

use crate::connection::Connection;
use crate::routes::{Api, ROUTES};

/// Most steps of one run: bounds its time.
const STEPS: usize = 128;
/// Longest body that is taken, and most that the metadata service keeps, bytes.
const BODY_MAX: usize = 600;
/// Most bytes that may wait for a connection: the longest head, a body, and what is read at once.
const KEPT_MAX: usize = (8 << 10) + BODY_MAX + (16 << 10);
/// From this number on a step is a request of the route that far behind it.
const FIRST_ROUTE: u8 = 16;
/// No time.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Lets a client made of `data` loose on the API of a VM, then has a proper one ask. The first byte chooses the VM.
pub fn converse(data: &[u8]) {
    let (choice, mut data) = data.split_first().map_or((0, data), |(choice, rest)| (*choice, rest));
    let (mailbox, remote) = Mailbox::new().expect("a mailbox");
    let control =
        thread::spawn(move || if choice.is_multiple_of(2) { configured(&mailbox) } else { running(&mailbox, choice) });
    let metadata = Arc::new(Store::new(BODY_MAX).expect("random numbers"));
    let metrics = Arc::new(Metrics::new());
    let api = Api::new(remote.clone(), metadata, metrics, "fuzzed".into(), "0.0.0");
    let mut talk = Talk { api, journal: Journal::new().expect("an event"), line: Line::new() };
    for _ in 0..STEPS {
        let Some(([what, len], rest)) = data.split_first_chunk::<2>() else { break };
        let (words, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        data = rest;
        talk.step(*what, words);
    }
    talk.begin_anew();
    talk.send(b"GET /version HTTP/1.1\r\n\r\n");
    let answer = talk.line.finish();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "a proper client got {answer}");
    end(talk, remote, control);
}

fn end(talk: Talk, remote: Remote, control: JoinHandle<()>) {
    let _ = remote.ask(Order::Stop);
    drop((talk, remote));
    control.join().expect("the control thread");
}

/// A VM that is not started, and never is, as there is no KVM here.
fn configured(mailbox: &Mailbox) {
    let mut draft = Draft::new(&[]).expect("nothing is wrong with defaults");
    let signals = Signals::block(&machine::signals::ENDING).expect("signals");
    while let Begin::Start(_, letter) =
        control::configure(&mut draft, mailbox, &signals, &|_| Ok(())).expect("requests")
    {
        letter.answer(Err(Refusal::Refused("there is no KVM here".into())));
    }
}

/// The answers of a VM that runs; `choice` says of which kind they are.
fn running(mailbox: &Mailbox, choice: u8) {
    let config = json!({
        "boot-source": { "kernel_image_path": "k" }, "balloon": { "amount_mib": 1 },
        "drives": [{ "drive_id": "a", "path_on_host": "a" }], "network-interfaces": [{ "iface_id": "a", "host_dev_name": "t" }],
        "pmem": [{ "id": "m", "path_on_host": "m" }],
    });
    let config: Box<VmConfig> = Box::new(serde_json::from_value(config).expect("a configuration"));
    let json = serde_json::to_value(&config).expect("JSON");
    let reply = |request: &Order| -> Reply {
        match request {
            Order::Describe => {
                Ok(Answer::Described { state: State::Running, config: config.clone(), json: json.clone() })
            }
            Order::Inspect { .. } if choice & 2 == 0 => {
                Ok(Answer::Told(json!({ "statistics": { "actual_mib": 1 }, "hinting": null })))
            }
            Order::Inspect { id } => Err(Refusal::NoDevice(id.clone())),
            Order::Configure(_) | Order::Remove { .. } | Order::Start => Err(Refusal::WrongState("it is started")),
            _ if choice & 4 == 0 => Ok(Answer::Done),
            _ => Err(Refusal::Refused("the host says \"no\"\n".into())),
        }
    };
    loop {
        let Some(letter) = mailbox.next() else {
            thread::yield_now();
            continue;
        };
        let (reply, last) = (reply(&letter.request), letter.request == Order::Stop);
        letter.answer(reply);
        if last {
            return;
        }
    }
}

/// Both ends of a connection, and what came back on it so far.
struct Line {
    connection: Connection,
    client: UnixStream,
    answers: Vec<u8>,
}

impl Line {
    fn new() -> Self {
        let (client, server) = UnixStream::pair().expect("sockets");
        client.set_nonblocking(true).expect("a socket that does not wait");
        Self { connection: Connection::new(server).expect("a connection"), client, answers: Vec::new() }
    }

    fn read(&mut self) {
        let mut piece = [0; 4096];
        while let Ok(len @ 1..) = self.client.read(&mut piece) {
            self.answers.extend_from_slice(&piece[..len]);
        }
    }

    /// Hangs up, and checks what came back: answers, and perhaps a part of one. Returns the last whole one.
    fn finish(&mut self) -> String {
        self.read();
        let mut rest = String::from_utf8(std::mem::take(&mut self.answers)).expect("answers are text");
        let mut last = String::new();
        while let Some((head, body)) = rest.split_once("\r\n\r\n") {
            assert!(head.starts_with("HTTP/1.1 "), "{rest:?}");
            let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let len = len.map_or(0, |len| len.parse().expect("a length"));
            // Events go on to the end.
            let Some(body) = body.get(..len).filter(|_| !head.contains("Transfer-Encoding")) else { break };
            let status: u16 = head[9..12].parse().expect("a status");
            if head.contains("application/json") {
                let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
                assert_eq!(body.get("fault_message").is_some(), status >= 400, "{head} {body}");
            }
            let end = head.len() + 4 + len;
            last = rest[..end].to_owned();
            rest.drain(..end);
        }
        last
    }
}

struct Talk {
    api: Api,
    journal: Journal,
    line: Line,
}

impl Talk {
    /// A request of a route, something that happens, or bytes.
    fn step(&mut self, what: u8, words: &[u8]) {
        if let Some(route) = what.checked_sub(FIRST_ROUTE).and_then(|place| ROUTES.get(usize::from(place))) {
            let (path, len) = (route.path.split('{').next().unwrap_or_default(), words.len());
            let name = if route.path.contains('{') { "a" } else { "" };
            self.send(format!("{} {path}{name} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n", route.method).as_bytes());
            return self.send(words);
        }
        match what {
            0 => self.begin_anew(),
            1 => _ = self.line.client.shutdown(std::net::Shutdown::Write),
            2 => self.journal.note(&Happening::Paused),
            3 => self.line.read(),
            4 => self.send(&words.repeat(64)),
            _ => return self.send(words),
        }
        self.turn();
    }

    fn begin_anew(&mut self) {
        self.line.finish();
        self.line = Line::new();
    }

    /// Sends what the socket takes, and lets the server work.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.line.client.write(bytes);
        self.turn();
    }

    /// As the server does when poll(2) says so.
    fn turn(&mut self) {
        self.journal.hear();
        for _ in 0..4 {
            let connection = &mut self.line.connection;
            let mut waits = [PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(connection), connection.waits_for())];
            if poll(&mut waits, Some(&NOW)) != Ok(1) {
                break;
            }
            if !self.line.connection.turn(BODY_MAX, &self.journal, |request, client| self.api.serve(request, client)) {
                return self.begin_anew();
            }
            assert!(self.line.connection.kept() <= KEPT_MAX, "{} bytes wait", self.line.connection.kept());
        }
        if !self.line.connection.follow(&self.journal, false) {
            self.begin_anew();
        }
    }
}
