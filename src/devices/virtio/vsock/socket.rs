//! The host's side of a vsock: UNIX stream sockets that never block, and the epoll that watches them all. Worker thread.
#![allow(unsafe_code)] // socket(2), connect(2), sendmsg(2), recvmsg(2), setrlimit(2)

use std::fs;
use std::io::{self, ErrorKind};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::virtio::OpenError;

/// Longest path of a socket (sun_path, with its NUL).
pub const PATH_MAX: usize = 107;

/// The listening socket. Its file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that only our own is removed.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`; takes the file of a socket over that nobody listens at.
    pub fn bind(path: &Path) -> Result<Self, OpenError> {
        let wrong = |error: &dyn std::fmt::Display| {
            OpenError::new(format!("the vsock's socket {} can not be made: {error}", path.display()))
        };
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                if !fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                    return Err(wrong(&"a file that is no socket is there; remove it or choose another path"));
                }
                // A listener with a full backlog says EAGAIN: it lives.
                match connect(path).map_err(|error| error.kind()) {
                    Err(ErrorKind::ConnectionRefused) => {}
                    Ok(_) | Err(ErrorKind::WouldBlock) => {
                        return Err(wrong(&"another process listens there; choose another uds_path"));
                    }
                    Err(kind) => return Err(wrong(&kind)),
                }
                fs::remove_file(path).map_err(|error| wrong(&error))?;
                UnixListener::bind(path)
            }
            other => other,
        }
        .map_err(|error| wrong(&error))?;
        socket.set_nonblocking(true).map_err(|error| wrong(&error))?;
        let file = fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()));
        Ok(Self { socket, path: path.to_owned(), file })
    }

    /// The next connection, if one waits.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Where guests' connections to `port` go.
    pub fn path_of(&self, port: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).ok().map(|found| (found.dev(), found.ino()));
        if now.is_some() && now == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects without ever waiting, which std's own connect does where the backlog is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all zeros are a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if bytes.len() > PATH_MAX || bytes.len() >= address.sun_path.len() {
        return Err(ErrorKind::InvalidInput.into());
    }
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = i8::from_ne_bytes([*from]);
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).map_err(io::Error::other)?;
    // SAFETY: `address` is a whole sockaddr_un of `len` bytes.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}

/// Sends what the pieces hold, as much as goes without waiting.
pub fn send(stream: &UnixStream, pieces: &mut [libc::iovec]) -> io::Result<usize> {
    let message = message(pieces);
    // SAFETY: the message's pieces are valid to read for the call, which the caller vouches for by having made them.
    let sent =
        unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Sends bytes of the monitor's own.
pub fn send_bytes(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    send(stream, &mut [libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }])
}

/// Receives into the pieces, as much as there is.
pub fn receive(stream: &UnixStream, pieces: &mut [libc::iovec]) -> io::Result<usize> {
    let mut message = message(pieces);
    // SAFETY: the pieces are valid to write for the call, which the caller vouches for by having made them.
    let got = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Looks at what can be received, or takes it.
pub fn peek(stream: &UnixStream, bytes: &mut [u8], take: bool) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | if take { 0 } else { libc::MSG_PEEK };
    // SAFETY: `bytes` is a live, writable slice of exactly that many bytes.
    let got = unsafe { libc::recv(stream.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeros are a valid msghdr: no name, no pieces, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    message
}

/// Each connection is a descriptor: lets the process have as many as it may.
pub fn allow_many_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a whole rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 && limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a whole rlimit. Where it fails, there are fewer connections.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
