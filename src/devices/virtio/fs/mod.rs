//! virtio file system device (virtio 1.2, 5.11): a directory of the host, served by virtiofsd over vhost-user.
//!
//! Worker thread. The requests (FUSE's, linux/fuse.h) go to virtiofsd unread. When it dies, they are answered here, each
//! with ENOTCONN, so that the guest's programs get an error and do not hang; the guest's file system can then be
//! unmounted. So are the requests of a share that has no directory yet, or no more: a driver needs nothing of virtiofsd to
//! be up, as no feature and no part of the configuration space depends on it. One that comes while the VM runs hears no
//! request before FUSE_INIT, with which a mount begins: what the guest still knows of another directory is not for it.

pub mod config;
mod daemon;
mod server;
#[cfg(any(test, feature = "testing"))]
pub mod stand_in;
mod state;
#[cfg(test)]
pub mod tests;

use std::sync::Arc;
use std::time::Instant;

use self::config::{ShareConfig, TAG_MAX};
pub use self::server::FsChange;
use self::server::Server;
pub use self::state::{BackEndState, FsState};
use super::chain::Segments;
use super::io::{Broken, Held, Io, count};
use super::pieces::mark_dirty;
use super::state::DeviceState;
use super::vhost_user::HANG_UP;
use super::vhost_user::ring::Done;
use super::{Chain, Change, Device, Facts, OpenError, Source, Stop, UpdateError};
use crate::memory::{GuestMemoryBackend, GuestRam};
use crate::state::StateError;
use crate::tally;
use crate::tally::{Tally, Times};

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_FS: u32 = 26;
/// One queue for what must not wait, one for requests (5.11.2). Linux makes requests of 1 MiB where a chain may have 256
/// pages.
const QUEUES: usize = 2;
const URGENT: usize = 0;
const QUEUE_SIZE: u16 = 1024;
/// The token of virtiofsd's log among the sources.
const LOG: u16 = HANG_UP + 1;

/// fuse_in_header: length, opcode, then the request's number. fuse_out_header: length, error, number (linux/fuse.h).
const IN_OPCODE: u64 = 4;
const IN_UNIQUE: u64 = 8;
const OUT_HEADER: u32 = 16;
/// The first request of a mount.
const FUSE_INIT: u32 = 26;

/// A shared directory.
pub struct Fs {
    tag: String,
    /// Who serves it; none: it has no directory.
    server: Option<Server>,
    /// The server came while the VM ran, and the guest has not mounted it yet.
    awaits_mount: bool,
    /// virtiofsd has logged more than was read.
    talks: bool,
    /// Queues that wait until their ring has room.
    waiting: [bool; QUEUES],
    room: Vec<Segments>,
    tally: Arc<Answers>,
}

tally! {
    /// What a share counts of its own.
    struct Answers {
        /// Time from when a request was taken from its queue until virtiofsd's answer was given back.
        request_time: Times,
    }
}

impl Fs {
    /// Starts virtiofsd and greets it, where there is a directory.
    pub fn open(config: &ShareConfig) -> Result<Self, OpenError> {
        Ok(Self::new(&config.tag, Server::open(config)?))
    }

    fn new(tag: &str, server: Option<Server>) -> Self {
        let (tag, waiting) = (tag.to_owned(), [false; QUEUES]);
        let (room, tally) = (Vec::new(), Arc::default());
        Self { tag, server, awaits_mount: false, talks: false, waiting, room, tally }
    }

    /// Who serves the requests, if someone does.
    fn serving(&mut self) -> Option<&mut Server> {
        self.server.as_mut().filter(|server| !server.dead)
    }

    /// Has the server serve this driver's requests, if it does not yet.
    fn begin(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let idle = self.serving().filter(|server| !server.back_end.is_running());
        match idle.map_or(Ok(()), |server| server.back_end.start(io.memory())) {
            Ok(()) => Ok(()),
            Err(error) => self.give_up(&error, io),
        }
    }

