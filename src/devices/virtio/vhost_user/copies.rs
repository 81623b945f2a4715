//! Requests as copies, for a back end that does not map the guest's memory: their bytes are in the memory of the rings, in
//! blocks. Worker threads.

use std::io;

use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use crate::virtio::Chain;
use crate::virtio::chain::Segment;

/// Bytes of a block.
const BLOCK: usize = 16 << 10;
/// Blocks of a ring: some requests of Linux' largest kind at once, which a hostile guest can make the host keep.
const BLOCKS: u16 = 256;
/// Most blocks of a request: 1 MiB in one direction (FUSE's limit in Linux), and what belongs to it in the other.
const MOST: usize = 68;
/// Bytes of all blocks; what is never touched takes no memory.
pub const POOL: usize = BLOCK * BLOCKS as usize;

/// The blocks of a ring.
#[derive(Debug)]
pub struct Copies {
    free: Vec<u16>,
}

/// The blocks of a request: those with what the back end reads, then those that it writes.
#[derive(Debug, Default)]
pub struct Copy {
    readable: Vec<u16>,
    writable: Vec<u16>,
}

/// Whether a request is small enough.
pub fn fits(chain: &Chain<'_>) -> bool {
    let most = u64::try_from(MOST).unwrap_or(0);
    blocks(chain.readable_len()).saturating_add(blocks(chain.writable_len())) <= most
}

impl Copies {
    /// All of them are free.
    pub fn new() -> Self {
        Self { free: (0..BLOCKS).rev().collect() }
    }

    /// Whether there is room for any request that fits.
    pub fn have_room(&self) -> bool {
        self.free.len() >= MOST
    }

    /// Copies what the back end shall read of a request that fits, and keeps room for what it will write.
    pub fn take(&mut self, chain: &Chain<'_>, pool: &VolatileSlice<'_>) -> io::Result<Copy> {
        let copy = Copy { readable: self.some(chain.readable_len())?, writable: self.some(chain.writable_len())? };
        for (place, at, len) in places(&copy.readable, chain.readable_len()) {
            let mut room = [0; BLOCK];
            let bytes = room.get_mut(..len).unwrap_or_default();
            chain.read(at, bytes).map_err(io::Error::other)?;
            pool.write_slice(bytes, place).map_err(io::Error::other)?;
        }
        Ok(copy)
    }

    fn some(&mut self, bytes: u64) -> io::Result<Vec<u16>> {
        let count = usize::try_from(blocks(bytes)).map_err(io::Error::other)?;
        let at = self.free.len().checked_sub(count).ok_or(io::ErrorKind::StorageFull)?;
        Ok(self.free.split_off(at))
    }

    /// Gives the guest the first `len` bytes that the back end has written, as far as it had room; the blocks are free again.
    pub fn give(&mut self, copy: Copy, chain: &Chain<'_>, len: u64, pool: &VolatileSlice<'_>) -> io::Result<()> {
        for (place, at, len) in places(&copy.writable, len.min(chain.writable_len())) {
            let mut room = [0; BLOCK];
            let bytes = room.get_mut(..len).unwrap_or_default();
            pool.read_slice(bytes, place).map_err(io::Error::other)?;
            chain.write(at, bytes).map_err(io::Error::other)?;
        }
        self.free.extend(copy.readable.into_iter().chain(copy.writable));
        Ok(())
    }
}

impl Copy {
    /// Where the back end finds what it reads, and where it writes; the blocks begin at `gpa`.
    pub fn segments(&self, chain: &Chain<'_>, gpa: u64) -> (Vec<Segment>, Vec<Segment>) {
        let of = |blocks: &[u16], len| {
            let segment = |(place, _, len): (usize, u64, usize)| Segment {
                addr: GuestAddress(gpa.saturating_add(place as u64)),
                len: u32::try_from(len).unwrap_or(0),
            };
            places(blocks, len).map(segment).collect()
        };
        (of(&self.readable, chain.readable_len()), of(&self.writable, chain.writable_len()))
    }
}

/// How many blocks so many bytes take.
fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK as u64)
}

/// For each of the blocks with `len` bytes: where it is among all, which of the bytes is its first, and how many it has.
fn places(blocks: &[u16], len: u64) -> impl Iterator<Item = (usize, u64, usize)> {
    (0_u64..len).step_by(BLOCK).zip(blocks).map(move |(at, block)| {
        let rest = usize::try_from(len.saturating_sub(at)).unwrap_or(BLOCK);
        (usize::from(*block).saturating_mul(BLOCK), at, rest.min(BLOCK))
    })
}
