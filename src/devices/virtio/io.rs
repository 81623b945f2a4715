//! What a device gets to work with while it is called: its queues, guest RAM, its interrupt. Worker threads only.
//!
//! Notifications in both directions follow virtio 1.2, 2.7.7 to 2.7.10: the driver's are suppressed while a queue is
//! being drained, and the driver is interrupted only when it asked to be.

use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, Segments};
use super::transport::Signal;
use super::worker::Shared;
use crate::memory::GuestRam;

/// virtq_avail.flags: the driver wants no interrupts (virtio 1.2, 2.7.7).
const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;

/// The driver is interrupted after so many requests even while more are waiting, so that it can go on meanwhile.
const BATCH: u32 = 8;

/// The driver broke the rules so badly that the device can not go on: it asks for a reset. The text says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub &'static str);

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Self {
        Self(match error {
            virtio_queue::Error::InvalidAvailRingIndex => "avail.idx is too far ahead",
            virtio_queue::Error::InvalidDescriptorIndex => "a descriptor index is out of the table",
            virtio_queue::Error::QueueNotReady => "the queue is not ready",
            _ => "the rings can not be accessed",
        })
    }
}

/// What a device and its driver did, for metrics. All counts are since the device was made.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests taken from the rings.
    pub requests: AtomicU64,
    /// Bytes that requests moved between the guest and the device's back end.
    pub bytes: AtomicU64,
    /// Requests that the device answered with an error.
    pub failed: AtomicU64,
    /// Times a back end was told to make data safe.
    pub flushes: AtomicU64,
    /// Times the device gave up and asked for a reset.
    pub broken: AtomicU64,
    /// Kicks heard from the driver.
    pub kicks: AtomicU64,
    /// Used-buffer interrupts sent to the driver.
    pub interrupts: AtomicU64,
}

/// Adds `n` to a counter.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A device's way to the guest during one call.
pub struct Io<'a> {
    pub(super) memory: &'a GuestRam,
    pub(super) queues: &'a mut [Queue],
    pub(super) room: &'a mut Segments,
    pub(super) signal: &'a Signal,
    pub(super) shared: &'a Shared,
    pub(super) features: u64,
}

impl<'a> Io<'a> {
    /// The feature bits that driver and device agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The device's counters.
    pub fn counters(&self) -> &'a Counters {
        &self.shared.counters
    }

    /// Replaces the configuration space and tells the driver.
    pub fn set_config(&self, config: &[u8]) {
        self.signal.set_config(config);
    }

    /// Serves every request of queue `index`, in order. `serve` returns how many bytes it wrote to the chain.
    ///
    /// It ends early when the transport wants the worker; the rest is served when (and if) the queue runs again.
    pub fn drain(
        &mut self,
        index: usize,
        mut serve: impl FnMut(&Chain<'_>) -> Result<u32, Broken>,
    ) -> Result<(), Broken> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(()) };
        let (memory, signal, shared) = (self.memory, self.signal, self.shared);
        loop {
            queue.disable_notification(memory)?;
            let mut untold = 0_u32;
            loop {
                if shared.is_wanted() {
                    shared.ring(index);
                    return interrupt(queue, memory, signal, shared, untold);
                }
                let Some(chain) = queue.iter(memory)?.next() else { break };
                let head = chain.head_index();
                count(&shared.counters.requests, 1);
                let written = serve(&Chain::walk(chain, memory, self.room)?)?;
                queue.add_used(memory, head, written)?;
                untold = untold.saturating_add(1);
                if untold == BATCH {
                    interrupt(queue, memory, signal, shared, untold)?;
                    untold = 0;
                }
            }
            interrupt(queue, memory, signal, shared, untold)?;
            if !queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }
}

/// Interrupts the driver if it wants to hear of the `untold` chains that were added to the used ring.
fn interrupt(
    queue: &mut Queue,
    memory: &GuestRam,
    signal: &Signal,
    shared: &Shared,
    untold: u32,
) -> Result<(), Broken> {
    if untold == 0 || !queue.needs_notification(memory)? {
        return Ok(());
    }
    if !queue.event_idx_enabled() {
        // virtio-queue leaves this flag to its user; its needs_notification has the fence that this read needs.
        let flags: u16 = memory
            .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
            .map_err(|_| Broken("the rings can not be accessed"))?;
        if u16::from_le(flags) & VIRTQ_AVAIL_F_NO_INTERRUPT != 0 {
            return Ok(());
        }
    }
    count(&shared.counters.interrupts, 1);
    signal.used_buffer();
    Ok(())
}
