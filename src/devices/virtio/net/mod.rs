//! virtio-net (virtio 1.2, 5.1) over a TAP device of the host, or a socket of frames. Runs on its worker thread.
//!
//! Frames to the guest are read into a buffer of ours and copied into as many of the driver's buffers as they need
//! (VIRTIO_NET_F_MRG_RXBUF). Where the driver has too few, the frame waits here for more and all later ones wait in
//! the host's queue, which drops what does not fit. Frames from the guest go straight from its memory.

pub mod config;
mod tap;

use std::io;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use self::config::{Mac, NetConfig};
use self::tap::Tap;
use super::io::{Broken, Held, Io, count};
use super::pieces::{Direction, Pieces};
use super::{Chain, Counters, Device, Facts, OpenError, Source};
use crate::log_limit::LogLimit;

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_NET: u32 = 1;
const QUEUE_SIZE: u16 = 256;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Bytes of struct virtio_net_hdr_v1, and where its `num_buffers` lies (5.1.6).
const HEADER: usize = 12;
const NUM_BUFFERS: u64 = 10;
/// The longest frame: an IP packet of 64 KiB with its Ethernet header (and room for a VLAN tag), and our header.
const FRAME_MAX: usize = HEADER + 65_536 + 18;
/// Most of the driver's buffers that one frame may take; Linux' own need 44.
const BUFFERS_MAX: usize = 128;
/// Frames after which the other direction gets its turn.
const TURN: usize = 64;
/// The driver hears of received frames after so many of them.
const BATCH: usize = 16;

/// The device.
pub struct Net {
    id: String,
    mac: Option<Mac>,
    mtu: Option<u16>,
    tap: Tap,
    /// The host's end is gone: the link is down.
    is_down: bool,
    /// One frame with its header, and its length while it waits for buffers of the driver.
    frame: Box<[u8]>,
    waiting: Option<usize>,
    /// The chains that take the frame. While it waits they are kept: the driver kicks for what it adds to them.
    chains: Vec<Held>,
    mergeable: bool,
    pieces: Pieces,
}

/// What became of a frame for the guest.
enum Delivery {
    Done,
    /// The driver has too few buffers now.
    Later,
}

impl Net {
    /// Opens the host's end.
    pub fn open(config: &NetConfig) -> Result<Self, OpenError> {
        let mac = config.guest_mac.as_deref().map(Mac::parse).transpose();
        let mac =
            mac.map_err(|why| OpenError::new(format!("open '{}': its guest_mac is wrong: {why}", config.iface_id)))?;
        Ok(Self {
            id: config.iface_id.clone(),
            mac,
            mtu: config.mtu,
            tap: Tap::open(config)?,
            is_down: false,
            frame: vec![0; FRAME_MAX].into_boxed_slice(),
            waiting: None,
            chains: Vec::new(),
            mergeable: false,
            pieces: Pieces::default(),
        })
    }

