//! The virtio status machine, once for every register map (virtio 1.2, 2.1 to 2.6 and 3.1).
//!
//! vCPU threads drive it under the transport's lock. It checks all that the driver says before the worker hears of it:
//! features, queue sizes, ring addresses. A reset waits for the worker, so that afterwards nothing of the device
//! touches guest memory, and everything is as at power-on.

mod rings;
mod saving;
mod signal;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};

pub use self::rings::{Half, Ring};
use self::rings::{QueueSetup, half, set_half};
pub use self::signal::Signal;
use super::io::count;
use super::registers::{Registers, offset};
use super::worker::{Start, WorkerHandle};
use super::{Change, Stop, UpdateError};
use crate::memory::SharedRam;
use crate::seams::{Doorbell, GuestEvent, Interrupt, Notify};
use crate::tally;

/// Features of every device: the modern interface, indirect descriptors, event indices.
pub const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// The status bits in the order in which a driver sets them, each with what must be set before it (virtio 1.2, 3.1.1).
const STEPS: [(u32, u32); 5] = [
    (VIRTIO_CONFIG_S_ACKNOWLEDGE, 0),
    (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE),
    (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER),
    (VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK),
    (VIRTIO_CONFIG_S_FAILED, 0),
];

tally! {
    /// What a transport counts, since the device was made.
    pub struct TransportCounters {
        /// Writes that the specification does not allow, and accesses of a width or at an offset that no register has.
        pub bad_accesses: AtomicU64,
        /// Resets by the driver.
        pub resets: AtomicU64,
    }
}

/// The state of one device as its driver sees it, whatever the register map.
pub struct Transport {
    slot: usize,
    worker: WorkerHandle,
    memory: SharedRam,
    notify: Notify,
    signal: Arc<Signal>,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// The driver set feature bits above 63.
    exotic_features: bool,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
    /// The worker has the queues, or would have them but for the pause.
    running: bool,
    /// The queues, while the machine pauses.
    parked: Option<Vec<Queue>>,
    counters: Arc<TransportCounters>,
}

impl Transport {
    /// The transport of the device in `slot`, as at power-on.
    pub fn new(slot: usize, worker: WorkerHandle, memory: SharedRam, notify: Notify) -> io::Result<Self> {
        let signal = Arc::new(Signal { registers: Registers::new(), interrupt: Interrupt::new()? });
        let queues = worker.facts().queue_sizes.iter().map(|max| QueueSetup::power_on(*max)).collect();
        signal.registers.set_config(&worker.facts().config);
        Ok(Self {
            slot,
            worker,
            memory,
            notify,
            signal,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            exotic_features: false,
            queue_sel: 0,
            queues,
            running: false,
            parked: None,
            counters: Arc::default(),
        })
    }

    /// The page of live registers.
    pub fn registers(&self) -> &Arc<Registers> {
        &self.signal.registers
    }

    /// The line to bind to a GSI.
    pub fn interrupt(&self) -> &Interrupt {
        &self.signal.interrupt
    }

    /// The doorbells to bind to queue notifications, one per queue.
    pub fn doorbells(&self) -> &[Doorbell] {
        self.worker.doorbells()
    }

    /// The worker behind it.
    pub fn worker(&self) -> &WorkerHandle {
        &self.worker
    }

    /// Counts since the device was made.
    pub fn counters(&self) -> &Arc<TransportCounters> {
        &self.counters
    }

    /// Notes something that no correct driver does.
    pub fn bad_access(&self) {
        count(&self.counters.bad_accesses, 1);
    }

    /// Device status (virtio 1.2, 2.1).
    pub fn status(&self) -> u32 {
        self.signal.registers.load(offset::STATUS)
    }

    fn has(&self, bits: u32) -> bool {
        self.status() & bits == bits
    }

    /// The bits that the device offers.
    pub fn offered(&self) -> u64 {
        self.worker.facts().features | RING_FEATURES
    }

    /// Chooses which 32 feature bits [`Self::device_features`] shows.
    pub fn select_device_features(&mut self, sel: u32) {
        self.device_features_sel = sel;
    }

    /// The chosen 32 offered bits.
    pub fn device_features(&self) -> u32 {
        half(self.offered(), self.device_features_sel)
    }

    /// Chooses which 32 feature bits [`Self::write_driver_features`] sets.
    pub fn select_driver_features(&mut self, sel: u32) {
        self.driver_features_sel = sel;
    }

