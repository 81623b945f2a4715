//! A descriptor chain, checked and seen as two byte streams (virtio 1.2, 2.7).
//!
//! The driver may split a request over descriptors as it likes (2.7.4), so devices address a chain by byte offset,
//! never by descriptor. Runs on worker threads. The walk checks the chain's structure; whether a buffer lies in RAM is
//! checked where it is used, so that a device can fail just that request.

use std::ops::Range;

use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress};

use super::io::Broken;
use crate::memory::GuestRam;

/// Most buffers of one chain: bounds what a driver can make a worker hold. Linux' own limit is well below.
pub const MAX_SEGMENTS: usize = 1024;

/// One contiguous piece of guest-physical memory; not yet known to be RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: GuestAddress,
    /// Bytes, at least 1.
    pub len: u32,
}

/// Room for one chain's segments, reused from chain to chain.
#[derive(Debug, Default)]
pub struct Segments {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

/// A part of a chain is not RAM, or is shorter than what was asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the buffer is too short or not in RAM")]
pub struct Fault;

/// One request: what the device may read, then what it may write.
pub struct Chain<'a> {
    memory: &'a GuestRam,
    readable: &'a [Segment],
    writable: &'a [Segment],
}

impl<'a> Chain<'a> {
    /// Walks `chain` and checks its structure: it ends, is not too long, and nothing readable follows a writable part.
    pub(crate) fn walk(
        chain: DescriptorChain<&'a GuestRam>,
        memory: &'a GuestRam,
        room: &'a mut Segments,
    ) -> Result<Self, Broken> {
        room.readable.clear();
        room.writable.clear();
        let mut ended = false;
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_SEGMENTS {
                return Err(Broken("a descriptor chain is too long"));
            }
            ended = !descriptor.has_next();
            let segments = match descriptor.is_write_only() {
                true => &mut room.writable,
                false if room.writable.is_empty() => &mut room.readable,
                false => return Err(Broken("a readable descriptor follows a writable one")),
            };
            if descriptor.len() > 0 {
                segments.push(Segment { addr: descriptor.addr(), len: descriptor.len() });
            }
        }
        // virtio-queue's iterator just stops at a loop, a bad index, a bad table or more than 4 GiB.
        if !ended {
            return Err(Broken("a descriptor chain does not end"));
        }
        Ok(Self { memory, readable: &room.readable, writable: &room.writable })
    }

    /// The chain whose segments were walked before.
    pub(crate) fn of(memory: &'a GuestRam, room: &'a Segments) -> Self {
        Self { memory, readable: &room.readable, writable: &room.writable }
    }

    /// Guest RAM.
    pub fn memory(&self) -> &'a GuestRam {
        self.memory
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        total(self.readable)
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        total(self.writable)
    }

    /// Copies the readable bytes from `offset` on into `data`, or fails.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Fault> {
        let mut rest = data;
        for segment in self.readable_part(span(offset, rest.len())?) {
            let (now, later) = rest.split_at_mut_checked(length(segment)?).ok_or(Fault)?;
            self.memory.read_slice(now, segment.addr).map_err(|_| Fault)?;
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(Fault) }
    }

    /// Copies `data` to the writable bytes from `offset` on, or fails.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Fault> {
        let mut rest = data;
        for segment in self.writable_part(span(offset, rest.len())?) {
            let (now, later) = rest.split_at_checked(length(segment)?).ok_or(Fault)?;
            self.memory.write_slice(now, segment.addr).map_err(|_| Fault)?;
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(Fault) }
    }

    /// The readable bytes of `range`, as pieces.
    pub fn readable_part(&self, range: Range<u64>) -> impl Iterator<Item = Segment> + Clone + 'a {
        part(self.readable.iter().copied(), range)
    }

    /// The writable bytes of `range`, as pieces.
    pub fn writable_part(&self, range: Range<u64>) -> impl Iterator<Item = Segment> + Clone + 'a {
        part(self.writable.iter().copied(), range)
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

fn span(offset: u64, len: usize) -> Result<Range<u64>, Fault> {
    let len = u64::try_from(len).map_err(|_| Fault)?;
    Ok(offset..offset.checked_add(len).ok_or(Fault)?)
}

fn length(segment: Segment) -> Result<usize, Fault> {
    usize::try_from(segment.len).map_err(|_| Fault)
}

/// The bytes of `range` among those of `segments`, as pieces.
pub fn part<S>(segments: S, range: Range<u64>) -> impl Iterator<Item = Segment> + Clone
where
    S: Iterator<Item = Segment> + Clone,
{
    let mut begin = 0_u64;
    segments.filter_map(move |segment| {
        let end = begin.saturating_add(u64::from(segment.len));
        let (from, to) = (range.start.max(begin), range.end.min(end));
        let skip = from.saturating_sub(begin);
        begin = end;
        if from >= to {
            return None;
        }
        // An address that wraps around becomes one that no RAM has.
        let addr = segment.addr.checked_add(skip).unwrap_or(GuestAddress(u64::MAX));
        Some(Segment { addr, len: u32::try_from(to.saturating_sub(from)).ok()? })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A part of a chain is that part of all its bytes, one after the other; those past its end are left out.
        #[test]
        fn a_part_is_what_a_byte_stream_has_there(
            segments in prop::collection::vec((0..1_u64 << 40, 1..9_u32), 0..8),
            start in 0..80_u64,
            len in prop_oneof![0..80_u64, Just(u64::MAX)],
        ) {
            let segments: Vec<Segment> =
                segments.into_iter().map(|(addr, len)| Segment { addr: GuestAddress(addr), len }).collect();
            let range = start..start.saturating_add(len);
            let addresses = |it: &Segment| (it.addr.0..it.addr.0 + u64::from(it.len)).collect::<Vec<_>>();
            let whole: Vec<u64> = segments.iter().flat_map(addresses).collect();
            let wanted: Vec<u64> = (0..).zip(&whole).filter(|(at, _)| range.contains(at)).map(|(_, it)| *it).collect();
            let parts: Vec<Segment> = part(segments.iter().copied(), range).collect();
            prop_assert!(parts.iter().all(|it| it.len > 0));
            prop_assert_eq!(parts.iter().flat_map(addresses).collect::<Vec<_>>(), wanted);
            prop_assert_eq!(total(&segments), u64::try_from(whole.len()).unwrap());
        }

        /// Lengths and addresses of any size: no overflow, and never more bytes than were asked for.
        #[test]
        fn a_part_of_anything_is_no_larger_than_asked(
            segments in prop::collection::vec((any::<u64>(), 1..=u32::MAX), 0..8),
            start in any::<u64>(),
            end in any::<u64>(),
        ) {
            let segments: Vec<Segment> =
                segments.into_iter().map(|(addr, len)| Segment { addr: GuestAddress(addr), len }).collect();
            let got: u64 = part(segments.iter().copied(), start..end).map(|it| u64::from(it.len)).sum();
            prop_assert_eq!(got, end.min(total(&segments)).saturating_sub(start));
        }
    }
}
