//! The thread that a virtio device lives on. It alone owns the device, and the queues while the driver is up.
//!
//! The control thread spawns it and ends it; the transport (vCPU threads) starts and stops the device by messages.
//! `Stop` is synchronous and gives the queues back: reset, pause and detach are that one motion.

mod handle;
mod saving;

use std::io;
use std::num::Wrapping;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Instant;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::handle::Inner;
pub use self::handle::WorkerHandle;
pub(super) use self::saving::Driver;
use super::chain::Segments;
use super::io::{Broken, Counters, Io, count};
use super::transport::Signal;
use super::used::told_of;
use super::{Change, Device, Facts, Source, Stop, UpdateError};
use crate::log_limit::LogLimit;
use crate::memory::SharedRam;
use crate::seams::Doorbell;
use crate::tally::{Metric, Tally};

/// Event data of the mailbox. Doorbells are their queue's index; sources are `SOURCE` plus their token.
const MAIL: u32 = u32::MAX;
const SOURCE: u32 = 0x1_0000;

/// Stack of a worker thread, bytes: the deepest paths use a few KiB.
const STACK: usize = 256 << 10;

enum Message {
    Start { queues: Vec<Queue>, features: u64, signal: Arc<Signal>, how: Start },
    Stop { why: Stop, reply: SyncSender<Vec<Queue>> },
    Update { change: Box<Change>, reply: SyncSender<Result<Vec<u8>, UpdateError>> },
    Inspect { reply: SyncSender<serde_json::Value> },
    State(saving::Request),
    WriteConfig { offset: usize, data: Vec<u8>, reply: SyncSender<Vec<u8>> },
    Ping { reply: SyncSender<()> },
    Quit,
}

/// How a device starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// DRIVER_OK.
    Driver,
    /// After a pause; `broken` where it waited for a reset before, and goes on waiting.
    Resume { broken: bool },
}

/// What the worker and its handles share.
pub struct Shared {
    doorbells: Vec<Doorbell>,
    mail: EventFd,
    /// Someone waits for the worker: it leaves a long queue after the request at hand.
    wanted: AtomicBool,
    pub(super) counters: Counters,
    /// What the device counts beside them.
    tally: Option<Arc<dyn Tally>>,
}

impl Tally for Shared {
    fn each(&self, show: &mut dyn FnMut(Metric<'_>)) {
        self.counters.each(show);
        self.tally.iter().for_each(|tally| tally.each(show));
    }
}

impl Shared {
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    pub(super) fn doorbell(&self, queue: usize) -> Option<&Doorbell> {
        self.doorbells.get(queue)
    }

    pub(super) fn ring(&self, queue: usize) {
        if let Some(doorbell) = self.doorbells.get(queue) {
            doorbell.ring();
        }
    }
}

/// The worker, as seen from the thread that makes one.
pub struct Worker;

impl Worker {
    /// Puts `device` on a thread of its own, named `name` (the system shows the first 15 bytes). The control thread
    /// calls this.
    pub fn spawn(name: &str, slot: usize, device: Box<dyn Device>, memory: SharedRam) -> io::Result<WorkerHandle> {
        let facts = device.facts();
        let doorbells = facts.queue_sizes.iter().map(|_| Doorbell::new()).collect::<io::Result<Vec<_>>>()?;
        let mail = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let (counters, tally) = (Counters::default(), facts.tally.clone());
        let shared = Arc::new(Shared { doorbells, mail, wanted: AtomicBool::new(false), counters, tally });
        let (mailbox, messages) = mpsc::channel();
        let looped = Loop {
            slot,
            device,
            sources: facts.sources.clone(),
            memory,
            messages,
            shared: Arc::clone(&shared),
            room: Segments::default(),
            pings: Vec::new(),
            up: None,
            init: Ok(()),
            quit: false,
        };
        let mut events = EventManager::new_with_capacity(16).map_err(io::Error::other)?;
        let id = events.add_subscriber(looped);
        if let Ok(looped) = events.subscriber_mut(id) {
            std::mem::replace(&mut looped.init, Ok(())).map_err(io::Error::other)?;
        }
        let name: String = name.chars().filter(|letter| *letter != '\0').collect();
        let thread = Builder::new().name(name).stack_size(STACK).spawn(move || {
            while events.subscriber_mut(id).is_ok_and(|looped| !looped.quit) {
                if let Err(error) = events.run() {
                    tracing::error!(slot, %error, "a device's event loop ended");
                    break;
                }
            }
        })?;
        Ok(WorkerHandle(Arc::new(Inner { facts, shared, mailbox, thread: Mutex::new(Some(thread)) })))
    }
}

/// The driver is up.
struct Up {
    queues: Vec<Queue>,
    told: Vec<Wrapping<u16>>,
    features: u64,
    signal: Arc<Signal>,
    /// The device has asked for a reset; it hears nothing until then.
    broken: bool,
}

struct Loop {
    slot: usize,
    device: Box<dyn Device>,
    sources: Vec<Source>,
    memory: SharedRam,
    messages: Receiver<Message>,
    shared: Arc<Shared>,
    room: Segments,
    /// To be answered at the next look at the mail: then every doorbell that was rung before was heard, too.
    pings: Vec<SyncSender<()>>,
    up: Option<Up>,
    init: Result<(), event_manager::Error>,
    quit: bool,
}

impl MutEventSubscriber for Loop {
    /// Everything is edge-triggered: a kick then costs no read(2) of its eventfd.
    fn init(&mut self, ops: &mut EventOps) {
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        self.init = ops.add(Events::with_data(&self.shared.mail, MAIL, edge));
        let lent = self.device.facts().lent;
        for (queue, doorbell) in (0_u32..).zip(&self.shared.doorbells) {
            if usize::try_from(queue).is_ok_and(|queue| lent.contains(&queue)) {
                continue; // whoever has the queue hears its kicks
            }
            let added = ops.add(Events::with_data(doorbell.event(), queue, edge));
            self.init = std::mem::replace(&mut self.init, Ok(())).and(added);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == MAIL {
            return self.read_mail(ops);
        }
        let begun = Instant::now();
        match events.data() {
            data if data >= SOURCE => {
                let token = u16::try_from(data.saturating_sub(SOURCE)).unwrap_or(0);
                self.call(|device, io| device.ready(token, io));
            }
            queue => {
                let queue = usize::try_from(queue).unwrap_or(usize::MAX);
                count(&self.shared.counters.kicks, 1);
                self.device.heard(queue);
                self.call(|device, io| device.kicked(queue, io));
            }
        }
        self.shared.counters.busy_time.record(begun.elapsed());
    }
}

impl Loop {
    fn read_mail(&mut self, ops: &mut EventOps) {
        self.shared.wanted.store(false, Ordering::SeqCst);
        for reply in self.pings.drain(..) {
            let _ = reply.send(());
        }
        while !self.quit {
            match self.messages.try_recv() {
                Ok(Message::Start { queues, features, signal, how }) => {
                    let (told, broken) = (told_of(&queues), how == Start::Resume { broken: true });
                    self.up = Some(Up { queues, told, features, signal, broken });
                    if how == Start::Driver {
                        self.call(|device, io| device.started(io));
                    }
                    self.watch(ops);
                    self.kick_all();
                }
                Ok(Message::Stop { why, reply }) => {
                    let _ = reply.send(self.stop(why, ops));
                }
                Ok(Message::Update { change, reply }) => {
                    let _ = reply.send(self.update(*change, ops));
                }
                Ok(Message::Inspect { reply }) => {
                    let _ = reply.send(self.device.inspect());
                }
                Ok(Message::State(request)) => self.state(request),
                Ok(Message::WriteConfig { offset, data, reply }) => {
                    self.device.wrote_config(offset, &data);
                    let _ = reply.send(self.device.facts().config);
                }
                Ok(Message::Ping { reply }) => {
                    self.pings.push(reply);
                    let _ = self.shared.mail.write(1);
                }
                Ok(Message::Quit) => {
                    self.stop(Stop::Reset, ops);
                    self.quit = true;
                }
                Err(_) => return,
            }
        }
    }