    /// virtiofsd can not go on: one line on the host, an error for each request in the guest.
    fn give_up(&mut self, why: &dyn std::fmt::Display, io: &mut Io<'_>) -> Result<(), Broken> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if server.end(&self.tag) {
            tracing::error!(
                share = self.tag,
                "the shared directory is lost: {why}; the API or a restart of the VM brings it back"
            );
        }
        for (queue, held) in [0, 1].map(|queue| (queue, server.back_end.take_all(queue))) {
            held.into_iter().try_for_each(|held| self.refuse(queue, held, io))?;
        }
        Ok(())
    }

    /// Passes on what virtiofsd logs. What is left is read when queue `URGENT` is looked at.
    fn pass_on(&mut self, io: &Io<'_>) {
        self.talks = self.server.as_mut().is_some_and(|server| server.daemon.pass_on(&self.tag));
        if self.talks {
            io.ring(URGENT);
        }
    }

    /// Answers a request with an error.
    fn refuse(&mut self, queue: usize, held: Held, io: &mut Io<'_>) -> Result<(), Broken> {
        count(&io.counters().failed, 1);
        let written = refusal(&held.chain(io.memory()));
        self.room.push(io.give(queue, held, written)?);
        io.tell(queue)
    }

    /// Hands one request to virtiofsd.
    fn hand_over(&mut self, queue: usize, held: Held, since: Instant, io: &mut Io<'_>) -> Result<(), Broken> {
        let is_heard = is_ram(&held.chain(io.memory()), io.memory()) && self.hears(&held.chain(io.memory()));
        let can_have = |server: &&mut Server| is_heard && server.back_end.can_have(&held.chain(io.memory()));
        let Some(server) = self.serving().filter(can_have) else { return self.refuse(queue, held, io) };
        match server.back_end.put(queue, (held, since), io.memory()) {
            Ok(()) => Ok(()),
            Err(_) => Err(Broken("a request does not fit into the back end's ring")),
        }
    }

    /// Whether a request can be meant for the server that is there.
    fn hears(&mut self, request: &Chain<'_>) -> bool {
        let mut opcode = [0; 4];
        self.awaits_mount &= request.read(IN_OPCODE, &mut opcode).is_err() || u32::from_le_bytes(opcode) != FUSE_INIT;
        !self.awaits_mount
    }

    /// Gives the driver what virtiofsd has done in ring `queue`.
    fn land(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut any = false;
        let now = Instant::now(); // one reading for all that are there
        while let Some(server) = self.serving() {
            match server.back_end.take(queue, io.memory()) {
                Ok(None) => break,
                Ok(Some(Done { held, since, said, .. })) => {
                    let chain = held.chain(io.memory());
                    let written = u32::try_from(chain.writable_len()).map_or(said, |most| said.min(most));
                    mark_dirty(io.memory(), chain.writable_part(0..written.into()));
                    io.counters().moved_out(chain.readable_len());
                    io.counters().moved_in(written.into());
                    self.room.push(io.give(queue, held, written)?);
                    self.tally.request_time.record(now.saturating_duration_since(since));
                    any = true;
                }
                Err(lie) => return self.give_up(&lie, io),
            }
        }
        if any { io.tell(queue) } else { Ok(()) }
    }

    /// Takes requests from the driver while the ring has room.
    fn take_off(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut any = false;
        let now = Instant::now();
        loop {
            if io.is_wanted() {
                io.ring(queue);
                break;
            }
            if self.serving().is_some_and(|server| !server.back_end.has_room(queue)) {
                if let Some(waits) = self.waiting.get_mut(queue) {
                    *waits = true;
                }
                break;
            }
            let room = self.room.pop().unwrap_or_default();
            let Some(held) = io.take(queue, room)? else {
                if io.listen(queue, true)? {
                    continue;
                }
                break;
            };
            self.hand_over(queue, held, now, io)?;
            any = true;
        }
        if any
            && let Some(server) = self.serving()
            && let Err(error) = server.back_end.kick(queue)
        {
            return self.give_up(&error, io);
        }
        Ok(())
    }
}

impl Device for Fs {
    fn facts(&self) -> Facts {
        // struct virtio_fs_config: the tag, padded with NUL, and the number of request queues (5.11.4).
        let tag = self.tag.bytes().chain(std::iter::repeat(0)).take(TAG_MAX);
        let config = tag.chain(1_u32.to_le_bytes()).collect();
        let sources = self.server.iter().flat_map(|server| {
            let log = Source { token: LOG, fd: server.daemon.log() };
            server.back_end.sources().into_iter().chain([log])
        });
        let sources = sources.collect();
        let (queue_sizes, tally) = (vec![QUEUE_SIZE; QUEUES], Some(self.tally.clone() as Arc<dyn Tally>));
        Facts { virtio_id: VIRTIO_ID_FS, queue_sizes, config, sources, tally, ..Facts::default() }
    }

