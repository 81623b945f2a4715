//! How fast a device may be: Firecracker's token buckets, and a timer that says when a device may go on.
//!
//! The arithmetic has no clock in it: the time is passed in. [`Throttle`] adds the clock and the timer; the worker
//! threads of devices own one each. A device asks before it serves a request; where the answer is no it puts the request
//! back and goes on when its [`Throttle::source`] is ready.

mod state;

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmm_sys_util::timerfd::TimerFd;

pub use self::state::{RateLimiterState, TokenBucketState};
use crate::virtio::Source;

/// Longest refill time that is told apart, milliseconds (49 days): keeps the arithmetic within 128 bits.
const LONGEST_REFILL_MS: u64 = 0xffff_ffff;
/// The timer waits at most this long, then asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A token bucket: `size` tokens, refilled evenly within `refill_time`. A bucket of size 0, or with a refill time of 0,
/// limits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketConfig {
    /// Tokens that the bucket holds: bytes of `bandwidth`, requests of `ops`.
    pub size: u64,
    /// Tokens that can be spent once, before those of the bucket; they do not come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket becomes full.
    pub refill_time: u64,
}

/// Limits of a device: bytes and requests. Each that is absent is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucketConfig>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucketConfig>,
}

impl RateLimiterConfig {
    /// Whether it limits anything.
    pub fn is_limit(&self) -> bool {
        [self.bandwidth, self.ops].iter().flatten().any(|bucket| bucket.size > 0 && bucket.refill_time > 0)
    }
}

/// A bucket at work. Its level is exact: it is counted in tokens times the nanoseconds of a refill, so that a nanosecond
/// adds `size` to it and no rounding is ever lost.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TokenBucket {
    size: i128,
    /// Nanoseconds of a refill.
    refill: i128,
    burst: u64,
    /// At most `size * refill`; below 0 while a request that was larger than the bucket is paid off.
    level: i128,
    /// When `level` was right.
    at: Duration,
}

impl TokenBucket {
    /// A full bucket; nothing where it would limit nothing.
    fn new(config: &TokenBucketConfig, now: Duration) -> Option<Self> {
        if config.size == 0 || config.refill_time == 0 {
            return None;
        }
        let size = i128::from(config.size);
        let refill = i128::from(config.refill_time.min(LONGEST_REFILL_MS)).saturating_mul(1_000_000);
        let burst = config.one_time_burst.unwrap_or(0);
        Some(Self { size, refill, burst, level: size.saturating_mul(refill), at: now })
    }

    fn full(&self) -> i128 {
        self.size.saturating_mul(self.refill)
    }

    /// Brings the level up to date. A clock that goes back adds nothing.
    fn refill(&mut self, now: Duration) {
        let passed = i128::try_from(now.saturating_sub(self.at).as_nanos()).unwrap_or(i128::MAX);
        self.at = self.at.max(now);
        self.level = self.level.saturating_add(passed.saturating_mul(self.size)).min(self.full());
    }

    /// What `tokens` cost the bucket itself, after the burst.
    fn cost(&self, tokens: u64) -> i128 {
        i128::from(tokens.saturating_sub(self.burst)).saturating_mul(self.refill)
    }

    /// How long until `tokens` can be taken; zero when they can be taken now. A request that is larger than the bucket
    /// waits for a full one, and is paid off afterwards.
    fn wait(&self, tokens: u64) -> Duration {
        let missing = self.cost(tokens).min(self.full()).saturating_sub(self.level);
        if missing <= 0 || self.cost(tokens) == 0 {
            return Duration::ZERO;
        }
        let nanos = missing.saturating_add(self.size.saturating_sub(1)).checked_div(self.size).unwrap_or(0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(self.cost(tokens));
        self.burst = self.burst.saturating_sub(tokens);
    }
}

/// Both buckets of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// Full buckets. `now` is the time of any clock that does not go back, here and in [`Self::take`].
    pub fn new(config: &RateLimiterConfig, now: Duration) -> Self {
        let bucket = |config: &Option<TokenBucketConfig>| TokenBucket::new(config.as_ref()?, now);
        Self { bandwidth: bucket(&config.bandwidth), ops: bucket(&config.ops) }
    }

    /// Takes one request of `bytes`: all of it, or nothing and the time to wait before asking again.
    pub fn take(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let mut wait = Duration::ZERO;
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.ops, 1)] {
            if let Some(bucket) = bucket {
                bucket.refill(now);
                wait = wait.max(bucket.wait(tokens));
            }
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.ops, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(())
    }
}

/// A rate limiter with a clock and a timer, for one device.
pub struct Throttle {
    limiter: RateLimiter,
    timer: TimerFd,
    /// When the buckets' clock was at 0; nothing while it stands.
    since: Option<Instant>,
    /// A request was refused, and its time has not come.
    waiting: bool,
}

impl Throttle {
    /// What a device needs for `config`; nothing where it limits nothing.
    pub fn new(config: Option<&RateLimiterConfig>) -> io::Result<Option<Self>> {
        let Some(config) = config.filter(|config| config.is_limit()) else { return Ok(None) };
        let throttle = Self::with_timer(config)?;
        Ok(Some(Self { since: Some(Instant::now()), ..throttle }))
    }

    fn with_timer(config: &RateLimiterConfig) -> io::Result<Self> {
        let limiter = RateLimiter::new(config, Duration::ZERO);
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { limiter, timer, since: None, waiting: false })
    }

    /// Ready when a request that was refused may be tried again. Nothing needs to be read.
    pub fn source(&self, token: u16) -> Source {
        Source { token, fd: self.timer.as_raw_fd() }
    }

    /// Whether a request of `bytes` may be served now. Where it may not, [`Self::source`] becomes ready in time; whoever
    /// asks earlier, or about another request, does no harm.
    pub fn allow(&mut self, bytes: u64) -> bool {
        let now = self.now();
        match self.limiter.take(bytes, now) {
            Ok(()) => {
                self.waiting = false;
                true
            }
            Err(wait) => {
                self.waiting = true;
                // A timer that could not be set would stop the device for ever; then it is not limited.
                let wait = wait.clamp(Duration::from_nanos(1), LONGEST_WAIT);
                self.timer.reset(wait, None).is_err()
            }
        }
    }

    /// Whether the last request was refused.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Gives a device other limits, be it with or without a throttle until now. It keeps one that limits nothing.
    pub fn change(throttle: &mut Option<Self>, config: &RateLimiterConfig) -> io::Result<()> {
        match throttle {
            Some(throttle) => throttle.update(config),
            None => *throttle = Self::new(Some(config))?,
        }
        Ok(())
    }

    /// Other limits from now on; the buckets are full again, as if they were new.
    pub fn update(&mut self, config: &RateLimiterConfig) {
        self.limiter = RateLimiter::new(config, self.now());
        // Whoever waits asks again.
        let _ = self.timer.reset(Duration::from_nanos(1), None);
    }
}

#[cfg(test)]
mod tests;
