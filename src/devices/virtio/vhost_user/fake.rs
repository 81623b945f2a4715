//! A back end for tests, on a thread: it maps what it is given and serves rings as one in another process would, or as
//! one that is broken.
#![allow(unsafe_code)] // recvmsg(2) with descriptors

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::connection::{DEVICE_STATE, PROTOCOL_FEATURES, REPLY_ACK};
use super::{NEEDED, ring::SLOTS};

/// What it does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// It answers each with 16 bytes: a fuse_out_header without an error.
    Serve,
    /// It takes them and says nothing.
    Hold,
    /// It returns a request with this number.
    Lie(u32),
    /// It says to have written more than there is room for.
    Boast,
    /// It answers with what it was sent.
    Echo,
}

/// The back end, as the test sees it.
pub struct Fake {
    behaviour: Arc<Mutex<Behaviour>>,
    socket: UnixStream,
    thread: JoinHandle<Vec<u32>>,
}

impl Fake {
    /// Starts one, and returns the monitor's end of the connection to it.
    pub fn start(behaviour: Behaviour) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let behaviour = Arc::new(Mutex::new(behaviour));
        let (shared, socket) = (Arc::clone(&behaviour), theirs.try_clone().unwrap());
        let served = Served {
            socket: theirs,
            behaviour: shared,
            regions: Vec::new(),
            rings: HashMap::new(),
            heard: Vec::new(),
            known: 0,
            coming: None,
        };
        (Self { behaviour, socket, thread: spawn(|| served.run()) }, ours)
    }

    /// What it does from now on; it looks again when it is kicked.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Hangs up.
    pub fn die(&self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// The requests of the protocol that it has heard, once the monitor has hung up.
    pub fn heard(self) -> Vec<u32> {
        drop(self.socket);
        self.thread.join().unwrap()
    }
}

#[derive(Default)]
struct Vring {
    parts: [u64; 3],
    kick: Option<File>,
    call: Option<File>,
    seen: u16,
    used: u16,
}

struct Served {
    socket: UnixStream,
    behaviour: Arc<Mutex<Behaviour>>,
    /// Guest address, the monitor's address, memory.
    regions: Vec<(u64, u64, MmapRegion<()>)>,
    rings: HashMap<u32, Vring>,
    heard: Vec<u32>,
    /// What it knows of its guest: how many requests there were.
    known: u64,
    /// By which it is told what another one knew.
    coming: Option<File>,
}