    /// Waits for the back end's files.
    fn watch(&mut self, ops: &mut EventOps) {
        for Source { token, fd } in self.sources.clone() {
            let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
            if let Err(error) = ops.add(Events::with_data_raw(fd, watch(token), edge)) {
                tracing::error!(slot = self.slot, %error, "a device's back end can not be watched");
                self.call(|_, _| Err(Broken("the back end can not be watched")));
            }
        }
    }

    fn unwatch(&self, ops: &mut EventOps) {
        for Source { token, fd } in &self.sources {
            let _ = ops.remove(Events::with_data_raw(*fd, watch(*token), EventSet::IN));
        }
    }

    /// A kick may have come before the driver was up or while the queues were away, or may be lost in a snapshot.
    fn kick_all(&mut self) {
        for queue in 0..self.shared.doorbells.len() {
            self.call(|device, io| device.kicked(queue, io));
        }
    }

    fn stop(&mut self, why: Stop, ops: &mut EventOps) -> Vec<Queue> {
        self.call(|device, io| device.finish(io));
        let Some(up) = self.up.take() else { return Vec::new() };
        self.unwatch(ops);
        self.device.stopping(why);
        // What a driver changed by a request is as at power-on for the next one.
        up.signal.show_config(&self.device.facts().config);
        up.queues
    }

    fn update(&mut self, change: Change, ops: &mut EventOps) -> Result<Vec<u8>, UpdateError> {
        self.call(|device, io| device.finish(io));
        let is_up = self.up.is_some();
        if is_up {
            self.unwatch(ops); // before the files can be closed
        }
        let before = self.device.facts().config;
        let done = self.device.update(change);
        let Facts { config, sources, .. } = self.device.facts();
        self.sources = sources;
        if is_up {
            self.watch(ops);
        }
        if let Some(up) = self.up.as_ref().filter(|_| config != before) {
            up.signal.set_config(&config);
        }
        self.kick_all();
        done.map(|()| config)
    }

    /// Calls the device, unless the driver is not up or the device waits for a reset.
    fn call(&mut self, what: impl FnOnce(&mut dyn Device, &mut Io<'_>) -> Result<(), Broken>) {
        let Some(up) = self.up.as_mut().filter(|up| !up.broken) else { return };
        let mut io = Io {
            memory: &self.memory,
            queues: &mut up.queues,
            told: &mut up.told,
            room: &mut self.room,
            signal: &up.signal,
            shared: &self.shared,
            features: up.features,
        };
        if let Err(reason) = what(self.device.as_mut(), &mut io) {
            up.broken = true;
            count(&self.shared.counters.broken, 1);
            static LIMIT: LogLimit = LogLimit::new();
            if let Some(suppressed) = LIMIT.check() {
                tracing::warn!(slot = self.slot, %reason, suppressed, "a virtio device needs a reset by its driver");
            }
            up.signal.needs_reset();
        }
    }
}

fn watch(token: u16) -> u32 {
    SOURCE.saturating_add(u32::from(token))
}
