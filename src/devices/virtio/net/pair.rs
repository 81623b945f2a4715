//! One queue pair's way from the host to the guest, and its file of the host. Runs on the interface's worker thread.
//!
//! Frames go into as many of the driver's buffers as they need (VIRTIO_NET_F_MRG_RXBUF), and are read there in the first
//! place where that can be (`frame.rs`). Where the driver has too few, or a limit is reached, the frame waits
//! and all later ones wait in the host's queue, which drops what does not fit.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::back_end::BackEnd;
use super::filter::Filter;
use super::frame::{Frame, places};
use super::vhost::{Vhost, complain};
use super::{FRAME_MAX, HEADER};
use crate::mmds::Service;
use crate::rate_limit::Throttle;
use crate::tally;
use crate::tally::Span;
use crate::virtio::chain::Segments;
use crate::virtio::io::{Broken, Held, Io, count};

/// Most of the driver's buffers that one frame may take; Linux' own need 44.
const BUFFERS_MAX: usize = 128;
/// Frames after which another queue gets its turn.
pub const TURN: usize = 64;
/// The driver hears of received frames after so many of them.
const BATCH: usize = 16;
const OUT: Broken = Broken("a receive buffer is not in RAM");

tally! {
    /// Frames of a network interface that did not reach the other side, or had to wait, by the reason.
    pub struct Frames {
        /// Frames dropped, as the host's queue was full.
        pub frames_full: AtomicU64,
        /// Frames dropped, as no buffers of the driver could hold one, or it was longer than any frame.
        pub frames_too_large: AtomicU64,
        /// Times that a frame had to wait, as the driver had too few buffers.
        pub frames_waited: AtomicU64,
        /// Frames dropped by the driver's own choice of what it receives.
        pub frames_filtered: AtomicU64,
        /// Times that a frame for the guest had to wait for the rate limiter.
        pub frames_in_throttled: AtomicU64,
        /// Times that a frame of the guest had to wait for the rate limiter.
        pub frames_out_throttled: AtomicU64,
        /// Kicks of receive queues.
        pub receive_kicks: AtomicU64,
        /// Kicks of transmit queues.
        pub transmit_kicks: AtomicU64,
        /// Times that the rate limiter let frames for the guest go on.
        pub limit_in_events: AtomicU64,
        /// Times that the rate limiter let frames of the guest go on.
        pub limit_out_events: AtomicU64,
        /// Times that the host had frames, or room for them.
        pub host_events: AtomicU64,
        /// Times that the host's end failed to give a frame.
        pub host_read_fails: AtomicU64,
        /// Frames of the guest that the host's end did not take.
        pub host_write_fails: AtomicU64,
        /// Frames of the guest that were none: empty, or longer than any.
        pub frames_malformed: AtomicU64,
        /// How long the frames of one kick of the driver took on their way to the host.
        pub tap_write_agg: Span,
    }
}

/// What all pairs of an interface have in common on the way to the guest.
pub struct Gate {
    /// The frames that the guest wants.
    pub filter: Filter,
    /// How many it may have.
    pub throttle: Option<Throttle>,
    /// A frame may take several buffers.
    pub mergeable: bool,
    /// The metadata service, on an interface that has it. Its frames go by the first pair.
    pub metadata: Option<Box<Service>>,
    /// What became of frames that did not pass.
    pub frames: Arc<Frames>,
}

/// One pair.
pub struct Pair {
    /// The host's end.
    pub back_end: BackEnd,
    /// Who moves the frames in our place.
    pub vhost: Option<Vhost>,
    /// The number of its receive queue.
    queue: usize,
    /// One frame with its header.
    frame: Frame,
    /// The frame waits.
    waiting: Option<Waiting>,
    /// The chains that take the frame, or the next one. While one waits they are kept: the driver kicks for what it
    /// adds to them.
    chains: Vec<Held>,
    /// Room for what the used ring says of one frame.
    used: Vec<(u16, u32)>,
    /// Rooms of chains that were given back.
    rooms: Vec<Segments>,
}

#[derive(Clone, Copy)]
struct Waiting {
    /// Its length with its header.
    len: u64,
    /// The limits have let it through.
    allowed: bool,
}

/// What became of a frame for the guest.
enum Delivery {
    Done,
    /// The driver has too few buffers now.
    Later,
}

/// The next frame for the guest, by its length with its header.
enum Next {
    Frame(u64),
    /// Its time has not come, or there is none.
    None,
    /// This one is not for the guest.
    Skip,
    Gone(io::Error),
}

