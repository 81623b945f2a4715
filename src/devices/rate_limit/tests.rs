//! The bucket against a model, and against what its configuration promises.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn bucket(size: u64, one_time_burst: Option<u64>, refill_time: u64) -> TokenBucketConfig {
    TokenBucketConfig { size, one_time_burst, refill_time }
}

fn bytes(config: TokenBucketConfig) -> RateLimiter {
    RateLimiter::new(&RateLimiterConfig { bandwidth: Some(config), ops: None }, Duration::ZERO)
}

#[test]
fn a_bucket_empties_and_refills_evenly() {
    let mut limiter = bytes(bucket(1000, None, 100));
    assert_eq!(limiter.take(600, Duration::ZERO), Ok(()));
    assert_eq!(limiter.take(600, Duration::ZERO), Err(20 * MS));
    assert_eq!(limiter.take(600, 20 * MS - Duration::from_nanos(1)), Err(Duration::from_nanos(1)));
    assert_eq!(limiter.take(600, 20 * MS), Ok(()));
    assert_eq!(limiter.take(1, 20 * MS), Err(MS / 10));
    assert_eq!(limiter.take(1000, Duration::from_secs(9)), Ok(()), "it never holds more than its size");
    assert_eq!(limiter.take(1, Duration::from_secs(9)), Err(MS / 10));
}

#[test]
fn the_burst_is_spent_first_and_once() {
    let mut limiter = bytes(bucket(100, Some(1000), 100));
    assert_eq!(limiter.take(950, Duration::ZERO), Ok(()));
    assert_eq!(limiter.take(150, Duration::ZERO), Ok(()), "50 of the burst and the whole bucket");
    assert_eq!(limiter.take(100, Duration::ZERO), Err(100 * MS));
    assert_eq!(limiter.take(100, 100 * MS), Ok(()));
    assert_eq!(limiter.take(1, 100 * MS), Err(MS));
}

#[test]
fn a_request_larger_than_the_bucket_is_paid_off_later() {
    let mut limiter = bytes(bucket(100, None, 100));
    assert_eq!(limiter.take(1000, Duration::ZERO), Ok(()));
    assert_eq!(limiter.take(0, Duration::ZERO), Ok(()), "nothing costs nothing");
    assert_eq!(limiter.take(1, Duration::ZERO), Err(901 * MS));
    assert_eq!(limiter.take(1, 901 * MS), Ok(()));
    assert_eq!(limiter.take(1000, 901 * MS), Err(100 * MS), "the next one waits for a full bucket");
}

#[test]
fn both_buckets_or_none() {
    let config = RateLimiterConfig { bandwidth: Some(bucket(100, None, 100)), ops: Some(bucket(2, None, 1000)) };
    let mut limiter = RateLimiter::new(&config, Duration::ZERO);
    assert_eq!(limiter.take(90, Duration::ZERO), Ok(()));
    assert_eq!(limiter.take(90, Duration::ZERO), Err(80 * MS), "and no operation is taken for it");
    assert_eq!(limiter.take(10, Duration::ZERO), Ok(()));
    assert_eq!(limiter.take(0, Duration::ZERO), Err(500 * MS));
}

#[test]
fn what_limits_nothing_is_no_limit() {
    for config in [bucket(0, None, 100), bucket(100, None, 0), bucket(0, Some(5), 0)] {
        assert_eq!(bytes(config).take(u64::MAX, Duration::ZERO), Ok(()));
        let config = RateLimiterConfig { bandwidth: Some(config), ops: None };
        assert!(Throttle::new(Some(&config)).unwrap().is_none());
    }
    assert!(Throttle::new(None).unwrap().is_none());
}

#[test]
fn the_timer_says_when_to_go_on() {
    let config = RateLimiterConfig { bandwidth: None, ops: Some(bucket(1, None, 20)) };
    let mut throttle = Throttle::new(Some(&config)).unwrap().unwrap();
    assert!(throttle.allow(1 << 40));
    let begin = Instant::now();
    while !throttle.allow(1) {
        assert!(throttle.is_waiting());
        throttle.timer.wait().unwrap();
    }
    assert!(begin.elapsed() > 10 * MS && !throttle.is_waiting());
    throttle.update(&RateLimiterConfig::default());
    assert!((0..1000).all(|_| throttle.allow(u64::MAX)));
}

