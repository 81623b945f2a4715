//! virtio-block (virtio 1.2, 5.2) over a file of the host. Runs on its worker thread; touches guest memory and the file.
//!
//! Two engines: `Sync` serves one request after the other; `Async` (`flight.rs`) keeps many in flight in an io_uring.

pub mod change;
pub mod config;
pub mod file;
mod flight;
pub mod gpt;
mod parts;
pub mod request;
mod ring;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};

use self::config::{CacheType, DriveConfig, IoEngine, MAX_QUEUES};
use self::file::{DiskFile, SECTOR};
use self::request::{
    Disk, Extent, Failure, HEADER, MAX_DISCARD_SECTORS, MAX_DISCARD_SEG, MAX_WRITE_ZEROES_SECTORS,
    MAX_WRITE_ZEROES_SEG, Request,
};
use self::ring::Ring;
use super::io::{Broken, Io, Served, count};
use super::pieces::Direction;
use super::state::DeviceState;
use super::{Chain, Change, Counters, Device, Facts, OpenError, Source, Stop, UpdateError};
use crate::log_limit::LogLimit;
use crate::rate_limit::{RateLimiterState, Throttle};
use crate::state::{StateError, check};
use crate::tally;
use crate::tally::{Span, Times};

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_BLOCK: u32 = 2;
const QUEUE_SIZE: u16 = 256;
/// Most data buffers of one request: the queue's size less the header and the status byte.
const SEG_MAX: u32 = 254;
/// Tokens of the rate limiter's timer and of the ring.
const TIMER: u16 = 0;
const RING: u16 = 1;

/// The device.
pub struct Block {
    /// What is in flight; declared before the file that it uses.
    ring: Option<Ring>,
    file: DiskFile,
    /// The configuration space. Of another file only the size is shown: drivers read the rest of it once (5.2.5).
    config: Vec<u8>,
    /// VIRTIO_BLK_F_TOPOLOGY is offered.
    has_topology: bool,
    id: String,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    read_only: bool,
    cache: CacheType,
    /// The driver knows no flushes and takes every write that is done for safe (5.2.6.2).
    write_through: bool,
    throttle: Option<Throttle>,
    queues: u16,
    tally: Arc<Tally>,
}

/// What is kept of a disk. Its image is not: whoever keeps a disk flushes and copies that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// Bytes of the image; none where another image has come meanwhile, of whose size the driver is told.
    #[serde(deserialize_with = "Option::deserialize")] // it must be there
    pub size: Option<u64>,
    /// Its limits.
    pub rate_limiter: RateLimiterState,
}

tally! {
    /// What a disk counts of its own.
    struct Tally {
        /// Times the host was told to make data safe.
        flushes: AtomicU64,
        /// Requests that gave blocks back to the host.
        discards: AtomicU64,
        /// Requests that made blocks zero without their bytes.
        write_zeroes: AtomicU64,
        /// Time from when a request was taken from its queue until it was answered.
        request_time: Times,
        /// The same for reads alone.
        read_agg: Span,
        /// For writes.
        write_agg: Span,
        /// Times that a request had to wait for the rate limiter.
        throttled: AtomicU64,
        /// Times that the rate limiter let requests go on.
        limit_events: AtomicU64,
        /// Times that requests had to wait, as so many were under way (`io_engine` Async).
        engine_throttled: AtomicU64,
        /// Times that a request to the API put an image behind the disk, maybe the same one.
        updates: AtomicU64,
    }
}

impl Tally {
    /// A request was answered; of what kind, where it made sense.
    fn answered(&self, kind: Option<Direction>, took: Duration) {
        self.request_time.record(took);
        match kind {
            Some(Direction::Read) => self.read_agg.record(took),
            Some(Direction::Write) => self.write_agg.record(took),
            None => {}
        }
    }
}

/// How a request ended: how many bytes of data the guest got.
type Outcome = Result<u64, Failure>;

impl Block {
    /// Opens the image and locks it.
    pub fn open(config: &DriveConfig) -> Result<Self, OpenError> {
        let file = DiskFile::open(config)?;
        let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in serial.iter_mut().zip(config.drive_id.bytes()) {
            *to = from;
        }
        let (id, read_only, cache) = (config.drive_id.clone(), config.is_read_only, config.cache_type);
        let throttle = Throttle::new(config.rate_limiter.as_ref());
        let throttle =
            throttle.map_err(|error| OpenError::new(format!("create the timer of disk '{id}''s limits: {error}")))?;
        let ring = (config.io_engine == IoEngine::Async).then(Ring::new).transpose();
        let ring = ring.map_err(|error| {
            let text = format!("open disk '{id}': this host gives no io_uring ({error}); use io_engine Sync");
            OpenError::new(text)
        })?;
        let queues = config.num_queues.unwrap_or(1).clamp(1, MAX_QUEUES);
        let (config, has_topology) = (config_space(&file, queues), file.topology().is_some());
        Ok(Self {
            ring,
            file,
            config,
            has_topology,
            id,
            serial,
            read_only,
            cache,
            write_through: false,
            throttle,
            queues,
            tally: Arc::default(),
        })
    }

