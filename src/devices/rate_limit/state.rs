//! What is saved of a device's limits: how full the buckets are. Worker threads.
//!
//! Limits can be changed while the VM exists, so a state says what they are now. A bucket that was loaded begins to fill when
//! the device first asks it: the time between has no say, and a state that is saved again at once is the same.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{LONGEST_REFILL_MS, RateLimiter, RateLimiterConfig, Throttle, TokenBucket, TokenBucketConfig};
use crate::state::{StateError, check};

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketState {
    /// Tokens that it holds; not 0.
    pub size: u64,
    /// Milliseconds in which an empty one becomes full; not 0.
    pub refill_time: u64,
    /// Tokens left to be spent once.
    pub one_time_burst: u64,
    /// Nanoseconds until it is full.
    pub full_in_ns: u64,
}

/// Limits of a device: what is absent is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterState {
    /// Bytes.
    pub bandwidth: Option<TokenBucketState>,
    /// Requests.
    pub ops: Option<TokenBucketState>,
}

impl TokenBucket {
    fn save(&self, now: Duration) -> TokenBucketState {
        let mut bucket = self.clone();
        bucket.refill(now);
        let missing = bucket.full().saturating_sub(bucket.level).saturating_add(bucket.size.saturating_sub(1));
        let full_in = missing.checked_div(bucket.size).unwrap_or(0);
        TokenBucketState {
            size: u64::try_from(bucket.size).unwrap_or(u64::MAX),
            refill_time: u64::try_from(bucket.refill / 1_000_000).unwrap_or(u64::MAX),
            one_time_burst: bucket.burst,
            full_in_ns: u64::try_from(full_in).unwrap_or(u64::MAX),
        }
    }

    fn load(state: &TokenBucketState) -> Result<Self, StateError> {
        let TokenBucketState { size, refill_time, one_time_burst, full_in_ns } = *state;
        check((1..=LONGEST_REFILL_MS).contains(&refill_time), || {
            format!("a rate limiter's refill_time is {refill_time}")
        })?;
        let config = TokenBucketConfig { size, one_time_burst: Some(one_time_burst), refill_time };
        let mut bucket =
            Self::new(&config, Duration::ZERO).ok_or_else(|| StateError::new("a rate limiter's size is 0"))?;
        bucket.level = bucket.level.saturating_sub(i128::from(full_in_ns).saturating_mul(bucket.size));
        Ok(bucket)
    }
}

impl Throttle {
    /// What is to be kept of a device's limits.
    pub fn save(throttle: Option<&Self>) -> RateLimiterState {
        let Some(throttle) = throttle else { return RateLimiterState::default() };
        let now = throttle.since.map_or(Duration::ZERO, |since| since.elapsed());
        let bucket = |bucket: &Option<TokenBucket>| Some(bucket.as_ref()?.save(now));
        RateLimiterState { bandwidth: bucket(&throttle.limiter.bandwidth), ops: bucket(&throttle.limiter.ops) }
    }

    /// Gives a device the limits that were saved. Its sources may be others afterwards.
    pub fn load(throttle: &mut Option<Self>, state: &RateLimiterState) -> Result<(), StateError> {
        let bucket = |state: &Option<TokenBucketState>| state.as_ref().map(TokenBucket::load).transpose();
        let limiter = RateLimiter { bandwidth: bucket(&state.bandwidth)?, ops: bucket(&state.ops)? };
        if throttle.is_none() && limiter == RateLimiter::default() {
            return Ok(());
        }
        let loaded = match throttle.take() {
            Some(throttle) => throttle,
            None => Self::with_timer(&RateLimiterConfig::default())
                .map_err(|error| StateError::new(format!("create the timer of a rate limiter: {error}")))?,
        };
        *throttle = Some(Self { limiter, since: None, waiting: false, ..loaded });
        Ok(())
    }

