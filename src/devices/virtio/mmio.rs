//! virtio over MMIO, version 2: the register map (virtio 1.2, 4.2.2). vCPU threads run it under the bus lock.
//!
//! Reads come from the page of live [`Registers`], whatever their width; a machine may map that page read-only into the
//! guest, and then no read comes here at all. Every write brings the page up to date.

use std::io;
use std::sync::Arc;

use super::registers::{Registers, WINDOW, offset};
use super::state::VirtioState;
use super::transport::{Half, Ring, Transport, TransportCounters};
use super::worker::WorkerHandle;
use crate::bus::BusDevice;
use crate::memory::SharedRam;
use crate::seams::{Doorbell, Interrupt, Notify};
use crate::state::StateError;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"vmm\0");

/// One virtio device behind a window of [`WINDOW`] bytes.
pub struct MmioTransport(Transport);

impl MmioTransport {
    /// The transport of the device in `slot`, whose worker is `worker`.
    pub fn new(slot: usize, worker: WorkerHandle, memory: SharedRam, notify: Notify) -> io::Result<Self> {
        let transport = Transport::new(slot, worker, memory, notify)?;
        let registers = transport.registers();
        registers.store(offset::MAGIC_VALUE, MAGIC);
        registers.store(offset::VERSION, VERSION);
        registers.store(offset::DEVICE_ID, transport.worker().facts().virtio_id);
        registers.store(offset::VENDOR_ID, VENDOR);
        // No shared memory region: its length reads as ones (4.2.2).
        for at in [offset::SHM_LEN_LOW, offset::SHM_LEN_HIGH, offset::SHM_BASE_LOW, offset::SHM_BASE_HIGH] {
            registers.store(at, u32::MAX);
        }
        let mmio = Self(transport);
        mmio.publish();
        Ok(mmio)
    }

    /// The line to bind to the device's GSI (irqfd).
    pub fn interrupt(&self) -> &Interrupt {
        self.0.interrupt()
    }

    /// One doorbell per queue, to bind (ioeventfd) to the 32-bit write of its index at
    /// [`offset::QUEUE_NOTIFY`].
    pub fn doorbells(&self) -> &[Doorbell] {
        self.0.doorbells()
    }

    /// The page that reads come from.
    pub fn registers(&self) -> &Arc<Registers> {
        self.0.registers()
    }

    /// The worker behind the transport.
    pub fn worker(&self) -> &WorkerHandle {
        self.0.worker()
    }

    /// Counts since the device was made.
    pub fn counters(&self) -> &Arc<TransportCounters> {
        self.0.counters()
    }

    /// The transport itself, for the control thread: pause, resume, update.
    pub fn transport(&mut self) -> &mut Transport {
        &mut self.0
    }

    /// What is to be kept of the device and its driver. An error where the machine does not pause.
    pub fn save(&self) -> Result<VirtioState, StateError> {
        self.0.save()
    }

    /// Takes over a device that was saved ([`Transport::load`]).
    pub fn load(&mut self, state: &VirtioState) -> Result<(), StateError> {
        let loaded = self.0.load(state);
        self.publish();
        loaded
    }

    fn write_register(&mut self, at: u64, value: u32) {
        let core = &mut self.0;
        match at {
            offset::DEVICE_FEATURES_SEL => core.select_device_features(value),
            offset::DRIVER_FEATURES => core.write_driver_features(value),
            offset::DRIVER_FEATURES_SEL => core.select_driver_features(value),
            offset::QUEUE_SEL => core.select_queue(value),
            offset::QUEUE_NUM => core.set_queue_num(value),
            offset::QUEUE_READY => core.set_queue_ready(value & 1 != 0),
            offset::QUEUE_NOTIFY => core.notify_queue(value),
            offset::INTERRUPT_ACK => core.acknowledge(value),
            offset::STATUS => core.write_status(value),
            offset::QUEUE_DESC_LOW => core.set_ring(Ring::Desc, Half::Low, value),
            offset::QUEUE_DESC_HIGH => core.set_ring(Ring::Desc, Half::High, value),
            offset::QUEUE_DRIVER_LOW => core.set_ring(Ring::Driver, Half::Low, value),
            offset::QUEUE_DRIVER_HIGH => core.set_ring(Ring::Driver, Half::High, value),
            offset::QUEUE_DEVICE_LOW => core.set_ring(Ring::Device, Half::Low, value),
            offset::QUEUE_DEVICE_HIGH => core.set_ring(Ring::Device, Half::High, value),
            offset::SHM_SEL => {} // there are none to choose from
            _ => core.bad_access(),
        }
    }

    /// Brings the registers that depend on a selection up to date. Status, InterruptStatus, ConfigGeneration and the
    /// configuration space live in the page itself.
    fn publish(&self) {
        let registers = self.0.registers();
        registers.store(offset::DEVICE_FEATURES, self.0.device_features());
        registers.store(offset::QUEUE_NUM_MAX, self.0.queue_num_max());
        registers.store(offset::QUEUE_READY, u32::from(self.0.queue_ready()));
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, at: u64, data: &mut [u8]) {
        let aligned = at.is_multiple_of(4) && data.len() == 4;
        if at >= WINDOW || (at < offset::CONFIG && !aligned) {
            self.0.bad_access();
        }
        self.0.registers().read(at, data);
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        match (at, <[u8; 4]>::try_from(data)) {
            (WINDOW.., _) => self.0.bad_access(),
            (offset::CONFIG.., _) => self.0.write_config(at.saturating_sub(offset::CONFIG), data),
            (_, Ok(bytes)) => {
                self.write_register(at, u32::from_le_bytes(bytes));
                self.publish();
            }
            (_, Err(_)) => self.0.bad_access(),
        }
    }
}
