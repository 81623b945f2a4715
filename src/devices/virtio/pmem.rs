//! virtio persistent memory (virtio 1.2, 5.19): a file of the host as memory of the guest. The guest reads and writes it
//! without the device; only flushes come here. Runs on its worker thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::image::{Opening, cause, special};
use super::io::{Broken, Io, Served, count};
use super::state::DeviceState;
use super::{Chain, Change, Counters, Device, Facts, OpenError, UpdateError};
use crate::log_limit::LogLimit;
use crate::rate_limit::{RateLimiterConfig, RateLimiterState, Throttle};
use crate::state::{StateError, check};
use crate::tally;
use crate::tally::Times;
use crate::window::{WINDOW_ALIGN, Window, Writes, window_len};

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_PMEM: u32 = 27;
const QUEUE_SIZE: u16 = 64;
/// The only type of request (virtio 1.2, 5.19.6).
const VIRTIO_PMEM_REQ_TYPE_FLUSH: u32 = 0;
/// `ret` of `struct virtio_pmem_resp` (virtio 1.2, 5.19.7).
const DONE: i32 = 0;
const FAILED: i32 = -1;
/// Bytes of an answer.
const RESPONSE: u32 = 4;

/// A file of the host as memory of the guest: its /dev/pmem0, /dev/pmem1, ... (virtio 1.2, 5.19).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PmemConfig {
    /// Name of the device, unique in the VM.
    pub id: String,
    /// File on the host.
    pub path_on_host: PathBuf,
    /// The guest's root file system: `root=/dev/pmemN` is put on the kernel command line. At most one, drives included.
    #[serde(default)]
    pub root_device: bool,
    /// The guest may only read; what it writes is dropped. The file is opened read-only and may be shared by several VMs.
    #[serde(default)]
    pub read_only: bool,
    /// What the guest writes stays in this VM and is gone at its end. The file is opened read-only and may be shared by
    /// several VMs.
    #[serde(default)]
    pub private: bool,
    /// Limits of the guest's flushes: each costs one of `ops`, and of `bandwidth` as many bytes as the file has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

impl PmemConfig {
    /// Whether the guest's writes reach the file.
    pub fn writes_file(&self) -> bool {
        !self.read_only && !self.private
    }

    /// Bytes of the guest's addresses that the file takes, as long as it is now. Opens nothing.
    pub fn window_len(&self) -> io::Result<u64> {
        let len = std::fs::metadata(&self.path_on_host)?.len();
        window_len(len).ok_or_else(|| io::ErrorKind::FileTooLarge.into())
    }

    fn writes(&self) -> Writes {
        match (self.read_only, self.private) {
            (true, _) => Writes::Refused,
            (_, true) => Writes::Private,
            _ => Writes::Shared,
        }
    }
}

/// What is kept of the device. What a guest wrote to a private one is in no file and not here: it is memory, and is kept with
/// the guest's (`Window::changed`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemState {
    /// Where the guest sees the file.
    pub gpa: u64,
    /// Bytes of the file.
    pub len: u64,
    /// Its limits.
    pub rate_limiter: RateLimiterState,
}

/// The device.
pub struct Pmem {
    id: String,
    file: File,
    len: u64,
    window: Arc<Window>,
    /// Where the guest sees the window.
    gpa: u64,
    throttle: Option<Throttle>,
    tally: Arc<Flushes>,
}

tally! {
    /// What the device counts of its own.
    struct Flushes {
        /// Times the host was told to make data safe.
        flushes: AtomicU64,
        /// Time that the host took to make data safe.
        flush_time: Times,
    }
}

impl Pmem {
    /// Opens, locks and maps the file of `config`.
    pub fn open(config: &PmemConfig) -> Result<Self, OpenError> {
        let opening = opening(&config.id, &config.path_on_host);
        let kind = opening.kind()?;
        if !kind.is_file() {
            let what = special(kind).unwrap_or("a block device");
            return Err(opening.error(&format!("it is {what}, not a file")));
        }
        let writes = config.writes_file();
        let file = OpenOptions::new()
            .read(true)
            .write(writes)
            .open(&config.path_on_host)
            .map_err(|error| not_openable(&opening, &error, writes))?;
        opening.lock(&file, !writes)?;
        let len = file.metadata().map_err(|error| opening.refused(&error))?.len();
        if len == 0 {
            return Err(opening.error("the file is empty"));
        }
        let window = Window::of_file(&file, len, config.writes());
        let window = window.map_err(|error| opening.error(&format!("map it: {}", cause(&error))))?;
        if writes && !len.is_multiple_of(WINDOW_ALIGN) {
            tracing::warn!(
                pmem = config.id,
                "the file's size is not a multiple of 2 MiB: the guest sees {} more bytes, and what it writes there is lost",
                window.size().saturating_sub(len)
            );
        }
        let throttle = Throttle::new(config.rate_limiter.as_ref())
            .map_err(|error| opening.error(&format!("create the timer of a rate limiter: {error}")))?;
        Ok(Self { id: config.id.clone(), file, len, window, gpa: 0, throttle, tally: Arc::default() })
    }

