//! One connection between a guest's socket and a UNIX socket: its state, its credit, its bytes. Worker thread.
//!
//! virtio 1.2, 5.10.6.3 (credit), 5.10.6.5 (life of a connection). Bytes towards the host go straight to the socket;
//! what it does not take is kept, at most `buf_alloc` of it, because the guest gets no credit for more.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::packet::{HEADER, Header, MAX_DATA, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::socket;
use crate::memory::GuestRam;
use crate::virtio::io::Held;
use crate::virtio::pieces::{Direction, IOV_MAX, Pieces, mark_dirty};
use crate::virtio::{Broken, Chain};

/// Bytes that are kept for a host that does not read, which the guest is told as buf_alloc: four packets of Linux, so
/// that the guest need not wait for credit after each.
pub const BUF_ALLOC: u32 = 256 << 10;
/// The same where there are many connections.
pub const BUF_ALLOC_OF_MANY: u32 = 64 << 10;
/// The header's place in a buffer.
const DATA: u64 = HEADER as u64;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A host's connection that has not said yet where it wants to go.
    Greeting,
    /// The guest was asked (or is to be) and has not answered.
    Asked,
    /// Both ends are there.
    Up,
    /// The guest's end is gone in good order; what it sent is still on its way to the host.
    Orphan,
    /// To be reset.
    Dead,
}

/// The ends of a connection: the host's port and the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    pub ports: Ports,
    pub phase: Phase,
    /// In the list of those that may have something for the guest.
    pub queued: bool,
    stream: UnixStream,
    /// The op (REQUEST or RESPONSE) that the guest waits for.
    opening: Option<u16>,
    readable: bool,
    /// What the host did not take yet, and how much that may be.
    kept: VecDeque<u8>,
    buf_alloc: u32,
    /// Bytes handed on to the host, and what of it the guest knows.
    fwd_cnt: u32,
    told: u32,
    credit_asked: bool,
    /// The guest's credit, and bytes sent to it.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    sent: u32,
    /// The guest was asked for credit.
    asked: bool,
    /// Shutdown flags of the guest, of the host, and what the guest knows of the latter.
    guest_shut: u32,
    host_shut: u32,
    host_told: u32,
}

impl Connection {
    /// A host's connection: it will say where to.
    pub fn greeting(stream: UnixStream, buf_alloc: u32) -> Self {
        Self::new(stream, Ports { host: 0, guest: 0 }, Phase::Greeting, buf_alloc)
    }

    /// A guest's connection, accepted.
    pub fn accepted(stream: UnixStream, ports: Ports, buf_alloc: u32) -> Self {
        Self { opening: Some(op::RESPONSE), ..Self::new(stream, ports, Phase::Up, buf_alloc) }
    }

    fn new(stream: UnixStream, ports: Ports, phase: Phase, buf_alloc: u32) -> Self {
        Self {
            ports,
            phase,
            queued: false,
            stream,
            opening: None,
            readable: true,
            kept: VecDeque::new(),
            buf_alloc,
            fwd_cnt: 0,
            told: 0,
            credit_asked: false,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            sent: 0,
            asked: false,
            guest_shut: 0,
            host_shut: 0,
            host_told: 0,
        }
    }

    /// Asks the guest to accept.
    pub fn ask(&mut self, ports: Ports) {
        (self.ports, self.phase, self.opening) = (ports, Phase::Asked, Some(op::REQUEST));
    }

