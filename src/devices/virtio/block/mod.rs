//! virtio-block (virtio 1.2, 5.2) over a file of the host. Runs on its worker thread; touches guest memory and the file.

pub mod config;
pub mod file;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use self::config::{CacheType, DriveConfig};
use self::file::{DiskFile, SECTOR};
use super::io::{Broken, Io, count};
use super::pieces::Direction;
use super::{Chain, Counters, Device, Facts, OpenError};
use crate::log_limit::LogLimit;

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_BLOCK: u32 = 2;
const QUEUE_SIZE: u16 = 256;
/// Most data buffers of one request: the queue's size less the header and the status byte.
const SEG_MAX: u32 = 254;
/// struct virtio_blk_req: type, reserved, sector.
const HEADER: u64 = 16;

/// The device.
pub struct Block {
    file: DiskFile,
    id: String,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    read_only: bool,
    cache: CacheType,
    /// The driver knows no flushes and takes every write that is done for safe (5.2.6.2).
    write_through: bool,
}

/// How a request ended: the status byte and how many bytes of data the guest got.
type Outcome = Result<u64, Failure>;

/// Why a request failed.
enum Failure {
    /// The driver asked for something that is not there, or not allowed.
    Refused(&'static str),
    /// A request type that this device does not have.
    Unsupported,
    /// The host could not.
    Host(std::io::Error),
}

impl Block {
    /// Opens the image and locks it.
    pub fn open(config: &DriveConfig) -> Result<Self, OpenError> {
        let file = DiskFile::open(config)?;
        let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in serial.iter_mut().zip(config.drive_id.bytes()) {
            *to = from;
        }
        let (id, read_only, cache) = (config.drive_id.clone(), config.is_read_only, config.cache_type);
        Ok(Self { file, id, serial, read_only, cache, write_through: false })
    }

    fn features(&self) -> u64 {
        let flush = self.cache == CacheType::Writeback;
        1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | u64::from(self.read_only) << VIRTIO_BLK_F_RO
            | u64::from(flush) << VIRTIO_BLK_F_FLUSH
            | u64::from(self.file.topology().is_some()) << VIRTIO_BLK_F_TOPOLOGY
    }

    /// struct virtio_blk_config (virtio 1.2, 5.2.4), up to and with `topology`.
    fn config(&self) -> Vec<u8> {
        let topology = self.file.topology();
        let logical = topology.map_or(512, |it| it.logical);
        let blocks = |bytes: u32| bytes.checked_div(logical).unwrap_or(0);
        let exponent = topology.map_or(0, |it| blocks(it.physical).trailing_zeros());
        let io_min = topology.map_or(0, |it| blocks(it.io_min));
        let io_opt = topology.map_or(0, |it| blocks(it.io_opt));
        let mut config = Vec::with_capacity(32);
        config.extend((self.file.size() / SECTOR).to_le_bytes()); // capacity, in sectors of 512 bytes
        config.extend(0_u32.to_le_bytes()); // size_max: not offered
        config.extend(SEG_MAX.to_le_bytes());
        config.extend([0; 4]); // geometry: not offered
        config.extend(logical.to_le_bytes()); // blk_size
        config.extend([u8::try_from(exponent).unwrap_or(0), 0]); // physical_block_exp, alignment_offset
        config.extend(u16::try_from(io_min).unwrap_or(0).to_le_bytes());
        config.extend(io_opt.to_le_bytes());
        config
    }

    /// Serves one request and returns how many bytes were written to the chain, the status byte included.
    fn serve(&mut self, chain: &Chain<'_>, counters: &Counters) -> Result<u32, Broken> {
        let status_at = chain.writable_len().checked_sub(1).ok_or(Broken("a request has no room for its status"))?;
        let (status, data) = match self.run(chain, status_at, counters) {
            Ok(data) => {
                count(&counters.bytes, data.max(chain.readable_len().saturating_sub(HEADER)));
                (VIRTIO_BLK_S_OK, data)
            }
            Err(failure) => {
                count(&counters.failed, 1);
                (self.explain(&failure), 0)
            }
        };
        let status = u8::try_from(status).unwrap_or(u8::MAX);
        chain.write(status_at, &[status]).map_err(|_| Broken("a request's status byte is not in RAM"))?;
        u32::try_from(data.saturating_add(1)).map_err(|_| Broken("a request is too long"))
    }

    fn run(&mut self, chain: &Chain<'_>, room: u64, counters: &Counters) -> Outcome {
        let mut header = [0; 16];
        chain.read(0, &mut header).map_err(|_| Failure::Refused("its header is short or not in RAM"))?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => {
                let offset = self.place(sector, room)?;
                let to = chain.writable_part(0..room);
                self.file.transfer(Direction::Read, chain.memory(), to, offset).map_err(Failure::Host)?;
                Ok(room)
            }
            VIRTIO_BLK_T_OUT if self.read_only => Err(Failure::Refused("it writes to a read-only disk")),
            VIRTIO_BLK_T_OUT => {
                let end = chain.readable_len();
                let offset = self.place(sector, end.saturating_sub(HEADER))?;
                let from = chain.readable_part(HEADER..end);
                self.file.transfer(Direction::Write, chain.memory(), from, offset).map_err(Failure::Host)?;
                if self.write_through { self.flush(counters) } else { Ok(0) }
            }
            VIRTIO_BLK_T_FLUSH if self.cache == CacheType::Writeback => self.flush(counters),
            VIRTIO_BLK_T_GET_ID => {
                let len = usize::try_from(room).unwrap_or(usize::MAX).min(self.serial.len());
                let serial = self.serial.get(..len).unwrap_or_default();
                chain.write(0, serial).map_err(|_| Failure::Refused("its buffer is not in RAM"))?;
                Ok(room.min(u64::from(VIRTIO_BLK_ID_BYTES)))
            }
            _ => Err(Failure::Unsupported),
        }
    }

    fn flush(&self, counters: &Counters) -> Outcome {
        count(&counters.flushes, 1);
        self.file.sync().map_err(Failure::Host)?;
        Ok(0)
    }

    /// Where `len` bytes from `sector` on lie in the file.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        if !len.is_multiple_of(SECTOR) {
            return Err(Failure::Refused("its data is not whole sectors"));
        }
        let offset = sector.checked_mul(SECTOR);
        offset
            .filter(|offset| offset.checked_add(len).is_some_and(|end| end <= self.file.size()))
            .ok_or(Failure::Refused("it is beyond the end of the disk"))
    }

    /// Logs a failure, within limits, and says which status byte tells the driver.
    fn explain(&self, failure: &Failure) -> u32 {
        static LIMIT: LogLimit = LogLimit::new();
        let why = match failure {
            Failure::Unsupported => return VIRTIO_BLK_S_UNSUPP,
            Failure::Refused(why) => (*why).to_owned(),
            Failure::Host(error) => error.to_string(),
        };
        if let Some(suppressed) = LIMIT.check() {
            tracing::warn!(disk = self.id, why, suppressed, "a request of the guest failed");
        }
        VIRTIO_BLK_S_IOERR
    }
}

impl Device for Block {
    fn facts(&self) -> Facts {
        Facts {
            virtio_id: VIRTIO_ID_BLOCK,
            features: self.features(),
            queue_sizes: vec![QUEUE_SIZE],
            config: self.config(),
            ..Facts::default()
        }
    }

    fn started(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let flushes = io.features() & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        self.write_through = self.cache == CacheType::Writeback && !flushes;
        Ok(())
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let counters = io.counters();
        io.drain(queue, |chain| self.serve(chain, counters))
    }
}

#[cfg(test)]
mod tests;
