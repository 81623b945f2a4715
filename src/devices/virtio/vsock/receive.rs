//! Packets towards the guest. Worker thread.
//!
//! Linux' buffers are of 4 KiB (virtio 1.2, 5.10.6.1 leaves the size to the driver), so a stream takes many of them: one
//! recvmsg(2) fills several at once. How many are taken from the ring for it doubles while a connection fills all of
//! them, and is one again when it does not, so that short messages take no more than they need.

use super::connection::Phase;
use super::packet::HEADER;
use super::{BUDGET, MAX_REPLIES, RX, TX, Vsock};
use crate::memory::GuestRam;
use crate::virtio::chain::Segments;
use crate::virtio::io::{Broken, Held, Io};

/// Most buffers of the guest that are filled at once.
const MOST: usize = 16;

/// Buffers of the guest that are about to be filled. Between calls there are none.
#[derive(Default)]
pub struct Batch {
    held: Vec<Held>,
    /// The lengths of the packets that are in the first of them.
    pub written: Vec<u32>,
    /// The next batch has up to two to the power of this.
    order: u32,
    rooms: Vec<Segments>,
}

impl Batch {
    /// Takes buffers from the ring. False when there are none.
    fn take(&mut self, io: &mut Io<'_>) -> Result<bool, Broken> {
        // Buffers of a call that ended with an error are none any more.
        self.held.clear();
        self.written.clear();
        while self.held.len() < 1 << self.order {
            let Some(held) = io.take(RX, self.rooms.pop().unwrap_or_default())? else { break };
            self.held.push(held);
        }
        Ok(!self.held.is_empty())
    }

    /// Gives back to the driver what is written, and to the ring what is not. How many packets were sent.
    fn give(&mut self, io: &mut Io<'_>) -> Result<u32, Broken> {
        let brim = self.held.len() == self.written.len()
            && self
                .held
                .last()
                .zip(self.written.last())
                .is_some_and(|(held, written)| held.chain(io.memory()).writable_len() == u64::from(*written));
        self.order = if brim { self.order.saturating_add(1).min(MOST.ilog2()) } else { 0 };
        while self.held.len() > self.written.len() {
            let Some(held) = self.held.pop() else { break };
            self.rooms.push(io.put_back(RX, held));
        }
        let mut sent = 0_u32;
        for (held, written) in self.held.drain(..).zip(self.written.drain(..)) {
            io.counters().moved_in(written.into());
            self.rooms.push(io.give(RX, held, written)?);
            sent = sent.saturating_add(1);
        }
        Ok(sent)
    }

    /// The first of the buffers.
    pub fn first(&self) -> Option<&Held> {
        self.held.first()
    }

    /// All of them, and a place for the lengths of what is written to them.
    pub fn split(&mut self) -> (&[Held], &mut Vec<u32>) {
        (&self.held, &mut self.written)
    }
}

impl Vsock {
    /// Puts packets into the guest's buffers while there are both. True when it did.
    pub(super) fn receive(&mut self, io: &mut Io<'_>) -> Result<bool, Broken> {
        let mut done = 0_u32;
        while !(self.replies.is_empty() && self.queued.is_empty()) {
            if done >= BUDGET || io.is_wanted() {
                io.ring(RX);
                break;
            }
            if self.batch.take(io)? {
                self.fill(io.memory())?;
                done = done.saturating_add(self.batch.give(io)?);
            } else if !io.listen(RX, true)? {
                break;
            }
        }
        if self.held_up && self.replies.len() < MAX_REPLIES {
            io.ring(TX);
        }
        Ok(done > 0)
    }

    /// The next packets for the guest: a reset first, then those of the connection whose turn it is.
    fn fill(&mut self, memory: &GuestRam) -> Result<(), Broken> {
        if let Some(reset) = self.replies.pop_front() {
            let chain = self.batch.first().map(|held| held.chain(memory));
            let written = chain.is_some_and(|chain| chain.write(0, &reset.to_bytes()).is_ok());
            if !written {
                return Err(Broken("a receive buffer is too short or not in RAM"));
            }
            self.batch.written.extend(u32::try_from(HEADER));
            return Ok(());
        }
        while let Some(id) = self.queued.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            let (held, written) = self.batch.split();
            connection.next_packets(self.cid, memory, held, written, &mut self.pieces)?;
            if !written.is_empty() {
                if connection.phase == Phase::Dead {
                    self.remove(id);
                } else {
                    self.queue(id);
                }
                break;
            }
        }
        Ok(())
    }
}
