//! What a balloon counts of its own. Worker thread.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::tally;
use crate::virtio::io::{Counters, count};

tally! {
    /// What the device counts of its own, by what the driver wanted; named as Firecracker's.
    pub struct Tally {
        /// Requests that put pages into the balloon.
        pub inflate_count: AtomicU64,
        /// Requests that took pages out of it.
        pub deflate_count: AtomicU64,
        /// Times that statistics came.
        pub stats_updates_count: AtomicU64,
        /// Reports of free pages.
        pub free_page_report_count: AtomicU64,
        /// Bytes that they gave back to the host.
        pub free_page_report_freed: AtomicU64,
        /// Ranges of them that the host did not take.
        pub free_page_report_fails: AtomicU64,
        /// Requests of hinting: commands, and free pages.
        pub free_page_hint_count: AtomicU64,
        /// Bytes that they gave back to the host.
        pub free_page_hint_freed: AtomicU64,
        /// Ranges of them that the host did not take.
        pub free_page_hint_fails: AtomicU64,
    }
}

/// What `done` gives back, and fails to, is counted for itself as well.
pub fn counting<T>((freed, fails): (&AtomicU64, &AtomicU64), counters: &Counters, done: impl FnOnce() -> T) -> T {
    let now = || [&counters.bytes_out, &counters.failed].map(|counter| counter.load(Ordering::Relaxed));
    let [bytes, failed] = now();
    let answer = done();
    let [more_bytes, more_failed] = now();
    count(freed, more_bytes.wrapping_sub(bytes));
    count(fails, more_failed.wrapping_sub(failed));
    answer
}
