//! Saving a transport, and loading one that was saved. The control thread calls both, while no vCPU runs.

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};

use super::{QueueSetup, STEPS, Transport};
use crate::memory::SharedRam;
use crate::state::{StateError, check};
use crate::virtio::registers::offset;
use crate::virtio::state::{DeviceState, QueueState, TransportState, VirtioState};
use crate::virtio::worker::Driver;

impl QueueSetup {
    fn save(&self, queue: Option<&Queue>) -> QueueState {
        let queue = queue.filter(|queue| queue.ready());
        QueueState {
            num: self.num,
            desc: self.desc,
            driver: self.driver,
            device: self.device,
            ready: self.ready,
            refused: self.refused,
            next_avail: queue.map_or(0, QueueT::next_avail),
            next_used: queue.map_or(0, QueueT::next_used),
        }
    }

    /// What a queue that may have so many entries is like. An error where it says that it is ready and can not be.
    fn load(max: u16, state: &QueueState, memory: &SharedRam) -> Result<Self, StateError> {
        let QueueState { num, desc, driver, device, ready, refused, .. } = *state;
        let setup = Self { max, num, desc, driver, device, ready, refused };
        check(!(ready && refused), || "it is ready and refused".to_owned())?;
        check(!ready || setup.build(memory, false).is_some(), || {
            format!("{num} entries at {desc:#x}, {driver:#x}, {device:#x} are none that it could have ({max} at most)")
        })?;
        Ok(setup)
    }

    /// The queue, to go on where it was.
    fn resume(&self, state: &QueueState, memory: &SharedRam, event_idx: bool) -> Result<Queue, StateError> {
        let queue = if self.ready { self.build(memory, event_idx) } else { Queue::new(self.max).ok() };
        let mut queue = queue.ok_or_else(|| StateError::new("it can not be made"))?;
        if self.ready {
            queue.set_next_avail(state.next_avail);
            queue.set_next_used(state.next_used);
        }
        Ok(queue)
    }
}

impl Transport {
    /// What is to be kept of the device and its driver. An error where the machine does not pause.
    pub fn save(&self) -> Result<VirtioState, StateError> {
        check(!self.running || self.parked.is_some(), || "it is not paused".to_owned())?;
        let registers = &self.signal.registers;
        let mut config = vec![0; self.worker.facts().config.len()];
        registers.read(offset::CONFIG, &mut config);
        let parked = self.parked.as_deref().unwrap_or_default();
        let queues = self.queues.iter().enumerate().map(|(index, setup)| setup.save(parked.get(index)));
        let transport = TransportState {
            status: self.status(),
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            exotic_features: self.exotic_features,
            queue_sel: self.queue_sel,
            interrupt_status: registers.load(offset::INTERRUPT_STATUS),
            config_generation: registers.load(offset::CONFIG_GENERATION),
            config,
            running: self.running,
            queues: queues.collect(),
        };
        Ok(VirtioState { transport, device: self.worker.save()? })
    }

    /// Takes over a device that was saved. This one is as at power-on; afterwards it is paused. Guest memory and the
    /// interrupt controllers are loaded already: a driver gets an interrupt, lest one was under way.
    ///
    /// On an error it is as at power-on.
    pub fn load(&mut self, state: &VirtioState) -> Result<(), StateError> {
        check(self.status() == 0 && !self.running, || "a driver has used it since power-on".to_owned())?;
        self.check_status(&state.transport)?;
        let setups = self.check_queues(&state.transport)?;
        let (queues, config) = self.hand_over(&state.transport, &setups, &state.device)?;
        let TransportState { status, interrupt_status, config_generation, .. } = state.transport;
        self.queues = setups;
        self.device_features_sel = state.transport.device_features_sel;
        self.driver_features_sel = state.transport.driver_features_sel;
        self.driver_features = state.transport.driver_features;
        self.exotic_features = state.transport.exotic_features;
        self.queue_sel = state.transport.queue_sel;
        (self.running, self.parked) = (queues.is_some(), queues);
        let registers = &self.signal.registers;
        registers.set_config(&config);
        registers.store(offset::CONFIG_GENERATION, config_generation);
        registers.store(offset::STATUS, status);
        registers.store(offset::INTERRUPT_STATUS, interrupt_status);
        if status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            match config == state.transport.config {
                true => self.signal.interrupt.trigger(),
                false => self.signal.set_config(&config), // what the host offers has changed
            }
        }
        Ok(())
    }

    /// The status is one that a driver could have brought about with these features.
    fn check_status(&self, state: &TransportState) -> Result<(), StateError> {
        let TransportState { status, running, driver_features, .. } = *state;
        let has = |bits| status & bits == bits;
        let known = STEPS.iter().fold(VIRTIO_CONFIG_S_NEEDS_RESET, |known, (bit, _)| known | bit);
        let in_order = STEPS.iter().all(|(bit, after)| !has(*bit) || has(*after));
        check(status & !known == 0 && in_order, || format!("a device's status is never {status:#x}"))?;
        let settled = has(VIRTIO_CONFIG_S_FEATURES_OK);
        check(!settled || !state.exotic_features && self.can_accept(driver_features), || {
            format!("its driver uses the features {driver_features:#x}, and this device has {:#x}", self.offered())
        })?;
        let up = has(VIRTIO_CONFIG_S_DRIVER_OK);
        check(if running { up } else { !up || has(VIRTIO_CONFIG_S_NEEDS_RESET) }, || {
            format!("with the status {status:#x}, running can not be {running}")
        })?;
        let pending = state.interrupt_status;
        check(pending & !(VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG) == 0, || {
            format!("InterruptStatus is never {pending:#x}")
        })?;
        let (saved, ours) = (state.config.len(), self.worker.facts().config.len());
        check(saved == ours, || format!("its configuration space has {ours} bytes, and {saved} were saved"))
    }

    fn check_queues(&self, state: &TransportState) -> Result<Vec<QueueSetup>, StateError> {
        let (ours, saved) = (self.queues.len(), state.queues.len());
        check(ours == saved, || format!("it has {ours} queues, and {saved} were saved"))?;
        let healthy = state.status & VIRTIO_CONFIG_S_NEEDS_RESET == 0;
        let settled = state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        let queues = self.queues.iter().zip(&state.queues).enumerate();
        let setups = queues.map(|(index, (own, state))| {
            let setup = QueueSetup::load(own.max, state, &self.memory).and_then(|setup| {
                check(settled || !setup.ready, || "it is ready before the features are settled".to_owned())?;
                // What a device took it has used, unless it is broken; a back end may still owe some.
                let owed = u32::from(state.next_avail.wrapping_sub(state.next_used));
                check(!setup.ready || !healthy || owed <= setup.num, || format!("{owed} requests are not answered"))?;
                Ok(setup)
            });
            setup.map_err(|error| error.of(format!("queue {index}")))
        });
        setups.collect()
    }

    /// Lets the worker load the device, which gets the queues for a moment. The queues, where the device has them, and the
    /// configuration space.
    fn hand_over(
        &self,
        state: &TransportState,
        setups: &[QueueSetup],
        device: &DeviceState,
    ) -> Result<(Option<Vec<Queue>>, Vec<u8>), StateError> {
        let event_idx = state.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues = setups.iter().zip(&state.queues);
        let queues = queues.map(|(setup, state)| setup.resume(state, &self.memory, event_idx));
        let queues = queues.collect::<Result<Vec<_>, _>>()?;
        let signal = Arc::clone(&self.signal);
        let driver = state.running.then_some(Driver { queues, features: state.driver_features, signal });
        self.worker.load(device.clone(), driver)
    }
}
