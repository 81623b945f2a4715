//! The used ring: buffers go back to the driver, and whether it wants to hear of it (virtio 1.2, 2.7.8 and 2.7.10). Worker
//! threads.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::io::Broken;
use crate::memory::GuestRam;

/// virtq_avail.flags: the driver wants no interrupts (2.7.7).
const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Where the elements begin in the used ring, the available ring's in that one, and the bytes of one of each (2.7.6, 2.7.8).
const ELEMENTS: u64 = 4;
const USED_ELEMENT: u64 = 8;
const AVAIL_ELEMENT: u64 = 2;
const OUT: Broken = Broken("the rings can not be accessed");

/// How far the drivers of some queues were told of used buffers: the index of the used ring at the last look.
pub fn told_of(queues: &[Queue]) -> Vec<Wrapping<u16>> {
    queues.iter().map(|queue| Wrapping(queue.next_used())).collect()
}

/// Puts these chains (head, bytes written) into the used ring, all with one step of its index: the driver sees them
/// together or not at all, as it must where they make up one frame (5.1.6.4).
pub fn put(queue: &mut Queue, memory: &GuestRam, mut chains: &[(u16, u32)]) -> Result<(), Broken> {
    while let Some(((head, written), rest)) = chains.split_first() {
        if rest.is_empty() {
            return Ok(queue.add_used(memory, *head, *written)?);
        }
        // `add_used` moves the index, so all but the last are written here.
        let next = queue.next_used();
        let place = u64::from(next.checked_rem(queue.size()).ok_or(OUT)?);
        let at = place.checked_mul(USED_ELEMENT).and_then(|at| at.checked_add(ELEMENTS));
        let address = at.and_then(|at| queue.used_ring().checked_add(at)).ok_or(OUT)?;
        let element = u64::from(*head) | u64::from(*written) << 32;
        memory.write_obj(element.to_le(), GuestAddress(address)).map_err(|_| OUT)?;
        queue.set_next_used(next.wrapping_add(1));
        chains = rest;
    }
    Ok(())
}

/// Whether the driver wants to hear of the chains that were put into the used ring since the last time, `told`.
pub fn wants_interrupt(queue: &Queue, told: &mut Wrapping<u16>, memory: &GuestRam) -> Result<bool, Broken> {
    let now = Wrapping(queue.next_used());
    let before = std::mem::replace(told, now);
    // The driver looks at the used ring after it wrote what it wants: here it is the other way round (2.7.10.1).
    fence(Ordering::SeqCst);
    let load = |address: Option<u64>| -> Result<u16, Broken> {
        let value: u16 = memory.load(GuestAddress(address.ok_or(OUT)?), Ordering::Relaxed).map_err(|_| OUT)?;
        Ok(u16::from_le(value))
    };
    if !queue.event_idx_enabled() {
        return Ok(load(Some(queue.avail_ring()))? & VIRTQ_AVAIL_F_NO_INTERRUPT == 0);
    }
    let used_event = u64::from(queue.size()).checked_mul(AVAIL_ELEMENT).and_then(|at| at.checked_add(ELEMENTS));
    let event = Wrapping(load(used_event.and_then(|at| queue.avail_ring().checked_add(at)))?);
    Ok(passes(event, before, now))
}

/// Whether the step of an index from `before` to `now` goes past `event` (2.7.10.1).
fn passes(event: Wrapping<u16>, before: Wrapping<u16>, now: Wrapping<u16>) -> bool {
    now - event - Wrapping(1) < now - before
}

#[cfg(test)]
#[path = "used_tests.rs"]
mod tests;
