//! The service's end of the wire: ARP and TCP by smoltcp, over frames that are passed in and out. The interface's worker
//! thread.
//!
//! Everything is bounded: connections, their buffers, and frames that the guest does not take. What does not fit is left
//! to TCP, which tries again. Nothing here waits; [`Stack::wait`] says when to call again.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

use super::connection::Connection;
use super::counts::Counts;
use super::http::Answer;
use super::neighbor::Neighbor;

/// Firecracker's address for it on the wire: a local one.
const MAC: EthernetAddress = EthernetAddress([0x06, 0x01, 0x23, 0x45, 0x67, 0x01]);
const PORT: u16 = 80;
/// Most connections, as Firecracker's. One of them waits for the next guest; when all others are in use, the one that was
/// silent for longest makes room.
const CONNECTIONS_MAX: usize = 30;
/// Buffers of a connection, bytes.
const RECEIVE: usize = 4 << 10;
const TRANSMIT: usize = 8 << 10;
/// A guest that does not acknowledge what was sent for so long has gone. It may be silent for as long as it likes.
const PATIENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(20);
/// Frames that wait for the guest, before connections have to wait; answers to its own frames may go as far again.
const FRAMES: usize = 64;
/// Longest IP packets that are sent: what every guest takes, and the least that an IPv4 host must (RFC 791).
const MTU_MAX: u16 = 1500;
const MTU_MIN: u16 = 576;
const ETHERNET_HEADER: usize = 14;
/// Longest frame that is looked at: more than fits into a connection's buffer is no use.
pub const FRAME_MAX: usize = 2 * RECEIVE;

/// Frames on their way.
struct Wire {
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    /// There would be more outgoing frames.
    is_full: bool,
    mtu: usize,
}

struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

struct Room<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Room<'_>)> {
        let frame = self.incoming.take()?;
        // A guest that sends and never receives: its frames are lost.
        (self.outgoing.len() < FRAMES.saturating_mul(2)).then_some((Frame(frame), Room(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.is_full = self.outgoing.len() >= FRAMES;
        (!self.is_full).then_some(Room(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu;
        // A guest whose TAP device does that for it leaves checksums out (VIRTIO_NET_F_CSUM).
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

/// A socket and its connection, from its first sign of life on.
struct Slot {
    socket: SocketHandle,
    connection: Option<Connection>,
}

/// The end of the wire.
pub struct Stack {
    address: Ipv4Addr,
    neighbor: Neighbor,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    slots: Vec<Slot>,
    counts: Arc<Counts>,
}

impl Stack {
    /// At this address; `mtu` is that of the guest's interface, `seed` any random number.
    pub fn new(address: Ipv4Addr, mtu: Option<u16>, seed: u64, counts: Arc<Counts>) -> Self {
        let mtu = usize::from(mtu.unwrap_or(MTU_MAX).clamp(MTU_MIN, MTU_MAX)).saturating_add(ETHERNET_HEADER);
        let mut wire = Wire { incoming: None, outgoing: VecDeque::new(), is_full: false, mtu };
        let mut config = Config::new(MAC.into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        // Whatever the guest's address is, it is in the same network.
        interface.update_ip_addrs(|addresses| _ = addresses.push(IpCidr::new(address.into(), 0)));
        let (neighbor, sockets) = (Neighbor::default(), SocketSet::new(Vec::new()));
        let mut stack = Self { address, neighbor, wire, interface, sockets, slots: Vec::new(), counts };
        stack.listen();
        stack
    }

    /// A frame of the guest.
    pub fn take(&mut self, mut frame: Vec<u8>, now: Instant, serve: &mut dyn FnMut(&[u8]) -> Option<Answer>) {
        if let Some(introduction) = self.neighbor.introduce(&mut frame, (MAC, self.address), now) {
            self.wire.incoming = Some(introduction);
            self.interface.poll_ingress_single(now, &mut self.wire, &mut self.sockets);
        }
        self.wire.incoming = Some(frame);
        self.turn(now, serve);
    }

    /// Does what can be done now.
    pub fn turn(&mut self, now: Instant, serve: &mut dyn FnMut(&[u8]) -> Option<Answer>) {
        self.wire.is_full = false;
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let mut progress = false;
        for slot in &mut self.slots {
            let socket = self.sockets.get_mut::<Socket<'_>>(slot.socket);
            if socket.is_active() {
                let connection = slot.connection.get_or_insert_with(|| Connection::new(now, &self.counts));
                if connection.turn(socket, serve) {
                    connection.active = now;
                    progress = true;
                }
            }
            let is_idle = socket.state() == State::Established && socket.send_queue() == 0;
            socket.set_timeout((!is_idle).then_some(PATIENCE));
        }
        progress |= self.listen();
        if progress {
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
            self.listen();
        }
    }

    /// The next frame for the guest.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        self.wire.outgoing.pop_front()
    }

    /// How many frames wait for the guest.
    #[cfg(any(test, feature = "testing"))]
    pub fn waiting(&self) -> usize {
        self.wire.outgoing.len()
    }

    /// Whether the guest has taken all frames, and [`Self::turn`] has more.
    pub fn has_more(&self) -> bool {
        self.wire.is_full && self.wire.outgoing.is_empty()
    }

    /// Whether there are frames for the guest.
    pub fn has_frames(&self) -> bool {
        !self.wire.outgoing.is_empty()
    }

    /// How long [`Self::turn`] has nothing to do, if nothing comes. Where frames wait for the guest, it takes one first.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        if self.wire.is_full {
            return None;
        }
        self.interface.poll_delay(now, &self.sockets).map(Duration::from)
    }

    /// Sees to it that one socket waits for the next connection. Whether a connection had to go for it.
    fn listen(&mut self) -> bool {
        let mut is_listening = false;
        for slot in &mut self.slots {
            let socket = self.sockets.get_mut::<Socket<'_>>(slot.socket);
            // One that was aborted has a word to say first.
            if socket.state() == State::Closed && socket.remote_endpoint().is_none() {
                slot.connection = None;
                let _ = socket.listen(PORT);
            }
            is_listening |= socket.state() == State::Listen;
        }
        if is_listening {
            return false;
        }
        if self.slots.len() < CONNECTIONS_MAX {
            let socket = self.sockets.add(socket());
            self.slots.push(Slot { socket, connection: None });
            return false;
        }
        self.make_room()
    }

    fn make_room(&mut self) -> bool {
        let state = |slot: &Slot| self.sockets.get::<Socket<'_>>(slot.socket).state();
        if self.slots.iter().any(|slot| state(slot) == State::Closed) {
            return false; // one has gone and only has to say so
        }
        let active = |slot: &Slot| slot.connection.as_ref().map(|connection| connection.active);
        let oldest = self.slots.iter().min_by_key(|slot| (state(slot) != State::TimeWait, active(slot)));
        if let Some(socket) = oldest.map(|slot| slot.socket) {
            self.sockets.get_mut::<Socket<'_>>(socket).abort();
        }
        true
    }
}

/// A socket that waits for a connection.
fn socket() -> Socket<'static> {
    let mut socket = Socket::new(SocketBuffer::new(vec![0; RECEIVE]), SocketBuffer::new(vec![0; TRANSMIT]));
    // An answer is whole when it is written: nothing comes that its end could wait for.
    socket.set_nagle_enabled(false);
    let _ = socket.listen(PORT);
    socket
}
