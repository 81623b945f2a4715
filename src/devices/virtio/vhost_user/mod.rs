//! vhost-user: a device's requests are served by another process, the back end. Worker threads; [`BackEnd::connect`]
//! on the control thread.
//!
//! Source: QEMU, docs/interop/vhost-user.rst. Where guest RAM is a file, the back end maps all of it, so it can do whatever
//! the guest can; where it is not, the back end gets copies of requests ([`copies`]). What it can not do: make the monitor
//! wait for long, read or write the monitor's memory, or have the guest's rings (see [`ring`]). A connection that was lost is
//! not made again: a back end's state (open files, locks) went with it.

pub mod connection;
mod copies;
#[cfg(test)]
pub mod fake;
#[cfg(any(test, feature = "testing"))]
pub mod hostile;
mod moving;
pub mod ring;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{RecvFlags, recv};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion, MmapRegion, VolatileMemory, VolatileSlice};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::connection::{Connection, DEVICE_STATE, PROTOCOL_FEATURES, REPLY_ACK, Request, quads, words};
use self::copies::Copies;
use self::ring::{AREA, BLOCKS, Done, Lie, Ring, SLOTS};
use super::{Chain, Held, Source};
use crate::memory::GuestRam;

/// Where the rings' memory is for a back end: above all guest RAM.
const AREA_GPA: u64 = 1 << 50;

/// Features that the rings need.
const NEEDED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The token of [`BackEnd::sources`] that says that the back end may be gone; the others are rings.
pub const HANG_UP: u16 = 0x100;

/// A back end and the rings that it serves.
#[derive(Debug)]
pub struct BackEnd {
    connection: Connection,
    features: u64,
    area: MmapRegion<()>,
    rings: Vec<Wired>,
    /// It serves the rings.
    running: bool,
    /// It does not map guest memory.
    copies: bool,
}

/// A ring with its two events.
#[derive(Debug)]
struct Wired {
    ring: Ring,
    /// Where its area is for the back end.
    gpa: u64,
    copies: Copies,
    kick: EventFd,
    call: EventFd,
}

impl BackEnd {
    /// Greets the back end on the other side of `stream`, which may take `patience` for each answer, and makes `rings`
    /// rings for it.
    pub fn connect(stream: UnixStream, rings: usize, patience: Duration) -> io::Result<Self> {
        let mut connection = Connection::new(stream, patience)?;
        let features = connection.ask(Request::GetFeatures)?;
        if features & NEEDED != NEEDED {
            let missing = NEEDED & !features;
            return Err(io::Error::other(format!("it lacks virtio features that are needed ({missing:#x})")));
        }
        connection.tell(Request::SetOwner, &[], &[])?;
        if features & PROTOCOL_FEATURES != 0 {
            let protocol = connection.ask(Request::GetProtocolFeatures)? & (REPLY_ACK | DEVICE_STATE);
            connection.tell(Request::SetProtocolFeatures, &quads([protocol]), &[])?;
            connection.acknowledges = protocol & REPLY_ACK != 0;
            connection.moves = protocol & DEVICE_STATE != 0;
        }
        let area = area(rings)?;
        let rings =
            (0..rings).map(|index| Wired::new(AREA_GPA.saturating_add(at(index)))).collect::<io::Result<_>>()?;
        let features = features & (NEEDED | PROTOCOL_FEATURES);
        Ok(Self { connection, features, area, rings, running: false, copies: false })
    }

    /// Files to wait for: the rings' events, with the ring as token, and the connection ([`HANG_UP`]).
    pub fn sources(&self) -> Vec<Source> {
        let rings = (0..HANG_UP).zip(&self.rings);
        let rings = rings.map(|(token, wired)| Source { token, fd: wired.call.as_raw_fd() });
        rings.chain([Source { token: HANG_UP, fd: self.connection.stream().as_raw_fd() }]).collect()
    }