    /// The driver's choice of features; ignored once it is settled.
    pub fn write_driver_features(&mut self, bits: u32) {
        if !self.has(VIRTIO_CONFIG_S_DRIVER) || self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return self.bad_access();
        }
        match self.driver_features_sel {
            0 => set_half(&mut self.driver_features, Half::Low, bits),
            1 => set_half(&mut self.driver_features, Half::High, bits),
            _ => self.exotic_features |= bits != 0,
        }
    }

    /// Chooses the queue that the queue registers mean.
    pub fn select_queue(&mut self, sel: u32) {
        self.queue_sel = sel;
    }

    /// Most entries of the chosen queue; 0 when there is none.
    pub fn queue_num_max(&self) -> u32 {
        self.selected().map_or(0, |queue| u32::from(queue.max))
    }

    /// Whether the chosen queue is ready.
    pub fn queue_ready(&self) -> bool {
        self.selected().is_some_and(|queue| queue.ready)
    }

    /// Entries of the chosen queue.
    pub fn set_queue_num(&mut self, num: u32) {
        match self.configurable() {
            Some(queue) => queue.num = num,
            None => self.bad_access(),
        }
    }

    /// Half of the guest-physical address of one part of the chosen queue.
    pub fn set_ring(&mut self, ring: Ring, which: Half, bits: u32) {
        match self.configurable() {
            Some(queue) => {
                let addr = match ring {
                    Ring::Desc => &mut queue.desc,
                    Ring::Driver => &mut queue.driver,
                    Ring::Device => &mut queue.device,
                };
                set_half(addr, which, bits);
            }
            None => self.bad_access(),
        }
    }

    /// QueueReady (virtio 1.2, 4.2.2.2). A queue that can not work does not become ready.
    pub fn set_queue_ready(&mut self, ready: bool) {
        match ready {
            true => self.enable_queue(),
            false => self.disable_queue(),
        }
    }

    fn enable_queue(&mut self) {
        let memory = Arc::clone(&self.memory);
        let Some(queue) = self.configurable() else { return self.bad_access() };
        queue.ready = queue.build(&memory, false).is_some();
        queue.refused = !queue.ready;
        if queue.refused {
            self.bad_access();
        }
    }

    fn disable_queue(&mut self) {
        let sel = usize::try_from(self.queue_sel).unwrap_or(usize::MAX);
        let Some(setup) = self.queues.get_mut(sel) else { return self.bad_access() };
        setup.refused = false;
        if !std::mem::replace(&mut setup.ready, false) || !self.running {
            return;
        }
        // The driver takes one queue away from a running device: the others go on.
        self.pause();
        if let Some(queue) = self.parked.as_mut().and_then(|queues| queues.get_mut(sel)) {
            queue.set_ready(false);
        }
        self.resume();
    }

    /// The driver kicks a queue. Whether anyone listens is the worker's business.
    pub fn notify_queue(&self, index: u32) {
        let doorbell = usize::try_from(index).ok().and_then(|index| self.doorbells().get(index));
        match doorbell {
            Some(doorbell) => doorbell.ring(),
            None => self.bad_access(),
        }
    }

    /// The driver has seen these interrupt bits.
    pub fn acknowledge(&self, bits: u32) {
        let bits = if self.lends() { bits & !VIRTIO_MMIO_INT_VRING } else { bits };
        self.signal.registers.clear_bits(offset::INTERRUPT_STATUS, bits);
    }

    /// Whether someone beside the device uses buffers. That one has the line but not the registers, so "buffers were used"
    /// is said all the time: a driver that looks in vain does no harm.
    fn lends(&self) -> bool {
        !self.worker.facts().lent.is_empty()
    }

    /// The driver writes the configuration space at `at` (from its start).
    pub fn write_config(&mut self, at: u64, data: &[u8]) {
        let writable = &self.worker.facts().config_writable;
        let range = usize::try_from(at).ok().and_then(|at| Some(at..at.checked_add(data.len())?));
        let Some(range) = range.filter(|range| writable.start <= range.start && range.end <= writable.end) else {
            return self.bad_access();
        };
        if let Some(config) = self.worker.write_config(range.start, data) {
            self.signal.registers.set_config(&config);
        }
    }

    /// The driver writes the status: 0 resets, anything else may only add bits, in their order (virtio 1.2, 3.1.1).
    pub fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let known = VIRTIO_CONFIG_S_ACKNOWLEDGE
            | VIRTIO_CONFIG_S_DRIVER
            | VIRTIO_CONFIG_S_FEATURES_OK
            | VIRTIO_CONFIG_S_DRIVER_OK
            | VIRTIO_CONFIG_S_FAILED;
        let old = self.status();
        if old & known & !value != 0 || value & !(known | VIRTIO_CONFIG_S_NEEDS_RESET) != 0 {
            return self.bad_access();
        }
        let new = value & known & !old;
        for (bit, after) in STEPS {
            if new & bit == 0 {
                continue;
            }
            let allowed = self.has(after)
                && match bit {
                    VIRTIO_CONFIG_S_FEATURES_OK => self.accepts_features(),
                    VIRTIO_CONFIG_S_DRIVER_OK => self.is_set_up(),
                    _ => true,
                };
            if !allowed {
                self.bad_access();
                continue;
            }
            self.signal.registers.set_bits(offset::STATUS, bit);
            if bit == VIRTIO_CONFIG_S_DRIVER_OK {
                self.start();
            }
        }
    }

    /// Everything as at power-on. Waits until the worker has let go of the queues.
    pub fn reset(&mut self) {
        self.resume(); // or the device would not hear of the reset
        if std::mem::take(&mut self.running) {
            self.worker.stop(Stop::Reset);
        }
        count(&self.counters.resets, 1);
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.exotic_features = false;
        self.queue_sel = 0;
        for queue in &mut self.queues {
            *queue = QueueSetup::power_on(queue.max);
        }
        self.signal.registers.store(offset::INTERRUPT_STATUS, 0);
        self.signal.registers.store(offset::STATUS, 0);
    }

    /// Takes the queues from the worker, which then touches guest memory no more until [`Self::resume`]. The driver sees
    /// nothing of it. The control thread calls both, while no vCPU runs.
    pub fn pause(&mut self) {
        if self.running && self.parked.is_none() {
            self.parked = self.worker.stop(Stop::Pause);
        }
    }

    /// Gives the worker the queues back.
    pub fn resume(&mut self) {
        let Some(queues) = self.parked.take() else { return };
        let how = Start::Resume { broken: self.has(VIRTIO_CONFIG_S_NEEDS_RESET) };
        self.running = self.worker.start(queues, self.driver_features, Arc::clone(&self.signal), how);
        if !self.running {
            self.signal.needs_reset();
        }
    }

    /// Changes the device, whether a driver is up or not. The control thread calls it.
    pub fn update(&mut self, change: Change) -> Result<(), UpdateError> {
        let config = self.worker.update(change)?;
        let mut shown = vec![0; config.len()];
        self.signal.registers.read(offset::CONFIG, &mut shown);
        if shown != config {
            match self.running {
                true => self.signal.set_config(&config), // the machine pauses; else the worker has done this
                false => self.signal.show_config(&config),
            }
        }
        Ok(())
    }

    /// Features are all or nothing: what was not offered, or is not the modern interface, is refused (2.2, 3.1.1).
    fn accepts_features(&self) -> bool {
        !self.exotic_features && self.can_accept(self.driver_features)
    }

    fn can_accept(&self, features: u64) -> bool {
        features & (1 << VIRTIO_F_VERSION_1) != 0 && features & !self.offered() == 0
    }

    /// The device can start, unless the driver insisted on a queue that can not work.
    fn is_set_up(&mut self) -> bool {
        if self.has(VIRTIO_CONFIG_S_NEEDS_RESET) {
            return false;
        }
        let refused = self.queues.iter().any(|queue| queue.refused);
        if refused {
            self.signal.needs_reset();
        }
        !refused
    }

    fn start(&mut self) {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for setup in &self.queues {
            let built = match setup.ready {
                true => setup.build(&self.memory, event_idx),
                false => Queue::new(setup.max).ok(),
            };
            let Some(queue) = built else { return self.signal.needs_reset() };
            queues.push(queue);
        }
        if self.lends() {
            self.signal.registers.set_bits(offset::INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
        }
        self.running = self.worker.start(queues, self.driver_features, Arc::clone(&self.signal), Start::Driver);
        match self.running {
            true => (self.notify)(GuestEvent::DriverOk(self.slot)),
            false => self.signal.needs_reset(),
        }
    }

    fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The chosen queue, while the driver may still say what it is like.
    fn configurable(&mut self) -> Option<&mut QueueSetup> {
        let settled = self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        let sel = usize::try_from(self.queue_sel).ok()?;
        self.queues.get_mut(sel).filter(|queue| settled && !queue.ready)
    }
}
