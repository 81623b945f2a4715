//! virtio-net (virtio 1.2, 5.1) over a TAP device of the host, a socket of frames, or passt. Runs on its worker thread.
//!
//! One thread serves all queue pairs, unless the host's kernel does (`vhost.rs`). Frames to the guest take the way of `pair.rs`, past the filter that the driver
//! sets by the control queue; frames from the guest go straight from its memory.

mod back_end;
pub mod config;
mod control;
mod filter;
mod frame;
mod metadata;
mod obey;
mod pair;
mod passt;
pub mod publish;
mod state;
mod stream;
mod tap;
pub mod user;
mod vhost;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use self::back_end::BackEnd;
use self::config::{Mac, NetConfig};
use self::filter::Filter;
pub use self::filter::FilterState;
use self::pair::{Gate, Host, Pair, TURN, may_pass};
pub use self::state::NetState;
use self::vhost::Vhost;
use super::io::{Broken, Io, Served, count};
use super::pieces::Pieces;
use super::state::DeviceState;
use super::{Chain, Change, Counters, Device, Facts, OpenError, Source, Stop, UpdateError};
use crate::log_limit::LogLimit;
use crate::rate_limit::{RateLimiterConfig, Throttle};
use crate::state::StateError;

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_NET: u32 = 1;
const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Bytes of struct virtio_net_hdr_v1 (5.1.6).
const HEADER: usize = 12;
/// The longest frame: an IP packet of 64 KiB with its Ethernet header (and room for a VLAN tag), and our header.
const FRAME_MAX: usize = HEADER + 65_536 + 18;
/// Tokens of the rate limiters' timers; that of a pair's file is the pair's number.
const RECEIVE_TIMER: u16 = 0x100;
const TRANSMIT_TIMER: u16 = 0x101;
/// Token of the metadata service's timer.
const METADATA_TIMER: u16 = 0x102;

/// The device.
pub struct Net {
    id: String,
    /// The address that the user chose, and the one that the interface has now.
    chosen_mac: Option<Mac>,
    mac: Option<Mac>,
    mtu: Option<u16>,
    pairs: Vec<Pair>,
    /// So many pairs are in use, the first ones.
    active: usize,
    /// The number of the control queue, where there is one.
    control: Option<usize>,
    /// The host's end is gone: the link is down.
    is_down: bool,
    gate: Gate,
    transmit_throttle: Option<Throttle>,
    pieces: Pieces,
}

impl Net {
    /// Opens the host's end.
    pub fn open(config: &NetConfig) -> Result<Self, OpenError> {
        let id = config.iface_id.clone();
        let mac = config.guest_mac.as_deref().map(Mac::parse).transpose();
        let mac = mac.map_err(|why| OpenError::new(format!("open '{id}': its guest_mac is wrong: {why}")))?;
        let throttle = |limits: &Option<RateLimiterConfig>| {
            let throttle = Throttle::new(limits.as_ref());
            throttle.map_err(|error| OpenError::new(format!("create a timer for '{id}''s limits: {error}")))
        };
        let gate = Gate {
            filter: Filter::new(mac, false),
            throttle: throttle(&config.rx_rate_limiter)?,
            mergeable: false,
            metadata: None,
            frames: Arc::default(),
        };
        let transmit_throttle = throttle(&config.tx_rate_limiter)?;
        let ends = BackEnd::open(config)?.into_iter().map(|end| Ok((Vhost::of(config, &end)?, end)));
        let pairs = (0_usize..).step_by(2).zip(ends);
        let pairs = pairs.map(|(queue, pair)| pair.map(|(vhost, end)| Pair::new(end, vhost, queue)));
        let pairs = pairs.collect::<Result<_, OpenError>>()?;
        Ok(Self {
            id,
            chosen_mac: mac,
            mac,
            mtu: config.mtu,
            pairs,
            active: 1,
            control: None,
            is_down: false,
            gate,
            transmit_throttle,
            pieces: Pieces::default(),
        })
    }

