//! The host's end of a network interface: a TAP device (Linux, Documentation/networking/tuntap.rst), or a socket that
//! keeps frames apart. Opened by the control thread, used by the interface's worker; never blocks.
#![allow(unsafe_code)] // ioctl(2), readv(2), writev(2), fcntl(2)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

use super::HEADER;
use crate::virtio::pieces::{IOV_MAX, Pieces};

/// linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2u32 as libc::Ioctl;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUNSETQUEUE: libc::Ioctl = 0x4004_54d9;
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// What the guest's side can take: checksums to be done, TCP segments of IPv4 and IPv6, with ECN, UDP segments.
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;
const USO: u32 = TUN_F_USO4 | TUN_F_USO6;

/// What a driver takes (virtio 1.2, 5.1.3), and how the host is told.
const OFFLOADS: [(u32, u32); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, TUN_F_USO6),
];

/// struct ifreq: a name, then a union of which the flags are used.
#[repr(C)]
struct Ifreq {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// An open back end, or one queue of it: a TAP device has a file for each queue pair of the guest.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// Frames have a virtio_net_hdr_v1 before them: it is a TAP device.
    has_header: bool,
    /// The host knows UDP segments (Linux 6.2).
    has_uso: bool,
    /// It is a socket of packets, whose other end can hang up.
    is_connection: bool,
}

impl Tap {
    /// Opens a TAP device, once for each queue pair. The first is in use, the others are detached.
    pub fn by_name(name: &str, pairs: u16) -> io::Result<Vec<Self>> {
        let several = if pairs > 1 { IFF_MULTI_QUEUE } else { 0 };
        let taps = (0..pairs).map(|_| Self::queue_of(name, several)).collect::<io::Result<Vec<_>>>()?;
        taps.iter().skip(1).try_for_each(|tap| tap.attach(false))?;
        Ok(taps)
    }

