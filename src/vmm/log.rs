//! The monitor's own log: lines to a file, a FIFO or standard error, in Firecracker's form.
//!
//! A small subscriber of `tracing`'s events instead of a large one, because it is set up before the guest runs. Any
//! thread writes lines; each line is one write(2), and a line that cannot be written is lost, not waited for.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use machine::config::{LogLevel, LoggerConfig};
use machine::metrics::Reports;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Metadata, Subscriber};

/// Starts the log. Without a configuration warnings and errors go to standard error.
pub fn start(config: Option<&LoggerConfig>, id: Option<&str>, reports: &Arc<Reports>) -> Result<(), String> {
    let quiet = LoggerConfig { level: LogLevel::Warning, ..Default::default() };
    let config = config.unwrap_or(&quiet);
    let level = match config.level {
        LogLevel::Off => return Ok(()),
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let open =
        |path: &Path| open_output(path).map_err(|error| format!("logger.log_path: open {}: {error}", path.display()));
    let file = config.log_path.as_deref().map(open).transpose()?;
    let log = Log {
        level,
        module: config.module.clone(),
        show_level: config.show_level,
        show_origin: config.show_log_origin,
        id: id.unwrap_or("vmm").to_owned(),
        file,
        reports: reports.clone(),
    };
    // Only tests could have set one before.
    let _ = tracing::subscriber::set_global_default(log);
    Ok(())
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

struct Log {
    level: LevelFilter,
    module: Option<String>,
    show_level: bool,
    show_origin: bool,
    id: String,
    file: Option<File>,
    reports: Arc<Reports>,
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let wanted = self.module.as_deref().is_none_or(|module| metadata.target().starts_with(module));
        *metadata.level() <= self.level && wanted
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = self.line(now, event);
        let written = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None if !is_writable(&io::stderr(), Duration::ZERO) => Err(io::ErrorKind::WouldBlock.into()),
            None => io::stderr().write_all(line.as_bytes()),
        };
        if written.is_err() {
            self.reports.missed_log_count.fetch_add(1, Ordering::Relaxed);
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

impl Log {
    /// `2026-01-31T12:00:00.123456789 [id:thread:LEVEL:file:line] message key=value`
    fn line(&self, now: Duration, event: &Event<'_>) -> String {
        let metadata = event.metadata();
        let thread = std::thread::current();
        let mut line = format!("{} [{}:{}", timestamp(now), self.id, thread.name().unwrap_or("?"));
        if self.show_level {
            let _ = write!(line, ":{}", metadata.level());
        }
        if let (true, Some(file)) = (self.show_origin, metadata.file()) {
            let _ = write!(line, ":{file}:{}", metadata.line().unwrap_or(0));
        }
        line.push(']');
        event.record(&mut Fields(&mut line));
        // A message must not be able to look like two.
        let mut line = line.replace(['\n', '\r'], " ");
        line.push('\n');
        line
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

/// UTC by the civil calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn timestamp(now: Duration) -> String {
    let (days, seconds) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march = (5 * day_of_year + 2) / 153;
    let (month, day) = (if march < 10 { march + 3 } else { march - 9 }, day_of_year - (153 * march + 2) / 5 + 1);
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}", now.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_is_right() {
        for (seconds, wanted) in [
            (0, "1970-01-01T00:00:00.000000007"),
            (951_782_399, "2000-02-28T23:59:59.000000007"),
            (951_782_400, "2000-02-29T00:00:00.000000007"),
            (1_772_323_199, "2026-02-28T23:59:59.000000007"),
            (1_772_323_200, "2026-03-01T00:00:00.000000007"),
            (4_102_444_800, "2100-01-01T00:00:00.000000007"),
        ] {
            assert_eq!(timestamp(Duration::new(seconds, 7)), wanted);
        }
    }

    #[test]
    fn lines_go_to_the_file_and_stay_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Log {
            level: LevelFilter::INFO,
            module: None,
            show_level: true,
            show_origin: false,
            id: "a".into(),
            file: Some(open_output(file.path()).unwrap()),
            reports: Arc::default(),
        };
        tracing::subscriber::with_default(log, || {
            tracing::warn!(device = "rootfs", "two\nlines");
            tracing::debug!("not this");
        });
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains(":WARN] two lines device=\"rootfs\""), "{text}");
    }

    #[test]
    fn a_fifo_without_a_reader_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let status = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(status.success());
        assert!(open_output(&path).is_ok());
        assert!(open_output(dir.path()).is_err());
    }
}
