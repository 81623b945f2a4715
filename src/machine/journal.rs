//! What happened to the VM, in order, for who wants to follow it: `GET /vm/events`.
//!
//! The control thread writes, the API's thread reads. The last events are kept, up to [`KEPT`] bytes; a reader that is
//! slower than that is told how many it has missed. Nobody waits for a reader.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, eventfd};
use serde_json::{Value, json};

use crate::control::End;

/// Bytes of the events that are kept.
const KEPT: usize = 64 << 10;

/// Something that happened.
#[derive(Debug)]
pub enum Happening<'a> {
    /// The guest runs for the first time, or again after a reboot.
    Started,
    /// The guest's user space said so: a progress code from 0x60 to 0x7f at port 0x80.
    Userspace,
    /// No vCPU runs and no device touches guest memory.
    Paused,
    /// The VM goes on.
    Resumed,
    /// The guest's kernel panicked; what stood last on the console.
    Panic {
        /// The console's last bytes.
        console: &'a [u8],
        /// Its crash kernel takes over.
        crash_kernel: bool,
    },
    /// The guest, or a request, asked for a reset, and it is started again.
    Restart(&'a End),
    /// The VM has ended. The last event.
    Exit(&'a End),
}

/// The last events of a process's VMs. Clones are the same journal.
#[derive(Clone)]
pub struct Journal(Arc<Shared>);

struct Shared {
    kept: Mutex<Kept>,
    /// Rung with every event.
    bell: OwnedFd,
}

#[derive(Default)]
struct Kept {
    /// Lines of JSON.
    lines: VecDeque<String>,
    bytes: usize,
    /// The number of the first line that is kept.
    first: u64,
}

impl Journal {
    /// Nothing has happened yet.
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(Shared { kept: Mutex::default(), bell })))
    }

    /// Notes an event, and that it is now.
    pub fn note(&self, happening: &Happening<'_>) {
        let mut event = event(happening);
        let now = utc_ms();
        let mut kept = self.kept();
        event["utc_timestamp_ms"] = now.into();
        event["number"] = (kept.first + kept.lines.len() as u64).into();
        let line = format!("{event}\n");
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.bytes > KEPT
            && kept.lines.len() > 1
            && let Some(line) = kept.lines.pop_front()
        {
            kept.bytes -= line.len();
            kept.first += 1;
        }
        drop(kept);
        let _ = rustix::io::write(&self.0.bell, &1_u64.to_ne_bytes());
    }

    /// The events from number `next` on, a line each, as many as fit into `most` bytes (but one at least), and the number
    /// of the first one that is not among them. Where events are not kept any more, a line says how many.
    pub fn since(&self, next: u64, most: usize) -> (String, u64) {
        let kept = self.kept();
        let mut text = String::new();
        if next < kept.first {
            text = format!("{}\n", json!({ "event": "missed", "events": kept.first - next }));
        }
        let mut next = next.max(kept.first);
        let skipped = usize::try_from(next - kept.first).unwrap_or(usize::MAX);
        for line in kept.lines.iter().skip(skipped) {
            if !text.is_empty() && text.len() + line.len() > most {
                break;
            }
            text.push_str(line);
            next += 1;
        }
        (text, next)
    }

    /// Whether something happened since the last call; to be asked when [`AsFd`]'s descriptor is ready.
    pub fn hear(&self) -> bool {
        rustix::io::read(&self.0.bell, &mut [0; 8]).is_ok()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }
}

/// The host's time of day: milliseconds since 1970, UTC.
pub(crate) fn utc_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn event(happening: &Happening<'_>) -> Value {
    match happening {
        Happening::Started => json!({ "event": "started" }),
        Happening::Userspace => json!({ "event": "userspace" }),
        Happening::Paused => json!({ "event": "paused" }),
        Happening::Resumed => json!({ "event": "resumed" }),
        Happening::Panic { console, crash_kernel } => {
            json!({ "event": "panic", "crash_kernel": crash_kernel, "console": lines(console) })
        }
        Happening::Restart(end) => json!({ "event": "restart", "reason": end.to_string() }),
        Happening::Exit(end) => json!({ "event": "exit", "reason": end.to_string(), "status": end.exit_code() }),
    }
}

/// The lines of a text; its first one may have lost its beginning. A kernel says first that it panics, and then for some
/// forty lines where it was.
fn lines(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).lines().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn readers_follow_at_their_own_pace() {
        let journal = Journal::new().unwrap();
        assert!(!journal.hear());
        assert_eq!(journal.since(0, 1000), (String::new(), 0));
        journal.note(&Happening::Started);
        journal.note(&Happening::Userspace);
        assert!(journal.hear() && !journal.hear());
        let (text, next) = journal.since(0, 1000);
        assert_eq!((names(&text), next), (vec!["started".to_owned(), "userspace".to_owned()], 2));
        let (text, next) = journal.since(0, 10);
        assert_eq!((names(&text), next), (vec!["started".to_owned()], 1), "one always fits");
        journal.note(&Happening::Exit(&End::PowerOff));
        let (text, next) = journal.since(2, 1000);
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&event["reason"], &event["status"], next), (&"the guest powered off".into(), &0.into(), 3));
        assert_eq!(event["number"], 2);
        assert_eq!(journal.since(3, 1000), (String::new(), 3));
    }

    #[test]
    fn what_is_not_read_is_bounded_and_missed() {
        let journal = Journal::new().unwrap();
        for _ in 0..10_000 {
            journal.note(&Happening::Paused);
        }
        let (text, next) = journal.since(7, usize::MAX);
        assert!(text.len() < KEPT + 100, "{}", text.len());
        assert_eq!(next, 10_000);
        let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first["event"], "missed");
        assert_eq!(first["events"].as_u64().unwrap() + 7 + text.lines().count() as u64 - 1, 10_000);
    }

    #[test]
    fn a_panic_shows_the_last_lines_of_the_console() {
        assert_eq!(lines(b"one\r\ntwo\xff\r\nthree"), ["one", "two\u{fffd}", "three"]);
        assert!(lines(b"").is_empty());
        let journal = Journal::new().unwrap();
        journal.note(&Happening::Panic { console: &[0xff; 8192], crash_kernel: false });
        assert!(journal.since(0, 1).0.ends_with("}\n"));
    }
}