    /// Gives guest memory, where another process can map it, and empty rings to the back end.
    pub fn start(&mut self, memory: &GuestRam) -> io::Result<()> {
        self.copies = memory.iter().any(|region| region.file_offset().is_none());
        let table = regions(memory.iter().filter(|_| !self.copies), &self.area)?;
        for (index, wired) in self.rings.iter_mut().enumerate() {
            wired.copies = Copies::new();
            wired.ring.reset(&part(&self.area, index)?)?;
        }
        self.connection.tell(Request::SetFeatures, &quads([self.features]), &[])?;
        self.connection.tell(Request::SetMemTable, &table.0, &table.1)?;
        for index in 0..self.rings.len() {
            self.start_ring(index)?;
        }
        self.running = true;
        Ok(())
    }

    fn start_ring(&mut self, index: usize) -> io::Result<()> {
        let Some(wired) = self.rings.get(index) else { return Ok(()) };
        let number = u32::try_from(index).map_err(io::Error::other)?;
        let base = self.area.as_ptr() as u64;
        let [desc, avail, used] = Ring::parts().map(|part| base.saturating_add(at(index)).saturating_add(part as u64));
        let event = quads([number.into()]);
        let connection = &mut self.connection;
        connection.tell(Request::SetVringNum, &words([number, SLOTS.into()]), &[])?;
        connection.tell(Request::SetVringBase, &words([number, 0]), &[])?;
        let addresses = [words([number, 0]), quads([desc, used, avail, 0])].concat();
        connection.tell(Request::SetVringAddr, &addresses, &[])?;
        connection.tell(Request::SetVringCall, &event, &[wired.call.as_raw_fd()])?;
        connection.tell(Request::SetVringKick, &event, &[wired.kick.as_raw_fd()])?;
        if self.features & PROTOCOL_FEATURES != 0 {
            connection.tell(Request::SetVringEnable, &words([number, 1]), &[])?;
        }
        wired.kick.write(1) // some back ends start a ring at its first kick
    }

    /// Whether it serves the rings.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Takes the rings away from the back end, which serves no request of them any more when this returns.
    pub fn stop(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.running, false) {
            return Ok(());
        }
        for number in (0_u32..).take(self.rings.len()) {
            self.connection.ask_base(number)?;
        }
        Ok(())
    }

    /// Whether ring `index` has room for a request.
    pub fn has_room(&self, index: usize) -> bool {
        let room = |wired: &Wired| !wired.ring.is_full() && (!self.copies || wired.copies.have_room());
        self.rings.get(index).is_some_and(room)
    }

    /// Whether no requests are out.
    pub fn is_idle(&self) -> bool {
        self.rings.iter().all(|wired| wired.ring.is_empty())
    }

    /// Whether a request is of a size that the back end can have.
    pub fn can_have(&self, request: &Chain<'_>) -> bool {
        !self.copies || copies::fits(request)
    }

    /// Puts a request that it can have into ring `index`, which has room.
    pub fn put(&mut self, index: usize, (held, since): (Held, Instant), memory: &GuestRam) -> io::Result<()> {
        let area = part(&self.area, index)?;
        let wired = self.rings.get_mut(index).ok_or(io::ErrorKind::NotFound)?;
        let chain = held.chain(memory);
        let copy = match self.copies {
            true => Some(wired.copies.take(&chain, &pool(&area)?)?),
            false => None,
        };
        let (readable, writable) = match &copy {
            Some(copy) => copy.segments(&chain, wired.gpa.saturating_add(BLOCKS as u64)),
            None => (chain.readable_part(0..u64::MAX).collect(), chain.writable_part(0..u64::MAX).collect()),
        };
        wired.ring.put(&area, (held, copy, since), readable.into_iter(), writable.into_iter())
    }

    /// Tells the back end of what was put into ring `index`, unless it looks by itself.
    pub fn kick(&self, index: usize) -> io::Result<()> {
        let Some(wired) = self.rings.get(index) else { return Ok(()) };
        if wired.ring.wants_kick(&part(&self.area, index)?) { wired.kick.write(1) } else { Ok(()) }
    }

    /// The next request of ring `index` that is done, and how many bytes the back end says to have written.
    pub fn take(&mut self, index: usize, memory: &GuestRam) -> Result<Option<Done>, Lie> {
        let area = part(&self.area, index).map_err(|_| Lie)?;
        let Some(wired) = self.rings.get_mut(index) else { return Ok(None) };
        let mut done = wired.ring.take(&area)?;
        if let Some(Done { held, copy, said, .. }) = &mut done
            && let Some(copy) = copy.take()
        {
            let pool = pool(&area).map_err(|_| Lie)?;
            wired.copies.give(copy, &held.chain(memory), u64::from(*said), &pool).map_err(|_| Lie)?;
        }
        Ok(done)
    }

    /// Takes back the requests of a back end that is gone.
    pub fn take_all(&mut self, index: usize) -> Vec<Held> {
        let Some(wired) = self.rings.get_mut(index) else { return Vec::new() };
        wired.copies = Copies::new();
        wired.ring.take_all()
    }

    /// Waits until a request may be done, or the back end gone.
    pub fn wait(&self, most: Duration) -> io::Result<()> {
        let epoll = Epoll::new()?;
        for source in self.sources() {
            epoll.ctl(ControlOperation::Add, source.fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        let most = i32::try_from(most.as_millis()).unwrap_or(i32::MAX);
        epoll.wait(most, &mut [EpollEvent::default()])?;
        for wired in &self.rings {
            let _ = wired.call.read();
        }
        Ok(())
    }

    /// Whether the back end has hung up. It never speaks unasked, so anything else that it says is as bad.
    pub fn is_gone(&self) -> bool {
        let mut byte = [0; 1];
        let seen = recv(self.connection.stream().as_fd(), &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        !matches!(seen, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR))
    }
}

impl Wired {
    fn new(gpa: u64) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self { ring: Ring::new(gpa), gpa, copies: Copies::new(), kick: event()?, call: event()? })
    }
}

