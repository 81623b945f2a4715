//! A virtio device in its place: its worker and its transport, as the control thread sees them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::virtio::mmio::MmioTransport;
use devices::virtio::worker::WorkerHandle;
use devices::virtio::{Change, UpdateError};

/// A device of a machine. vCPU threads share the transport.
pub struct Attached {
    id: String,
    worker: WorkerHandle,
    transport: Arc<Mutex<MmioTransport>>,
}

impl Attached {
    /// The device `id`.
    pub fn new(id: &str, worker: WorkerHandle, transport: Arc<Mutex<MmioTransport>>) -> Self {
        Self { id: id.to_owned(), worker, transport }
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