impl Served {
    fn run(mut self) -> Vec<u32> {
        loop {
            let epoll = Epoll::new().unwrap();
            let watch = |fd, data| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, data)).unwrap();
            watch(self.socket.as_raw_fd(), u64::MAX);
            for (index, ring) in &self.rings {
                ring.kick.iter().for_each(|kick| watch(kick.as_raw_fd(), u64::from(*index)));
            }
            let mut events = [EpollEvent::default(); 4];
            let count = epoll.wait(-1, &mut events).unwrap_or(0);
            for event in &events[..count] {
                match u32::try_from(event.data()) {
                    Ok(index) => self.kicked(index),
                    Err(_) if !self.message() => return self.heard,
                    Err(_) => {}
                }
            }
        }
    }

    /// False when the monitor has hung up.
    fn message(&mut self) -> bool {
        let mut header = [0_u8; 12];
        let mut fds = [-1; 8];
        let mut iovec = [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: 12 }];
        // SAFETY: the vector is that of the array, which may hold any bytes.
        let Ok((12, count)) = (unsafe { self.socket.recv_with_fds(&mut iovec, &mut fds) }) else { return false };
        // SAFETY: the kernel made these descriptors for this call, and nobody else knows them.
        let mut files: Vec<_> = fds[..count].iter().map(|fd| unsafe { File::from_raw_fd(*fd) }).collect();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let (request, flags) = (word(0), word(4));
        let mut payload = vec![0; word(8) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        let quad = |at: usize| u64::from_ne_bytes(payload[at..at + 8].try_into().unwrap());
        let number = |at: usize| u32::from_ne_bytes(payload[at..at + 4].try_into().unwrap());
        self.heard.push(request);
        let mut answer = (flags & 8 != 0).then_some(0);
        match request {
            1 => answer = Some(NEEDED | PROTOCOL_FEATURES),
            15 => answer = Some(REPLY_ACK | DEVICE_STATE),
            42 => {
                let mut file = files.pop().unwrap();
                assert!(self.rings.is_empty(), "a back end's state is moved while its rings are at rest");
                match number(0) {
                    0 => file.write_all(&self.known.to_le_bytes()).unwrap(),
                    _ => self.coming = Some(file), // after the answer
                }
                answer = Some(0x100);
            }
            43 => {
                let mut state = self.known.to_le_bytes().to_vec();
                if let Some(mut file) = self.coming.take() {
                    state.clear();
                    file.read_to_end(&mut state).unwrap();
                }
                let known = <[u8; 8]>::try_from(state).map(u64::from_le_bytes);
                answer = Some(u64::from(known.is_err()));
                self.known = known.unwrap_or(0);
            }
            5 => {
                let regions = files.drain(..).enumerate().map(|(index, file)| {
                    let [gpa, len, host, offset] = [0, 8, 16, 24].map(|at| quad(8 + 32 * index + at));
                    let mapped = MmapRegion::from_file(FileOffset::new(file, offset), len as usize).unwrap();
                    (gpa, host, mapped)
                });
                self.regions = regions.collect();
            }
            9 => {
                let parts = [quad(8), quad(24), quad(16)]; // descriptors, available, used
                *self.rings.entry(number(0)).or_default() = Vring { parts, ..Vring::default() };
            }
            12 => self.rings.get_mut(&number(0)).unwrap().kick = files.pop(),
            13 => self.rings.get_mut(&number(0)).unwrap().call = files.pop(),
            11 => {
                let ring = self.rings.remove(&number(0)).unwrap();
                answer = Some(u64::from(number(0)) | u64::from(ring.seen) << 32);
            }
            _ => {}
        }
        if let Some(answer) = answer {
            let header = [request, 1 | 4, 8].into_iter().flat_map(u32::to_ne_bytes);
            let message: Vec<u8> = header.chain(answer.to_ne_bytes()).collect();
            return self.socket.write_all(&message).is_ok();
        }
        true
    }

    fn kicked(&mut self, index: u32) {
        // A message of the same moment may have stopped the ring.
        let Some(ring) = self.rings.get_mut(&index) else { return };
        let Some(kick) = &mut ring.kick else { return };
        let _ = kick.read(&mut [0; 8]);
        let host = |at: u64| {
            let (_, base, region) =
                self.regions.iter().find(|(_, base, it)| (*base..*base + it.size() as u64).contains(&at)).unwrap();
            (region, (at - base) as usize)
        };
        let guest = |at: u64| {
            let (base, _, region) =
                self.regions.iter().find(|(base, _, it)| (*base..*base + it.size() as u64).contains(&at)).unwrap();
            (region, (at - base) as usize)
        };
        let [(area, desc), (_, avail), (_, used)] = ring.parts.map(host);
        let area = area.as_volatile_slice();
        while ring.seen != area.load::<u16>(avail + 2, Ordering::Acquire).unwrap() {
            let slot: u16 = area.read_obj(avail + 4 + 2 * usize::from(ring.seen % SLOTS)).unwrap();
            let behaviour = *self.behaviour.lock().unwrap(); // each time: it may change without a kick
            ring.seen = ring.seen.wrapping_add(1);
            self.known += 1;
            let table: u64 = area.read_obj(desc + 16 * usize::from(slot)).unwrap();
            let bytes: u32 = area.read_obj(desc + 16 * usize::from(slot) + 8).unwrap();
            let (tables, at) = guest(table);
            let mut request = Vec::new();
            let mut answer = Vec::new();
            for entry in (at..at + bytes as usize).step_by(16) {
                let entry: [u8; 16] = tables.as_volatile_slice().read_obj(entry).unwrap();
                let (region, at) = guest(u64::from_le_bytes(entry[..8].try_into().unwrap()));
                let len = u32::from_le_bytes(entry[8..12].try_into().unwrap()) as usize;
                if entry[12] & 2 == 0 {
                    let mut bytes = vec![0; len];
                    region.as_volatile_slice().read_slice(&mut bytes, at).unwrap();
                    request.extend(bytes);
                } else if behaviour != Behaviour::Hold {
                    if behaviour == Behaviour::Echo {
                        let piece: Vec<u8> = request.iter().skip(answer.len()).take(len).copied().collect();
                        region.as_volatile_slice().write_slice(&piece, at).unwrap();
                        answer.extend(piece);
                        continue;
                    }
                    if answer.is_empty() {
                        answer = [&16_u32.to_le_bytes()[..], &[0; 4], request.get(8..16).unwrap_or(&[0; 8])].concat();
                    }
                    let now = answer.len().min(len);
                    region.as_volatile_slice().write_slice(&answer[..now], at).unwrap();
                }
            }
            let (id, written) = match behaviour {
                Behaviour::Hold => continue,
                Behaviour::Serve | Behaviour::Echo => (slot.into(), answer.len().try_into().unwrap()),
                Behaviour::Lie(id) => (id, 16),
                Behaviour::Boast => (slot.into(), u32::MAX),
            };
            let entry = used + 4 + 8 * usize::from(ring.used % SLOTS);
            area.write_obj([id, written], entry).unwrap();
            ring.used = ring.used.wrapping_add(1);
            area.store(ring.used, used + 2, Ordering::Release).unwrap();
            ring.call.as_mut().unwrap().write_all(&1_u64.to_ne_bytes()).unwrap();
        }
    }
}
