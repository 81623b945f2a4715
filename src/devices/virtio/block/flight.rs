//! Requests in flight: the asynchronous engine between the queues and the ring. The disk's worker runs it.
//!
//! virtio orders nothing between requests. A flush covers the writes whose completion the driver saw before it sent the
//! flush (virtio 1.2, 5.2.6.2): those are in the file by then, so the flush needs to wait for nothing in flight.

use std::io;
use std::time::Instant;

use super::config::CacheType;
use super::request::{Failure, Request};
use super::ring::Job;
use super::transfer::Way;
use super::{Block, Outcome};
use crate::memory::GuestRam;
use crate::virtio::chain::Segments;
use crate::virtio::io::{Broken, Held, Io, count};
use crate::virtio::pieces;

/// The driver is told after so many answers even while more come.
const BATCH: u32 = 8;

/// What became of a chain that was taken.
enum Begun {
    /// It is in flight.
    Away,
    /// It was answered.
    Answered(Segments),
    /// It went back into the queue.
    Later,
}

impl Block {
    /// Takes requests from a queue until there are none, or no room, or the limits say stop.
    pub(super) fn pump(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        loop {
            io.listen(queue, false)?;
            let (more, answered) = self.take_all(queue, io)?;
            if let Some(ring) = &mut self.ring {
                ring.submit();
            }
            if answered > 0 {
                io.tell(queue)?;
            }
            if !more || !io.listen(queue, true)? {
                return Ok(());
            }
        }
    }