    fn features(&self) -> u64 {
        // The host's kernel gives the guest all that comes.
        let filters = [VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN];
        bits(&[VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS])
            | bits(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_MAC_ADDR])
            | if self.lends() { 0 } else { bits(&filters) }
            | self.pairs.first().map_or(0, |pair| pair.back_end.features())
            | u64::from(self.chosen_mac.is_some()) << VIRTIO_NET_F_MAC
            | u64::from(self.mtu.is_some()) << VIRTIO_NET_F_MTU
            | u64::from(self.pairs.len() > 1) << VIRTIO_NET_F_MQ
    }

    /// Whether the host's kernel moves the frames.
    fn lends(&self) -> bool {
        self.pairs.iter().any(|pair| pair.vhost.is_some())
    }

    /// struct virtio_net_config (5.1.4), up to and with `mtu`.
    fn config_space(&self) -> Vec<u8> {
        let status = if self.is_down { 0 } else { VIRTIO_NET_S_LINK_UP };
        let mut config = self.mac.map_or([0; 6], |mac| mac.0).to_vec();
        config.extend(u16::try_from(status).unwrap_or(0).to_le_bytes());
        config.extend(u16::try_from(self.pairs.len()).unwrap_or(1).to_le_bytes()); // max_virtqueue_pairs
        config.extend(self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    /// Takes frames from the host for one pair.
    fn receive(
        &mut self,
        pair: usize,
        io: &mut Io<'_>,
        how: fn(&mut Pair, &mut Gate, &mut Io<'_>) -> Result<Host, Broken>,
    ) -> Result<(), Broken> {
        let Some(pair) = self.pairs.get_mut(pair).filter(|_| pair < self.active && !self.is_down) else {
            return Ok(());
        };
        if let Err(error) = how(pair, &mut self.gate, io)? {
            self.lost(&error, io);
        }
        Ok(())
    }

    /// The host's end does not answer any more.
    fn lost(&mut self, error: &io::Error, io: &Io<'_>) {
        tracing::error!(interface = self.id, %error, "the host's end of a network interface is gone: its link is down");
        self.is_down = true;
        io.set_config(&self.config_space());
    }

    /// Sends what the guest put into one pair's transmit queue, until it is another queue's turn.
    fn transmit(&mut self, pair: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let queue = pair.saturating_mul(2).saturating_add(1);
        let (counters, mut sent) = (io.counters(), 0_usize);
        let begun = Instant::now();
        io.drain_while(queue, |chain| {
            if sent == TURN {
                return Ok(Served::Later);
            }
            sent = sent.saturating_add(1);
            Ok(self.send(pair, chain, counters))
        })?;
        if sent > 0 {
            self.gate.frames.tap_write_agg.record(begun.elapsed());
        }
        if sent == TURN {
            io.ring(queue);
        }
        self.answer(io)
    }

    /// Sends one frame of the guest. What the host does not take is dropped, as on any Ethernet.
    fn send(&mut self, pair: usize, chain: &Chain<'_>, counters: &Counters) -> Served {
        let len = chain.readable_len();
        let bytes = len.saturating_sub(HEADER as u64);
        if self.gate.metadata.as_mut().is_some_and(|service| service.takes(chain, HEADER)) {
            counters.moved_out(bytes);
            return Served::Done(0);
        }
        let fits = bytes > 0 && len <= FRAME_MAX as u64;
        // A pair that is not in use has no way of its own.
        let back_end = self.pairs.get_mut(if pair < self.active { pair } else { 0 }).map(|pair| &mut pair.back_end);
        if !self.is_down && back_end.as_ref().is_some_and(|back_end| !back_end.has_room()) {
            return Served::Later;
        }
        let frames = &self.gate.frames;
        if fits && !may_pass(self.transmit_throttle.as_mut(), bytes, &frames.frames_out_throttled) {
            return Served::Later;
        }
        if len > FRAME_MAX as u64 {
            count(&frames.frames_too_large, 1);
        }
        if !fits {
            count(&frames.frames_malformed, 1);
        }
        let sent = match back_end.filter(|_| fits && !self.is_down) {
            Some(back_end) => {
                back_end.send(chain, &mut self.pieces).inspect_err(|_| _ = count(&frames.host_write_fails, 1))
            }
            None => Err(io::ErrorKind::InvalidInput.into()),
        };
        match sent {
            Ok(()) => counters.moved_out(bytes),
            Err(error) => {
                count(&counters.failed, 1);
                if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) {
                    count(&frames.frames_full, 1);
                }
                static LIMIT: LogLimit = LogLimit::new();
                if let Some(suppressed) = LIMIT.check() {
                    tracing::debug!(interface = self.id, %error, suppressed, "a frame of the guest was dropped");
                }
            }
        }
        Served::Done(0)
    }

    /// Has the host leave to the guest what the driver can take.
    fn set_offload(&self, features: u64) {
        let Some(Pair { back_end, .. }) = self.pairs.first() else { return };
        if let Err(error) = back_end.leave_to_guest(features) {
            // Segments without their checksum, say: a driver that asks for nonsense gets frames without offloads.
            static LIMIT: LogLimit = LogLimit::new();
            if let Some(suppressed) = LIMIT.check() {
                tracing::warn!(interface = self.id, %error, suppressed, "the host does not take the driver's offloads");
            }
            let _ = back_end.leave_to_guest(0);
        }
    }
}

impl Device for Net {
    fn facts(&self) -> Facts {
        let mut queue_sizes = vec![QUEUE_SIZE; self.pairs.len().saturating_mul(2)];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        let files = (0..).zip(&self.pairs).map(|(token, pair)| {
            let fd = pair.vhost.as_ref().map_or(pair.back_end.fd(), |vhost| vhost.errors().as_raw_fd());
            Source { token, fd }
        });
        let timers = [(&self.gate.throttle, RECEIVE_TIMER), (&self.transmit_throttle, TRANSMIT_TIMER)];
        let timers = timers.into_iter().filter_map(|(throttle, token)| Some(throttle.as_ref()?.source(token)));
        let timers = timers.chain(self.gate.metadata.as_ref().map(|service| service.source(METADATA_TIMER)));
        Facts {
            virtio_id: VIRTIO_ID_NET,
            features: self.features(),
            queue_sizes,
            config: self.config_space(),
            sources: files.chain(timers).collect(),
            tally: Some(self.gate.frames.clone()),
            lent: if self.lends() { 0..self.pairs.len().saturating_mul(2) } else { 0..0 },
            ..Facts::default()
        }
    }

    fn started(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let has = |bit: u32| io.features() & bits(&[bit]) != 0;
        self.gate.mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        let vlans = has(VIRTIO_NET_F_CTRL_VQ) && has(VIRTIO_NET_F_CTRL_VLAN);
        self.gate.filter = Filter::new(self.mac, vlans);
        // The control queue comes behind those of all pairs, or of one pair where the driver knows no more (5.1.2).
        let pairs = if has(VIRTIO_NET_F_MQ) { self.pairs.len() } else { 1 };
        self.control = has(VIRTIO_NET_F_CTRL_VQ).then_some(pairs.saturating_mul(2));
        self.set_offload(io.features());
        for vhost in self.pairs.iter_mut().filter_map(|pair| pair.vhost.as_mut()) {
            vhost.prepare(io.features(), io.memory()).map_err(|error| {
                vhost::complain(&error);
                Broken("the host's kernel does not take the driver")
            })?;
        }
        Ok(())
    }

    fn heard(&mut self, queue: usize) {
        let frames = &self.gate.frames;
        match queue % 2 {
            _ if self.control == Some(queue) => {}
            0 => _ = count(&frames.receive_kicks, 1),
            _ => _ = count(&frames.transmit_kicks, 1),
        }
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let pair = queue / 2;
        match queue % 2 {
            _ if self.control == Some(queue) => self.serve_control(queue, io),
            _ if pair >= self.pairs.len() => Ok(()),
            _ if self.lends() => match self.pairs.get_mut(pair).filter(|_| pair < self.active) {
                Some(pair) => pair.lend(queue, io),
                None => Ok(()),
            },
            0 => self.receive(pair, io, Pair::receive),
            _ => self.transmit(pair, io),
        }
    }

    /// The host has frames, or time has come for those that wait; or the host's kernel gave a ring up.
    fn ready(&mut self, token: u16, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut pairs = 0..self.pairs.len();
        let frames = &self.gate.frames;
        match token {
            _ if self.lends() => {}
            RECEIVE_TIMER => _ = count(&frames.limit_in_events, 1),
            TRANSMIT_TIMER => _ = count(&frames.limit_out_events, 1),
            METADATA_TIMER => {}
            _ => _ = count(&frames.host_events, 1),
        }
        match token {
            _ if self.lends() => Err(Broken("the host's kernel can not go on with a ring")),
            RECEIVE_TIMER => pairs.try_for_each(|pair| self.receive(pair, io, Pair::receive)),
            TRANSMIT_TIMER => pairs.try_for_each(|pair| self.transmit(pair, io)),
            METADATA_TIMER => self.metadata_timeout(io),
            pair => {
                let pair = usize::from(pair);
                self.receive(pair, io, Pair::ready)?;
                match self.pairs.get_mut(pair).is_some_and(|pair| pair.back_end.flush()) {
                    true => self.transmit(pair, io),
                    false => Ok(()),
                }
            }
        }
    }

    /// The buffers of a frame that waits are there when the queue runs again.
    fn finish(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        self.pairs.iter_mut().try_for_each(|pair| {
            pair.let_go(io);
            pair.take_back(io)
        })
    }

    fn stopping(&mut self, why: Stop) {
        self.pairs.iter_mut().for_each(Pair::let_kernel_go);
        if why == Stop::Pause {
            return; // what the driver asked for stays, and so does a frame that waits
        }
        self.pairs.iter_mut().for_each(Pair::forget);
        self.use_one_pair();
        if let Some(service) = &mut self.gate.metadata {
            service.forget();
        }
        (self.control, self.gate.mergeable, self.mac) = (None, false, self.chosen_mac);
        self.gate.filter = Filter::new(self.mac, false);
        self.set_offload(0);
    }

    fn update(&mut self, change: Change) -> Result<(), UpdateError> {
        let Change::Net(change) = change else { return Err(UpdateError::new("it is no network interface")) };
        if self.lends() {
            return Err(UpdateError::new("the host's kernel moves its frames (vhost), and it has no limits"));
        }
        let limits = [(&mut self.gate.throttle, change.receive), (&mut self.transmit_throttle, change.transmit)];
        for (throttle, limits) in limits.into_iter().filter_map(|(throttle, limits)| Some((throttle, limits?))) {
            Throttle::change(throttle, &limits)
                .map_err(|error| UpdateError::new(format!("create the timer of its limits: {error}")))?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, StateError> {
        Ok(DeviceState::Net(self.saved()))
    }

    fn load(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Net(state) = state else { return Err(StateError::other_kind()) };
        self.become_saved(state)
    }
}

fn bits(all: &[u32]) -> u64 {
    all.iter().fold(0_u64, |bits, bit| bits | 1 << bit)
}

#[cfg(test)]
mod tests;
