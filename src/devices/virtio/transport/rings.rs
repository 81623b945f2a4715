//! What a driver says of one queue, register by register (virtio 1.2, 2.7 and 4.2.2). Under the transport's lock.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::memory::SharedRam;

/// The three parts of a split virtqueue (virtio 1.2, 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// Descriptor table.
    Desc,
    /// Available ring ("driver area").
    Driver,
    /// Used ring ("device area").
    Device,
}

/// One half of a 64-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

/// What the driver said of one queue.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QueueSetup {
    pub max: u16,
    pub num: u32,
    pub desc: u64,
    pub driver: u64,
    pub device: u64,
    pub ready: bool,
    /// The driver wanted it ready and it could not be.
    pub refused: bool,
}

impl QueueSetup {
    pub fn power_on(max: u16) -> Self {
        Self { max, num: u32::from(max), ..Self::default() }
    }

    /// The queue, when its size is allowed and its rings are aligned and in RAM (virtio 1.2, 2.7).
    pub fn build(&self, memory: &SharedRam, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.max).ok()?;
        queue.try_set_size(u16::try_from(self.num).ok()?).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.desc)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.device)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // virtio-queue takes an available ring at 0 for one that was never set.
        (self.driver != 0 && queue.is_valid(memory.as_ref())).then_some(queue)
    }
}

pub(super) fn half(value: u64, sel: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match sel {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

pub(super) fn set_half(value: &mut u64, which: Half, bits: u32) {
    let mask = u64::from(u32::MAX);
    *value = match which {
        Half::Low => *value & !mask | u64::from(bits),
        Half::High => *value & mask | u64::from(bits) << 32,
    };
}
