//! A blob from a source into the store: resumed where it was cut, tried again with patience, verified, and only then named.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::document::Descriptor;
use crate::progress::Bar;
use crate::source::{Count, Source, SourceError};
use crate::store::{Claim, Part, Store, StoreError};

/// Tries in a row that bring next to nothing before it is given up.
const TRIES: u32 = 5;
/// What is next to nothing, bytes.
const LITTLE: u64 = 1 << 20;
/// Before the second try; it doubles with each.
const PAUSE: Duration = Duration::from_millis(250);
/// Pauses from here on are told: a user who waits shall know for what.
const TOLD: Duration = Duration::from_secs(1);
/// Longest that the other end may ask to wait.
const PAUSE_MAX: Duration = Duration::from_secs(120);
const BUFFER: usize = 256 << 10;

/// Set when another part of the work has failed, so that all the rest ends soon.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Everybody ends.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether to go on.
    pub fn check(&self) -> Result<(), SourceError> {
        if self.0.load(Ordering::Relaxed) { Err(SourceError::Stopped) } else { Ok(()) }
    }
}

/// Does something until it works, has failed too often, or failed for good. `say` tells the user of long pauses.
pub fn patiently<T>(
    stop: &Stop,
    say: &dyn Fn(&str),
    mut step: impl FnMut() -> Result<T, (SourceError, Progressed)>,
) -> Result<T, SourceError> {
    let mut tries = 1;
    loop {
        let (error, progressed) = match step() {
            Ok(done) => return Ok(done),
            Err(failed) => failed,
        };
        let SourceError::Passing { why, after } = error else { return Err(error) };
        tries = if progressed == Progressed::Yes { 1 } else { tries + 1 };
        if tries > TRIES {
            return Err(SourceError::Refused(format!("{why} (tried {TRIES} times)")));
        }
        let pause = after.unwrap_or(PAUSE * 2u32.pow(tries - 1));
        if pause > PAUSE_MAX {
            return Err(SourceError::Refused(format!("{why}; it wants {} s of patience", pause.as_secs())));
        }
        if pause >= TOLD {
            let asks = if after.is_some() { "it asks to wait" } else { "trying again in" };
            say(&format!("{why}; {asks} {} s", pause.as_secs()));
        }
        let until = Instant::now() + pause;
        while Instant::now() < until {
            stop.check()?;
            sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
        }
    }
}

/// Whether a step that failed brought anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progressed {
    /// Enough to try again without counting.
    Yes,
    /// It counts.
    No,
}

/// Fetches a blob, if it is not there.
pub fn fetch(store: &Store, source: &dyn Source, blob: &Descriptor, bar: &Bar, stop: &Stop) -> Result<(), SourceError> {
    let waiting = || bar.say("waiting");
    let Claim::Part(part) = store.claim_blob(&blob.digest, &waiting)? else {
        store.open_blob(blob)?;
        return Ok(());
    };
    bar.say("fetching");
    let found = match fill(store, source, blob, &part, bar, stop) {
        // It will not become what it should be by going on.
        Err(error @ SourceError::Size { .. }) => {
            part.discard();
            return Err(error);
        }
        found => found?,
    };
    if found != blob.digest {
        part.discard();
        return Err(SourceError::Digest { what: "a blob", wanted: blob.digest, found });
    }
    Ok(part.finish()?)
}

/// Fetches what is missing of a part. The digest of all of it.
fn fill(
    store: &Store,
    source: &dyn Source,
    blob: &Descriptor,
    part: &Part,
    bar: &Bar,
    stop: &Stop,
) -> Result<Digest, SourceError> {
    let resumed = part.size()?;
    store.check_room(blob.size.saturating_sub(resumed))?;
    let mut filling = Filling::of(part, blob, bar, stop)?;
    let found = filling.fill(source)?;
    if found == blob.digest || resumed == 0 {
        return Ok(found);
    }
    // What a dead process had left may have been wrong.
    filling.start_over()?;
    filling.fill(source)
}

/// A part, as far as it is there.
struct Filling<'a> {
    part: &'a Part,
    blob: &'a Descriptor,
    bar: &'a Bar,
    stop: &'a Stop,
    hash: Sha256,
    size: u64,
}

impl<'a> Filling<'a> {
    /// With what is there already.
    fn of(part: &'a Part, blob: &'a Descriptor, bar: &'a Bar, stop: &'a Stop) -> Result<Self, SourceError> {
        let mut filling = Self { part, blob, bar, stop, hash: Sha256::new(), size: 0 };
        if part.size()? > blob.size {
            part.reset()?;
        }
        let mut buffer = vec![0; BUFFER];
        loop {
            stop.check()?;
            let count = part.file().read(&mut buffer).map_err(|error| filling.fault("read", error))?;
            if count == 0 {
                return Ok(filling);
            }
            filling.count(buffer.get(..count).unwrap_or_default());
        }
    }

    fn start_over(&mut self) -> Result<(), SourceError> {
        self.part.reset()?;
        (self.hash, self.size) = (Sha256::new(), 0);
        Ok(())
    }

    fn fault(&self, doing: &'static str, error: io::Error) -> SourceError {
        StoreError::io(doing, self.part.path(), error).into()
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        self.bar.at(self.size);
    }

    /// Fetches what is missing. The digest of all of it.
    fn fill(&mut self, source: &dyn Source) -> Result<Digest, SourceError> {
        let (stop, bar) = (self.stop, self.bar);
        patiently(stop, &|why| bar.note(why), || {
            let before = self.size;
            self.go_on(source).map_err(|error| {
                let much = self.size - before >= LITTLE;
                (error, if much { Progressed::Yes } else { Progressed::No })
            })
        })?;
        Ok(Digest::finished(std::mem::take(&mut self.hash)))
    }

    /// One connection's worth of it.
    fn go_on(&mut self, source: &dyn Source) -> Result<(), SourceError> {
        if self.size == self.blob.size && self.size > 0 {
            return Ok(());
        }
        let mut from = source.open(self.blob, self.size)?;
        let mut to = self.part.file();
        to.seek(SeekFrom::Start(self.size)).map_err(|error| self.fault("write", error))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            self.stop.check()?;
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let why = format!("the connection broke after {} of {} bytes: {error}", self.size, self.blob.size);
                    return Err(SourceError::Passing { why, after: None });
                }
            };
            if self.size + count as u64 > self.blob.size {
                // Not to be gone on with.
                self.part.reset()?;
                return Err(self.wrong_size(Count::MoreThan(self.blob.size)));
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            to.write_all(bytes).map_err(|error| self.fault("write", error))?;
            self.count(bytes);
        }
        match self.size == self.blob.size {
            true => Ok(()),
            false if source.may_break() => {
                let why = format!("the connection ended after {} of {} bytes", self.size, self.blob.size);
                Err(SourceError::Passing { why, after: None })
            }
            false => Err(self.wrong_size(Count::Exactly(self.size))),
        }
    }

    fn wrong_size(&self, found: Count) -> SourceError {
        SourceError::Size { what: "blob", digest: self.blob.digest, wanted: self.blob.size, found }
    }
}