/// Whether the host's end is still there.
pub type Host = Result<(), io::Error>;

impl Pair {
    /// The pair whose receive queue has this number.
    pub fn new(back_end: BackEnd, vhost: Option<Vhost>, queue: usize) -> Self {
        Self {
            back_end,
            vhost,
            queue,
            frame: Frame::new(),
            waiting: None,
            chains: Vec::new(),
            used: Vec::new(),
            rooms: Vec::new(),
        }
    }

    /// The host has frames: takes them, unless one waits already.
    pub fn ready(&mut self, gate: &mut Gate, io: &mut Io<'_>) -> Result<Host, Broken> {
        if self.waiting.is_some() { Ok(Ok(())) } else { self.receive(gate, io) }
    }

    /// Takes frames from the host until there are none, or the driver has no buffers, or it is the others' turn.
    pub fn receive(&mut self, gate: &mut Gate, io: &mut Io<'_>) -> Result<Host, Broken> {
        if !io.is_ready(self.queue) {
            return Ok(Ok(()));
        }
        io.listen(self.queue, false)?;
        let mut untold = 0_usize;
        for _ in 0..TURN {
            if io.is_wanted() {
                break;
            }
            let len = match self.next(gate, io)? {
                Next::Frame(len) => len,
                Next::Skip => continue,
                Next::None => return self.tell(untold, io).map(Ok),
                Next::Gone(error) => return self.tell(untold, io).map(|()| Err(error)),
            };
            match self.deliver(len, gate, io)? {
                Delivery::Done => untold = untold.saturating_add(1),
                Delivery::Later => {
                    self.waiting = Some(Waiting { len, allowed: true });
                    count(&gate.frames.frames_waited, 1);
                    self.tell(untold, io)?;
                    // Buffers may have come before the driver could read that they are wanted.
                    if io.listen(self.queue, true)? {
                        io.ring(self.queue);
                    }
                    return Ok(Ok(()));
                }
            }
            if untold == BATCH {
                self.tell(std::mem::take(&mut untold), io)?;
            }
        }
        io.ring(self.queue); // there may be more
        self.tell(untold, io).map(Ok)
    }

    fn tell(&self, untold: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        if untold > 0 { io.tell(self.queue) } else { Ok(()) }
    }

