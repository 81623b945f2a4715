//! virtio-vsock (virtio 1.2, 5.10): sockets between the guest and UNIX sockets of the host, by Firecracker's convention.
//! Runs on its worker thread; touches guest memory and sockets, and waits for nothing.
//!
//! A host process connects to `uds_path`, says `CONNECT port\n` and is answered `OK hostport\n`; what the guest
//! connects to at CID 2, port P goes to the UNIX socket `<uds_path>_<P>`. One inner epoll watches all sockets; its own
//! descriptor is what the worker waits for.

mod config;
mod connection;
mod packet;
mod receive;
mod socket;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub use self::config::VsockConfig;
use self::connection::{BUF_ALLOC, BUF_ALLOC_OF_MANY, Connection, Phase, Ports};
use self::packet::{HEADER, HOST_CID, Header, TYPE_STREAM, op};
use self::receive::Batch;
pub use self::state::VsockState;
use super::chain::Segments;
use super::io::{Broken, Io, count};
use super::pieces::Pieces;
use super::state::DeviceState;
use super::{Chain, Device, Facts, OpenError, Source, Stop};
use crate::listener::{self, Listener};
use crate::state::StateError;
use crate::tally;

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_VSOCK: u32 = 19;
/// VIRTIO_VSOCK_F_STREAM.
const F_STREAM: u64 = 1;
const QUEUE_SIZE: u16 = 256;
/// The queues (5.10.2), towards the guest and from it, and for events.
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Most connections: with the bytes kept for each, this bounds the device's memory (some 300 MiB).
pub const MAX_CONNECTIONS: usize = 4096;
/// Most names that wait for their turn.
const QUEUED_MAX: usize = 2 * MAX_CONNECTIONS;
/// A connection that is made while there are so many others gets the smaller buffer.
pub const FEW_CONNECTIONS: usize = 256;
/// Most resets that wait for a place in the guest's ring; then its packets wait, too.
const MAX_REPLIES: usize = 256;
/// Packets of one queue in one call, then the other queue and the host have their turn.
const BUDGET: u32 = 256;
/// Ports of the host's ends begin here.
const FIRST_PORT: u32 = 1 << 30;
/// The listener's name in the inner epoll; connections have the numbers above.
const LISTENER: u64 = 0;

/// The device.
pub struct Vsock {
    cid: u64,
    listener: Listener,
    epoll: Epoll,
    /// Something may wait in the inner epoll.
    unpolled: bool,
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    /// Connections that may have something for the guest, in turn.
    queued: VecDeque<u64>,
    /// Resets for the guest that belong to no connection.
    replies: VecDeque<Header>,
    /// The guest's packets wait for room in `replies`.
    held_up: bool,
    /// A connection could not be accepted for want of descriptors.
    accept_again: bool,
    last: u64,
    last_port: u32,
    /// The guest is to hear that all its connections are gone.
    reset_due: bool,
    room: Segments,
    batch: Batch,
    pieces: Pieces,
    tally: Arc<Tally>,
}

tally! {
    /// What the device counts of its own.
    struct Tally {
        /// Kicks of the receive queue.
        receive_kicks: AtomicU64,
        /// Kicks of the transmit queue.
        transmit_kicks: AtomicU64,
        /// Connections that were made.
        conns_added: AtomicU64,
        /// Connections that are gone.
        conns_removed: AtomicU64,
    }
}

