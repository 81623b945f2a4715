//! The host's side of a vsock: bytes through UNIX stream sockets, without ever waiting. Worker thread.
#![allow(unsafe_code)] // sendmsg(2), recvmsg(2), setrlimit(2)

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Longest path of a socket (sun_path, with its NUL).
pub const PATH_MAX: usize = 107;

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
