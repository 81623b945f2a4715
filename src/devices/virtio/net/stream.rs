//! The host's end of a network interface as a stream socket: each frame has its length before it, 4 bytes, the highest
//! first. So do passt, and QEMU's `-netdev stream` (QEMU, net/stream.c). Opened by the control thread, used by the
//! interface's worker; never blocks.
//!
//! A stream loses nothing: while the other end does not read, one frame waits here and the guest keeps the others. An end
//! that announces a frame longer than any is not to be trusted with the rest of the stream.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{FRAME_MAX, HEADER};
use crate::virtio::Chain;
use crate::virtio::pieces::bad_address;

/// Bytes of the length before a frame.
const LENGTH: usize = 4;
/// Longest frame without its virtio header.
const BYTES_MAX: usize = FRAME_MAX - HEADER;
/// Bytes that are read at once, at most: more than any frame has.
const ROOM: usize = 128 << 10;

/// An open stream.
pub struct Stream {
    socket: UnixStream,
    /// Readable when the socket is, or when it has room that is waited for: the worker looks for readable files alone.
    watch: Epoll,
    /// What came: `came[start..end]` is not taken yet.
    came: Box<[u8]>,
    start: usize,
    end: usize,
    /// A frame that the socket has not taken whole: `going[gone..]` is left of it. Empty otherwise.
    going: Vec<u8>,
    gone: usize,
}

impl Stream {
    /// Takes a connected socket into use.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let watch = Epoll::new()?;
        watch.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
        let came = vec![0; ROOM].into_boxed_slice();
        Ok(Self { socket, watch, came, start: 0, end: 0, going: Vec::new(), gone: 0 })
    }

    /// The descriptor, to wait for frames and for room.
    pub fn fd(&self) -> RawFd {
        self.watch.as_raw_fd()
    }

    /// Reads a frame into `buffer`, behind an empty header; the length of both. An error other than WouldBlock means that
    /// there will be no more frames.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(len) = self.take(buffer)? {
                return Ok(len);
            }
            self.came.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end.saturating_sub(self.start));
            match self.socket.read(self.came.get_mut(self.end..).unwrap_or_default()) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has hung up")),
                Ok(len) => self.end = self.end.saturating_add(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a frame that came whole.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let came = self.came.get(self.start..self.end).unwrap_or_default();
        let Some((length, rest)) = came.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*length);
        let len = usize::try_from(announced).unwrap_or(usize::MAX);
        if len > BYTES_MAX {
            // Nothing behind it can be understood: the other end shall not go on.
            let _ = self.socket.shutdown(Shutdown::Both);
            let text = format!("it announces a frame of {announced} bytes; {BYTES_MAX} are the most");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        let (header, room) = buffer.split_at_mut_checked(HEADER).ok_or(io::ErrorKind::InvalidInput)?;
        header.fill(0);
        room.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(frame);
        self.start = self.start.saturating_add(LENGTH).saturating_add(len);
        Ok(Some(HEADER.saturating_add(len)))
    }

    /// Whether it takes another frame.
    pub fn has_room(&self) -> bool {
        self.going.is_empty()
    }

    /// Sends the frame in `chain`, with a header that says nothing. What the socket does not take at once goes with
    /// [`Self::flush`]; until then there is no room for another.
    pub fn send(&mut self, chain: &Chain<'_>) -> io::Result<()> {
        let len = chain.readable_len().checked_sub(HEADER as u64).and_then(|len| usize::try_from(len).ok());
        let len = len.filter(|len| *len <= BYTES_MAX && self.has_room()).ok_or(io::ErrorKind::InvalidInput)?;
        self.gone = 0;
        self.going.extend(u32::try_from(len).unwrap_or(0).to_be_bytes());
        self.going.resize(LENGTH.saturating_add(len), 0);
        if chain.read(HEADER as u64, self.going.get_mut(LENGTH..).unwrap_or_default()).is_err() {
            self.going.clear();
            return Err(bad_address());
        }
        self.push()?;
        if self.has_room() { Ok(()) } else { self.wait_for_room(true) }
    }

    /// Goes on with what waits; whether there is room again after a wait. A stream that failed takes, and fails, all.
    pub fn flush(&mut self) -> bool {
        if self.has_room() {
            return false;
        }
        let failed = self.push().is_err();
        let done = failed || self.has_room();
        if done {
            let _ = self.wait_for_room(false); // at worst the worker wakes in vain
        }
        done
    }

    /// Writes what the socket takes.
    fn push(&mut self) -> io::Result<()> {
        while let Some(rest) = self.going.get(self.gone..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(len) => self.gone = self.gone.saturating_add(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.going.clear();
                    return Err(error);
                }
            }
        }
        self.going.clear();
        Ok(())
    }

    fn wait_for_room(&self, on: bool) -> io::Result<()> {
        let wanted = if on { EventSet::IN | EventSet::OUT } else { EventSet::IN };
        self.watch.ctl(ControlOperation::Modify, self.socket.as_raw_fd(), EpollEvent::new(wanted, 0))
    }
}
