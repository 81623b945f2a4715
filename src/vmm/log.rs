//! The monitor's own log: lines to a file, a FIFO or standard error, in Firecracker's form or as JSON.
//!
//! A small subscriber of `tracing`'s events instead of a large one, because it is set up before the guest runs. Any
//! thread writes lines; each line is one write(2), and a line that cannot be written is lost and counted, not waited for.
//! What is asked for can change at any time (`PUT /logger`).

mod line;

pub use line::timestamp;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use machine::config::{LogLevel, LoggerConfig};
use machine::metrics::Reports;
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Metadata, Subscriber};

/// The log of this process.
#[derive(Clone)]
pub struct Logger(Arc<Shared>);

struct Shared {
    /// The VM's name.
    id: String,
    reports: Arc<Reports>,
    wanted: RwLock<Arc<Wanted>>,
    /// Held from the look at standard error until the write to it.
    stderr: Mutex<()>,
}

/// What is asked for, and where it goes.
struct Wanted {
    config: LoggerConfig,
    /// Standard error where it is absent.
    file: Option<File>,
}

impl Wanted {
    fn new(config: Option<&LoggerConfig>) -> Result<Self, String> {
        let quiet = LoggerConfig { level: LogLevel::Warning, ..Default::default() };
        let config = config.unwrap_or(&quiet).clone();
        let open = |path: &Path| {
            open_output(path).map_err(|error| format!("logger.log_path: open {}: {error}", path.display()))
        };
        let file = config.log_path.as_deref().map(open).transpose()?;
        Ok(Self { config, file })
    }
}

impl Logger {
    /// Starts the log of the VM `id`: warnings and errors to standard error, until something else is asked for.
    pub fn start(id: Option<&str>, reports: &Arc<Reports>) -> Result<Self, String> {
        let logger = Self::new(id, reports, Wanted::new(None)?);
        // Only tests could have set one before.
        let _ = tracing::subscriber::set_global_default(logger.clone());
        Ok(logger)
    }

    fn new(id: Option<&str>, reports: &Arc<Reports>, wanted: Wanted) -> Self {
        Self(Arc::new(Shared {
            id: id.unwrap_or("vmm").to_owned(),
            reports: reports.clone(),
            wanted: RwLock::new(Arc::new(wanted)),
            stderr: Mutex::new(()),
        }))
    }

    /// Logs as `config` says from now on; its file is opened anew. Nothing changes where that fails.
    pub fn set(&self, config: Option<&LoggerConfig>) -> Result<(), String> {
        let wanted = Arc::new(Wanted::new(config)?);
        *self.0.wanted.write().unwrap_or_else(PoisonError::into_inner) = wanted;
        // Whoever was not listened to has noted that.
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    fn wanted(&self) -> Arc<Wanted> {
        self.0.wanted.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write_to_stderr(&self, line: &[u8]) -> io::Result<()> {
        let _one = self.0.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        match is_writable(&io::stderr(), Duration::ZERO) {
            true => io::stderr().write_all(line),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Opens a file or FIFO to append to. A FIFO that nobody reads yet must not hold up the VM.
pub fn open_output(path: &Path) -> io::Result<File> {
    let options = |read| {
        let mut options = OpenOptions::new();
        options.append(true).create(true).read(read).custom_flags(libc::O_NONBLOCK);
        options
    };
    options(false).open(path).or_else(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => options(true).open(path),
        _ => Err(error),
    })
}

/// Whether a short line can be written without waiting for longer than `patience`.
#[allow(unsafe_code)]
pub fn is_writable(file: &impl AsRawFd, patience: Duration) -> bool {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: poll reads and writes the one pollfd given, a local.
    unsafe { libc::poll(&mut poll, 1, millis) == 1 && poll.revents & libc::POLLOUT != 0 }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= filter(self.wanted().config.level_of(metadata.target()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.wanted().config.severities().map(filter).max()
    }

    fn event(&self, event: &Event<'_>) {
        let wanted = self.wanted();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = line::Context { config: &wanted.config, id: &self.0.id, now }.line(event);
        let written = match &wanted.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => self.write_to_stderr(line.as_bytes()),
        };
        if written.is_err() {
            self.0.reports.missed_log_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    // Nobody measures spans here.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests;