    fn started(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        self.waiting = [false; QUEUES];
        self.begin(io)
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        if self.talks && queue == URGENT {
            self.pass_on(io);
        }
        self.begin(io)?; // it may have come after the driver
        io.listen(queue, false)?;
        self.take_off(queue, io)
    }

    fn ready(&mut self, token: u16, io: &mut Io<'_>) -> Result<(), Broken> {
        let queue = usize::from(token);
        match token {
            LOG => self.pass_on(io),
            HANG_UP if self.serving().is_some_and(|server| server.back_end.is_gone()) => {
                self.give_up(&"virtiofsd has ended", io)?;
            }
            HANG_UP => {}
            _ if self.serving().is_none() => {}
            _ => {
                self.land(queue, io)?;
                if self.waiting.get_mut(queue).is_some_and(std::mem::take) {
                    return self.kicked(queue, io);
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let since = Instant::now();
        while self.serving().is_some_and(|server| !server.back_end.is_idle()) {
            for queue in 0..QUEUES {
                self.land(queue, io)?;
            }
            let Some(server) = self.serving().filter(|server| !server.back_end.is_idle()) else { break };
            let left = server.patience.saturating_sub(since.elapsed());
            match () {
                () if server.back_end.is_gone() => self.give_up(&"virtiofsd has ended", io)?,
                () if left.is_zero() => self.give_up(&"virtiofsd does not finish its requests", io)?,
                () => server.back_end.wait(left).or_else(|error| self.give_up(&error, io))?,
            }
        }
        Ok(())
    }

    /// Requests are out only where the device is broken. They are forgotten, as at a reset, once virtiofsd is dead.
    fn update(&mut self, change: Change) -> Result<(), UpdateError> {
        let Change::Fs(change) = change else { return Err(UpdateError::new("it is no shared directory")) };
        if let FsChange::Another(server) = change {
            self.server.iter_mut().for_each(|old| _ = old.end(&self.tag));
            self.server = server.map(|server| *server);
            (self.awaits_mount, self.talks, self.waiting) = (true, false, [false; QUEUES]);
        }
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, StateError> {
        self.saved().map(DeviceState::Fs)
    }

    fn load(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Fs(state) = state else { return Err(StateError::other_kind()) };
        self.become_saved(state)
    }

    /// Where requests are still out the device is broken, and only the death of virtiofsd makes sure that it writes nowhere.
    fn stopping(&mut self, why: Stop) {
        let Some(server) = self.server.as_mut().filter(|server| !server.dead) else { return };
        // virtiofsd touches guest memory for requests only: in a pause it may keep its rings.
        let is_idle = server.back_end.is_idle();
        if is_idle && (why == Stop::Pause || server.back_end.stop().is_ok()) {
            return;
        }
        server.end(&self.tag);
        tracing::error!(share = self.tag, "the shared directory is lost: virtiofsd could not be stopped");
    }
}

/// Writes an answer that says ENOTCONN, where the request has room for an answer; its length.
fn refusal(chain: &Chain<'_>) -> u32 {
    let mut unique = [0; 8];
    if chain.read(IN_UNIQUE, &mut unique).is_err() {
        return 0;
    }
    let error = (-libc::ENOTCONN).to_le_bytes();
    let header = [OUT_HEADER.to_le_bytes().as_slice(), &error, &unique].concat();
    if chain.write(0, &header).is_ok() { OUT_HEADER } else { 0 }
}

/// Whether a request has buffers, all of them in RAM: virtiofsd is told of no other.
fn is_ram(chain: &Chain<'_>, memory: &GuestRam) -> bool {
    let (readable, writable) = (chain.readable_part(0..u64::MAX), chain.writable_part(0..u64::MAX));
    let len = |len| usize::try_from(len).unwrap_or(usize::MAX);
    chain.readable_len() > 0 && readable.chain(writable).all(|it| memory.check_range(it.addr, len(it.len)))
}
