//! What a VM prints, as it comes: a thread reads it into memory, tests wait for text in it.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Lines of it that a failure shows.
const TAIL: usize = 40;

/// Text that grows until its source ends.
#[derive(Clone, Default)]
pub struct Screen(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    text: String,
    ended: bool,
}

/// Why a wait for text was in vain.
#[derive(Debug)]
pub enum Missing {
    /// The source ended first.
    Ended,
    /// It did not come in time.
    Late,
}

impl Screen {
    /// Reads `source` to its end, on a thread of its own. Carriage returns are dropped.
    pub fn of(source: impl Read + Send + 'static) -> Self {
        let screen = Self::default();
        let mine = screen.clone();
        thread::spawn(move || mine.fill(source));
        screen
    }

    fn fill(&self, mut source: impl Read) {
        let mut chunk = [0; 4096];
        loop {
            // A terminal whose other side is closed reports an error: that is its end.
            let got = source.read(&mut chunk).unwrap_or(0);
            let mut state = self.lock();
            state.text.extend(String::from_utf8_lossy(&chunk[..got]).chars().filter(|c| *c != '\r'));
            state.ended = got == 0;
            self.0.changed.notify_all();
            if got == 0 {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `text` stands somewhere after byte `from`; returns where it ends.
    pub fn wait_for(&self, text: &str, from: usize, patience: Duration) -> Result<usize, Missing> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if let Some(at) = state.text[from..].find(text) {
                return Ok(from + at + text.len());
            }
            let left = until.saturating_duration_since(Instant::now());
            match (state.ended, left.is_zero()) {
                (true, _) => return Err(Missing::Ended),
                (_, true) => return Err(Missing::Late),
                _ => state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
    }

    /// Waits until the source ends, at most so long, and returns all of it.
    pub fn all(&self, patience: Duration) -> String {
        let state = self.lock();
        let wait = self.0.changed.wait_timeout_while(state, patience, |state| !state.ended);
        wait.unwrap_or_else(PoisonError::into_inner).0.text.clone()
    }

    /// The last lines so far.
    pub fn tail(&self) -> String {
        let state = self.lock();
        let lines: Vec<&str> = state.text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}
