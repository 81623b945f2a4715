//! The driver's half of a split virtqueue (virtio 1.2, 2.7), in memory that a back end maps. Worker threads.
//!
//! The monitor never shows a guest's own rings to a back end. It takes each chain from the guest's ring, checked, and puts
//! it into one of these; so it always knows which requests are out, and can answer them itself when the back end dies.
//! Each slot has one descriptor, which leads to an indirect table with the chain's buffers (2.7.5.3).

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use vm_memory::{Bytes, VolatileSlice};

use super::copies::{Copy, POOL};
use crate::virtio::Held;
use crate::virtio::chain::{MAX_SEGMENTS, Segment};

/// Requests that can be out at once; a power of two.
pub const SLOTS: u16 = 128;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// virtq_used.flags: the back end needs no kick (2.7.8).
const NO_NOTIFY: u16 = 1;

/// Bytes of a descriptor.
const DESC: usize = 16;
/// Where the parts of a ring are in its area.
const AVAIL: usize = 2048;
const USED: usize = 4096;
const TABLES: usize = 8192;
const TABLE: usize = MAX_SEGMENTS * DESC;
/// Where the blocks with copies of requests begin.
pub const BLOCKS: usize = TABLES + SLOTS as usize * TABLE;
/// Bytes of a ring's area; what is never touched takes no memory.
pub const AREA: usize = BLOCKS + POOL;

/// The back end wrote something into a ring that no back end may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it returned a request that it did not have")]
pub struct Lie;

/// A request that the back end has done.
#[derive(Debug)]
pub struct Done {
    /// The guest's.
    pub held: Held,
    /// What the back end had of it, where that was a copy.
    pub copy: Option<Copy>,
    /// When it was taken from the guest's ring.
    pub since: Instant,
    /// How many bytes the back end says to have written.
    pub said: u32,
}

/// A ring and the requests in it.
#[derive(Debug)]
pub struct Ring {
    /// Address of its area as a back end sees it, in the space of guest-physical addresses.
    gpa: u64,
    free: Vec<u16>,
    /// What is out, as a copy or not, and since when.
    out: Vec<Option<(Held, Option<Copy>, Instant)>>,
    avail: u16,
    used: u16,
}

impl Ring {
    /// An empty ring whose area is at `gpa`.
    pub fn new(gpa: u64) -> Self {
        let out = (0..SLOTS).map(|_| None).collect();
        Self { gpa, free: (0..SLOTS).rev().collect(), out, avail: 0, used: 0 }
    }

    /// Where descriptor table, available ring and used ring begin in the area.
    pub fn parts() -> [usize; 3] {
        [0, AVAIL, USED]
    }

    /// Empties the ring and its area.
    pub fn reset(&mut self, area: &VolatileSlice<'_>) -> io::Result<()> {
        *self = Self::new(self.gpa);
        area.write_slice(&[0; TABLES], 0).map_err(io::Error::other)
    }

    /// Whether no more requests can be put into it.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether no requests are out.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.out.len()
    }

    /// Puts a request into the ring, which has room. [`Self::wants_kick`] then says whether to kick.
    pub fn put(
        &mut self,
        area: &VolatileSlice<'_>,
        (held, copy, since): (Held, Option<Copy>, Instant),
        readable: impl Iterator<Item = Segment>,
        writable: impl Iterator<Item = Segment>,
    ) -> io::Result<()> {
        let slot = self.free.last().copied().ok_or(io::ErrorKind::StorageFull)?;
        let table = entry(TABLES, slot, TABLE);
        let mut count = 0_u16;
        let mut buffers = readable.map(|it| (it, 0)).chain(writable.map(|it| (it, WRITE))).peekable();
        while let Some((segment, flags)) = buffers.next() {
            let more = buffers.peek().is_some();
            let next = count.saturating_add(1);
            let flags = if more { flags | NEXT } else { flags };
            let descriptor = descriptor(segment.addr.0, segment.len, flags, if more { next } else { 0 });
            if usize::from(count) >= MAX_SEGMENTS {
                return Err(io::ErrorKind::ArgumentListTooLong.into());
            }
            area.write_slice(&descriptor, entry(table, count, DESC)).map_err(io::Error::other)?;
            count = next;
        }
        let gpa = self.gpa.saturating_add(u64::try_from(table).map_err(io::Error::other)?);
        let len = u32::try_from(entry(0, count, DESC)).map_err(io::Error::other)?;
        area.write_slice(&descriptor(gpa, len, INDIRECT, 0), entry(0, slot, DESC)).map_err(io::Error::other)?;
        area.store(slot.to_le(), entry(AVAIL + 4, self.avail % SLOTS, 2), Ordering::Relaxed)
            .map_err(io::Error::other)?;
        self.avail = self.avail.wrapping_add(1);
        area.store(self.avail.to_le(), AVAIL + 2, Ordering::Release).map_err(io::Error::other)?;
        self.free.pop();
        if let Some(place) = self.out.get_mut(usize::from(slot)) {
            *place = Some((held, copy, since));
        }
        Ok(())
    }

    /// Whether the back end wants to hear of what was put into the ring.
    pub fn wants_kick(&self, area: &VolatileSlice<'_>) -> bool {
        fence(Ordering::SeqCst); // the index before the flag (2.7.13.4.1)
        let flags: u16 = area.load(USED, Ordering::Relaxed).unwrap_or(0);
        u16::from_le(flags) & NO_NOTIFY == 0
    }

    /// The next request that the back end has done.
    pub fn take(&mut self, area: &VolatileSlice<'_>) -> Result<Option<Done>, Lie> {
        let index: u16 = area.load(USED + 2, Ordering::Acquire).map_err(|_| Lie)?;
        if u16::from_le(index) == self.used {
            return Ok(None);
        }
        let returned = entry(USED + 4, self.used % SLOTS, 8);
        let id: u32 = area.load(returned, Ordering::Relaxed).map_err(|_| Lie)?;
        let len: u32 = area.load(returned.saturating_add(4), Ordering::Relaxed).map_err(|_| Lie)?;
        let slot = u16::try_from(u32::from_le(id)).map_err(|_| Lie)?;
        let (held, copy, since) = self.out.get_mut(usize::from(slot)).and_then(Option::take).ok_or(Lie)?;
        self.used = self.used.wrapping_add(1);
        self.free.push(slot);
        Ok(Some(Done { held, copy, since, said: u32::from_le(len) }))
    }

    /// Takes all requests back from a back end that is gone.
    pub fn take_all(&mut self) -> Vec<Held> {
        let all = self.out.iter_mut().filter_map(|slot| Some(slot.take()?.0)).collect();
        self.free = (0..SLOTS).rev().collect();
        all
    }
}

/// Where entry `index` is in a part of the area that begins at `part`, with entries of `size` bytes.
fn entry(part: usize, index: u16, size: usize) -> usize {
    part.saturating_add(usize::from(index).saturating_mul(size))
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; DESC] {
    let mut bytes = [0; DESC];
    let parts = addr.to_le_bytes().into_iter().chain(len.to_le_bytes());
    let parts = parts.chain(flags.to_le_bytes()).chain(next.to_le_bytes());
    bytes.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    bytes
}
