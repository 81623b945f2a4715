//! What a part of the machine counts, declared once: a struct of counters that can also be listed, each with its name and
//! its meaning. Any thread reads; each counter has one thread that writes it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Adds `n` to a counter; returns the count before. Only one thread at a time writes it (a device's worker, a vCPU's thread,
/// or who holds the lock of the registers), so a load and a store do, without a locked instruction.
pub fn count(counter: &AtomicU64, n: u64) -> u64 {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(n), Ordering::Relaxed);
    before
}

/// A time as it is measured: microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Metric<'a> {
    /// Its name: small letters and `_`.
    pub name: &'a str,
    /// What it means, a sentence.
    pub help: &'a str,
    /// What was measured.
    pub value: Value<'a>,
}

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// How often or how much since the beginning.
    Counter(u64),
    /// How much it is now.
    Gauge(u64),
    /// How long things took.
    Times(&'a Times),
    /// The same in three numbers.
    Span(&'a Span),
}

/// Something that counts.
pub trait Tally: Send + Sync {
    /// Shows each metric, always in the same order.
    fn each(&self, show: &mut dyn FnMut(Metric<'_>));
}

/// A field of such a struct.
pub trait Measure: Default {
    /// What it has measured.
    fn value(&self) -> Value<'_>;
}

impl Measure for AtomicU64 {
    fn value(&self) -> Value<'_> {
        Value::Counter(self.load(Ordering::Relaxed))
    }
}

/// Something that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(pub AtomicU64);

impl Measure for Gauge {
    fn value(&self) -> Value<'_> {
        Value::Gauge(self.0.load(Ordering::Relaxed))
    }
}

/// Declares a struct of [`Measure`]s, all zero at first, and makes it a [`Tally`]: a field's comment is the metric's
/// meaning. An `AtomicU64` is a counter.
#[macro_export]
macro_rules! tally {
    ($(#[$meta:meta])* $visible:vis struct $name:ident {
        $($(#[doc = $help:literal])+ $field_visible:vis $field:ident: $kind:ty),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $visible struct $name {
            $($(#[doc = $help])+ $field_visible $field: $kind,)+
        }

        impl $crate::tally::Tally for $name {
            fn each(&self, show: &mut dyn FnMut($crate::tally::Metric<'_>)) {
                $(show($crate::tally::Metric {
                    name: stringify!($field),
                    help: concat!($($help),+).trim(),
                    value: $crate::tally::Measure::value(&self.$field),
                });)+
            }
        }
    };
}

/// Ranges of [`Times`]: the first is up to 1 us, each next one twice as long, the last one without an end (over 4 s).
pub const RANGES: usize = 24;

/// How long things took, by powers of two. One thread writes.
#[derive(Debug, Default)]
pub struct Times {
    ranges: [AtomicU64; RANGES],
    nanos: AtomicU64,
}

impl Measure for Times {
    fn value(&self) -> Value<'_> {
        Value::Times(self)
    }
}

impl Times {
    /// One more thing took so long.
    pub fn record(&self, time: Duration) {
        let micros = time.as_nanos().div_ceil(1000).max(1);
        let range = usize::try_from(micros.next_power_of_two().trailing_zeros()).unwrap_or(usize::MAX);
        if let Some(range) = self.ranges.get(range).or(self.ranges.last()) {
            count(range, 1);
        }
        count(&self.nanos, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many things took so long, range by range.
    pub fn ranges(&self) -> [u64; RANGES] {
        std::array::from_fn(|range| self.ranges.get(range).map_or(0, |count| count.load(Ordering::Relaxed)))
    }

    /// The end of a range, microseconds, included; the last one has none.
    pub fn end_of(range: usize) -> Option<u64> {
        (range < RANGES.saturating_sub(1)).then(|| 1 << range)
    }

    /// All times together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

/// How long things took in Firecracker's form: the shortest and the longest since the beginning, and all together. One thread
/// writes.
#[derive(Debug, Default)]
pub struct Span {
    shortest: AtomicU64,
    longest: AtomicU64,
    sum: AtomicU64,
}

impl Measure for Span {
    fn value(&self) -> Value<'_> {
        Value::Span(self)
    }
}

impl Span {
    /// One more thing took so long.
    pub fn record(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let shortest = self.shortest.load(Ordering::Relaxed);
        if shortest == 0 || nanos < shortest {
            self.shortest.store(nanos.max(1), Ordering::Relaxed); // 0 stands for none so far
        }
        if nanos > self.longest.load(Ordering::Relaxed) {
            self.longest.store(nanos, Ordering::Relaxed);
        }
        count(&self.sum, nanos);
    }

    /// The shortest, the longest, and the sum.
    pub fn get(&self) -> [Duration; 3] {
        [&self.shortest, &self.longest, &self.sum].map(|nanos| Duration::from_nanos(nanos.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    tally! {
        /// For the test.
        struct Two {
            /// The first one,
            /// with a long text.
            first: AtomicU64,
            /// The second one.
            second: AtomicU64,
        }
    }

    #[test]
    fn a_declaration_is_a_list() {
        let two = Two::default();
        count(&two.second, 3);
        count(&two.second, 4);
        let mut seen = Vec::new();
        two.each(&mut |metric| {
            let Value::Counter(value) = metric.value else { panic!() };
            seen.push(format!("{}={value} {}", metric.name, metric.help));
        });
        assert_eq!(seen, ["first=0 The first one, with a long text.", "second=7 The second one."]);
    }

    #[test]
    fn a_span_knows_its_ends() {
        let span = Span::default();
        assert_eq!(span.get(), [Duration::ZERO; 3]);
        for micros in [40, 7, 300, 8] {
            span.record(Duration::from_micros(micros));
        }
        assert_eq!(span.get(), [7, 300, 355].map(Duration::from_micros));
    }

    #[test]
    fn times_fall_into_ranges() {
        let times = Times::default();
        for nanos in [0, 1, 1000, 1001, 2000, 2001, 4_194_304_000, 4_194_304_001, u64::MAX] {
            times.record(Duration::from_nanos(nanos));
        }
        let ranges = times.ranges();
        assert_eq!(ranges.iter().sum::<u64>(), 9);
        assert_eq!((ranges[0], ranges[1], ranges[2], ranges[22], ranges[23]), (3, 2, 1, 1, 2));
        assert_eq!((Times::end_of(0), Times::end_of(22), Times::end_of(23)), (Some(1), Some(4_194_304), None));
    }
}