    fn queue_of(name: &str, more: u16) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | more;
        let mut request = Ifreq { name: [0; 16], flags, rest: [0; 22] };
        for (to, from) in request.name.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        // SAFETY: TUNSETIFF reads and writes a struct ifreq, 40 bytes, which is what the pointer leads to.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        Self::prepared(file)
    }

    /// Uses an open file: a TAP device, or a socket of datagrams or packets.
    pub fn of(file: File) -> io::Result<Self> {
        // SAFETY: the descriptor is open; F_GETFL and F_SETFL take no pointers.
        let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
        // SAFETY: as above.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
        let mut request = Ifreq { name: [0; 16], flags: 0, rest: [0; 22] };
        // SAFETY: TUNGETIFF writes a struct ifreq, 40 bytes, which is what the pointer leads to.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF, &raw mut request) } == 0 {
            if request.flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) != IFF_TAP | IFF_NO_PI | IFF_VNET_HDR {
                return Err(io::Error::other("it is no TAP device with IFF_VNET_HDR and IFF_NO_PI"));
            }
            return Self::prepared(file);
        }
        let mut kind: libc::c_int = 0;
        let mut len = 4;
        // SAFETY: SO_TYPE writes one int; both pointers lead to what is written, and `len` says its size.
        let asked = unsafe {
            libc::getsockopt(file.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut len)
        };
        if asked != 0 || (kind != libc::SOCK_DGRAM && kind != libc::SOCK_SEQPACKET) {
            return Err(io::Error::other("it is neither a TAP device nor a socket of frames"));
        }
        Ok(Self { file, has_header: false, has_uso: false, is_connection: kind == libc::SOCK_SEQPACKET })
    }

    fn prepared(file: File) -> io::Result<Self> {
        let size = libc::c_int::try_from(HEADER).unwrap_or(0);
        // SAFETY: TUNSETVNETHDRSZ reads one int, which the pointer leads to.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })?;
        let mut tap = Self { file, has_header: true, has_uso: false, is_connection: false };
        tap.has_uso = tap.set_offload(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | USO).is_ok();
        tap.set_offload(0)?;
        Ok(tap)
    }

    /// Takes this queue of a TAP device with several into use, or out of it: frames then go to the others. Nothing for
    /// a socket.
    pub fn attach(&self, on: bool) -> io::Result<()> {
        if !self.has_header {
            return Ok(());
        }
        let flags = if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        let request = Ifreq { name: [0; 16], flags, rest: [0; 22] };
        // SAFETY: TUNSETQUEUE reads a struct ifreq, 40 bytes, which is what the pointer leads to.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETQUEUE, &raw const request) }).map(|_| ())
    }

    /// Says what the guest can take; nothing for a socket. It goes for all queues of a TAP device.
    fn set_offload(&self, flags: u32) -> io::Result<()> {
        if !self.has_header {
            return Ok(());
        }
        // SAFETY: TUNSETOFFLOAD takes a number, not a pointer.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) }).map(|_| ())
    }

    /// Whether it is a TAP device.
    pub fn is_tap(&self) -> bool {
        self.has_header
    }

    /// The features (virtio 1.2, 5.1.3) that leave checksums and segments to the other side.
    pub fn features(&self) -> u64 {
        let host = [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN];
        let host = host.into_iter().chain(self.has_uso.then_some(VIRTIO_NET_F_HOST_USO));
        let guest = OFFLOADS.iter().filter(|(_, flag)| self.has_uso || flag & USO == 0).map(|(feature, _)| *feature);
        host.chain(guest).filter(|_| self.has_header).fold(0, |bits, bit| bits | 1 << bit)
    }

    /// What the driver of these features can take is left to it.
    pub fn leave_to_guest(&self, features: u64) -> io::Result<()> {
        let taken = OFFLOADS.iter().filter(|(feature, _)| features & (1 << feature) != 0);
        self.set_offload(taken.fold(0, |flags, (_, flag)| flags | flag))
    }

    /// Reads a frame with its header: first into `head`, which has room for the header, then into `pieces`, then into
    /// `rest`; its length. A frame that is longer is cut. An error other than WouldBlock means that there will be no
    /// more frames.
    pub fn receive(&mut self, head: &mut [u8], pieces: &mut Pieces, rest: &mut [u8]) -> io::Result<usize> {
        let skip = if self.has_header { 0 } else { HEADER };
        let (header, head) = head.split_at_mut_checked(skip).ok_or(io::ErrorKind::InvalidInput)?;
        header.fill(0);
        loop {
            match pieces.read_between(self.file.as_fd(), head, rest) {
                // The other end of a connection of packets has hung up.
                Ok(0) if self.is_connection => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => return Ok(len.saturating_add(skip)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What an earlier frame of ours met; a datagram socket goes on.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::ECONNRESET)) => {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes a frame with its header, whole or not at all.
    pub fn send(&self, pieces: &mut [libc::iovec]) -> io::Result<()> {
        let pieces = if self.has_header { pieces } else { crate::virtio::pieces::advance(pieces, HEADER) };
        if pieces.len() > IOV_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let count = libc::c_int::try_from(pieces.len()).unwrap_or(0);
        loop {
            // SAFETY: the pieces are ranges of guest RAM that vm-memory checked when they were added; the RAM stays
            // mapped while our caller borrows it, and no Rust reference into it exists.
            let sent = unsafe { libc::writev(self.file.as_raw_fd(), pieces.as_ptr(), count) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// The descriptor, to wait for frames.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// A duplicate of an inherited descriptor, so that the descriptor itself stays whoever's it is.
pub fn duplicate(fd: RawFd) -> io::Result<File> {
    // SAFETY: fcntl with F_GETFD takes no pointer; a number that is no open descriptor is an error.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open, as was just seen, and the borrow ends before anyone could close it: this is
    // the control thread, before anything runs.
    Ok(File::from(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An error in words, with its cure where one is known.
pub fn why(error: &io::Error) -> String {
    let cure = match error.raw_os_error() {
        Some(libc::ENOENT) => "/dev/net/tun does not exist (modprobe tun; in a container, pass the device in)",
        Some(libc::EPERM) => {
            "no permission: creating one takes CAP_NET_ADMIN, using one made for this user does not (ip tuntap add NAME \
             mode tap vnet_hdr user USER)"
        }
        Some(libc::EACCES) => "no permission to open /dev/net/tun",
        Some(libc::EBUSY) => "another process uses it",
        Some(libc::EINVAL) => {
            "an interface of that name exists and is no TAP device, or its kind (ip tuntap add ... multi_queue) does not \
             fit queue_pairs: several pairs need multi_queue, one pair does without"
        }
        Some(libc::EBADF) => "no such descriptor is open",
        _ => return error.to_string(),
    };
    cure.to_owned()
}
