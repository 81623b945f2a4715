//! Where the serial console's bytes go: a queue in memory, emptied by a thread of its own.
//!
//! A vCPU thread only ever appends to the queue, so a slow terminal or a full pipe never holds it up. The thread
//! `console` wakes up once for a burst, not for every byte, and does the blocking write(2). When the queue is full the
//! newest bytes are dropped, and a line says how many. A rate limit slows the thread down, never the vCPU. Who follows the
//! console has a queue and a thread of its own, so that neither reader waits for the other.
#![allow(unsafe_code)] // poll(2)

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::rate_limit::{RateLimiter, RateLimiterConfig, TokenBucketConfig};

/// Most bytes that wait, those being written included.
pub const LIMIT: usize = 2 << 20;
/// How many of the last bytes [`ConsoleOut::tail`] remembers.
pub const TAIL: usize = 8 << 10;
/// How long a burst may grow before it is written.
const BURST: Duration = Duration::from_millis(2);
/// A burst of so many bytes is written at once.
const BURST_LEN: usize = 16 << 10;
/// A drained buffer that has grown beyond this is given back.
const KEEP: usize = 16 << 10;

/// The queue and its thread. Clones are the same queue; when the last one is dropped the thread ends by itself, after
/// it has written what is there.
#[derive(Clone)]
pub struct ConsoleOut(Arc<Handle>);

struct Handle(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write, or it is time to end.
    filled: Condvar,
    /// Something was written, or will never be.
    drained: Condvar,
}

#[derive(Default)]
struct State {
    queue: Vec<u8>,
    /// Bytes taken by the thread and not yet written.
    writing: usize,
    written: u64,
    dropped: u64,
    tail: Tail,
    /// Gets a copy of what is pushed.
    follower: Option<ConsoleOut>,
    /// The thread waits for a first byte; only then does it need to be woken.
    idle: bool,
    /// Someone waits for the queue to be empty: bursts end now.
    flushing: bool,
    closing: bool,
    /// The reader is gone: nothing is written any more.
    broken: bool,
    /// How fast the thread may write; nothing where that is not limited.
    pace: Option<Pace>,
}

/// How fast the thread may write.
struct Pace {
    limiter: RateLimiter,
    /// Most bytes of one write, so that they come evenly.
    most: usize,
    since: Instant,
}

/// The last bytes of a stream.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    next: usize,
}

impl ConsoleOut {
    /// Writes to `out`, which may be anything that write(2) takes, blocking or not; no faster than `limit`, if there is
    /// one. What waits when the queue is flushed or dropped is at most [`LIMIT`], and is written at once.
    pub fn new(out: impl Into<OwnedFd>, limit: Option<&TokenBucketConfig>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (mine, out) = (Arc::clone(&shared), File::from(out.into()));
        thread::Builder::new().name("console".to_owned()).stack_size(128 << 10).spawn(move || mine.run(&out))?;
        let console = Self(Arc::new(Handle(shared)));
        console.set_limit(limit);
        Ok(console)
    }

    /// From now on it writes no faster than `limit`, if there is one; what waits, too.
    pub fn set_limit(&self, limit: Option<&TokenBucketConfig>) {
        self.0.0.lock().pace = limit.and_then(Pace::new);
        self.0.0.filled.notify_one();
    }

    /// Appends `bytes`, and says how many of them are lost. Never blocks on the output.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let shared = &self.0.0;
        let mut state = shared.lock();
        state.tail.push(bytes);
        if let Some(follower) = &state.follower {
            // A lock within a lock; a follower has no follower.
            follower.push(bytes);
        }
        if state.broken {
            return bytes.len();
        }
        if state.dropped > 0 && state.waiting() < LIMIT / 2 {
            state.say_dropped();
        }
        // Once bytes are dropped, all are, until there is good room: one notice for one gap.
        let room = if state.dropped > 0 { 0 } else { LIMIT.saturating_sub(state.waiting()) };
        let (fits, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        let before = state.queue.len();
        state.queue.extend_from_slice(fits);
        state.dropped = state.dropped.saturating_add(u64::try_from(rest.len()).unwrap_or(u64::MAX));
        if std::mem::take(&mut state.idle) || (before < BURST_LEN && state.queue.len() >= BURST_LEN) {
            shared.filled.notify_one();
        }
        rest.len()
    }