impl Vsock {
    /// Makes the listening socket.
    pub fn open(config: &VsockConfig) -> Result<Self, OpenError> {
        if config.vsock_id.is_some() {
            tracing::warn!("vsock.vsock_id has no meaning any more and is ignored");
        }
        socket::allow_many_descriptors();
        let listener = Listener::bind(&config.uds_path).map_err(|error| {
            OpenError::new(format!("the vsock's socket {} can not be made: {error}", config.uds_path.display()))
        })?;
        let failed = |error| OpenError::new(format!("the vsock can not watch its sockets: {error}"));
        let epoll = Epoll::new().map_err(failed)?;
        let events = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER);
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), events).map_err(failed)?;
        Ok(Self {
            cid: u64::from(config.guest_cid),
            listener,
            epoll,
            unpolled: true,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            queued: VecDeque::new(),
            replies: VecDeque::new(),
            held_up: false,
            accept_again: true,
            last: LISTENER,
            last_port: FIRST_PORT,
            reset_due: false,
            room: Segments::default(),
            batch: Batch::default(),
            pieces: Pieces::default(),
            tally: Arc::default(),
        })
    }

    /// Looks at what happened to the sockets.
    fn poll(&mut self, io: &Io<'_>) {
        let mut events = [EpollEvent::default(); 64];
        for _ in 0..BUDGET {
            let got = self.epoll.wait(0, &mut events).unwrap_or(0);
            if got == 0 {
                self.unpolled = false;
                return;
            }
            for event in events.iter().take(got) {
                match event.data() {
                    LISTENER => self.accept_again = true,
                    id => self.woke(id, event.event_set()),
                }
            }
            if io.is_wanted() {
                break;
            }
        }
        io.ring(RX);
    }

    fn accept(&mut self) {
        while self.accept_again {
            match self.listener.accept() {
                Ok(stream) if self.connections.len() < MAX_CONNECTIONS => {
                    if let Some(id) = self.watch(&stream) {
                        let connection = Connection::greeting(stream, self.buf_alloc());
                        self.add(id, connection);
                    }
                }
                Ok(_refused) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.accept_again = false,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    // No descriptors or no memory: again when something else happens.
                    _ => return,
                },
            }
        }
    }

    /// What one more connection may keep.
    fn buf_alloc(&self) -> u32 {
        if self.connections.len() < FEW_CONNECTIONS { BUF_ALLOC } else { BUF_ALLOC_OF_MANY }
    }

    fn watch(&mut self, stream: &UnixStream) -> Option<u64> {
        self.last = self.last.wrapping_add(1);
        let all = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let added = self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(all, self.last));
        // What the socket has to say at once is an event of the inner epoll, too.
        added.ok().map(|()| self.last)
    }

    /// A connection's socket has changed.
    fn woke(&mut self, id: u64, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.heard(events.intersects(EventSet::HANG_UP | EventSet::ERROR));
        if connection.phase == Phase::Greeting {
            match connection.greeted() {
                None => return,
                Some(Err(())) => return self.remove(id),
                Some(Ok(guest)) => {
                    let ports = Ports { host: self.free_port(guest), guest };
                    self.by_ports.insert(ports, id);
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.ask(ports);
                    }
                }
            }
        } else if connection.flush() {
            return self.remove(id);
        }
        self.queue(id);
    }

    fn free_port(&mut self, guest: u32) -> u32 {
        // There are far fewer connections than ports.
        loop {
            self.last_port = self.last_port.wrapping_add(1).max(FIRST_PORT);
            if !self.by_ports.contains_key(&Ports { host: self.last_port, guest }) {
                return self.last_port;
            }
        }
    }

    fn queue(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !std::mem::replace(&mut connection.queued, true)
        {
            // Names of connections that are gone stay until their turn comes, which a guest can put off for ever.
            if self.queued.len() >= QUEUED_MAX {
                self.queued.retain(|id| self.connections.contains_key(id));
            }
            self.queued.push_back(id);
        }
    }

    fn add(&mut self, id: u64, connection: Connection) {
        count(&self.tally.conns_added, 1);
        self.connections.insert(id, connection);
    }

    fn remove(&mut self, id: u64) {
        let removed = self.connections.remove(&id);
        count(&self.tally.conns_removed, u64::from(removed.is_some()));
        if let Some(connection) = removed
            && self.by_ports.get(&connection.ports) == Some(&id)
        {
            self.by_ports.remove(&connection.ports);
        }
    }

    /// Serves the guest's packets. True when the guest is to hear that their buffers are used.
    fn transmit(&mut self, io: &mut Io<'_>) -> Result<bool, Broken> {
        let mut done = 0_u32;
        io.listen(TX, false)?;
        let more = loop {
            self.held_up = self.replies.len() >= MAX_REPLIES;
            if self.held_up {
                break false;
            }
            if done == BUDGET || io.is_wanted() {
                break true;
            }
            if let Some(held) = io.take(TX, std::mem::take(&mut self.room))? {
                self.packet(&held.chain(io.memory()), io)?;
                self.room = io.give(TX, held, 0)?;
                done = done.saturating_add(1);
            } else if !io.listen(TX, true)? {
                break false;
            }
        };
        if more {
            io.ring(TX);
        }
        Ok(done > 0)
    }

    /// One packet of the guest. What makes no sense is answered with a reset, or not at all.
    fn packet(&mut self, chain: &Chain<'_>, io: &Io<'_>) -> Result<(), Broken> {
        let mut bytes = [0; HEADER];
        if chain.readable_len() < u64::try_from(HEADER).unwrap_or(0) {
            io.counters().refuse();
            return Ok(());
        }
        chain.read(0, &mut bytes).map_err(|_| Broken("a buffer is not in RAM"))?;
        let header = Header::parse(&bytes);
        if header.src_cid != self.cid {
            io.counters().refuse();
            return Ok(());
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let id = self.by_ports.get(&ports).copied().filter(|_| header.dst_cid == HOST_CID);
        let room = chain.readable_len().saturating_sub(u64::try_from(HEADER).unwrap_or(0));
        let sane = header.kind == TYPE_STREAM && header.dst_cid == HOST_CID && u64::from(header.len) <= room;
        let Some((id, connection)) = id.and_then(|id| Some((id, self.connections.get_mut(&id)?))) else {
            match header.op {
                op::REQUEST if sane => self.connect(&header, ports),
                op::RST => {}
                _ => self.replies.push_back(header.reset()),
            }
            return Ok(());
        };
        connection.credit(&header);
        match header.op {
            _ if !sane => connection.phase = Phase::Dead,
            op::RESPONSE => connection.answered(),
            op::RW => {
                io.counters().moved_out(header.len.into());
                connection.data(chain, header.len, &mut self.pieces)?;
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => connection.credit_wanted(),
            op::SHUTDOWN => connection.shut(header.flags),
            op::RST => {
                self.by_ports.remove(&ports);
                if connection.reset() {
                    self.remove(id);
                }
                return Ok(());
            }
            _ => connection.phase = Phase::Dead,
        }
        if connection.phase == Phase::Dead {
            io.counters().refuse();
        }
        self.queue(id);
        Ok(())
    }

    /// Where the guest's connections to `port` of the host go.
    fn path_of(&self, port: u32) -> PathBuf {
        let mut path = self.listener.path().as_os_str().to_owned();
        path.push(format!("_{port}"));
        path.into()
    }

    /// The guest wants to reach a port of the host.
    fn connect(&mut self, header: &Header, ports: Ports) {
        let room = self.connections.len() < MAX_CONNECTIONS;
        let stream = room.then(|| listener::connect(&self.path_of(ports.host)).ok()).flatten();
        let watched = stream.and_then(|stream| Some((self.watch(&stream)?, stream)));
        let Some((id, stream)) = watched else { return self.replies.push_back(header.reset()) };
        let mut connection = Connection::accepted(stream, ports, self.buf_alloc());
        connection.credit(header);
        self.add(id, connection);
        self.by_ports.insert(ports, id);
        self.queue(id);
    }

    /// Looks at the host's sockets and sends the guest what there is for it. `sent`: it is to hear of its own packets, too,
    /// which often takes no interrupt more than the credit for them.
    fn serve(&mut self, sent: bool, io: &mut Io<'_>) -> Result<(), Broken> {
        if self.unpolled {
            self.poll(io);
        }
        self.accept();
        let received = self.receive(io)?;
        io.tell_of([(TX, sent), (RX, received)].into_iter().filter(|(_, told)| *told).map(|(queue, _)| queue))
    }
}

impl Device for Vsock {
    fn facts(&self) -> Facts {
        Facts {
            virtio_id: VIRTIO_ID_VSOCK,
            features: F_STREAM,
            queue_sizes: vec![QUEUE_SIZE; 3],
            config: self.cid.to_le_bytes().to_vec(),
            sources: vec![Source { token: 0, fd: self.epoll.as_raw_fd() }],
            tally: Some(self.tally.clone()),
            ..Facts::default()
        }
    }

    fn heard(&mut self, queue: usize) {
        match queue {
            RX => _ = count(&self.tally.receive_kicks, 1),
            TX => _ = count(&self.tally.transmit_kicks, 1),
            _ => {}
        }
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        self.tell_reset(io)?;
        let sent = match queue {
            RX => io.listen(RX, false).map(|_| false)?,
            TX => self.transmit(io)?,
            _ => return Ok(()),
        };
        self.serve(sent, io)
    }

    fn ready(&mut self, _token: u16, io: &mut Io<'_>) -> Result<(), Broken> {
        self.unpolled = true;
        self.serve(false, io)
    }

    fn stopping(&mut self, why: Stop) {
        if why == Stop::Pause {
            return; // connections outlive a pause, as those of TCP do
        }
        // The guest knows of no connection after this.
        count(&self.tally.conns_removed, u64::try_from(self.connections.len()).unwrap_or(0));
        self.connections.clear();
        self.by_ports.clear();
        self.queued.clear();
        self.replies.clear();
        self.held_up = false;
        self.unpolled = true;
        self.accept_again = true;
        self.reset_due = false;
    }

    fn save(&mut self) -> Result<DeviceState, StateError> {
        Ok(DeviceState::Vsock(self.saved()))
    }

    fn load(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Vsock(state) = state else { return Err(StateError::other_kind()) };
        self.become_saved(state)
    }
}