    fn features(&self) -> u64 {
        let bits = |all: &[u32]| all.iter().fold(0_u64, |bits, bit| bits | 1 << bit);
        let tcp = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
        ];
        let udp = [VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO];
        bits(&[VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS])
            | if self.tap.offloads() { bits(&tcp) } else { 0 }
            | if self.tap.offloads_udp() { bits(&udp) } else { 0 }
            | u64::from(self.mac.is_some()) << VIRTIO_NET_F_MAC
            | u64::from(self.mtu.is_some()) << VIRTIO_NET_F_MTU
    }

    /// struct virtio_net_config (5.1.4), up to and with `mtu`.
    fn config_space(&self) -> Vec<u8> {
        let status = if self.is_down { 0 } else { VIRTIO_NET_S_LINK_UP };
        let mut config = self.mac.map_or([0; 6], |mac| mac.0).to_vec();
        config.extend(u16::try_from(status).unwrap_or(0).to_le_bytes());
        config.extend(1_u16.to_le_bytes()); // max_virtqueue_pairs: not offered
        config.extend(self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    /// Takes frames from the host until there are none, or the driver has no buffers, or it is the others' turn.
    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        if self.is_down || !io.is_ready(RECEIVE) {
            return Ok(());
        }
        io.listen(RECEIVE, false)?;
        let mut untold = 0_usize;
        for _ in 0..TURN {
            if io.is_wanted() {
                break;
            }
            let len = match self.waiting.take() {
                Some(len) => len,
                None => match self.tap.receive(&mut self.frame) {
                    Ok(len) if len <= HEADER => {
                        count(&io.counters().failed, 1); // an empty datagram is no frame
                        continue;
                    }
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.tell(untold, io),
                    Err(error) => {
                        self.lost(&error, io);
                        return self.tell(untold, io);
                    }
                },
            };
            match self.deliver(len, io)? {
                Delivery::Done => untold = untold.saturating_add(1),
                Delivery::Later => {
                    self.waiting = Some(len);
                    self.tell(untold, io)?;
                    // Buffers may have come before the driver could read that they are wanted.
                    if io.listen(RECEIVE, true)? {
                        io.ring(RECEIVE);
                    }
                    return Ok(());
                }
            }
            if untold == BATCH {
                self.tell(std::mem::take(&mut untold), io)?;
            }
        }
        io.ring(RECEIVE); // there may be more
        self.tell(untold, io)
    }

    fn tell(&self, untold: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        if untold > 0 { io.tell(RECEIVE) } else { Ok(()) }
    }

    /// Copies a frame into the driver's buffers. What no buffers could hold is dropped.
    fn deliver(&mut self, len: usize, io: &mut Io<'_>) -> Result<Delivery, Broken> {
        let frame_len = u64::try_from(len).unwrap_or(u64::MAX);
        let room_of = |held: &Held, io: &Io<'_>| held.chain(io.memory()).writable_len();
        let mut room = self.chains.iter().fold(0_u64, |room, held| room.saturating_add(room_of(held, io)));
        let most = if self.mergeable { BUFFERS_MAX } else { 1 };
        while room < frame_len && self.chains.len() < most {
            let Some(held) = io.take(RECEIVE, Default::default())? else { break };
            let held_room = room_of(&held, io);
            if held_room <= HEADER as u64 {
                return Err(Broken("a receive buffer has no room for a frame"));
            }
            room = room.saturating_add(held_room);
            self.chains.push(held);
        }
        if room < frame_len {
            if self.chains.len() < most {
                return Ok(Delivery::Later);
            }
            self.let_go(io);
            count(&io.counters().failed, 1);
            return Ok(Delivery::Done);
        }
        self.fill(len, io)?;
        count(&io.counters().bytes, frame_len.saturating_sub(HEADER as u64));
        Ok(Delivery::Done)
    }

    /// The driver's buffers go back unused, the last one first.
    fn let_go(&mut self, io: &mut Io<'_>) {
        while let Some(held) = self.chains.pop() {
            io.put_back(RECEIVE, held);
        }
    }

    /// Writes the frame to the chains that were taken for it and returns them to the driver.
    fn fill(&mut self, len: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        const OUT: Broken = Broken("a receive buffer is not in RAM");
        let buffers = u16::try_from(self.chains.len()).unwrap_or(u16::MAX);
        let mut rest = self.frame.get(..len).unwrap_or_default();
        for (place, held) in self.chains.drain(..).enumerate() {
            let chain = held.chain(io.memory());
            let now = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX).min(rest.len());
            let (part, later) = rest.split_at_checked(now).unwrap_or((rest, &[]));
            chain.write(0, part).map_err(|_| OUT)?;
            if place == 0 {
                chain.write(NUM_BUFFERS, &buffers.to_le_bytes()).map_err(|_| OUT)?;
            }
            io.give(RECEIVE, held, u32::try_from(now).unwrap_or(u32::MAX))?;
            rest = later;
        }
        Ok(())
    }

    /// The host's end does not answer any more.
    fn lost(&mut self, error: &io::Error, io: &Io<'_>) {
        tracing::error!(interface = self.id, %error, "the host's end of a network interface is gone: its link is down");
        self.is_down = true;
        io.set_config(&self.config_space());
    }

    /// Sends one frame of the guest. What the host does not take is dropped, as on any Ethernet.
    fn transmit(&mut self, chain: &Chain<'_>, counters: &Counters) {
        let len = chain.readable_len();
        let fits = len > HEADER as u64 && len <= FRAME_MAX as u64;
        self.pieces.clear();
        let sent = match fits && !self.is_down {
            true => self
                .pieces
                .add(Direction::Write, chain.memory(), chain.readable_part(0..len))
                .and_then(|()| self.tap.send(self.pieces.as_mut_slice())),
            false => Err(io::ErrorKind::InvalidInput.into()),
        };
        self.pieces.clear();
        match sent {
            Ok(()) => count(&counters.bytes, len.saturating_sub(HEADER as u64)),
            Err(error) => {
                count(&counters.failed, 1);
                static LIMIT: LogLimit = LogLimit::new();
                if let Some(suppressed) = LIMIT.check() {
                    tracing::debug!(interface = self.id, %error, suppressed, "a frame of the guest was dropped");
                }
            }
        }
    }
}

impl Device for Net {
    fn facts(&self) -> Facts {
        Facts {
            virtio_id: VIRTIO_ID_NET,
            features: self.features(),
            queue_sizes: vec![QUEUE_SIZE; 2],
            config: self.config_space(),
            sources: vec![Source { token: 0, fd: self.tap.fd() }],
            ..Facts::default()
        }
    }

    fn started(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let has = |bit: u32| io.features() & (1 << bit) != 0;
        self.mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        let offloads = [
            (VIRTIO_NET_F_GUEST_CSUM, tap::TUN_F_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, tap::TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, tap::TUN_F_TSO6),
            (VIRTIO_NET_F_GUEST_ECN, tap::TUN_F_TSO_ECN),
            (VIRTIO_NET_F_GUEST_USO4, tap::TUN_F_USO4),
            (VIRTIO_NET_F_GUEST_USO6, tap::TUN_F_USO6),
        ];
        let wanted = offloads.iter().filter(|(feature, _)| has(*feature)).fold(0, |flags, (_, flag)| flags | flag);
        if let Err(error) = self.tap.set_offload(wanted) {
            // Segments without their checksum, say: a driver that asks for nonsense gets frames without offloads.
            static LIMIT: LogLimit = LogLimit::new();
            if let Some(suppressed) = LIMIT.check() {
                tracing::warn!(interface = self.id, %error, suppressed, "the host does not take the driver's offloads");
            }
            let _ = self.tap.set_offload(0);
        }
        Ok(())
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        match queue {
            RECEIVE => self.receive(io),
            TRANSMIT => {
                let counters = io.counters();
                io.drain(TRANSMIT, |chain| {
                    self.transmit(chain, counters);
                    Ok(0)
                })
            }
            _ => Ok(()),
        }
    }

    /// The host has frames.
    fn ready(&mut self, _token: u16, io: &mut Io<'_>) -> Result<(), Broken> {
        if self.waiting.is_some() { Ok(()) } else { self.receive(io) }
    }

    /// The buffers of a frame that waits are there when the queue runs again.
    fn finish(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        self.let_go(io);
        Ok(())
    }

    fn stopping(&mut self) {
        (self.waiting, self.mergeable) = (None, false);
        self.chains.clear();
        let _ = self.tap.set_offload(0);
    }
}

#[cfg(test)]
mod tests;