    /// Waits until everything is written; gives up when nothing at all was written for `timeout`. True when it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let shared = &self.0.0;
        let mut state = shared.lock();
        state.flushing = true;
        shared.filled.notify_one();
        let (mut seen, mut since) = (state.written, Instant::now());
        while !state.broken && (state.waiting() > 0 || state.dropped > 0) {
            let left = timeout.saturating_sub(since.elapsed());
            if left.is_zero() {
                break;
            }
            state = shared.drained.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            if state.written != seen {
                (seen, since) = (state.written, Instant::now());
            }
        }
        state.flushing = false;
        state.broken || (state.waiting() == 0 && state.dropped == 0)
    }

    /// From now on `follower` gets what is pushed, too; what stands in [`Self::tail`] comes first. Returns who had it before.
    pub fn follow(&self, follower: Self) -> Option<Self> {
        let mut state = self.0.0.lock();
        follower.push(&state.tail.to_vec());
        state.follower.replace(follower)
    }

    /// Nobody follows any more. Returns who did.
    pub fn unfollow(&self) -> Option<Self> {
        self.0.0.lock().follower.take()
    }

    /// Bytes that are not written yet.
    pub fn waiting(&self) -> usize {
        self.0.0.lock().waiting()
    }

    /// The last 8 KiB that the guest wrote.
    pub fn tail(&self) -> Vec<u8> {
        self.0.0.lock().tail.to_vec()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closing = true;
        self.0.filled.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn run(&self, out: &File) {
        let mut burst = Vec::new();
        while self.take(&mut burst) {
            let mut rest = burst.as_slice();
            while !rest.is_empty() {
                let now = rest.get(..self.wait(rest.len())).unwrap_or(rest);
                let done = write_some(out, now);
                let mut state = self.lock();
                match done {
                    Ok(done) => {
                        rest = rest.get(done..).unwrap_or_default();
                        state.writing = rest.len();
                        state.written = state.written.wrapping_add(1);
                    }
                    Err(_) => {
                        let (tail, follower) = (std::mem::take(&mut state.tail), state.follower.take());
                        *state = State { broken: true, tail, follower, ..State::default() };
                        self.drained.notify_all();
                        return;
                    }
                }
                self.drained.notify_all();
            }
            burst.clear();
            if burst.capacity() > KEEP {
                burst = Vec::new();
            }
        }
    }

    /// Waits until some of `len` bytes may be written, and says how many. When the end is near that is now.
    fn wait(&self, len: usize) -> usize {
        let mut state = self.lock();
        while !state.flushing && !state.closing {
            let Some(pace) = state.pace.as_mut() else { break };
            let some = len.min(pace.most);
            let tokens = u64::try_from(some).unwrap_or(u64::MAX);
            let Err(time) = pace.limiter.take(tokens, pace.since.elapsed()) else { return some };
            state = self.filled.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0;
        }
        len
    }

    /// Waits for a burst and takes it. False when there will never be another.
    fn take(&self, burst: &mut Vec<u8>) -> bool {
        let mut state = self.lock();
        while state.queue.is_empty() {
            if state.dropped > 0 {
                state.say_dropped();
                break;
            }
            if state.closing {
                return false;
            }
            state.idle = true;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle = false;
        }
        let begun = Instant::now();
        while !state.flushing && !state.closing && state.queue.len() < BURST_LEN {
            let left = BURST.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            state = self.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut state.queue, burst);
        state.writing = burst.len();
        true
    }
}

impl Pace {
    /// Nothing where `config` limits nothing.
    fn new(config: &TokenBucketConfig) -> Option<Self> {
        let config = RateLimiterConfig { bandwidth: Some(*config), ops: None };
        let size = config.bandwidth.map_or(0, |bucket| bucket.size);
        let most = usize::try_from(size).unwrap_or(usize::MAX).clamp(1, BURST_LEN);
        let limiter = RateLimiter::new(&config, Duration::ZERO);
        config.is_limit().then(|| Self { limiter, most, since: Instant::now() })
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.queue.len().saturating_add(self.writing)
    }

    fn say_dropped(&mut self) {
        let dropped = std::mem::take(&mut self.dropped);
        // Writing to a Vec can not fail.
        let _ = write!(self.queue, "\r\n[vmm: {dropped} bytes of console output dropped]\r\n");
    }
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.bytes.get_mut(self.next) {
                Some(old) => *old = *byte,
                None => self.bytes.push(*byte),
            }
            self.next = self.next.saturating_add(1) % TAIL;
        }
    }

    fn to_vec(&self) -> Vec<u8> {
        let (newer, older) = self.bytes.split_at_checked(self.next).unwrap_or((&self.bytes, &[]));
        [older, newer].concat()
    }
}

/// One write(2); waits where the file is non-blocking.
fn write_some(mut out: &File, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match out.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_writable(out)?,
            done => return done,
        }
    }
}

/// Waits until a non-blocking file takes more.
fn wait_writable(out: &File) -> io::Result<()> {
    let mut wait = libc::pollfd { fd: out.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: `wait` is one live pollfd, and one is what the call is told.
    match unsafe { libc::poll(&raw mut wait, 1, -1) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
