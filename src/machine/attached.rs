//! A virtio device in its place: its worker and its transport, as the control thread sees them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::state::StateError;
use devices::tally::{Metric, Tally};
use devices::virtio::mmio::MmioTransport;
use devices::virtio::state::VirtioState;
use devices::virtio::transport::TransportCounters;
use devices::virtio::worker::WorkerHandle;
use devices::virtio::{Change, DeviceConfig, UpdateError};

use crate::metrics::Source;
use crate::plan::Slot;

/// A device of a machine. vCPU threads share the transport.
pub struct Attached {
    id: String,
    kind: &'static str,
    /// There is at most one of its kind.
    is_only: bool,
    worker: WorkerHandle,
    transport: Arc<Mutex<MmioTransport>>,
}

impl Attached {
    /// The device in `slot`.
    pub fn new(slot: &Slot, worker: WorkerHandle, transport: Arc<Mutex<MmioTransport>>) -> Self {
        let kind = slot.config.kind_name();
        let is_only = matches!(slot.config, DeviceConfig::Balloon(_) | DeviceConfig::Rng(_) | DeviceConfig::Vsock(_));
        Self { id: slot.id.clone(), kind, is_only, worker, transport }
    }

    /// What it counts.
    pub fn source(&self) -> Source {
        let counters = self.transport().counters().clone();
        let tally = Arc::new(Counts { device: self.worker.tally(), transport: counters });
        match self.is_only {
            true => Source::only(self.kind, tally),
            false => Source::member(self.kind, &self.id, tally),
        }
    }

    /// Its name, unique in the VM.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Takes the queues; no vCPU runs.
    pub fn pause(&self) {
        self.transport().transport().pause();
    }

    /// Gives the queues back; no vCPU runs.
    pub fn resume(&self) {
        self.transport().transport().resume();
    }

    /// Changes the device.
    pub fn update(&self, change: Change) -> Result<(), UpdateError> {
        self.transport().transport().update(change)
    }

    /// What is to be kept of it; it is paused.
    pub fn save(&self) -> Result<VirtioState, StateError> {
        self.transport().save()
    }

    /// Becomes what was saved, and is paused; no driver has used it.
    pub fn load(&self, state: &VirtioState) -> Result<(), StateError> {
        self.transport().load(state)
    }

    /// What it has to tell.
    pub fn inspect(&self) -> serde_json::Value {
        self.worker.inspect()
    }

    /// Ends its thread.
    pub fn quit(&self) {
        self.worker.quit();
    }

    fn transport(&self) -> MutexGuard<'_, MmioTransport> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a device and its transport count.
struct Counts {
    device: Arc<dyn Tally>,
    transport: Arc<TransportCounters>,
}

impl Tally for Counts {
    fn each(&self, show: &mut dyn FnMut(Metric<'_>)) {
        self.device.each(show);
        self.transport.each(show);
    }
}
