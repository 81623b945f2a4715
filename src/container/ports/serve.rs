//! Answering a container's ports: one thread that accepts callers, has the agent called for each of them by a thread that
//! ends when that is done, and carries what both sides say.

use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use protocol::message::Order;
use relay::{HEADROOM, Line, Mailbox, Pair, Relay};
use rustix::net::sockopt::set_socket_linger;

use super::callers::{Caller, Callers};
use super::{LAST_WORDS, Socket, datagram};
use crate::network::Port;
use crate::session::Session;

/// For so many of them the agent is being called.
const MOST_CALLS: usize = 32;
/// How long the agent may take to connect to the container. It waits 10 s itself.
const CALLS: Duration = Duration::from_secs(20);
/// Who has sent no datagram for so long, and heard none, is none of the callers any more.
const SILENT: Duration = Duration::from_secs(60);
/// How often that is looked at, and what could not be accepted for want of descriptors is tried again.
const LOOK: Duration = Duration::from_secs(1);
/// Datagrams of one port in one turn.
const BUDGET: usize = 64;
/// The mailbox among the thread's files; ports have the numbers from 0 on.
const MAILBOX: u64 = u32::MAX as u64;

/// What the thread is told.
#[derive(Debug)]
pub enum Said {
    /// The agent was called for somebody; none: in vain.
    Called(Who, Option<(OwnedFd, Vec<u8>)>),
    /// The container has ended, and another one of its name will come.
    Restarts,
    /// No other one will come.
    Ends,
}

/// For whom.
#[derive(Debug)]
pub enum Who {
    /// A connection.
    Tcp(TcpStream),
    /// A caller by UDP.
    Udp(Caller),
}

/// A port.
#[derive(Debug)]
struct Door {
    port: Port,
    socket: Socket,
    /// Somebody may wait there.
    is_rung: bool,
}

/// The thread's own.
#[derive(Debug)]
pub struct Serving {
    doors: Vec<Door>,
    most: usize,
    agent: PathBuf,
    id: String,
    mailbox: Arc<Mailbox<Said>>,
    relay: Relay,
    callers: Callers,
    /// How many times the agent is being called, and how many of these are for connections.
    calls: usize,
    streams_called: usize,
    /// There is more to receive; something could not be accepted.
    again: bool,
    looks: bool,
    looked: Instant,
    /// When all ends, at the latest.
    ends: Option<Instant>,
}

impl Serving {
    /// Of these ports, with so many connections at a time; who comes then waits.
    pub fn new(
        taken: Vec<(Port, Socket)>,
        most: usize,
        agent: PathBuf,
        id: String,
        mailbox: Arc<Mailbox<Said>>,
    ) -> io::Result<Self> {
        let relay = Relay::new()?;
        relay.watch(&*mailbox, MAILBOX)?;
        for ((_, socket), token) in taken.iter().zip(0..) {
            match socket {
                Socket::Tcp(socket) => relay.watch(socket, token)?,
                Socket::Udp(socket) => relay.watch(&**socket, token)?,
            }
        }
        // Somebody may wait there already.
        let doors = taken.into_iter().map(|(port, socket)| Door { port, socket, is_rung: true }).collect();
        let callers = Callers::default();
        Ok(Self {
            doors,
            most,
            agent,
            id,
            mailbox,
            relay,
            callers,
            calls: 0,
            streams_called: 0,
            again: false,
            looks: false,
            looked: Instant::now(),
            ends: None,
        })
    }