/// Memory for so many rings, which the back end can not take away from under the monitor.
fn area(rings: usize) -> io::Result<MmapRegion<()>> {
    let len = AREA.saturating_mul(rings);
    let file = std::fs::File::from(memfd_create("vhost-user-rings", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(u64::try_from(len).map_err(io::Error::other)?)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    MmapRegion::from_file(FileOffset::new(file, 0), len).map_err(io::Error::other)
}

/// Where ring `index` begins in their memory.
fn at(index: usize) -> u64 {
    u64::try_from(AREA.saturating_mul(index)).unwrap_or(u64::MAX)
}

fn part(area: &MmapRegion<()>, index: usize) -> io::Result<VolatileSlice<'_>> {
    area.get_slice(AREA.saturating_mul(index), AREA).map_err(io::Error::other)
}

/// The blocks with copies of a ring's requests.
fn pool<'a>(area: &VolatileSlice<'a>) -> io::Result<VolatileSlice<'a>> {
    area.offset(BLOCKS).map_err(io::Error::other)
}

/// VHOST_USER_SET_MEM_TABLE: ranges of guest RAM and the rings' memory, with their files.
fn regions<'a>(
    memory: impl Iterator<Item = &'a <GuestRam as GuestMemoryBackend>::R>,
    area: &MmapRegion<()>,
) -> io::Result<(Vec<u8>, Vec<i32>)> {
    let mut regions = Vec::new();
    let mut fds = Vec::new();
    let rings = (AREA_GPA, area.size() as u64, area.as_ptr() as u64, area.file_offset());
    let ram = memory.map(|it| (it.start_addr().0, it.len(), it.as_ptr() as u64, it.file_offset()));
    for (gpa, len, host, file) in ram.chain([rings]) {
        let file = file.ok_or_else(|| io::Error::other("guest memory is not shared with other processes"))?;
        regions.push(quads([gpa, len, host, file.start()]));
        fds.push(file.file().as_raw_fd());
    }
    let count = u32::try_from(regions.len()).map_err(io::Error::other)?;
    Ok(([words([count, 0]), regions.concat()].concat(), fds))
}
