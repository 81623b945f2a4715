//! The service as a network interface has it: frames of the guest in, frames for the guest out, and a timer. The
//! interface's worker thread.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use smoltcp::time::Instant;
use vmm_sys_util::timerfd::TimerFd;

use super::config::MmdsConfig;
use super::counts::add;
use super::detour::{HEAD, is_for};
use super::http::{Answer, Rules, answer};
use super::stack::{FRAME_MAX, Stack};
use super::store::Store;
use super::token::random;
use crate::virtio::{Chain, OpenError, Source};

/// The timer is not set shorter: it is for what TCP repeats, not for turns.
const SHORTEST: Duration = Duration::from_millis(1);

/// The service at one interface.
pub struct Service {
    address: Ipv4Addr,
    mtu: Option<u16>,
    rules: Rules,
    store: Arc<Store>,
    stack: Stack,
    timer: TimerFd,
    since: std::time::Instant,
}

impl Service {
    /// The service that `config` describes, on an interface of this MTU. All interfaces read the same store.
    pub fn new(config: &MmdsConfig, mtu: Option<u16>, store: Arc<Store>) -> Result<Self, OpenError> {
        let address = config.address().map_err(|why| OpenError::new(format!("mmds-config.ipv4_address: {why}")))?;
        let failed = |error: io::Error| OpenError::new(format!("start the metadata service: {error}"));
        let timer = TimerFd::new().map_err(|error| failed(error.into()))?;
        let seed = u64::from_ne_bytes(random().map_err(failed)?);
        let rules = Rules { version: config.version, imds_compat: config.imds_compat };
        let stack = Stack::new(address, mtu, seed, store.counts());
        Ok(Self { address, mtu, rules, store, stack, timer, since: std::time::Instant::now() })
    }

    /// Becomes ready when [`Self::timeout`] is to be called. Nothing needs to be read.
    pub fn source(&self, token: u16) -> Source {
        Source { token, fd: self.timer.as_raw_fd() }
    }

    /// Takes the frame behind the first `header` bytes of a chain, if it is for the service. Whether it was.
    pub fn takes(&mut self, chain: &Chain<'_>, header: usize) -> bool {
        let len = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX).saturating_sub(header);
        let at = u64::try_from(header).unwrap_or(u64::MAX);
        let mut head = [0; HEAD];
        let Some(head) = head.get_mut(..len.min(HEAD)) else { return false };
        // What is not in RAM is for whoever says so.
        if chain.read(at, head).is_err() || !is_for(self.address, head) {
            return false;
        }
        let counts = self.store.counts();
        add(&counts.rx_accepted, 1);
        let mut frame = vec![0; len.min(FRAME_MAX)];
        if len <= FRAME_MAX && chain.read(at, &mut frame).is_ok() {
            let now = self.now();
            self.stack.take(frame, now, &mut serve(self.rules, &self.store));
            self.set_timer(now);
        } else {
            add(&counts.rx_accepted_err, 1);
        }
        true
    }

    /// The timer was ready.
    pub fn timeout(&mut self) {
        let now = self.now();
        self.stack.turn(now, &mut serve(self.rules, &self.store));
        self.set_timer(now);
    }

    /// Whether there are frames for the guest.
    pub fn has_frames(&self) -> bool {
        self.stack.has_frames()
    }

    /// The next frame for the guest.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        if self.stack.has_more() {
            self.timeout();
        }
        let frame = self.stack.next_frame()?;
        let counts = self.store.counts();
        add(&counts.tx_frames, 1);
        add(&counts.tx_bytes, u64::try_from(frame.len()).unwrap_or(0));
        Some(frame)
    }

    /// The driver is gone, and with it all connections.
    pub fn forget(&mut self) {
        let seed = random().map(u64::from_ne_bytes).unwrap_or_default();
        self.stack = Stack::new(self.address, self.mtu, seed, self.store.counts());
        let _ = self.timer.clear();
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.since.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn set_timer(&mut self, now: Instant) {
        // A timer that can not be set: the guest's own repetitions keep its connections going.
        let _ = match self.stack.wait(now) {
            Some(wait) => self.timer.reset(wait.max(SHORTEST), None),
            None => self.timer.clear(),
        };
    }
}

fn serve(rules: Rules, store: &Store) -> impl FnMut(&[u8]) -> Option<Answer> {
    move |bytes| answer(bytes, rules, store)
}
