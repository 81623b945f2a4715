//! A brake for log lines that a guest can cause: at most one line per second and call site.
//!
//! Any thread may use it; it takes no lock and allocates nothing.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// One per call site, as a `static`.
pub(crate) struct LogLimit {
    /// Second of the last line, counted from the first use in the process, plus one; 0 means never.
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimit {
    pub(crate) const fn new() -> Self {
        Self { last: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// `Some(lines suppressed since the last one)` when a line may be logged now.
    pub(crate) fn check(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        let second = START.get_or_init(Instant::now).elapsed().as_secs().saturating_add(1);
        if self.last.swap(second, Ordering::Relaxed) == second {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_few_lines_through_and_counts_the_rest() {
        let limit = LogLimit::new();
        assert_eq!(limit.check(), Some(0));
        let passed = (0..100_000).filter(|_| limit.check().is_some()).count();
        assert!(passed < 100, "{passed}");
    }
}
