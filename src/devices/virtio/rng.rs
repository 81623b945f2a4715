//! virtio entropy source (virtio 1.2, 5.4), fed by getrandom(2). Runs on its worker thread.
#![allow(unsafe_code)] // getrandom(2)

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::io::{Broken, Io, Served, count};
use super::state::DeviceState;
use super::{Chain, Change, Device, Facts, OpenError, UpdateError};
use crate::rate_limit::{RateLimiterConfig, RateLimiterState, Throttle};
use crate::state::StateError;
use crate::tally;

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_RNG: u32 = 4;
const QUEUE_SIZE: u16 = 64;
/// Most bytes for one request: the driver asks again if it wants more.
const MOST: u64 = 64 << 10;

/// A random number generator for the guest, fed by the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {
    /// Limits of the guest's requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

/// What is kept of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngState {
    /// Its limits.
    pub rate_limiter: RateLimiterState,
}

/// The device.
pub struct Rng {
    throttle: Option<Throttle>,
    tally: Arc<Tally>,
}

tally! {
    /// What the device counts of its own.
    struct Tally {
        /// Times that a request had to wait for the rate limiter.
        throttled: AtomicU64,
        /// Times that the rate limiter let requests go on.
        limit_events: AtomicU64,
        /// Times that the host had no random bytes.
        host_rng_fails: AtomicU64,
    }
}

impl Rng {
    /// Opens nothing but a timer where there are limits: getrandom(2) is always there.
    pub fn new(config: &EntropyConfig) -> Result<Self, OpenError> {
        let throttle = Throttle::new(config.rate_limiter.as_ref());
        let throttle =
            throttle.map_err(|error| OpenError::new(format!("create the timer of a rate limiter: {error}")))?;
        Ok(Self { throttle, tally: Arc::default() })
    }

    /// Gives the driver of `chain` random bytes, and says how many.
    fn serve(&mut self, chain: &Chain<'_>) -> Result<Served, Broken> {
        let wanted = chain.writable_len().min(MOST);
        if let Some(throttle) = &mut self.throttle {
            let waits_already = throttle.is_waiting();
            if !throttle.allow(wanted) {
                count(&self.tally.throttled, u64::from(!waits_already));
                return Ok(Served::Later);
            }
        }
        let mut room = [0; 1024];
        let mut done = 0_u64;
        while done < wanted {
            let now = usize::try_from(wanted.saturating_sub(done)).unwrap_or(usize::MAX).min(room.len());
            let part = room.get_mut(..now).unwrap_or_default();
            fill(part).map_err(|_| {
                count(&self.tally.host_rng_fails, 1);
                Broken("the host has no random bytes")
            })?;
            chain.write(done, part).map_err(|_| Broken("a buffer is not in RAM"))?;
            done = done.saturating_add(u64::try_from(now).unwrap_or(0));
        }
        u32::try_from(done).map(Served::Done).map_err(|_| Broken("a buffer is too long"))
    }
}

impl Device for Rng {
    fn facts(&self) -> Facts {
        let sources = self.throttle.iter().map(|throttle| throttle.source(0)).collect();
        Facts {
            virtio_id: VIRTIO_ID_RNG,
            queue_sizes: vec![QUEUE_SIZE],
            sources,
            tally: Some(self.tally.clone()),
            ..Facts::default()
        }
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let counters = io.counters();
        io.drain_while(queue, |chain| {
            let served = self.serve(chain)?;
            if let Served::Done(bytes) = served {
                counters.moved_in(bytes.into());
            }
            Ok(served)
        })
    }

    /// The rate limiter's timer.
    fn ready(&mut self, _token: u16, io: &mut Io<'_>) -> Result<(), Broken> {
        count(&self.tally.limit_events, 1);
        self.kicked(0, io)
    }

    fn update(&mut self, change: Change) -> Result<(), UpdateError> {
        let Change::Rng(limits) = change else { return Err(UpdateError::new("it is no random number generator")) };
        Throttle::change(&mut self.throttle, &limits)
            .map_err(|error| UpdateError::new(format!("create the timer of its limits: {error}")))
    }

    fn save(&mut self) -> Result<DeviceState, StateError> {
        Ok(DeviceState::Rng(RngState { rate_limiter: Throttle::save(self.throttle.as_ref()) }))
    }

    fn load(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Rng(state) = state else { return Err(StateError::other_kind()) };
        Throttle::load(&mut self.throttle, &state.rate_limiter)
    }
}

