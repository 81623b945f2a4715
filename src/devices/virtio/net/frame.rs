//! A frame on its way to the guest, and where its bytes lie. Runs on the interface's worker thread.
//!
//! A frame is read by one readv(2): its first bytes into a buffer of ours, where they can be looked at; as many as are
//! expected straight into the driver's buffers; and what is more into a buffer of ours again. The expected length is that
//! of the frame before: in a stream of long frames hardly a byte is copied, and a short one takes one buffer.

use std::io;
use std::ops::Range;

use super::back_end::BackEnd;
use super::{FRAME_MAX, HEADER};
use crate::memory::GuestRam;
use crate::virtio::chain::{Chain, Fault};
use crate::virtio::io::Held;
use crate::virtio::pieces::{Direction, IOV_MAX, Pieces, mark_dirty};

/// Bytes that are looked at before the guest gets the frame: our header, and Ethernet's with a VLAN tag.
const HEAD: u64 = HEADER as u64 + 18;
/// Where `num_buffers` lies in struct virtio_net_hdr_v1 (virtio 1.2, 5.1.6).
const NUM_BUFFERS: Range<u64> = 10..12;

/// Room for one frame with its header.
pub struct Frame {
    /// The whole frame, but for the bytes that lie in the driver's buffers.
    bytes: Box<[u8]>,
    /// The bytes from HEAD to here were read into the driver's buffers.
    placed: u64,
    /// The length of the frame before.
    expected: u64,
    pieces: Pieces,
}

impl Frame {
    /// Room for a frame, and none in it.
    pub fn new() -> Self {
        // One byte more than a frame has tells when one is longer.
        let bytes = vec![0; FRAME_MAX.saturating_add(1)].into_boxed_slice();
        Self { bytes, placed: HEAD, expected: HEAD, pieces: Pieces::default() }
    }

    /// The length that the next frame is expected to have: it is worth having buffers for so much when it is read.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// Reads the next frame of the host, and returns its length with the header. `chains` are the first ones that it may
    /// go to.
    pub fn read(&mut self, back_end: &mut BackEnd, chains: &[Held], memory: &GuestRam) -> io::Result<u64> {
        self.placed = HEAD;
        let tap = match back_end {
            BackEnd::Tap(tap) => tap,
            BackEnd::Stream(stream) => return stream.receive(&mut self.bytes).map(wide),
        };
        let end = self.add_pieces(chains, memory).unwrap_or(HEAD);
        if end == HEAD {
            self.pieces.clear();
        }
        let (head, rest) = self.bytes.split_at_mut_checked(narrow(HEAD)).unwrap_or_default();
        let behind = rest.get_mut(narrow(end.saturating_sub(HEAD))..).unwrap_or_default();
        let read = tap.receive(head, &mut self.pieces, behind);
        self.pieces.clear();
        self.expected = wide(read?);
        self.placed = end.min(self.expected).max(HEAD);
        for (chain, range) in places(chains, memory) {
            let placed = overlap(&range, &(HEAD..self.placed));
            mark_dirty(memory, chain.writable_part(within(&range, &placed)));
        }
        Ok(self.expected)
    }

    /// Takes a frame of our own, without a header; its length with one.
    pub fn put(&mut self, frame: &[u8]) -> Option<u64> {
        self.placed = HEAD;
        let len = frame.len().saturating_add(HEADER);
        let (header, rest) = self.bytes.get_mut(..len)?.split_at_mut_checked(HEADER)?;
        header.fill(0);
        rest.copy_from_slice(frame);
        Some(wide(len))
    }

    /// Where the bytes behind the head can go; returns where their room ends. `None` where they can not be placed.
    fn add_pieces(&mut self, chains: &[Held], memory: &GuestRam) -> Option<u64> {
        let most = wide(self.bytes.len());
        let mut end = HEAD;
        for (chain, range) in places(chains, memory) {
            // The head lies in the first buffer, in whole.
            if range.end < HEAD {
                break;
            }
            let behind_head = overlap(&range, &(HEAD..most));
            self.pieces.add(Direction::Read, memory, chain.writable_part(within(&range, &behind_head))).ok()?;
            end = behind_head.end;
        }
        // Two more are for what goes to buffers of ours.
        (self.pieces.len() <= IOV_MAX.saturating_sub(2)).then_some(end)
    }

    /// The Ethernet header of the frame of this length, or more of it.
    pub fn ethernet(&self, len: u64) -> &[u8] {
        self.part(wide(HEADER)..len.min(HEAD)).unwrap_or_default()
    }

    /// Brings the rest of a frame of this length to the driver's buffers.
    pub fn write(&mut self, len: u64, chains: &[Held], memory: &GuestRam) -> Result<(), Fault> {
        let buffers = u16::try_from(chains.len()).unwrap_or(u16::MAX).to_le_bytes();
        let field = self.bytes.get_mut(narrow(NUM_BUFFERS.start)..narrow(NUM_BUFFERS.end));
        field.ok_or(Fault)?.copy_from_slice(&buffers);
        for (chain, range) in places(chains, memory) {
            for ours in [0..HEAD.min(len), self.placed..len] {
                let ours = overlap(&range, &ours);
                let at = within(&range, &ours).start;
                chain.write(at, self.part(ours)?)?;
            }
        }
        Ok(())
    }

    fn part(&self, range: Range<u64>) -> Result<&[u8], Fault> {
        self.bytes.get(narrow(range.start)..narrow(range.end)).ok_or(Fault)
    }
}

/// The chains, and for each the bytes of a frame that it can hold.
pub fn places<'a>(chains: &'a [Held], memory: &'a GuestRam) -> impl Iterator<Item = (Chain<'a>, Range<u64>)> {
    let mut begin = 0_u64;
    chains.iter().map(move |held| {
        let chain = held.chain(memory);
        let range = begin..begin.saturating_add(chain.writable_len());
        begin = range.end;
        (chain, range)
    })
}

/// What both have; empty where that is nothing.
fn overlap(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    let start = one.start.max(other.start).min(one.end);
    start..one.end.min(other.end).max(start)
}

/// `inner` counted from where `outer` begins.
fn within(outer: &Range<u64>, inner: &Range<u64>) -> Range<u64> {
    inner.start.saturating_sub(outer.start)..inner.end.saturating_sub(outer.start)
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn narrow(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
