//! A guest for tests: a TCP client that is smoltcp too, over frames that are passed in and out. Tests only.
#![allow(clippy::expect_used)] // it is for tests: failing is its job

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

/// Where the service is.
pub const SERVICE: IpAddress = IpAddress::v4(169, 254, 169, 254);
/// The guest's address on the wire.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

#[derive(Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

pub struct Taken(Vec<u8>);
pub struct Room<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Taken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Taken;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Taken, Room<'_>)> {
        Some((Taken(self.incoming.pop_front()?), Room(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        // As a guest whose network device does it: what it sends has no checksum, what comes must be right.
        capabilities.checksum.tcp = Checksum::Rx;
        capabilities
    }
}

/// The client.
pub struct Peer {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
}

impl Peer {
    pub fn new() -> Self {
        Self::from_port(50_000)
    }

    /// One whose connections have the ports after this one.
    pub fn from_port(port: u16) -> Self {
        let mut wire = Wire::default();
        let mut interface = Interface::new(Config::new(EthernetAddress(MAC).into()), &mut wire, Instant::ZERO);
        let address = IpCidr::new(IpAddress::v4(192, 168, 0, 2), 0);
        interface.update_ip_addrs(|addresses| _ = addresses.push(address));
        Self { wire, interface, sockets: SocketSet::new(Vec::new()), next_port: port }
    }

    /// A connection that is being made.
    pub fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(16 << 10), buffer(16 << 10));
        self.next_port = self.next_port.saturating_add(1);
        let connected = socket.connect(self.interface.context(), (SERVICE, port), self.next_port);
        connected.expect("a socket that is new");
        self.sockets.add(socket)
    }

    /// One frame from the service, or none, and what it makes the client send.
    pub fn turn(&mut self, frame: Option<Vec<u8>>, now: Instant) -> Vec<Vec<u8>> {
        self.wire.incoming.extend(frame);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        std::mem::take(&mut self.wire.outgoing)
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn state(&mut self, handle: SocketHandle) -> State {
        self.socket(handle).state()
    }

    pub fn send(&mut self, handle: SocketHandle, text: &str) {
        assert_eq!(self.socket(handle).send_slice(text.as_bytes()), Ok(text.len()));
    }

    /// What has come on this connection since it was last asked.
    pub fn received(&mut self, handle: SocketHandle) -> String {
        let mut bytes = vec![0; 16 << 10];
        let len = self.socket(handle).recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(len);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Whether this is a whole answer.
pub fn is_whole(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    length.is_some_and(|length| length.parse() == Ok(body.len()))
}
