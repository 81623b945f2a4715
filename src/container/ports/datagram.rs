//! Datagrams of a socket that is bound to all addresses of the host: each tells to which of them it came, so that the answer
//! can go from there (IP_PKTINFO in ip(7)). Others would not be taken for answers.
#![allow(unsafe_code)] // recvmsg(2), sendmsg(2): control messages

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

/// Room for one control message, aligned as its header is.
type Control = [u64; 8];

/// Has the socket tell it.
pub fn tell_where_to(socket: &UdpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which is live and of the length that is told.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A datagram that waits: its length, who sent it, and to which address; none: there is none.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddrV4, Ipv4Addr)>> {
    let mut control: Control = [0; 8];
    let mut from = MaybeUninit::<libc::sockaddr_in>::zeroed();
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = message(&mut from, &mut piece, &mut control);
    // SAFETY: all that the message points to is live and writable, and of the lengths that are told.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(got) = usize::try_from(got) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    };
    // SAFETY: all zeros are a sockaddr_in, and so is what an IPv4 socket has put there.
    let from = unsafe { from.assume_init() };
    let from = SocketAddrV4::new(u32::from_be(from.sin_addr.s_addr).into(), u16::from_be(from.sin_port));
    let mut to = Ipv4Addr::UNSPECIFIED;
    // SAFETY: recvmsg(2) has filled the control messages in, whose places and lengths these functions look after; one
    // of this kind has an in_pktinfo, read wherever it lies.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(one) = header.as_ref() {
            if (one.cmsg_level, one.cmsg_type) == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
                let info: libc::in_pktinfo = ptr::read_unaligned(libc::CMSG_DATA(header).cast());
                to = u32::from_be(info.ipi_addr.s_addr).into();
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Some((got, from, to)))
}

/// Sends a datagram from one of the host's addresses. One that cannot go is lost, as datagrams are.
pub fn send(socket: &UdpSocket, bytes: &[u8], from: Ipv4Addr, to: SocketAddrV4) {
    let mut control: Control = [0; 8];
    let mut name = MaybeUninit::new(libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
        sin_zero: [0; 8],
    });
    let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = message(&mut name, &mut piece, &mut control);
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let len = size_of::<libc::in_pktinfo>() as libc::c_uint;
    // SAFETY: the control buffer has room for one such message, and its header is within it; all that the message
    // points to is live for the call, which only reads it.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(len) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::IPPROTO_IP;
        (*header).cmsg_type = libc::IP_PKTINFO;
        (*header).cmsg_len = libc::CMSG_LEN(len) as usize;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast(), info);
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    }
}

fn message(name: &mut MaybeUninit<libc::sockaddr_in>, piece: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: all zeros are a valid msghdr: no name, no pieces, no control data.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    message.msg_iov = piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_from_where_the_question_went() {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        tell_where_to(&socket).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(receive(&socket, &mut [0; 9]).unwrap().is_none());
        for last in [1, 77] {
            let called = Ipv4Addr::new(127, 0, 0, last);
            let caller = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            caller.connect((called, port)).unwrap();
            caller.send(b"who?").unwrap();
            let mut buffer = [0; 9];
            let (len, from, to) = receive(&socket, &mut buffer).unwrap().unwrap();
            assert_eq!((&buffer[..len], to), (&b"who?"[..], called));
            send(&socket, b"me", to, from);
            let len = caller.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"me");
        }
    }
}