    /// Whether the queue was emptied, and how many requests were answered at once.
    fn take_all(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(bool, u32), Broken> {
        let mut answered = 0_u32;
        let mut room = Segments::default();
        loop {
            if io.is_wanted() {
                io.ring(queue);
                return Ok((false, answered));
            }
            if self.ring.as_ref().is_none_or(super::ring::Ring::is_full) {
                count(&self.tally.engine_throttled, 1);
                return Ok((false, answered)); // the next completion comes here again
            }
            let Some(held) = io.take(queue, std::mem::take(&mut room))? else { return Ok((true, answered)) };
            match self.begin(queue, held, io)? {
                Begun::Away => {}
                Begun::Later => return Ok((false, answered)), // the timer comes here again
                Begun::Answered(free) => {
                    room = free;
                    answered = answered.saturating_add(1);
                    if answered.is_multiple_of(BATCH) {
                        io.tell(queue)?;
                    }
                }
            }
        }
    }

    fn begin(&mut self, queue: usize, held: Held, io: &mut Io<'_>) -> Result<Begun, Broken> {
        let begun = Instant::now();
        let chain = held.chain(io.memory());
        let (status_at, request) = self.read(&chain)?;
        let kind = request.as_ref().ok().and_then(Request::direction);
        let outcome = match request {
            Err(failure) => Err(failure),
            Ok(request) if !self.allow(&request) => {
                io.put_back(queue, held);
                return Ok(Begun::Later);
            }
            Ok(request) if !self.can_fly(&request, &held, io) => self.run(&request, &chain, status_at, io.counters()),
            Ok(request) => {
                let through = self.write_through && matches!(request, Request::Out { .. });
                let job = Job { queue, held, status_at, request, through, begun };
                let Some(ring) = &mut self.ring else { return Err(Broken("there is no ring")) };
                return match ring.begin(&self.file, io.memory(), job) {
                    Ok(()) => Ok(Begun::Away),
                    Err(refused) => {
                        let (job, error) = *refused;
                        self.end(job, Err(error), io).map(Begun::Answered)
                    }
                };
            }
        };
        let used = self.answer(&chain, status_at, outcome, io.counters())?;
        self.tally.answered(kind, begun.elapsed());
        io.give(queue, held, used).map(Begun::Answered)
    }

    /// Reads, writes and flushes can; but not those that O_DIRECT wants to take a detour.
    fn can_fly(&mut self, request: &Request, held: &Held, io: &Io<'_>) -> bool {
        let chain = held.chain(io.memory());
        match request {
            Request::Flush => true,
            Request::In { offset, len } => {
                let direction = pieces::Direction::Read;
                matches!(self.file.way_of(direction, io.memory(), chain.writable_part(0..*len), *offset), Way::Straight)
            }
            Request::Out { offset, len } => {
                let header = super::request::HEADER;
                let from = chain.readable_part(header..len.saturating_add(header));
                matches!(self.file.way_of(pieces::Direction::Write, io.memory(), from, *offset), Way::Straight)
            }
            _ => false,
        }
    }

    /// Answers what the ring has done. Whether there was anything.
    pub(super) fn land(&mut self, io: &mut Io<'_>) -> Result<bool, Broken> {
        let mut told = Vec::new();
        while let Some((job, ended)) = self.ring.as_mut().and_then(|ring| ring.next(&self.file)) {
            self.landed(job, ended, io, &mut told)?;
        }
        Self::tell(&told, io)
    }

    /// Waits for all that is in flight, and answers it.
    pub(super) fn land_all(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut told = Vec::new();
        while let Some((job, ended)) = self.ring.as_mut().and_then(|ring| ring.wait(&self.file)) {
            self.landed(job, ended, io, &mut told)?;
        }
        Self::tell(&told, io).map(|_| ())
    }

    /// Waits for all that is in flight, without an answer: the device is broken. What the host has read meanwhile is in
    /// guest memory all the same.
    pub(super) fn abandon(&mut self, memory: &GuestRam) {
        while let Some((job, _)) = self.ring.as_mut().and_then(|ring| ring.wait(&self.file)) {
            if let Request::In { len, .. } = job.request {
                pieces::mark_dirty(memory, job.held.chain(memory).writable_part(0..len));
            }
        }
    }

    /// Waits for all that is in flight, without an answer: the driver is gone or was told to go.
    pub(super) fn drop_all(&mut self) {
        if let Some(ring) = &mut self.ring {
            while ring.wait(&self.file).is_some() {}
        }
    }

    fn landed(
        &mut self,
        job: Job,
        ended: io::Result<()>,
        io: &mut Io<'_>,
        told: &mut Vec<(usize, u32)>,
    ) -> Result<(), Broken> {
        let queue = job.queue;
        self.end(job, ended, io)?;
        match told.iter_mut().find(|(known, _)| *known == queue) {
            Some((_, answers)) if *answers == BATCH => {
                *answers = 1;
                io.tell(queue)
            }
            Some((_, answers)) => {
                *answers = answers.saturating_add(1);
                Ok(())
            }
            None => {
                told.push((queue, 1));
                Ok(())
            }
        }
    }

    fn tell(told: &[(usize, u32)], io: &mut Io<'_>) -> Result<bool, Broken> {
        told.iter().try_for_each(|(queue, _)| io.tell(*queue))?;
        Ok(!told.is_empty())
    }

    /// Answers one request.
    fn end(&mut self, job: Job, ended: io::Result<()>, io: &mut Io<'_>) -> Result<Segments, Broken> {
        let chain = job.held.chain(io.memory());
        let counters = io.counters();
        let is_flush = job.through || matches!(job.request, Request::Flush);
        count(&self.tally.flushes, u64::from(is_flush && self.cache == CacheType::Writeback));
        let mut data = 0;
        if let Request::In { len, .. } = job.request {
            data = len;
            // Some of it may have arrived even where the read failed.
            pieces::mark_dirty(io.memory(), chain.writable_part(0..len));
        }
        let outcome: Outcome = ended.map(|()| data).map_err(Failure::Host);
        if outcome.is_ok() {
            match job.request {
                Request::In { len, .. } => counters.moved_in(len),
                Request::Out { len, .. } => counters.moved_out(len),
                _ => {}
            }
        }
        let used = self.answer(&chain, job.status_at, outcome, counters)?;
        self.tally.answered(job.request.direction(), job.begun.elapsed());
        io.give(job.queue, job.held, used)
    }
}