    /// Reads the host's `CONNECT port\n`. Nothing while it is not all there; an error where it is something else.
    pub fn greeted(&mut self) -> Option<Result<u32, ()>> {
        let mut line = [0; 24];
        let got = match socket::peek(&self.stream, &mut line, false) {
            Ok(got) => got,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return None,
            Err(_) => return Some(Err(())),
        };
        let seen = line.get(..got).unwrap_or_default();
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            return (got == 0 || got == line.len()).then_some(Err(()));
        };
        let port = std::str::from_utf8(seen.get(..end).unwrap_or_default()).ok().and_then(|text| {
            let port = text.strip_prefix("CONNECT ")?.trim();
            port.parse().ok()
        });
        let whole = line.get_mut(..=end).unwrap_or_default();
        if socket::peek(&self.stream, whole, true).is_err() {
            return Some(Err(()));
        }
        Some(port.ok_or(()))
    }

    /// The guest has accepted: the host is told its port.
    pub fn answered(&mut self) {
        let line = format!("OK {}\n", self.ports.host);
        let is_awaited = self.phase == Phase::Asked;
        let told = is_awaited && socket::send_bytes(&self.stream, line.as_bytes()).is_ok_and(|sent| sent == line.len());
        self.phase = if told { Phase::Up } else { Phase::Dead };
    }

    /// The socket can be read, or the host has hung up altogether.
    pub fn heard(&mut self, hung_up: bool) {
        self.readable = true;
        if hung_up {
            match self.phase {
                Phase::Asked => self.phase = Phase::Dead,
                _ => self.host_shut |= SHUTDOWN_RECEIVE,
            }
        }
    }

    /// Takes over what a packet of the guest says about its credit.
    pub fn credit(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        if self.room() > 0 {
            self.asked = false;
        }
    }

    /// The guest wants to know its credit.
    pub fn credit_wanted(&mut self) {
        self.credit_asked = true;
    }

    fn room(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_fwd_cnt))
    }

    /// Data of the guest: `len` bytes behind the header.
    pub fn data(&mut self, chain: &Chain<'_>, len: u32, pieces: &mut Pieces) -> Result<(), Broken> {
        let kept = u32::try_from(self.kept.len()).unwrap_or(u32::MAX);
        // More than the credit, or after a shutdown: the guest lies (5.10.6.3.1).
        if self.phase != Phase::Up || self.guest_shut & SHUTDOWN_SEND != 0 || len > self.buf_alloc.saturating_sub(kept)
        {
            self.phase = Phase::Dead;
            return Ok(());
        }
        if self.host_shut & SHUTDOWN_RECEIVE != 0 {
            self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
            return Ok(());
        }
        let end = DATA.saturating_add(u64::from(len));
        let mut gone = 0_u32;
        if self.kept.is_empty() && len > 0 {
            pieces.clear();
            let added = pieces.add(Direction::Write, chain.memory(), chain.readable_part(DATA..end));
            let sent = added.and_then(|()| {
                let all = pieces.as_mut_slice();
                let count = all.len().min(IOV_MAX);
                socket::send(&self.stream, all.get_mut(..count).unwrap_or_default())
            });
            pieces.clear();
            match sent {
                Ok(sent) => gone = u32::try_from(sent).unwrap_or(len).min(len),
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                    return Err(Broken("a buffer is not in RAM"));
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => {
                    self.host_shut |= SHUTDOWN_RECEIVE;
                    gone = len;
                }
            }
        }
        self.fwd_cnt = self.fwd_cnt.wrapping_add(gone);
        let rest = usize::try_from(len.saturating_sub(gone)).unwrap_or(0);
        if rest > 0 {
            let mut bytes = vec![0; rest];
            let from = DATA.saturating_add(u64::from(gone));
            chain.read(from, &mut bytes).map_err(|_| Broken("a buffer is not in RAM"))?;
            self.kept.extend(bytes);
        }
        Ok(())
    }

    /// Hands on what was kept, as much as the host takes. True when the connection has nothing more to live for.
    pub fn flush(&mut self) -> bool {
        while !self.kept.is_empty() {
            let (first, _) = self.kept.as_slices();
            match socket::send_bytes(&self.stream, first) {
                Ok(sent) => self.forward(sent),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.host_shut |= SHUTDOWN_RECEIVE;
                    self.forward(self.kept.len());
                }
            }
        }
        self.kept = VecDeque::new();
        if self.guest_shut & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.guest_shut == SHUTDOWN_BOTH && self.phase == Phase::Up {
            self.phase = Phase::Dead; // the reset is the guest's answer (5.10.6.5)
        }
        self.phase == Phase::Orphan
    }

    fn forward(&mut self, len: usize) {
        self.kept.drain(..len.min(self.kept.len()));
        self.fwd_cnt = self.fwd_cnt.wrapping_add(u32::try_from(len).unwrap_or(0));
    }

    /// The guest shuts one of its directions, or both.
    pub fn shut(&mut self, flags: u32) {
        if self.phase != Phase::Up {
            self.phase = Phase::Dead;
            return;
        }
        self.guest_shut |= flags & SHUTDOWN_BOTH;
        if self.guest_shut & SHUTDOWN_RECEIVE != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush();
    }

    /// The guest's end is gone. True when the host's may go at once.
    pub fn reset(&mut self) -> bool {
        let orderly = self.guest_shut & SHUTDOWN_SEND != 0 && !self.kept.is_empty();
        self.phase = if orderly { Phase::Orphan } else { Phase::Dead };
        !orderly
    }

    /// Puts the next packets for the guest into the buffers `held` and their lengths into `written`: several when they
    /// are of data, none when there is nothing to say.
    pub fn next_packets(
        &mut self,
        cid: u64,
        memory: &GuestRam,
        held: &[Held],
        written: &mut Vec<u32>,
        pieces: &mut Pieces,
    ) -> Result<(), Broken> {
        let mut header = Header {
            src_cid: super::packet::HOST_CID,
            dst_cid: cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            kind: TYPE_STREAM,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        };
        let behind = self.fwd_cnt.wrapping_sub(self.told) >= self.buf_alloc / 4;
        if self.phase == Phase::Dead {
            header.op = op::RST;
        } else if let Some(op) = self.opening.take() {
            header.op = op;
        } else if self.phase != Phase::Up {
            return Ok(());
        } else if self.receive(memory, held, written, pieces)? {
            header.op = op::RW;
        } else if self.credit_asked || behind {
            header.op = op::CREDIT_UPDATE;
        } else if self.host_shut != self.host_told {
            // When the guest has said all and the host too, nobody receives any more.
            if self.host_shut & self.guest_shut & SHUTDOWN_SEND != 0 {
                self.host_shut = SHUTDOWN_BOTH;
            }
            (header.op, header.flags, self.host_told) = (op::SHUTDOWN, self.host_shut, self.host_shut);
        } else if self.readable && self.wants_data() && self.room() == 0 && !self.asked {
            (header.op, self.asked) = (op::CREDIT_REQUEST, true);
        } else {
            return Ok(());
        }
        if header.op != op::RST {
            (self.credit_asked, self.told) = (false, self.fwd_cnt);
        }
        if header.op != op::RW {
            written.push(0);
        }
        for (held, len) in held.iter().zip(written) {
            header.len = *len;
            let chain = held.chain(memory);
            chain.write(0, &header.to_bytes()).map_err(|_| Broken("a receive buffer is too short or not in RAM"))?;
            *len = len.saturating_add(u32::try_from(HEADER).unwrap_or(0));
        }
        Ok(())
    }

    fn wants_data(&self) -> bool {
        self.guest_shut & SHUTDOWN_RECEIVE == 0 && self.host_shut & SHUTDOWN_SEND == 0
    }

    /// Receives from the host into the buffers `held`, behind the headers' places; `lens` is how much for each. True when
    /// there was something.
    fn receive(
        &mut self,
        memory: &GuestRam,
        held: &[Held],
        lens: &mut Vec<u32>,
        pieces: &mut Pieces,
    ) -> Result<bool, Broken> {
        let mut room = self.room();
        if !self.readable || !self.wants_data() || room == 0 {
            return Ok(false);
        }
        pieces.clear();
        let mut added = Ok(());
        for chain in held.iter().map(|held| held.chain(memory)) {
            let place = chain.writable_len().saturating_sub(DATA).min(room.min(MAX_DATA).into());
            added = added.and_then(|()| {
                pieces.add(Direction::Read, memory, chain.writable_part(DATA..DATA.saturating_add(place)))
            });
            let place = u32::try_from(place).unwrap_or(0);
            room = room.saturating_sub(place);
            lens.push(place);
        }
        if pieces.is_empty() && added.is_ok() {
            lens.clear(); // no buffer has room for data
            return Ok(false);
        }
        let got = added.and_then(|()| {
            let all = pieces.as_mut_slice();
            let count = all.len().min(IOV_MAX);
            socket::receive(&self.stream, all.get_mut(..count).unwrap_or_default())
        });
        pieces.clear();
        match got {
            Ok(0) => self.host_shut |= SHUTDOWN_SEND,
            Ok(got) => {
                self.received(u32::try_from(got).unwrap_or(0), memory, held, lens);
                return Ok(true);
            }
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return Err(Broken("a buffer is not in RAM")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.host_shut |= SHUTDOWN_BOTH,
        }
        lens.clear();
        Ok(false)
    }

    /// So many bytes came, which fill the places `lens` one after the other.
    fn received(&mut self, got: u32, memory: &GuestRam, held: &[Held], lens: &mut Vec<u32>) {
        let mut left = got;
        for (held, len) in held.iter().zip(lens.iter_mut()) {
            *len = left.min(*len);
            left = left.saturating_sub(*len);
            let part = DATA..DATA.saturating_add(u64::from(*len));
            mark_dirty(memory, held.chain(memory).writable_part(part));
        }
        // A buffer with no room for data, with which a lying driver leads, stays in its place: it becomes a packet of
        // no bytes.
        while lens.last() == Some(&0) {
            lens.pop();
        }
        self.sent = self.sent.wrapping_add(got);
    }
}
