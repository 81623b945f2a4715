//! All connections of a thread: it waits for any of them, and gives each that has something to do its turn.
//!
//! Files are watched for changes only (EPOLLET): a connection has tried everything before it waits again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use protocol::frame::{HEADER, MOST_DATA};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::pair::{Pair, Turn};

/// A number for another file that is watched, below [`FIRST`].
pub type Token = u64;

/// Connections have numbers from here on.
const FIRST: u64 = 1 << 32;
/// While there are so many connections, each of them takes smaller pieces.
const FEW: usize = 64;
/// The size of these.
const SMALL: usize = 8 << 10;

/// The connections.
#[derive(Debug)]
pub struct Relay {
    epoll: OwnedFd,
    pairs: BTreeMap<u64, Pair>,
    /// Those that may have something to do.
    ready: BTreeSet<u64>,
    last: u64,
    /// Some have a time to end.
    is_parting: bool,
    buffer: Vec<u8>,
}

impl Relay {
    /// None yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            pairs: BTreeMap::new(),
            ready: BTreeSet::new(),
            last: FIRST,
            is_parting: false,
            buffer: vec![0; HEADER.saturating_add(MOST_DATA)],
        })
    }

    /// Watches another file, of which [`Relay::wait`] tells when something can be read there that could not before.
    pub fn watch(&self, file: impl AsFd, token: Token) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, file, epoll::EventData::new_u64(token), flags)?)
    }

    /// Begins to carry a connection, by this number.
    pub fn add(&mut self, pair: Pair) -> io::Result<u64> {
        self.last = self.last.saturating_add(1);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        for file in pair.files() {
            epoll::add(&self.epoll, file, epoll::EventData::new_u64(self.last), flags)?;
        }
        self.pairs.insert(self.last, pair);
        self.ready.insert(self.last); // something may have come with it
        Ok(self.last)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// A buffer for a datagram behind [`crate::HEADROOM`] bytes.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// A caller's datagram, which is so long and in the buffer. False: that connection is none any more.
    pub fn say(&mut self, id: u64, len: usize) -> bool {
        let frame = self.buffer.get_mut(..HEADER.saturating_add(len)).unwrap_or_default();
        let said = self.pairs.get_mut(&id).is_some_and(|pair| pair.say(frame).is_ok());
        if !said {
            self.pairs.remove(&id);
        }
        said
    }

    /// Those of datagrams, each with the time since when it has been silent.
    pub fn silent(&self) -> impl Iterator<Item = (u64, Instant)> {
        self.pairs.iter().filter(|(_, pair)| pair.is_of_datagrams()).map(|(id, pair)| (*id, pair.carried))
    }

    /// Ends one.
    pub fn remove(&mut self, id: u64) {
        self.pairs.remove(&id);
    }

    /// The other sides have gone: what they have said is carried to its end, until then at most.
    pub fn part(&mut self, until: Instant) {
        self.is_parting = true;
        for (id, pair) in &mut self.pairs {
            pair.until.get_or_insert(until);
            self.ready.insert(*id);
        }
    }

    /// Waits until something can be done, or so long; which of the other files can be read.
    pub fn wait(&mut self, most: Option<Duration>) -> io::Result<Vec<Token>> {
        let most = if self.ready.is_empty() { most } else { Some(Duration::ZERO) };
        let most = most.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), most.as_ref()) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
        let mut others = Vec::new();
        for event in events {
            match event.data.u64() {
                id if id >= FIRST => _ = self.ready.insert(id),
                token => others.push(token),
            }
        }
        Ok(others)
    }

    /// Gives each one its turn that has something to do. Which have ended.
    pub fn turn(&mut self) -> Vec<u64> {
        let mut ended = self.expire();
        let most = if self.pairs.len() > FEW { SMALL } else { MOST_DATA };
        for id in std::mem::take(&mut self.ready) {
            let Some(pair) = self.pairs.get_mut(&id) else { continue };
            // Datagrams come whole.
            let most = if pair.is_of_datagrams() { MOST_DATA } else { most };
            let buffer = self.buffer.get_mut(..HEADER.saturating_add(most)).unwrap_or_default();
            match pair.turn(buffer) {
                Ok(Turn::Waits) => continue,
                Ok(Turn::More) => {
                    self.ready.insert(id);
                    continue;
                }
                Ok(Turn::Over) => (),
                Err(_) => pair.reset(),
            }
            self.pairs.remove(&id);
            ended.push(id);
        }
        ended
    }

    /// Ends those that had time enough.
    fn expire(&mut self) -> Vec<u64> {
        if !self.is_parting {
            return Vec::new();
        }
        self.is_parting = self.pairs.values().any(|pair| pair.until.is_some());
        let now = Instant::now();
        let late = self.pairs.iter().filter(|(_, pair)| pair.until.is_some_and(|until| until <= now));
        let late: Vec<u64> = late.map(|(id, _)| *id).collect();
        for id in &late {
            if let Some(pair) = self.pairs.remove(id) {
                pair.reset();
            }
        }
        late
    }
}