    /// Answers until the container has ended and its last words were carried.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            for token in self.relay.wait(self.patience())? {
                match usize::try_from(token).ok().and_then(|number| self.doors.get_mut(number)) {
                    Some(door) => door.is_rung = true,
                    None => self.mailbox.take().into_iter().for_each(|said| self.hear(said)),
                }
            }
            (self.again, self.looks) = (false, false);
            (0..self.doors.len()).for_each(|number| self.open(number));
            self.call_for_callers();
            for id in self.relay.turn() {
                self.callers.ended(id);
            }
            self.end_silent();
            if self.ends.is_some_and(|ends| ends <= Instant::now() || self.has_said_all()) {
                return Ok(());
            }
        }
    }

    /// Whether nobody waits for what the container has said, nor for whether it said something.
    fn has_said_all(&self) -> bool {
        self.streams_called == 0 && self.relay.len() <= self.relay.silent().count()
    }

    /// How long nothing has to be done unless something happens.
    fn patience(&self) -> Option<Duration> {
        let is_waited_for = |door: &Door| door.is_rung && matches!(door.socket, Socket::Tcp(_));
        if self.again || !self.looks && self.has_room() && self.doors.iter().any(is_waited_for) {
            return Some(Duration::ZERO);
        }
        (self.looks || self.ends.is_some() || !self.relay.is_empty()).then_some(LOOK)
    }

    /// Ends callers who were silent for too long.
    fn end_silent(&mut self) {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            let silent = self.relay.silent().filter(|(_, since)| since.elapsed() > SILENT);
            silent.map(|(id, _)| id).collect::<Vec<_>>().into_iter().for_each(|id| self.end(id));
        }
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Called(who, line) => self.called(who, line),
            Said::Restarts => {
                self.callers.part().into_iter().for_each(|id| self.relay.remove(id));
                self.relay.part(Instant::now() + LAST_WORDS);
            }
            Said::Ends => {
                self.doors.clear();
                let ends = Instant::now() + LAST_WORDS;
                self.ends = Some(ends);
                self.relay.part(ends);
            }
        }
    }

    /// Whether one more can come.
    fn has_room(&self) -> bool {
        self.calls < MOST_CALLS && self.taken() < self.most
    }

    fn taken(&self) -> usize {
        self.relay.len().saturating_add(self.streams_called).saturating_add(self.callers.waiting())
    }

    /// Takes who waits at a port.
    fn open(&mut self, number: usize) {
        let Some(Door { port, socket, is_rung: true }) = self.doors.get(number) else { return };
        let port = port.container;
        let rung = match socket {
            Socket::Udp(socket) => {
                let socket = Arc::clone(socket);
                let more = (0..BUDGET).all(|_| self.receive(number, &socket));
                self.again |= more;
                more
            }
            Socket::Tcp(_) => self.accept(number, port),
        };
        if let Some(door) = self.doors.get_mut(number) {
            door.is_rung = rung;
        }
    }

    /// Takes connections while there is room. True: others may wait.
    fn accept(&mut self, number: usize, port: u16) -> bool {
        while self.has_room() {
            let Some(Door { socket: Socket::Tcp(socket), .. }) = self.doors.get(number) else { return false };
            match socket.accept() {
                Ok((stream, _)) => {
                    // Until it is carried, its end is none that the container has said.
                    let _ = set_socket_linger(&stream, Some(Duration::ZERO));
                    self.call(Who::Tcp(stream), port);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return false,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => (),
                    // No descriptors or no memory: again when some may have come free.
                    _ => {
                        self.looks = true;
                        return true;
                    }
                },
            }
        }
        true
    }

    /// Takes a datagram. False: there is none.
    fn receive(&mut self, door: usize, socket: &UdpSocket) -> bool {
        let room = self.relay.buffer().get_mut(HEADROOM..).unwrap_or_default();
        let (len, from, to) = match datagram::receive(socket, room) {
            Ok(Some(got)) => got,
            Ok(None) => return false,
            Err(_) => return true, // of one that was sent before: nobody was there
        };
        let caller = Caller { door, from, to };
        if !self.callers.knows(&caller) {
            if self.taken() >= self.most && !self.make_room() {
                return true;
            }
            self.callers.add(caller);
        }
        let datagram = self.relay.buffer().get(HEADROOM..HEADROOM.saturating_add(len)).unwrap_or_default();
        if let Some(id) = self.callers.take(&caller, datagram)
            && !self.relay.say(id, len)
        {
            self.callers.ended(id);
        }
        true
    }

    /// Who has been silent for longest makes room.
    fn make_room(&mut self) -> bool {
        let longest = self.relay.silent().min_by_key(|(_, since)| *since).map(|(id, _)| id);
        longest.into_iter().for_each(|id| self.end(id));
        longest.is_some()
    }

    fn end(&mut self, id: u64) {
        self.relay.remove(id);
        self.callers.ended(id);
    }

    fn call_for_callers(&mut self) {
        while self.calls < MOST_CALLS
            && let Some(caller) = self.callers.next_uncalled()
        {
            if let Some(port) = self.doors.get(caller.door).map(|door| door.port.container) {
                self.call(Who::Udp(caller), port);
            }
        }
    }

    /// Has the agent called, on a thread of its own.
    fn call(&mut self, who: Who, port: u16) {
        let caller = match &who {
            Who::Udp(caller) => Some(*caller),
            Who::Tcp(_) => None,
        };
        let order = Order::Connect { id: self.id.clone(), port, udp: caller.is_some() };
        let (agent, mailbox) = (self.agent.clone(), Arc::clone(&self.mailbox));
        let call = move || {
            let line = Session::connect(&agent, &order, CALLS);
            mailbox.put(Said::Called(who, line.ok()));
        };
        if thread::Builder::new().name("caller".to_owned()).spawn(call).is_ok() {
            self.calls += 1;
            self.streams_called += usize::from(caller.is_none());
        } else if let Some(caller) = caller {
            self.callers.forget(&caller);
        }
    }

    /// The agent was called.
    fn called(&mut self, who: Who, line: Option<(OwnedFd, Vec<u8>)>) {
        self.calls = self.calls.saturating_sub(1);
        let line = line.map(|(stream, rest)| Line::of_host(stream, rest));
        match (who, line) {
            (Who::Tcp(stream), line) => {
                self.streams_called = self.streams_called.saturating_sub(1);
                // Where nobody listens, the caller hears what one hears of such a port.
                if let Some(line) = line {
                    let _ = set_socket_linger(&stream, None);
                    let _ = self.relay.add(Pair::stream(stream.into(), line));
                    // It may have said its last words to this one.
                    self.ends.into_iter().for_each(|ends| self.relay.part(ends));
                }
            }
            (Who::Udp(caller), Some(line)) => self.carry_datagrams(caller, line),
            (Who::Udp(caller), None) => self.callers.forget(&caller),
        }
    }

    fn carry_datagrams(&mut self, caller: Caller, line: Line) {
        let Some(Door { socket: Socket::Udp(socket), .. }) = self.doors.get(caller.door) else { return };
        let socket = Arc::clone(socket);
        let send = move |bytes: &[u8]| datagram::send(&socket, bytes, caller.to, caller.from);
        let Ok(id) = self.relay.add(Pair::caller(Box::new(send), line)) else {
            return self.callers.forget(&caller);
        };
        for datagram in self.callers.carried(caller, id) {
            let room = self.relay.buffer().iter_mut().skip(HEADROOM);
            room.zip(&datagram).for_each(|(to, from)| *to = *from);
            if !self.relay.say(id, datagram.len()) {
                return self.callers.ended(id);
            }
        }
    }
}
