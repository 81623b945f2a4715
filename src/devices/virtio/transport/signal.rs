//! How a device interrupts its driver (virtio 1.2, 2.3 and 4.2.2). Workers, and vCPU threads under the transport's lock.

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use crate::seams::Interrupt;
use crate::virtio::registers::{Registers, offset};

/// The device's way to interrupt its driver. Workers and the transport share it.
pub struct Signal {
    pub(super) registers: Arc<Registers>,
    pub(super) interrupt: Interrupt,
}

impl Signal {
    /// Buffers were used (virtio 1.2, 4.2.2, InterruptStatus bit 0).
    pub fn used_buffer(&self) {
        self.registers.set_bits(offset::INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
        self.interrupt.trigger();
    }

    /// The configuration changed, or the device needs a reset (bit 1).
    pub fn config_changed(&self) {
        self.registers.set_bits(offset::INTERRUPT_STATUS, VIRTIO_MMIO_INT_CONFIG);
        self.interrupt.trigger();
    }

    /// The line itself, for who uses buffers instead of the device: bit 0 is then always set ([`super::Transport`] starts the device so).
    pub(in crate::virtio) fn line(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Replaces the configuration space and says nothing.
    pub fn show_config(&self, config: &[u8]) {
        self.registers.set_config(config);
    }

    /// Replaces the configuration space and says so.
    pub fn set_config(&self, config: &[u8]) {
        self.show_config(config);
        self.config_changed();
    }

    /// DEVICE_NEEDS_RESET, and the notification that the driver must get if it is up (virtio 1.2, 2.1.2).
    pub fn needs_reset(&self) {
        self.registers.set_bits(offset::STATUS, VIRTIO_CONFIG_S_NEEDS_RESET);
        self.config_changed();
    }
}