    /// Answers one request.
    fn serve(&mut self, chain: &Chain<'_>, counters: &Counters) -> Result<Served, Broken> {
        if !self.throttle.as_mut().is_none_or(|throttle| throttle.allow(self.len)) {
            return Ok(Served::Later);
        }
        let mut kind = [0; 4];
        let known = chain.readable_len() >= 4 && {
            chain.read(0, &mut kind).map_err(|_| Broken("a buffer is not in RAM"))?;
            u32::from_le_bytes(kind) == VIRTIO_PMEM_REQ_TYPE_FLUSH
        };
        let answer = if known && self.flush() { DONE } else { FAILED };
        if !known {
            counters.refuse();
        } else if answer == FAILED {
            count(&counters.failed, 1);
        }
        if chain.writable_len() < u64::from(RESPONSE) {
            return Ok(Served::Done(0)); // there is no room for an answer
        }
        chain.write(0, &answer.to_le_bytes()).map_err(|_| Broken("a buffer is not in RAM"))?;
        Ok(Served::Done(RESPONSE))
    }

    /// Makes safe what the guest wrote so far. fdatasync(2) also finds what was written through the mapping.
    fn flush(&self) -> bool {
        if self.window.writes() != Writes::Shared {
            return true; // nothing was written to the file
        }
        count(&self.tally.flushes, 1);
        let begun = Instant::now();
        let done = self.file.sync_data();
        self.tally.flush_time.record(begun.elapsed());
        match done {
            Ok(()) => true,
            Err(error) => {
                static LIMIT: LogLimit = LogLimit::new();
                if let Some(suppressed) = LIMIT.check() {
                    tracing::warn!(pmem = self.id, %error, suppressed, "a flush failed");
                }
                false
            }
        }
    }
}

impl Device for Pmem {
    fn facts(&self) -> Facts {
        Facts {
            virtio_id: VIRTIO_ID_PMEM,
            queue_sizes: vec![QUEUE_SIZE],
            // struct virtio_pmem_config (virtio 1.2, 5.19.4): start, size.
            config: [self.gpa.to_le_bytes(), self.window.size().to_le_bytes()].concat(),
            sources: self.throttle.iter().map(|throttle| throttle.source(0)).collect(),
            windows: vec![Arc::clone(&self.window)],
            tally: Some(self.tally.clone()),
            ..Facts::default()
        }
    }

    fn placed(&mut self, _window: usize, gpa: u64) {
        self.gpa = gpa;
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let counters = io.counters();
        io.drain_while(queue, |chain| self.serve(chain, counters))
    }

    /// The rate limiter's timer.
    fn ready(&mut self, _token: u16, io: &mut Io<'_>) -> Result<(), Broken> {
        self.kicked(0, io)
    }

    fn update(&mut self, change: Change) -> Result<(), UpdateError> {
        let Change::Pmem(limits) = change else { return Err(UpdateError::new("it is no file as memory")) };
        Throttle::change(&mut self.throttle, &limits)
            .map_err(|error| UpdateError::new(format!("create the timer of its limits: {error}")))
    }

    fn save(&mut self) -> Result<DeviceState, StateError> {
        let rate_limiter = Throttle::save(self.throttle.as_ref());
        Ok(DeviceState::Pmem(PmemState { gpa: self.gpa, len: self.len, rate_limiter }))
    }

    fn load(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Pmem(state) = state else { return Err(StateError::other_kind()) };
        let (gpa, len) = (state.gpa, state.len);
        check(len == self.len, || format!("its file has {} bytes, and had {len}", self.len))?;
        check(gpa == self.gpa, || format!("its place is {:#x}, and was {gpa:#x}", self.gpa))?;
        Throttle::load(&mut self.throttle, &state.rate_limiter)
    }
}

/// The file of a device, for the words of errors.
fn opening<'a>(id: &'a str, path: &'a Path) -> Opening<'a> {
    Opening { device: "pmem", id, path, read_only_by: "read_only, --pmem PATH,ro, or private" }
}

fn not_openable(opening: &Opening<'_>, error: &io::Error, writes: bool) -> OpenError {
    let cure = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if writes => {
            "; a file that the guest need not write can be opened read-only (read_only, --pmem PATH,ro, or private)"
        }
        _ => "",
    };
    opening.error(&format!("{}{cure}", cause(error)))
}

#[cfg(test)]
#[path = "pmem_tests.rs"]
mod tests;
