//! What a device gets to work with while it is called: its queues, guest RAM, its interrupt. Worker threads only.
//!
//! Notifications in both directions follow virtio 1.2, 2.7.7 to 2.7.10: the driver's are suppressed while a queue is
//! being drained, and the driver is interrupted only when it asked to be.

use std::num::Wrapping;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::{Chain, Segments};
use super::transport::Signal;
use super::used;
use super::worker::Shared;
use crate::memory::GuestRam;
use crate::tally;
use crate::tally::Times;
pub(crate) use crate::tally::count;

/// The driver is interrupted after so many requests even while more are waiting, so that it can go on meanwhile.
const BATCH: u32 = 8;
const NO_QUEUE: Broken = Broken("there is no such queue");

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

tally! {
    /// What every device and its driver did, since the device was made. A device that counts more of its own has
    /// [`super::Facts::tally`].
    pub struct Counters {
        /// Requests taken from the rings.
        pub requests: AtomicU64,
        /// Bytes that requests moved to the guest.
        pub bytes_in: AtomicU64,
        /// Bytes that requests moved from the guest.
        pub bytes_out: AtomicU64,
        /// Requests that moved something to the guest.
        pub moves_in: AtomicU64,
        /// Requests that moved something from the guest.
        pub moves_out: AtomicU64,
        /// Requests that the device answered with an error, or dropped.
        pub failed: AtomicU64,
        /// Of these, requests that made no sense: the driver broke the rules.
        pub refused: AtomicU64,
        /// Times the rings were so wrong that the device asked its driver for a reset.
        pub broken: AtomicU64,
        /// Kicks heard from the driver.
        pub kicks: AtomicU64,
        /// Used-buffer interrupts sent to the driver.
        pub interrupts: AtomicU64,
        /// Time that the device's thread took for one kick or one event of its back end, and all that was there to do.
        pub busy_time: Times,
    }
}

impl Counters {
    /// A request moved so many bytes to the guest.
    pub(crate) fn moved_in(&self, bytes: u64) {
        count(&self.moves_in, 1);
        count(&self.bytes_in, bytes);
    }

    /// A request moved so many bytes from the guest.
    pub(crate) fn moved_out(&self, bytes: u64) {
        count(&self.moves_out, 1);
        count(&self.bytes_out, bytes);
    }

    /// A request made no sense.
    pub(crate) fn refuse(&self) {
        count(&self.failed, 1);
        count(&self.refused, 1);
    }
}

/// A chain that its device holds on to, also between calls, until [`Io::give`] returns it to the driver. A reset of the
/// device forgets it: `stopping` must drop all that is held.
#[derive(Debug)]
pub struct Held {
    head: u16,
    segments: Segments,
}

impl Held {
    /// The chain, to be read and written.
    pub fn chain<'a>(&'a self, memory: &'a GuestRam) -> Chain<'a> {
        Chain::of(memory, &self.segments)
    }

    /// What is left of it once it was given back: room for another.
    pub fn into_room(self) -> Segments {
        self.segments
    }

    /// The index of its first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }
}

/// What a device did with a chain of [`Io::drain_while`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It is done, with so many bytes written to it.
    Done(u32),
    /// Not now: it goes back, and the queue rests until [`super::Device::kicked`] or another call drains it again. The
    /// driver may send no kick for it: the device must know by itself when to go on.
    Later,
}

