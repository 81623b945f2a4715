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
mod tests {
    use std::io::Read;
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn numbered(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn bytes_arrive_in_order_and_bursts_are_flushed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let out = ConsoleOut::new(writer, None).unwrap();
        let text = numbered(30_000);
        for chunk in text.chunks(7) {
            out.push(chunk);
        }
        let mut got = vec![0; text.len()];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(got, text);
        assert!(out.flush(PATIENCE));
        assert_eq!(out.tail(), text[text.len() - TAIL..]);
    }

    #[test]
    fn a_reader_that_sleeps_costs_nobody_anything_but_the_newest_bytes() {
        let (mut reader, writer) = io::pipe().unwrap();
        let out = ConsoleOut::new(writer, None).unwrap();
        let text = numbered(LIMIT + (1 << 20));
        for chunk in text.chunks(4096) {
            out.push(chunk); // returns though nobody reads
        }
        assert!(!out.flush(Duration::from_millis(20)), "it gives up where nothing moves");
        let (done, all) = mpsc::channel();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            done.send(got).unwrap();
        });
        assert!(out.flush(PATIENCE));
        out.push(b"after");
        drop(out);
        let got = all.recv_timeout(PATIENCE).unwrap();
        reading.join().unwrap();
        let notice = b"\r\n[vmm: ";
        let kept = got.windows(notice.len()).position(|bytes| bytes == notice).unwrap();
        assert_eq!(got[..kept], text[..kept]);
        assert!((LIMIT..LIMIT + (128 << 10)).contains(&kept), "what fits is kept: {kept}");
        let expected = format!("\r\n[vmm: {} bytes of console output dropped]\r\nafter", text.len() - kept);
        assert_eq!(String::from_utf8_lossy(&got[kept..]), expected);
    }

    #[test]
    fn a_reader_that_is_gone_ends_it_quietly() {
        let (reader, writer) = io::pipe().unwrap();
        let out = ConsoleOut::new(writer, None).unwrap();
        drop(reader);
        out.push(b"x");
        assert!(out.flush(PATIENCE));
        for _ in 0..1000 {
            out.push(&[b'y'; 8192]);
        }
        assert!(out.flush(PATIENCE));
        assert_eq!(out.tail(), [b'y'; TAIL]);
        assert_eq!(out.0.0.lock().queue.capacity(), 0);
    }

    /// It sees what was there last and all that comes, whether or not anybody reads the output itself.
    #[test]
    fn who_follows_depends_on_nobody() {
        let (deaf, writer) = io::pipe().unwrap();
        let out = ConsoleOut::new(writer, None).unwrap();
        out.push(&numbered(LIMIT + 1)); // the output is full
        let start = out.tail();
        let attach = || {
            let (reader, writer) = io::pipe().unwrap();
            (reader, ConsoleOut::new(writer, None).unwrap())
        };
        let (mut one, follower) = attach();
        assert!(out.follow(follower).is_none());
        out.push(b"seen");
        let mut got = vec![0; TAIL + 4];
        one.read_exact(&mut got).unwrap();
        assert_eq!(got, [start.as_slice(), b"seen"].concat());
        // Another takes its place; the output's reader goes away, and that changes nothing.
        let (mut two, follower) = attach();
        let first = out.follow(follower).unwrap();
        first.push(b"taken");
        drop((first, deaf));
        let mut rest = Vec::new();
        one.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"taken");
        assert!(out.flush(PATIENCE));
        out.push(b"also");
        let mut got = vec![0; TAIL + 4];
        two.read_exact(&mut got).unwrap();
        assert!(got.ends_with(b"seenalso"));
        // A follower that is gone, or does not read, costs the output nothing.
        drop(two);
        out.push(b"x");
        assert!(out.unfollow().is_some_and(|follower| follower.flush(PATIENCE)) && out.unfollow().is_none());
    }

    #[test]
    fn a_non_blocking_file_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        // SAFETY: the descriptor is open; F_SETFL takes an int.
        assert_eq!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
        let out = ConsoleOut::new(writer, None).unwrap();
        let text = numbered(1 << 20);
        out.push(&text);
        let mut got = vec![0; text.len()];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(got, text);
    }

    /// Of a bucket that is not filled again within the test, so much is written and no more, and pushing goes on.
    #[test]
    fn a_limit_slows_the_thread_and_nobody_else() {
        let (mut reader, writer) = io::pipe().unwrap();
        let limit = TokenBucketConfig { size: 1000, one_time_burst: Some(500), refill_time: 1 << 31 };
        let out = ConsoleOut::new(writer, Some(&limit)).unwrap();
        let text = numbered(LIMIT + 5000);
        out.push(&text[..1500]);
        let mut got = vec![0; 1500];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(got, text[..1500]);
        assert!(out.flush(PATIENCE), "the thread knows that it has written them");
        out.push(&text[1500..]); // more than fits: what is too much is dropped
        assert_eq!(out.waiting(), LIMIT);
        // At the end what waits is written, limit or not.
        let (done, all) = mpsc::channel();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            done.send(got).unwrap();
        });
        assert!(out.flush(PATIENCE));
        drop(out);
        let got = all.recv_timeout(PATIENCE).unwrap();
        reading.join().unwrap();
        let kept = text.get(1500..1500 + LIMIT).unwrap();
        assert_eq!(got[..kept.len()], *kept);
        let notice = format!("\r\n[vmm: {} bytes of console output dropped]\r\n", text.len() - 1500 - LIMIT);
        assert_eq!(String::from_utf8_lossy(&got[kept.len()..]), notice);
    }

    #[test]
    fn a_limited_writer_goes_on_when_the_bucket_fills() {
        let (mut reader, writer) = io::pipe().unwrap();
        let limit = TokenBucketConfig { size: 100, one_time_burst: None, refill_time: 10 };
        let out = ConsoleOut::new(writer, Some(&limit)).unwrap();
        let text = numbered(2000);
        let begin = Instant::now();
        out.push(&text);
        let mut got = vec![0; text.len()];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(got, text);
        assert!(begin.elapsed() >= Duration::from_millis(150), "the bucket was filled nineteen times");
    }

    #[test]
    fn a_limit_comes_and_goes_while_bytes_wait() {
        let (mut reader, writer) = io::pipe().unwrap();
        let out = ConsoleOut::new(writer, None).unwrap();
        let text = numbered(3000);
        let mut got = vec![0; 1000];
        out.push(&text[..1000]);
        reader.read_exact(&mut got).unwrap();
        assert!(out.flush(PATIENCE));
        out.set_limit(Some(&TokenBucketConfig { size: 1000, one_time_burst: None, refill_time: 1 << 31 }));
        out.push(&text[1000..]);
        reader.read_exact(&mut got).unwrap();
        assert_eq!(got, text[1000..2000]);
        assert_eq!(out.waiting(), 1000);
        out.set_limit(None);
        reader.read_exact(&mut got).unwrap();
        assert_eq!(got, text[2000..]);
    }

    #[test]
    fn a_bucket_of_nothing_is_no_limit() {
        for (size, refill_time) in [(0, 1000), (1, 0)] {
            assert!(Pace::new(&TokenBucketConfig { size, one_time_burst: None, refill_time }).is_none());
        }
    }

    #[test]
    fn a_drained_queue_gives_its_memory_back() {
        let (mut reader, writer) = io::pipe().unwrap();
        let out = ConsoleOut::new(writer, None).unwrap();
        out.push(&numbered(1 << 20));
        reader.read_exact(&mut vec![0; 1 << 20]).unwrap();
        assert!(out.flush(PATIENCE));
        out.push(b"x");
        assert!(out.flush(PATIENCE));
        assert!(out.0.0.lock().queue.capacity() <= KEEP);
    }
}