    fn sources(&self) -> Vec<Source> {
        let timer = self.throttle.iter().map(|throttle| throttle.source(TIMER));
        timer.chain(self.ring.iter().map(|ring| ring.source(RING))).collect()
    }

    fn features(&self) -> u64 {
        let flush = self.cache == CacheType::Writeback;
        1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | u64::from(self.read_only) << VIRTIO_BLK_F_RO
            | u64::from(!self.read_only) << VIRTIO_BLK_F_DISCARD
            | u64::from(!self.read_only) << VIRTIO_BLK_F_WRITE_ZEROES
            | u64::from(self.queues > 1) << VIRTIO_BLK_F_MQ
            | u64::from(flush) << VIRTIO_BLK_F_FLUSH
            | u64::from(self.has_topology) << VIRTIO_BLK_F_TOPOLOGY
    }

    /// Serves one request and says how many bytes were written to the chain, or that its time has not come.
    fn serve(&mut self, chain: &Chain<'_>, counters: &Counters) -> Result<Served, Broken> {
        let begun = Instant::now();
        let (status_at, request) = self.read(chain)?;
        let kind = request.as_ref().ok().and_then(Request::direction);
        let outcome = match request {
            Err(failure) => Err(failure),
            Ok(request) if !self.allow(&request) => return Ok(Served::Later),
            Ok(request) => self.run(&request, chain, status_at, counters),
        };
        let answered = self.answer(chain, status_at, outcome, counters);
        self.tally.answered(kind, begun.elapsed());
        answered.map(Served::Done)
    }

    /// The request of a chain, and where its status byte belongs.
    fn read(&self, chain: &Chain<'_>) -> Result<(u64, Result<Request, Failure>), Broken> {
        let status_at = chain.writable_len().checked_sub(1).ok_or(Broken("a request has no room for its status"))?;
        let flushes = self.cache == CacheType::Writeback;
        let disk = Disk { size: self.file.size(), read_only: self.read_only, flushes };
        Ok((status_at, Request::read(chain, status_at, disk)))
    }

    /// Whether the limits let a request through now.
    fn allow(&mut self, request: &Request) -> bool {
        let Some(throttle) = &mut self.throttle else { return true };
        let waits_already = throttle.is_waiting();
        let allowed = throttle.allow(request.bytes());
        if !allowed && !waits_already {
            count(&self.tally.throttled, 1);
        }
        allowed
    }

    /// Writes the status byte, and says how many bytes of the chain were written.
    fn answer(&self, chain: &Chain<'_>, status_at: u64, outcome: Outcome, counters: &Counters) -> Result<u32, Broken> {
        let (status, data) = match outcome {
            Ok(data) => (VIRTIO_BLK_S_OK, data),
            Err(failure) => {
                if failure.is_the_drivers() {
                    counters.refuse();
                } else {
                    count(&counters.failed, 1);
                }
                (self.explain(&failure), 0)
            }
        };
        let status = u8::try_from(status).unwrap_or(u8::MAX);
        chain.write(status_at, &[status]).map_err(|_| Broken("a request's status byte is not in RAM"))?;
        // The used length is what was written from the chain's beginning on without a gap (2.7.8.2): the status byte
        // counts where all data before it was written.
        let used = if data == status_at { data.saturating_add(1) } else { data };
        u32::try_from(used).map_err(|_| Broken("a request is too long"))
    }

    fn run(&mut self, request: &Request, chain: &Chain<'_>, room: u64, counters: &Counters) -> Outcome {
        match request {
            Request::In { offset, len } => {
                let to = chain.writable_part(0..*len);
                self.file.transfer(Direction::Read, chain.memory(), to, *offset).map_err(Failure::Host)?;
                counters.moved_in(*len);
                Ok(*len)
            }
            Request::Out { offset, len } => {
                let from = chain.readable_part(HEADER..len.saturating_add(HEADER));
                self.file.transfer(Direction::Write, chain.memory(), from, *offset).map_err(Failure::Host)?;
                counters.moved_out(*len);
                if self.write_through { self.flush() } else { Ok(0) }
            }
            Request::Flush => self.flush(),
            Request::GetId => {
                let len = usize::try_from(room).unwrap_or(usize::MAX).min(self.serial.len());
                let serial = self.serial.get(..len).unwrap_or_default();
                chain.write(0, serial).map_err(|_| Failure::Refused("its buffer is not in RAM"))?;
                Ok(room.min(u64::from(VIRTIO_BLK_ID_BYTES)))
            }
            Request::Discard(extents) => {
                let done = self.each(extents, |file, extent| file.discard(extent))?;
                count(&self.tally.discards, 1);
                Ok(done)
            }
            Request::WriteZeroes(extents) => {
                self.each(extents, DiskFile::zero)?;
                count(&self.tally.write_zeroes, 1);
                if self.write_through { self.flush() } else { Ok(0) }
            }
        }
    }

