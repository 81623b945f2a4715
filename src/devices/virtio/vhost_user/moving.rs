//! A back end's own state, saved and loaded: what it knows of its guest beside the rings. Worker threads.
//!
//! Source: QEMU, docs/interop/vhost-user.rst ("Migrating back-end state"; VHOST_USER_SET_DEVICE_STATE_FD,
//! VHOST_USER_CHECK_DEVICE_STATE). The rings are at rest meanwhile, and no requests are out. They need no state: they are
//! ours, and begin empty. Neither side can make this one wait for long, nor keep more than a bounded number of bytes.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::connection::{Request, words};
use super::{BackEnd, part};

/// Most bytes of a state: some hundred for each file that the guest knows.
const STATE_MAX: usize = 64 << 20;
/// Bytes that are moved at once; less than a socket takes without being read.
const PIECE: usize = 64 << 10;
/// The directions of a transfer: VHOST_TRANSFER_STATE_DIRECTION_SAVE and LOAD.
const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// VHOST_TRANSFER_STATE_PHASE_STOPPED: the rings are at rest.
const STOPPED: u32 = 0;
/// The back end has no descriptor of its own for the transfer (the bit that is VHOST_USER_VRING_NOFD elsewhere).
const NO_DESCRIPTOR: u64 = 1 << 8;

impl BackEnd {
    /// Whether it hands its state over.
    pub fn can_move(&self) -> bool {
        self.connection.moves
    }

    /// What it knows of its guest, in a form of its own.
    pub fn save(&mut self) -> io::Result<Vec<u8>> {
        self.at_rest(|back_end| {
            let mut ours = back_end.transfer(SAVE)?;
            let until = back_end.until();
            let mut state = Vec::new();
            let mut piece = vec![0; PIECE];
            loop {
                ours.set_read_timeout(Some(left(until)?))?;
                let len = ours.read(&mut piece)?;
                if len == 0 {
                    break;
                }
                state.extend_from_slice(piece.get(..len).unwrap_or_default());
                if state.len() > STATE_MAX {
                    return Err(io::Error::other(format!("its state has more than {STATE_MAX} bytes")));
                }
            }
            back_end.check().map(|()| state)
        })
    }

    /// Makes it know what another one knew, which has served no request yet.
    pub fn load(&mut self, state: &[u8]) -> io::Result<()> {
        self.at_rest(|back_end| {
            let mut ours = back_end.transfer(LOAD)?;
            let until = back_end.until();
            for piece in state.chunks(PIECE) {
                ours.set_write_timeout(Some(left(until)?))?;
                ours.write_all(piece)?;
            }
            ours.shutdown(Shutdown::Both)?;
            back_end.check()
        })
    }

    /// Our end of the connection by which the state goes.
    fn transfer(&mut self, direction: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let order = words([direction, STOPPED]);
        match self.connection.ask_with(Request::SetDeviceStateFd, &order, &[theirs.as_raw_fd()])? {
            NO_DESCRIPTOR => Ok(ours),
            0 => Err(io::Error::other("it wants a descriptor of its own for its state")),
            error => Err(io::Error::other(format!("it refuses to move its state ({error:#x})"))),
        }
    }

    /// When the transfer must have come to its end.
    fn until(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.connection.patience()).unwrap_or(now)
    }

    /// Whether all went well on the other side.
    fn check(&mut self) -> io::Result<()> {
        match self.connection.ask(Request::CheckDeviceState)? {
            0 => Ok(()),
            error => Err(io::Error::other(format!("it says that its state was not moved ({error:#x})"))),
        }
    }

    /// Does `work` while the back end serves no rings, which then are as they were: empty.
    fn at_rest<T>(&mut self, work: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        let was_running = self.running;
        self.stop()?;
        let done = work(self)?;
        if was_running {
            for index in 0..self.rings.len() {
                let area = part(&self.area, index)?;
                self.rings.get_mut(index).map_or(Ok(()), |wired| wired.ring.reset(&area))?;
                self.start_ring(index)?;
            }
            self.running = true;
        }
        Ok(done)
    }
}

/// The time until then, which is not over.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::Error::other("its state does not come to an end")) } else { Ok(left) }
}
