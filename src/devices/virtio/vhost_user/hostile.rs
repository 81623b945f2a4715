//! A back end that does what arbitrary bytes say, for fuzzing: it answers messages rightly or not, says what nobody asked,
//! and writes into the rings what it likes. On a thread of its own; [`Hostile::act`] on the test's.
#![allow(unsafe_code)] // recvmsg(2) with descriptors
#![allow(clippy::expect_used, clippy::arithmetic_side_effects)] // it is for tests: failing is its job

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, spawn};

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::NEEDED;
use super::connection::{PROTOCOL_FEATURES, REPLY_ACK, Request, quads, words};
use super::ring::{AREA, Ring, SLOTS};

/// Bytes of a message's header.
const HEADER: usize = 12;
/// Longest message that the monitor sends, with room to spare.
const MESSAGE_MAX: usize = 4096;

/// The back end, as the test sees it. It hangs up when it is dropped.
pub struct Hostile {
    shared: Arc<Mutex<Shared>>,
    socket: UnixStream,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// What it does with the messages that come; after the end it is honest.
    script: Vec<u8>,
    /// The rings' memory.
    area: Option<MmapRegion<()>>,
    /// The events that say that requests are done.
    calls: HashMap<u32, File>,
    /// Requests of each ring that it has returned.
    done: HashMap<u32, u16>,
}

impl Shared {
    fn next(&mut self) -> u8 {
        if self.script.is_empty() { 0 } else { self.script.remove(0) }
    }
}

impl Hostile {
    /// Starts one that answers as `script` says, and returns the monitor's end of the connection to it.
    pub fn start(script: &[u8]) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket");
        let shared = Arc::new(Mutex::new(Shared { script: script.to_vec(), ..Shared::default() }));
        let (heard, socket) = (Arc::clone(&shared), theirs.try_clone().expect("a descriptor"));
        let thread = spawn(move || while answer(&theirs, &heard).is_ok() {});
        (Self { shared, socket, thread: Some(thread) }, ours)
    }

    /// Does one thing: the first byte says what, the second to which ring, the others with what.
    pub fn act(&self, bytes: &[u8]) {
        let Some((&[what, ring, low, high], rest)) = bytes.split_first_chunk::<4>() else { return };
        let (ring, number) = (u32::from(ring % 2), u16::from_le_bytes([low, high]));
        let mut shared = lock(&self.shared);
        match what % 8 {
            0 => _ = (&self.socket).write(rest),
            1 => _ = self.socket.shutdown(Shutdown::Both),
            2 => shared.write(ring, usize::from(number % 8192), rest),
            3 => shared.write(ring, used_index(), &number.to_le_bytes()),
            _ => {
                let len = rest.first_chunk().map_or(16, |bytes| u32::from_le_bytes(*bytes));
                shared.give_back(ring, number % (SLOTS + 2), len);
            }
        }
        if let Some(mut call) = shared.calls.get(&ring) {
            let _ = call.write(&1_u64.to_ne_bytes());
        }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// Writes `bytes` at `at` in the memory of `ring`.
    fn write(&self, ring: u32, at: usize, bytes: &[u8]) {
        let Some(area) = &self.area else { return };
        let at = AREA.saturating_mul(usize::try_from(ring).unwrap_or(0)).saturating_add(at);
        let _ = area.as_volatile_slice().write(bytes, at);
    }

    /// Returns request `id`, out or not, with so many bytes in it (virtio 1.2, 2.7.8).
    fn give_back(&mut self, ring: u32, id: u16, len: u32) {
        let [_, _, used] = Ring::parts();
        let done = self.done.entry(ring).or_default();
        let entry = used.saturating_add(4).saturating_add(usize::from(*done % SLOTS).saturating_mul(8));
        *done = done.wrapping_add(1);
        let index = done.to_le_bytes();
        self.write(ring, entry, &words([id.into(), len]));
        self.write(ring, used_index(), &index);
    }
}

/// Where the used ring's index is in a ring's memory.
fn used_index() -> usize {
    let [_, _, used] = Ring::parts();
    used.saturating_add(2)
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears one message and answers it; an error when there will be no more.
fn answer(mut socket: &UnixStream, shared: &Mutex<Shared>) -> io::Result<()> {
    let mut header = [0_u8; HEADER];
    let mut fds = [-1; 8];
    let mut iovec = [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER }];
    // SAFETY: the vector is that of the array, which may hold any bytes.
    let (len, count) = unsafe { socket.recv_with_fds(&mut iovec, &mut fds) }?;
    // SAFETY: the kernel made these descriptors for this call, and nobody else knows them.
    let files = fds.iter().take(count).map(|fd| unsafe { File::from_raw_fd(*fd) }).collect();
    if len != HEADER {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let [request, flags, size] =
        [0, 4, 8].map(|at| header.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word)));
    let mut payload = vec![0; usize::try_from(size).unwrap_or(0).min(MESSAGE_MAX)];
    socket.read_exact(&mut payload)?;
    let honest = lock(shared).heard(request, &payload, files).or((flags & 8 != 0).then_some(0));
    let Some(honest) = honest else { return Ok(()) };
    let message = |value| [words([request, 1 | 4, 8]), quads([value])].concat();
    let mut shared = lock(shared);
    let said = match shared.next() % 16 {
        12 => message(u64::from(shared.next()) << (shared.next() % 64)),
        13 => {
            let len = usize::from(shared.next() % 32).min(shared.script.len());
            shared.script.drain(..len).collect()
        }
        14 => return Ok(()), // it says nothing
        15 => return socket.shutdown(Shutdown::Both),
        _ => message(honest),
    };
    socket.write_all(&said)
}

impl Shared {
    /// Takes in a message; what an honest back end answers, where there is an answer.
    fn heard(&mut self, request: u32, payload: &[u8], mut files: Vec<File>) -> Option<u64> {
        let word = payload.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
        match request {
            _ if request == Request::GetFeatures as u32 => return Some(NEEDED | PROTOCOL_FEATURES),
            _ if request == Request::GetProtocolFeatures as u32 => return Some(REPLY_ACK),
            _ if request == Request::GetVringBase as u32 => return Some(u64::from(word)),
            _ if request == Request::SetMemTable as u32 => {
                let area =
                    files.pop().map(|file| MmapRegion::from_file(FileOffset::new(file, 0), AREA.saturating_mul(2)));
                self.area = area.and_then(Result::ok);
                self.done.clear();
            }
            _ if request == Request::SetVringCall as u32 => {
                files.pop().and_then(|call| self.calls.insert(word, call));
            }
            _ => {}
        }
        None
    }
}