/// A device's way to the guest during one call.
pub struct Io<'a> {
    pub(super) memory: &'a GuestRam,
    pub(super) queues: &'a mut [Queue],
    /// For each, how far the driver was told ([`used::told_of`]).
    pub(super) told: &'a mut [Wrapping<u16>],
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

    /// Replaces the configuration space without telling the driver: what changed is its own doing.
    pub fn show_config(&self, config: &[u8]) {
        self.signal.show_config(config);
    }

    /// Guest RAM.
    pub fn memory(&self) -> &'a GuestRam {
        self.memory
    }

    /// Whether the transport wants the worker: a device that loops by itself ends its call soon, and rings its own
    /// doorbell ([`Self::ring`]) where work is left.
    pub fn is_wanted(&self) -> bool {
        self.shared.is_wanted()
    }

    /// Has [`super::Device::kicked`] called again for queue `index`.
    pub fn ring(&self, index: usize) {
        self.shared.ring(index);
    }

    /// Whether the driver has set queue `index` up.
    pub fn is_ready(&self, index: usize) -> bool {
        self.queues.get(index).is_some_and(QueueT::ready)
    }

    /// Takes the next chain of queue `index`; `room` is that of a chain given back before, to be used again.
    pub fn take(&mut self, index: usize, room: Segments) -> Result<Option<Held>, Broken> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(None) };
        let Some(chain) = queue.iter(self.memory)?.next() else { return Ok(None) };
        let head = chain.head_index();
        let mut segments = room;
        Chain::walk(chain, self.memory, &mut segments)?;
        count(&self.shared.counters.requests, 1);
        Ok(Some(Held { head, segments }))
    }

    /// Undoes the last [`Self::take`] of queue `index`: the next one returns the same chain.
    pub fn put_back(&mut self, index: usize, held: Held) -> Segments {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.go_to_previous_position();
        }
        let requests = &self.shared.counters.requests;
        requests.store(requests.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        held.segments
    }

    /// Returns chains to the driver, which sees them all at once; `written` bytes are in each. [`Self::tell`] says so.
    pub fn give_all(&mut self, index: usize, chains: &[(u16, u32)]) -> Result<(), Broken> {
        let queue = self.queues.get_mut(index).ok_or(NO_QUEUE)?;
        used::put(queue, self.memory, chains)
    }

    /// Returns a chain to the driver, with `written` bytes in it. [`Self::tell`] says so.
    pub fn give(&mut self, index: usize, held: Held, written: u32) -> Result<Segments, Broken> {
        self.give_all(index, &[(held.head, written)])?;
        Ok(held.segments)
    }

    /// Interrupts the driver if it wants to hear of the chains given back to queue `index`; only after [`Self::give`].
    pub fn tell(&mut self, index: usize) -> Result<(), Broken> {
        self.tell_of([index])
    }

    /// As [`Self::tell`] for several queues, with one interrupt for all of them.
    pub fn tell_of(&mut self, queues: impl IntoIterator<Item = usize>) -> Result<(), Broken> {
        let mut wanted = false;
        for index in queues {
            let queue = self.queues.get(index).ok_or(NO_QUEUE)?;
            let told = self.told.get_mut(index).ok_or(NO_QUEUE)?;
            wanted |= used::wants_interrupt(queue, told, self.memory)?;
        }
        if wanted {
            count(&self.shared.counters.interrupts, 1);
            self.signal.used_buffer();
        }
        Ok(())
    }

    /// Asks the driver for kicks of queue `index`, or not to send any. True when chains came before it could hear this.
    pub fn listen(&mut self, index: usize, kicks: bool) -> Result<bool, Broken> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(false) };
        if kicks {
            return Ok(queue.enable_notification(self.memory)?);
        }
        queue.disable_notification(self.memory)?;
        Ok(false)
    }

    /// Serves every request of queue `index`, in order. `serve` returns how many bytes it wrote to the chain.
    ///
    /// It ends early when the transport wants the worker; the rest is served when (and if) the queue runs again.
    pub fn drain(
        &mut self,
        index: usize,
        mut serve: impl FnMut(&Chain<'_>) -> Result<u32, Broken>,
    ) -> Result<(), Broken> {
        self.drain_while(index, |chain| serve(chain).map(Served::Done))
    }

    /// As [`Self::drain`], until `serve` says [`Served::Later`].
    pub fn drain_while(
        &mut self,
        index: usize,
        mut serve: impl FnMut(&Chain<'_>) -> Result<Served, Broken>,
    ) -> Result<(), Broken> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(()) };
        let told = self.told.get_mut(index).ok_or(NO_QUEUE)?;
        let (memory, signal, shared) = (self.memory, self.signal, self.shared);
        loop {
            queue.disable_notification(memory)?;
            let mut untold = 0_u32;
            loop {
                if shared.is_wanted() {
                    shared.ring(index);
                    return interrupt(queue, told, memory, signal, shared, untold);
                }
                let Some(chain) = queue.iter(memory)?.next() else { break };
                let head = chain.head_index();
                let Served::Done(written) = serve(&Chain::walk(chain, memory, self.room)?)? else {
                    queue.go_to_previous_position();
                    return interrupt(queue, told, memory, signal, shared, untold);
                };
                count(&shared.counters.requests, 1);
                queue.add_used(memory, head, written)?;
                untold = untold.saturating_add(1);
                if untold == BATCH {
                    interrupt(queue, told, memory, signal, shared, untold)?;
                    untold = 0;
                }
            }
            interrupt(queue, told, memory, signal, shared, untold)?;
            if !queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }
}

/// Interrupts the driver if it wants to hear of the `untold` chains that were added to the used ring.
fn interrupt(
    queue: &Queue,
    told: &mut Wrapping<u16>,
    memory: &GuestRam,
    signal: &Signal,
    shared: &Shared,
    untold: u32,
) -> Result<(), Broken> {
    if untold > 0 && used::wants_interrupt(queue, told, memory)? {
        count(&shared.counters.interrupts, 1);
        signal.used_buffer();
    }
    Ok(())
}