#[test]
fn the_config_is_firecrackers() {
    let text = r#"{"bandwidth":{"size":1,"one_time_burst":2,"refill_time":3},"ops":{"size":4,"refill_time":5}}"#;
    let config: RateLimiterConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config.bandwidth, Some(bucket(1, Some(2), 3)));
    assert_eq!(config.ops, Some(bucket(4, None, 5)));
    assert!(serde_json::from_str::<RateLimiterConfig>(r#"{"bandwidth":{"size":1}}"#).is_err());
    assert!(serde_json::from_str::<RateLimiterConfig>(r#"{"bytes":null}"#).is_err());
}

/// What a bucket is by definition, without a state: whenever it was asked, it held no more than its size and what flowed in
/// since any earlier moment, less what was taken since that moment.
#[derive(Clone)]
struct Definition {
    config: TokenBucketConfig,
    /// Requests that were let through: nanoseconds, and tokens that the burst did not pay.
    taken: Vec<(i64, i64)>,
    burst: i64,
}

impl Definition {
    fn new(config: TokenBucketConfig) -> Self {
        let burst = i64::try_from(config.one_time_burst.unwrap_or(0)).unwrap();
        Self { config, taken: Vec::new(), burst }
    }

    fn refill(&self) -> i64 {
        i64::try_from(self.config.refill_time).unwrap() * 1_000_000
    }

    fn size(&self) -> i64 {
        i64::try_from(self.config.size).unwrap()
    }

    /// The level, in refill-ths of a token.
    fn level(&self, now: i64) -> i64 {
        let since = |place: usize| {
            let later = &self.taken[place..];
            let spent: i64 = later.iter().map(|(_, tokens)| tokens * self.refill()).sum();
            self.size() * self.refill() + (now - later[0].0) * self.size() - spent
        };
        (0..self.taken.len()).map(since).fold(self.size() * self.refill(), i64::min)
    }

    fn lets_through(&self, tokens: i64, now: i64) -> bool {
        let rest = (tokens - self.burst).max(0);
        rest == 0 || self.level(now) >= rest.min(self.size()) * self.refill()
    }

    fn take(&mut self, tokens: i64, now: i64) {
        self.taken.push((now, (tokens - self.burst).max(0)));
        self.burst = (self.burst - tokens).max(0);
    }
}

/// Every sequence of four requests with pauses before them, from `limiter` and its definition on.
fn compare(limiter: &RateLimiter, buckets: &[(Definition, bool)], now: u64, steps: u32) -> u64 {
    if steps == 0 {
        return 1;
    }
    let mut compared = 0;
    for tokens in [0, 1, 2, 5_u32] {
        for pause in [0, 333_333, 2_000_000_u64] {
            let (mut limiter, mut buckets) = (limiter.clone(), buckets.to_vec());
            let now = now + pause;
            let fits = |at: u64| {
                let at = i64::try_from(at).unwrap();
                buckets.iter().all(|(bucket, ops)| bucket.lets_through(if *ops { 1 } else { tokens.into() }, at))
            };
            match limiter.take(tokens.into(), Duration::from_nanos(now)) {
                Ok(()) => {
                    assert!(fits(now), "{tokens} at {now}: {limiter:?}");
                    let at = i64::try_from(now).unwrap();
                    buckets.iter_mut().for_each(|(bucket, ops)| bucket.take(if *ops { 1 } else { tokens.into() }, at));
                }
                Err(wait) => {
                    let then = now + u64::try_from(wait.as_nanos()).unwrap();
                    assert!(!fits(then - 1) && fits(then), "{tokens} at {now}, {wait:?}: {limiter:?}");
                }
            }
            compared += compare(&limiter, &buckets, now, steps - 1);
        }
    }
    compared
}

#[test]
fn small_buckets_are_what_a_bucket_is_by_definition() {
    let mut compared = 0;
    for size in [1, 2, 3] {
        for refill in [1, 2, 3] {
            for burst in [None, Some(3)] {
                for ops in [None, Some(bucket(2, Some(1), 1))] {
                    let bandwidth = bucket(size, burst, refill);
                    let config = RateLimiterConfig { bandwidth: Some(bandwidth), ops };
                    let definitions: Vec<_> = [(Some(bandwidth), false), (ops, true)]
                        .into_iter()
                        .filter_map(|(config, is_ops)| Some((Definition::new(config?), is_ops)))
                        .collect();
                    compared += compare(&RateLimiter::new(&config, Duration::ZERO), &definitions, 0, 4);
                }
            }
        }
    }
    assert_eq!(compared, 36 * 12_u64.pow(4));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is asked and when: never more than the bucket, the burst and the time allow, but for the one request
    /// that is larger than the bucket; and a request that waited as long as it was told is served.
    #[test]
    fn never_more_than_is_allowed_and_never_stuck(
        size in 1..5000_u64,
        burst in prop_oneof![Just(None), (0..5000_u64).prop_map(Some)],
        refill in 1..5000_u64,
        steps in prop::collection::vec((0..20_000_u64, 0..3_000_000_000_u64), 1..60),
    ) {
        let mut limiter = bytes(bucket(size, burst, refill));
        let (mut now, mut taken, mut largest) = (Duration::ZERO, 0_u128, 0_u128);
        for (tokens, pause) in steps {
            now += Duration::from_nanos(pause);
            if let Err(wait) = limiter.take(tokens, now) {
                prop_assert!(wait > Duration::ZERO);
                let before = limiter.clone().take(tokens, now + wait - Duration::from_nanos(1));
                prop_assert!(before.is_err(), "not earlier");
                now += wait;
                prop_assert_eq!(limiter.take(tokens, now), Ok(()));
            }
            taken += u128::from(tokens);
            largest = largest.max(u128::from(tokens));
            let refilled = now.as_nanos() * u128::from(size) / (u128::from(refill) * 1_000_000);
            let allowed = u128::from(size) + u128::from(burst.unwrap_or(0)) + refilled;
            prop_assert!(taken <= allowed.max(allowed - u128::from(size) + largest), "{taken} of {allowed}");
        }
    }

    /// Each step against a model that counts with fractions of another kind: seconds as rational numbers.
    #[test]
    fn follows_the_model(
        size in 1..50_u64,
        refill in 1..50_u64,
        steps in prop::collection::vec((0..50_u64, 0..20_u64), 1..60),
    ) {
        let mut limiter = bytes(bucket(size, None, refill));
        // In refill-ths of a token; a millisecond adds `size` of them.
        let full = i64::try_from(size * refill).unwrap();
        let (mut level, mut now) = (full, Duration::ZERO);
        for (tokens, pause) in steps {
            now += u32::try_from(pause).unwrap() * MS;
            level = (level + i64::try_from(pause * size).unwrap()).min(full);
            let cost = i64::try_from(tokens * refill).unwrap();
            let fits = cost <= level || cost > full && level == full || cost == 0;
            prop_assert_eq!(limiter.take(tokens, now).is_ok(), fits);
            if fits {
                level -= cost;
            }
        }
    }

    /// No number of a configuration and no time makes the arithmetic wrap; and no request stops a device for ever.
    #[test]
    fn holds_at_the_edges(
        size in prop_oneof![any::<u64>(), Just(u64::MAX), Just(1)],
        refill in prop_oneof![any::<u64>(), Just(u64::MAX), Just(1)],
        burst in any::<Option<u64>>(),
        steps in prop::collection::vec((any::<u32>(), any::<u64>()), 1..20),
    ) {
        let mut limiter = bytes(bucket(size, burst, refill));
        for (tokens, at) in steps {
            if let Err(wait) = limiter.take(tokens.into(), Duration::from_nanos(at)) {
                prop_assert!(wait > Duration::ZERO);
            }
        }
        let end = Duration::from_secs(u64::MAX);
        prop_assert_eq!(limiter.take(1, end), Ok(()));
    }
}