    /// The time by the clock that the buckets are filled by, which begins now if it stood.
    pub(super) fn now(&mut self) -> Duration {
        self.since.get_or_insert_with(Instant::now).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> (RateLimiter, Duration) {
        let config = r#"{ "bandwidth": { "size": 1000, "refill_time": 100, "one_time_burst": 50 },
            "ops": { "size": 7, "refill_time": 1000 } }"#;
        let mut limiter = RateLimiter::new(&serde_json::from_str(config).unwrap(), Duration::ZERO);
        assert_eq!(limiter.take(650, Duration::ZERO), Ok(()));
        (limiter, Duration::from_millis(20))
    }

    #[test]
    fn a_bucket_is_saved_as_it_is_now() {
        let (limiter, now) = limiter();
        let bandwidth = limiter.bandwidth.unwrap().save(now);
        let expected = TokenBucketState { size: 1000, refill_time: 100, one_time_burst: 0, full_in_ns: 40_000_000 };
        assert_eq!(bandwidth, expected, "600 were taken and 200 have come back");
        let mut loaded = TokenBucket::load(&bandwidth).unwrap();
        assert_eq!(loaded.save(Duration::ZERO), bandwidth);
        loaded.refill(Duration::ZERO);
        assert_eq!(loaded.wait(600), Duration::ZERO);
        assert_eq!(loaded.wait(601), Duration::from_micros(100));
    }

    /// A part of a nanosecond's tokens may be lost at the first time, and nothing more at the second.
    #[test]
    fn what_does_not_divide_is_saved_the_same_again() {
        let (limiter, now) = limiter();
        let ops = limiter.ops.unwrap();
        for nanos in 0..2000 {
            let state = ops.save(now + Duration::from_nanos(nanos));
            assert_eq!(TokenBucket::load(&state).unwrap().save(Duration::ZERO), state);
        }
    }

    #[test]
    fn a_loaded_bucket_fills_from_its_first_use_on() {
        let (limiter, _) = limiter();
        let state = RateLimiterState { bandwidth: None, ops: limiter.ops.map(|ops| ops.save(Duration::ZERO)) };
        let mut throttle = None;
        Throttle::load(&mut throttle, &state).unwrap();
        assert_eq!(Throttle::save(throttle.as_ref()), state);
        assert_eq!(Throttle::save(throttle.as_ref()), state, "time has passed, and its clock stands");
        let six = (0..6).all(|_| throttle.as_mut().unwrap().allow(0));
        assert!(six && Throttle::save(throttle.as_ref()) != state);
    }

    #[test]
    fn no_limits_make_no_timer_and_take_old_limits_away() {
        let mut throttle = None;
        Throttle::load(&mut throttle, &RateLimiterState::default()).unwrap();
        assert!(throttle.is_none());
        let one = r#"{ "ops": { "size": 1, "refill_time": 3600000 } }"#;
        Throttle::change(&mut throttle, &serde_json::from_str(one).unwrap()).unwrap();
        Throttle::load(&mut throttle, &RateLimiterState::default()).unwrap();
        assert!((0..10).all(|_| throttle.as_mut().unwrap().allow(0)));
    }

    #[test]
    fn the_worst_numbers_only_wait_long() {
        for (size, refill_time) in [(1, LONGEST_REFILL_MS), (u64::MAX, LONGEST_REFILL_MS), (u64::MAX, 1)] {
            let state = TokenBucketState { size, refill_time, one_time_burst: 0, full_in_ns: u64::MAX };
            let mut loaded = TokenBucket::load(&state).unwrap();
            loaded.refill(Duration::ZERO);
            assert!(loaded.wait(u64::MAX) > Duration::ZERO);
            let again = loaded.save(Duration::ZERO);
            assert_eq!(TokenBucket::load(&again).unwrap().save(Duration::ZERO), again);
            loaded.refill(Duration::MAX);
            loaded.save(Duration::MAX);
        }
    }
}
