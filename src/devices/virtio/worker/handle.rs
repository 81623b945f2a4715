//! The worker as others have it: a way to hand it queues, to take them back, and to ask. Any thread.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use virtio_queue::Queue;

use super::{Message, Shared, Start};
use crate::seams::Doorbell;
use crate::tally::Tally;
use crate::virtio::io::Counters;
use crate::virtio::transport::Signal;
use crate::virtio::{Change, Facts, Stop, UpdateError};

/// A way to talk to a worker. The last one to be dropped tells the worker to end, without waiting for it.
#[derive(Clone)]
pub struct WorkerHandle(pub(super) Arc<Inner>);

/// What all handles of a worker have in common.
pub(super) struct Inner {
    pub(super) facts: Facts,
    pub(super) shared: Arc<Shared>,
    pub(super) mailbox: Sender<Message>,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.mailbox.send(Message::Quit);
        let _ = self.shared.mail.write(1);
    }
}

impl WorkerHandle {
    /// What the device is.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// One doorbell per queue.
    pub fn doorbells(&self) -> &[Doorbell] {
        &self.0.shared.doorbells
    }

    /// What the device did so far.
    pub fn counters(&self) -> &Counters {
        &self.0.shared.counters
    }

    /// The same, and what the device counts of its own, to be listed. It outlives the worker.
    pub fn tally(&self) -> Arc<dyn Tally> {
        self.0.shared.clone()
    }

    /// Ends the thread after the request at hand and waits for it. Anyone may call it, any number of times.
    pub fn quit(&self) {
        self.post(Message::Quit, true);
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("a device's thread panicked");
        }
    }

    /// The driver is up: hands the queues over. False when the worker is gone.
    pub(in crate::virtio) fn start(&self, queues: Vec<Queue>, features: u64, signal: Arc<Signal>, how: Start) -> bool {
        self.post(Message::Start { queues, features, signal, how }, false)
    }

    /// Takes the queues back; when it returns nothing of the device touches guest memory any more. `None` when the
    /// worker is gone.
    pub(in crate::virtio) fn stop(&self, why: Stop) -> Option<Vec<Queue>> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.post(Message::Stop { why, reply }, true);
        answer.recv().ok()
    }

    /// Changes the device and returns the configuration space after it. Where the driver is up, it has heard of it.
    pub(in crate::virtio) fn update(&self, change: Change) -> Result<Vec<u8>, UpdateError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.post(Message::Update { change: Box::new(change), reply }, true);
        answer.recv().unwrap_or_else(|_| Err(UpdateError::new("its thread has ended")))
    }

    /// What the device has to tell ([`Device::inspect`]); null when the worker is gone.
    pub fn inspect(&self) -> serde_json::Value {
        let (reply, answer) = mpsc::sync_channel(1);
        self.post(Message::Inspect { reply }, true);
        answer.recv().unwrap_or_default()
    }

    /// Passes a configuration write on and returns the configuration space after it.
    pub(in crate::virtio) fn write_config(&self, offset: usize, data: &[u8]) -> Option<Vec<u8>> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.post(Message::WriteConfig { offset, data: data.to_vec(), reply }, true);
        answer.recv().ok()
    }

    /// True when the worker has seen everything that was rung or sent before; false when it is gone or `timeout` is
    /// over.
    pub fn ping(&self, timeout: Duration) -> bool {
        let (reply, answer) = mpsc::sync_channel(1);
        self.post(Message::Ping { reply }, false);
        answer.recv_timeout(timeout).is_ok()
    }

    pub(super) fn post(&self, message: Message, wanted: bool) -> bool {
        let sent = self.0.mailbox.send(message).is_ok();
        if wanted {
            // After the send: whoever clears the flag reads its mail next, and finds the message.
            self.0.shared.wanted.store(true, Ordering::SeqCst);
        }
        sent && self.0.shared.mail.write(1).is_ok()
    }
}