    /// The frame that waits, or else the host's next one, if the guest may have it.
    fn next(&mut self, gate: &mut Gate, io: &mut Io<'_>) -> Result<Next, Broken> {
        let counters = io.counters();
        let waiting = match self.waiting.take().or_else(|| self.answer(gate)) {
            Some(waiting) => waiting,
            None => {
                self.take_room(self.frame.expected(), gate.mergeable, io)?;
                match self.frame.read(&mut self.back_end, &self.chains, io.memory()) {
                    Ok(len) if len <= HEADER as u64 => {
                        count(&counters.failed, 1); // an empty datagram is no frame
                        return Ok(Next::Skip);
                    }
                    Ok(len) if len > FRAME_MAX as u64 => {
                        count(&counters.failed, 1);
                        count(&gate.frames.frames_too_large, 1);
                        return Ok(Next::Skip);
                    }
                    Ok(len) if !gate.filter.passes(self.frame.ethernet(len)) => {
                        count(&gate.frames.frames_filtered, 1);
                        return Ok(Next::Skip);
                    }
                    Ok(len) => Waiting { len, allowed: false },
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Next::None),
                    Err(error) => {
                        count(&gate.frames.host_read_fails, 1);
                        return Ok(Next::Gone(error));
                    }
                }
            }
        };
        let Waiting { len, allowed } = waiting;
        if !allowed && !may_pass(gate.throttle.as_mut(), frame_len(len), &gate.frames.frames_in_throttled) {
            self.waiting = Some(waiting);
            return Ok(Next::None);
        }
        Ok(Next::Frame(len))
    }

    /// The metadata service's next frame, which no limit is for. It comes before the host's.
    fn answer(&mut self, gate: &mut Gate) -> Option<Waiting> {
        let frame = gate.metadata.as_mut().filter(|_| self.queue == 0)?.next_frame()?;
        Some(Waiting { len: self.frame.put(&frame)?, allowed: true })
    }

    /// Takes the driver's buffers for a frame of `needed` bytes, if it has so many. Returns how many bytes they hold.
    fn take_room(&mut self, needed: u64, mergeable: bool, io: &mut Io<'_>) -> Result<u64, Broken> {
        let mut room = places(&self.chains, io.memory()).last().map_or(0, |(_, range)| range.end);
        while room < needed && self.chains.len() < most_buffers(mergeable) {
            let Some(held) = io.take(self.queue, self.rooms.pop().unwrap_or_default())? else { break };
            let held_room = held.chain(io.memory()).writable_len();
            if held_room <= HEADER as u64 {
                return Err(Broken("a receive buffer has no room for a frame"));
            }
            room = room.saturating_add(held_room);
            self.chains.push(held);
        }
        Ok(room)
    }

    /// Brings a frame to the driver. What no buffers could hold is dropped.
    fn deliver(&mut self, len: u64, gate: &Gate, io: &mut Io<'_>) -> Result<Delivery, Broken> {
        if self.take_room(len, gate.mergeable, io)? < len {
            if self.chains.len() < most_buffers(gate.mergeable) {
                return Ok(Delivery::Later);
            }
            self.let_go(io);
            count(&io.counters().failed, 1);
            count(&gate.frames.frames_too_large, 1);
            return Ok(Delivery::Done);
        }
        self.fill(len, io)?;
        io.counters().moved_in(frame_len(len));
        Ok(Delivery::Done)
    }

    /// The driver's buffers go back unused, the last one first. The next ones taken are the same: a
    /// frame that waits goes on there.
    pub fn let_go(&mut self, io: &mut Io<'_>) {
        while let Some(held) = self.chains.pop() {
            self.rooms.push(io.put_back(self.queue, held));
        }
    }

    /// Writes the frame to the first chains that hold it and returns them to the driver.
    fn fill(&mut self, len: u64, io: &mut Io<'_>) -> Result<(), Broken> {
        self.used.clear();
        for (held, (_, range)) in self.chains.iter().zip(places(&self.chains, io.memory())) {
            if range.start >= len {
                break;
            }
            let bytes = range.end.min(len).saturating_sub(range.start);
            self.used.push((held.head(), u32::try_from(bytes).unwrap_or(u32::MAX)));
        }
        let (chains, _) = self.chains.split_at_checked(self.used.len()).unwrap_or_default();
        self.frame.write(len, chains, io.memory()).map_err(|_| OUT)?;
        self.rooms.extend(self.chains.drain(..self.used.len()).map(Held::into_room));
        io.give_all(self.queue, &self.used)
    }

    /// Lends one of the pair's queues to the host's kernel.
    pub fn lend(&mut self, queue: usize, io: &Io<'_>) -> Result<(), Broken> {
        let Some(vhost) = &mut self.vhost else { return Ok(()) };
        let Some(lent) = io.lend(queue)? else { return Ok(()) };
        vhost.start(queue % 2, &lent, io.memory(), self.back_end.fd()).map_err(|error| {
            complain(&error);
            Broken("the host's kernel does not take a queue")
        })
    }

    /// The host's kernel gives both queues back.
    pub fn take_back(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let Some(vhost) = &mut self.vhost else { return Ok(()) };
        for which in 0..2 {
            let next =
                vhost.stop(which, io.memory()).map_err(|_| Broken("the host's kernel does not give a queue back"))?;
            if let Some(next) = next {
                io.take_back(self.queue.saturating_add(which), next)?;
            }
        }
        Ok(())
    }

    /// The host's kernel touches neither queue any more; for a broken device, where they do not go on.
    pub fn let_kernel_go(&mut self) {
        for which in 0..2 {
            if let Some(Err(error)) = self.vhost.as_mut().map(|vhost| vhost.let_go(which)) {
                complain(&error);
            }
        }
    }

    /// The driver is gone: nothing of it is kept.
    pub fn forget(&mut self) {
        self.let_kernel_go();
        self.waiting = None;
        self.chains.clear();
    }
}

/// Whether the limits let a frame of so many bytes through now; one that has to wait is counted.
pub fn may_pass(throttle: Option<&mut Throttle>, bytes: u64, throttled: &AtomicU64) -> bool {
    let Some(throttle) = throttle else { return true };
    let waits_already = throttle.is_waiting();
    let allowed = throttle.allow(bytes);
    if !allowed && !waits_already {
        count(throttled, 1);
    }
    allowed
}

/// How many of the driver's buffers one frame may take.
fn most_buffers(mergeable: bool) -> usize {
    if mergeable { BUFFERS_MAX } else { 1 }
}

/// Bytes of a frame without its header.
fn frame_len(len: u64) -> u64 {
    len.saturating_sub(HEADER as u64)
}