    fn each(&mut self, extents: &[Extent], what: impl Fn(&mut DiskFile, Extent) -> std::io::Result<()>) -> Outcome {
        for extent in extents {
            let done = what(&mut self.file, *extent);
            if transfer::is_unsupported(&done) {
                return Err(Failure::Unsupported);
            }
            done.map_err(Failure::Host)?;
        }
        Ok(0)
    }

    fn flush(&self) -> Outcome {
        count(&self.tally.flushes, 1);
        self.file.sync().map_err(Failure::Host)?;
        Ok(0)
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

/// struct virtio_blk_config (virtio 1.2, 5.2.4), up to and with `unused1`.
fn config_space(file: &DiskFile, queues: u16) -> Vec<u8> {
    let topology = file.topology();
    let logical = file.block_size();
    let blocks = |bytes: u32| bytes.checked_div(logical).unwrap_or(0);
    let exponent = topology.map_or(0, |it| blocks(it.physical).trailing_zeros());
    let io_min = topology.map_or(0, |it| blocks(it.io_min));
    let io_opt = topology.map_or(0, |it| blocks(it.io_opt));
    let mut config = Vec::with_capacity(60);
    config.extend((file.size() / SECTOR).to_le_bytes()); // capacity, in sectors of 512 bytes
    config.extend(0_u32.to_le_bytes()); // size_max: not offered
    config.extend(SEG_MAX.to_le_bytes());
    config.extend([0; 4]); // geometry: not offered
    config.extend(logical.to_le_bytes()); // blk_size
    config.extend([u8::try_from(exponent).unwrap_or(0), 0]); // physical_block_exp, alignment_offset
    config.extend(u16::try_from(io_min).unwrap_or(0).to_le_bytes());
    config.extend(io_opt.to_le_bytes());
    config.extend([0; 2]); // writeback: not offered; unused
    config.extend(queues.to_le_bytes()); // num_queues
    for limit in [
        MAX_DISCARD_SECTORS,
        MAX_DISCARD_SEG,
        file.discard_sectors(),
        MAX_WRITE_ZEROES_SECTORS,
        MAX_WRITE_ZEROES_SEG,
        1, // write_zeroes_may_unmap; unused
    ] {
        config.extend(limit.to_le_bytes());
    }
    config
}

impl Device for Block {
    fn facts(&self) -> Facts {
        Facts {
            virtio_id: VIRTIO_ID_BLOCK,
            features: self.features(),
            queue_sizes: vec![QUEUE_SIZE; usize::from(self.queues)],
            config: self.config.clone(),
            sources: self.sources(),
            tally: Some(self.tally.clone()),
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
        if self.ring.is_some() {
            let served = self.pump(queue, io);
            return served.inspect_err(|_| self.abandon(io.memory()));
        }
        io.drain_while(queue, |chain| self.serve(chain, counters))
    }

    /// The rate limiter's timer, or the ring: where something waited it can go on.
    fn ready(&mut self, token: u16, io: &mut Io<'_>) -> Result<(), Broken> {
        if token == TIMER {
            count(&self.tally.limit_events, 1);
        }
        if token == RING {
            let landed = self.land(io);
            if !landed.inspect_err(|_| self.abandon(io.memory()))? {
                return Ok(());
            }
        }
        (0..usize::from(self.queues)).try_for_each(|queue| self.kicked(queue, io))
    }

    fn finish(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let landed = self.land_all(io);
        landed.inspect_err(|_| self.abandon(io.memory()))
    }

    fn stopping(&mut self, _why: Stop) {
        self.drop_all();
    }

    fn update(&mut self, change: Change) -> Result<(), UpdateError> {
        let Change::Block(change) = change else { return Err(UpdateError::new("it is no disk")) };
        self.change(change)
    }

    fn save(&mut self) -> Result<DeviceState, StateError> {
        let rate_limiter = Throttle::save(self.throttle.as_ref());
        Ok(DeviceState::Block(BlockState { size: Some(self.file.size()), rate_limiter }))
    }

    /// The guest's file system counts on a disk of that size.
    fn load(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Block(state) = state else { return Err(StateError::other_kind()) };
        let (ours, saved) = (self.file.size(), state.size);
        if let Some(saved) = saved {
            check(ours == saved, || format!("its image has {ours} bytes, and had {saved}"))?;
        }
        Throttle::load(&mut self.throttle, &state.rate_limiter)
    }
}

#[cfg(test)]
mod tests;
