//! Saving the device of a worker, and loading one that was saved, while its queues are away.

use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};

use virtio_queue::Queue;

use super::{Loop, Message, WorkerHandle};
use crate::state::StateError;
use crate::virtio::Stop;
use crate::virtio::io::{Broken, Io};
use crate::virtio::state::DeviceState;
use crate::virtio::transport::Signal;
use crate::virtio::used::told_of;

/// A driver that is up, with the queues that it set up.
pub struct Driver {
    pub queues: Vec<Queue>,
    pub features: u64,
    pub signal: Arc<Signal>,
}

/// The driver's queues again, where it is up, and the configuration space.
type Loaded = (Option<Vec<Queue>>, Vec<u8>);

/// What the transport asks of the worker.
pub enum Request {
    Save { reply: SyncSender<Result<DeviceState, StateError>> },
    Load { state: Box<DeviceState>, driver: Option<Driver>, reply: SyncSender<Result<Loaded, StateError>> },
}

impl WorkerHandle {
    /// What is to be kept of the device.
    pub(in crate::virtio) fn save(&self) -> Result<DeviceState, StateError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.post(Message::State(Request::Save { reply }), true);
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// The device becomes what was saved of another one.
    pub(in crate::virtio) fn load(&self, state: DeviceState, driver: Option<Driver>) -> Result<Loaded, StateError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.post(Message::State(Request::Load { state: Box::new(state), driver, reply }), true);
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> StateError {
    StateError::new("its thread has ended")
}

impl Loop {
    pub(super) fn state(&mut self, request: Request) {
        match request {
            Request::Save { reply } => drop(reply.send(self.device.save())),
            Request::Load { state, driver, reply } => drop(reply.send(self.load(&state, driver))),
        }
    }

    fn load(&mut self, state: &DeviceState, driver: Option<Driver>) -> Result<Loaded, StateError> {
        let mut driver = driver;
        let started = driver.as_mut().map_or(Ok(()), |driver| self.begin(driver));
        let loaded = started.and_then(|()| self.device.load(state));
        let facts = self.device.facts();
        self.sources = facts.sources; // limits may have come, with a timer
        if loaded.is_err() {
            self.device.stopping(Stop::Reset);
        }
        loaded.map(|()| (driver.map(|driver| driver.queues), facts.config))
    }

    /// The device hears of the driver that it does not know.
    fn begin(&mut self, driver: &mut Driver) -> Result<(), StateError> {
        let mut told = told_of(&driver.queues);
        let mut io = Io {
            memory: &self.memory,
            queues: &mut driver.queues,
            told: &mut told,
            room: &mut self.room,
            signal: &driver.signal,
            shared: &self.shared,
            features: driver.features,
        };
        let started = self.device.started(&mut io);
        started.map_err(|Broken(why)| StateError::new(format!("it does not take its driver: {why}")))
    }
}