/// Fills `buf` with random bytes.
fn fill(buf: &mut [u8]) -> io::Result<()> {
    let mut rest = buf;
    while !rest.is_empty() {
        // SAFETY: `rest` is a live, writable slice of exactly that many bytes.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => rest = rest.get_mut(got..).unwrap_or_default(),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::rate_limit::TokenBucketConfig;
    use crate::testing::{Buffer, RAM, Rig};
    use crate::virtio::DeviceConfig;
    use crate::virtio::transport::RING_FEATURES;

    fn rig() -> Rig {
        let mut rig = Rig::new(Box::new(Rng::new(&EntropyConfig::default()).unwrap()));
        rig.drive(RING_FEATURES);
        rig
    }

    #[test]
    fn fills_buffers_of_any_shape() {
        let mut rig = rig();
        let buffers = [rig.writable(1), rig.writable(3000), rig.writable(77)];
        assert_eq!(rig.request(0, &buffers), 3078);
        let bytes = rig.bytes(buffers[1]);
        assert!(bytes.iter().filter(|byte| **byte == 0xa5).count() < 100);
        let across = Buffer { addr: RAM / 2 - 50, len: 100, writable: true };
        assert_eq!(rig.request(0, &[across]), 100);
        assert!(rig.bytes(across).iter().any(|byte| *byte != 0));
    }

    #[test]
    fn gives_no_more_than_a_share_at_a_time() {
        let mut rig = rig();
        let buffers = [rig.writable(100_000), rig.writable(1)];
        assert_eq!(u64::from(rig.request(0, &buffers)), MOST);
        let bytes = rig.bytes(buffers[0]);
        assert!(bytes[65_536..].iter().all(|byte| *byte == 0xa5), "nothing is written beyond what is reported");
        let readable = rig.readable(b"nothing to write");
        assert_eq!(rig.request(0, &[readable]), 0);
    }

    #[test]
    fn a_buffer_out_of_ram_breaks_it() {
        for addr in [RAM - 10, RAM, u64::MAX - 5] {
            let mut rig = rig();
            rig.post(0, &[Buffer { addr, len: 100, writable: true }]);
            rig.kick(0);
            rig.settle();
            assert!(rig.needs_reset(), "{addr:#x}");
        }
    }

    #[test]
    fn waits_when_it_gave_too_much() {
        let bucket = TokenBucketConfig { size: 1000, one_time_burst: None, refill_time: 40 };
        let limit = RateLimiterConfig { bandwidth: Some(bucket), ops: None };
        let mut rig = Rig::new(Box::new(Rng::new(&EntropyConfig { rate_limiter: Some(limit) }).unwrap()));
        rig.drive(RING_FEATURES);
        let begin = Instant::now();
        let buffer = rig.writable(1000);
        for _ in 0..4 {
            rig.post(0, &[buffer]);
        }
        rig.kick(0); // the only one: the timer does the rest
        for _ in 0..4 {
            assert_eq!(rig.wait_used(0).1, 1000);
        }
        assert!(begin.elapsed() > Duration::from_millis(100), "the bucket was filled three times");
        let counted = ["throttled", "limit_events", "host_rng_fails"].map(|name| rig.counted(name));
        assert!(counted[0] >= 3 && counted[1] >= 3 && counted[2] == 0, "{counted:?}");
        rig.post(0, &[buffer]);
        rig.post(0, &[buffer]);
        rig.kick(0);
        rig.settle();
        rig.drive(RING_FEATURES); // a reset forgets what waits, and the next driver is served
        assert_eq!(rig.request(0, &[buffer]), 1000);
    }

    #[test]
    fn its_limits_can_be_changed() {
        let hours = |ops| TokenBucketConfig { size: ops, one_time_burst: None, refill_time: 3_600_000 };
        let with = |ops| {
            let limits = RateLimiterConfig { bandwidth: None, ops: Some(hours(ops)) };
            DeviceConfig::Rng(EntropyConfig { rate_limiter: Some(limits) })
        };
        let mut rig = rig();
        rig.update(&with(1), &["rate_limiter"]).unwrap();
        let buffer = rig.writable(100);
        for _ in 0..4 {
            rig.post(0, &[buffer]);
        }
        rig.kick(0);
        rig.wait_used(0);
        rig.settle();
        assert!(rig.take_used(0).is_none());
        rig.update(&with(3), &["rate_limiter"]).unwrap(); // no kick comes after this
        for _ in 0..3 {
            rig.wait_used(0);
        }
    }

    #[test]
    fn the_config_has_no_unknown_keys() {
        serde_json::from_str::<EntropyConfig>("{}").unwrap();
        serde_json::from_str::<EntropyConfig>(r#"{"rate_limiter":{"ops":{"size":1,"refill_time":1}}}"#).unwrap();
        assert!(serde_json::from_str::<EntropyConfig>(r#"{"rate":1}"#).is_err());
    }
}
