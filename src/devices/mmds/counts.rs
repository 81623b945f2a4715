//! What the metadata service counts, over all interfaces; named as Firecracker's. The workers of the interfaces write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::tally;

tally! {
    /// What became of frames, connections and requests.
    pub struct Counts {
        /// Frames of guests that were for the service.
        pub rx_accepted: AtomicU64,
        /// Of these, frames that were dropped: longer than any that is of use.
        pub rx_accepted_err: AtomicU64,
        /// Requests that were answered, whatever the answer.
        pub requests: AtomicU64,
        /// Requests to read without a token, with V1 too.
        pub rx_no_token: AtomicU64,
        /// Requests to read with a token that is not good, with V1 too.
        pub rx_invalid_token: AtomicU64,
        /// Frames for guests.
        pub tx_frames: AtomicU64,
        /// Their bytes.
        pub tx_bytes: AtomicU64,
        /// Connections that guests opened.
        pub connections_created: AtomicU64,
        /// Connections that ended.
        pub connections_destroyed: AtomicU64,
    }
}

/// Adds `n` to a counter that several threads write.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A connection, counted when it begins and when it is dropped.
pub struct Counted(Arc<Counts>);

impl Counted {
    /// It begins.
    pub fn begin(counts: &Arc<Counts>) -> Self {
        add(&counts.connections_created, 1);
        Self(counts.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        add(&self.0.connections_destroyed, 1);
    }
}
