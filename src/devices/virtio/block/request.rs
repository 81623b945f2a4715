//! A block request as the driver wrote it, checked (virtio 1.2, 5.2.6). Worker threads; touches guest memory.
//!
//! Everything is read from guest memory once, so that what was checked is what is done.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::file::SECTOR;
use crate::virtio::Chain;
use crate::virtio::pieces::Direction;

/// struct virtio_blk_req: type, reserved, sector.
pub const HEADER: u64 = 16;
/// struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags.
const RANGE: u64 = 16;

/// Most sectors of one range of a discard, and most ranges: 2 GiB each. What a punched hole costs hardly depends on it.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Most ranges of one discard.
pub const MAX_DISCARD_SEG: u32 = 32;
/// Most sectors of one range to be zeroed: 32 MiB, because some files can only have the zeros written.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 16;
/// Most ranges of one request to write zeroes.
pub const MAX_WRITE_ZEROES_SEG: u32 = 4;

/// Why a request failed.
#[derive(Debug)]
pub enum Failure {
    /// The driver asked for something that is not there, or not allowed.
    Refused(&'static str),
    /// A request type, or a flag, that this device does not have; or a file that can not do it.
    Unsupported,
    /// The host could not.
    Host(std::io::Error),
}

impl Failure {
    /// Whether the driver asked for what can not be, and not the host could not.
    pub fn is_the_drivers(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Unsupported => true,
            // Nobody else gives addresses: a buffer is not in RAM.
            Self::Host(error) => error.raw_os_error() == Some(libc::EFAULT),
        }
    }
}

/// Bytes of the disk: whole sectors that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// They may be given back to the host (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP).
    pub unmap: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `len` bytes from `offset` into the chain's writable part.
    In {
        /// Place in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Write the `len` bytes behind the header at `offset`.
    Out {
        /// Place in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Make safe what was written.
    Flush,
    /// Tell the serial number.
    GetId,
    /// The driver does not need these bytes any more.
    Discard(Vec<Extent>),
    /// These bytes shall be zero.
    WriteZeroes(Vec<Extent>),
}

/// What requests are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// Bytes.
    pub size: u64,
    /// The guest may only read.
    pub read_only: bool,
    /// Flushes are offered.
    pub flushes: bool,
}

impl Request {
    /// Which way its data goes, where it has any.
    pub fn direction(&self) -> Option<Direction> {
        match self {
            Self::In { .. } => Some(Direction::Read),
            Self::Out { .. } => Some(Direction::Write),
            _ => None,
        }
    }

    /// Reads the request of `chain`, which has `room` writable bytes before its status byte.
    pub fn read(chain: &Chain<'_>, room: u64, disk: Disk) -> Result<Self, Failure> {
        let mut header = [0; 16];
        chain.read(0, &mut header).map_err(|_| Failure::Refused("its header is short or not in RAM"))?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let payload = chain.readable_len().saturating_sub(HEADER);
        match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => Ok(Self::In { offset: disk.place(sector, room)?, len: room }),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if disk.read_only => {
                Err(Failure::Refused("it writes to a read-only disk"))
            }
            VIRTIO_BLK_T_OUT => Ok(Self::Out { offset: disk.place(sector, payload)?, len: payload }),
            VIRTIO_BLK_T_FLUSH if disk.flushes => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::GetId),
            VIRTIO_BLK_T_DISCARD => {
                extents(chain, payload, disk, MAX_DISCARD_SEG, MAX_DISCARD_SECTORS, 0).map(Self::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let (most, sectors) = (MAX_WRITE_ZEROES_SEG, MAX_WRITE_ZEROES_SECTORS);
                let flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                extents(chain, payload, disk, most, sectors, flags).map(Self::WriteZeroes)
            }
            _ => Err(Failure::Unsupported),
        }
    }

    /// Bytes that it moves.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::In { len, .. } | Self::Out { len, .. } => *len,
            _ => 0,
        }
    }
}

impl Disk {
    /// Where `len` bytes from `sector` on lie in the file.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        if !len.is_multiple_of(SECTOR) {
            return Err(Failure::Refused("its data is not whole sectors"));
        }
        let offset = sector.checked_mul(SECTOR);
        offset
            .filter(|offset| offset.checked_add(len).is_some_and(|end| end <= self.size))
            .ok_or(Failure::Refused("it is beyond the end of the disk"))
    }
}

/// The ranges of a discard or a request to write zeroes; all are checked before anything is done.
fn extents(
    chain: &Chain<'_>,
    payload: u64,
    disk: Disk,
    most: u32,
    most_sectors: u32,
    flags_known: u32,
) -> Result<Vec<Extent>, Failure> {
    if payload == 0 || !payload.is_multiple_of(RANGE) {
        return Err(Failure::Refused("its data is not whole ranges"));
    }
    let count = payload.checked_div(RANGE).unwrap_or(0);
    if count > u64::from(most) {
        return Err(Failure::Refused("it has more ranges than it may"));
    }
    let mut extents = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    for at in (HEADER..).step_by(16).take(usize::try_from(count).unwrap_or(0)) {
        let mut range = [0; 16];
        chain.read(at, &mut range).map_err(|_| Failure::Refused("its ranges are not in RAM"))?;
        let [sector @ .., a, b, c, d, e, f, g, h] = range;
        let (sectors, flags) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        // Unknown flags are refused, and for a discard UNMAP is one of them (5.2.6.2).
        if flags & !flags_known != 0 {
            return Err(Failure::Unsupported);
        }
        if sectors > most_sectors {
            return Err(Failure::Refused("a range is longer than it may be"));
        }
        let len = u64::from(sectors).saturating_mul(SECTOR);
        let offset = disk.place(u64::from_le_bytes(sector), len)?;
        extents.push(Extent { offset, len, unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 });
    }
    Ok(extents)
}
