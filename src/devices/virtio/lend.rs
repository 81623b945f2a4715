//! Queues that someone else serves: the host's kernel (vhost), or another process. Worker threads.
//!
//! A device that lends queues says so in [`Facts::lent`](super::Facts::lent), takes each back before it stops, and lends
//! it again when it is told of the queue's start.

use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::io::{Broken, Io};

/// A queue, as who borrows it must know it. Its three parts lie each in one piece of guest RAM.
#[derive(Debug)]
pub struct Lent<'a> {
    /// Entries.
    pub size: u16,
    /// The most that it could have.
    pub max_size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// Where in the available ring to go on.
    pub next_avail: u16,
    /// Rung by the driver.
    pub kick: &'a EventFd,
    /// Interrupts the driver.
    pub call: &'a EventFd,
}

impl<'a> Io<'a> {
    /// Queue `index`, to be served by someone else; nothing where the driver has not set it up.
    pub fn lend(&self, index: usize) -> Result<Option<Lent<'a>>, Broken> {
        let Some(queue) = self.queues.get(index).filter(|queue| queue.ready()) else { return Ok(None) };
        let Some(kick) = self.shared.doorbell(index) else { return Ok(None) };
        let size = usize::from(queue.size());
        let parts = [
            (queue.desc_table(), size.saturating_mul(16)),
            (queue.avail_ring(), size.saturating_mul(2).saturating_add(6)),
            (queue.used_ring(), size.saturating_mul(8).saturating_add(6)),
        ];
        for (addr, len) in parts {
            // Who borrows it computes with host addresses, and two ranges of RAM need not be neighbours there.
            let whole = GuestMemoryBackend::get_slice(self.memory, GuestAddress(addr), len);
            whole.map_err(|_| Broken("a ring is not in one range of RAM"))?;
        }
        // From now on others write to the line's event; our own interrupts go the same way.
        self.signal.line().raise_by(None);
        Ok(Some(Lent {
            size: queue.size(),
            max_size: queue.max_size(),
            desc_table: queue.desc_table(),
            avail_ring: queue.avail_ring(),
            used_ring: queue.used_ring(),
            next_avail: queue.next_avail(),
            kick: kick.event(),
            call: self.signal.line().event(),
        }))
    }

    /// Queue `index` is back: whoever had it comes to `next_avail` next, and has used all before.
    pub fn take_back(&mut self, index: usize, next_avail: u16) -> Result<(), Broken> {
        let Some(queue) = self.queues.get_mut(index) else { return Ok(()) };
        let used = queue.used_idx(self.memory, Ordering::Acquire)?;
        queue.set_next_avail(next_avail);
        queue.set_next_used(used.0);
        if let Some(told) = self.told.get_mut(index) {
            *told = used;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

    use super::*;
    use crate::testing::{RAM, Rig};
    use crate::virtio::registers::offset;
    use crate::virtio::{Device, Facts};

    const V1: u64 = 1 << VIRTIO_F_VERSION_1;

    /// Lends its first queue and tells what it is told of both.
    struct Lender {
        say: Sender<(usize, Option<u16>)>,
        next: u16,
    }

    impl Device for Lender {
        fn facts(&self) -> Facts {
            Facts { virtio_id: 42, queue_sizes: vec![16; 2], config: vec![0; 4], lent: 0..1, ..Facts::default() }
        }

        fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
            let lent = io.lend(queue)?;
            let _ = self.say.send((queue, lent.map(|lent| lent.next_avail)));
            io.set_config(&[1; 4]);
            Ok(())
        }

        fn finish(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
            io.take_back(0, self.next)
        }
    }

    fn lender() -> (Rig, Receiver<(usize, Option<u16>)>) {
        let (say, hear) = mpsc::channel();
        (Rig::new(Box::new(Lender { say, next: 5 })), hear)
    }

    #[test]
    fn a_lent_queue_s_kicks_are_someone_else_s() {
        let (mut rig, hear) = lender();
        rig.drive(V1);
        rig.settle();
        assert_eq!(hear.try_iter().collect::<Vec<_>>(), [(0, Some(0)), (1, Some(0))], "the start");
        rig.kick(0);
        rig.kick(1);
        rig.settle();
        assert_eq!(hear.try_iter().collect::<Vec<_>>(), [(1, Some(0))]);
        assert_eq!(rig.transport().doorbells()[0].event().read().unwrap(), 1, "nobody took it from them");
    }

    /// What came after the queue was lent is not served twice: another queue's end stops and starts the device.
    #[test]
    fn a_queue_that_comes_back_goes_on_where_it_was() {
        let (mut rig, hear) = lender();
        rig.drive(V1);
        rig.write(offset::QUEUE_SEL, 1);
        rig.write(offset::QUEUE_READY, 0);
        rig.settle();
        let told: Vec<_> = hear.try_iter().collect();
        assert_eq!(told[2..], [(0, Some(5)), (1, None)]);
    }

    /// Who borrows a queue interrupts without the registers; a driver that acknowledges a change of configuration must
    /// not clear what that one's next interrupt needs.
    #[test]
    fn used_buffers_are_announced_all_the_time() {
        let (mut rig, _hear) = lender();
        assert_eq!(rig.read(offset::INTERRUPT_STATUS), 0);
        rig.drive(V1);
        rig.settle();
        assert_eq!(rig.read(offset::INTERRUPT_STATUS), 3);
        rig.write(offset::INTERRUPT_ACK, 3);
        assert_eq!(rig.read(offset::INTERRUPT_STATUS), 1);
        rig.write(offset::STATUS, 0);
        assert_eq!(rig.read(offset::INTERRUPT_STATUS), 0);
    }

    #[test]
    fn a_ring_across_two_ranges_is_not_lent() {
        let (mut rig, hear) = lender();
        rig.begin();
        assert!(rig.negotiate(V1));
        assert!(rig.set_up_raw(0, 16, RAM / 2 - 128, 0x1000, 0x2000));
        rig.finish();
        rig.wait_interrupt();
        assert!(rig.needs_reset());
        rig.settle();
        assert!(hear.try_recv().is_err());
    }
}
