//! Netlink (netlink(7)): messages put together, sent to the kernel, and what it says of them. Used for rtnetlink (`links.rs`)
//! and for nf_tables (`filter.rs`), which no small crate writes.
//!
//! Only orders are given, and the kernel answers an order before send(2) returns. So one exchange has a socket of its own,
//! and what lies in it afterwards is the whole answer.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// Bytes of a message's header (struct nlmsghdr).
const HEADER: usize = 16;
/// The most that an answer can have: the kernel sends at most what it was sent, and an error's number.
const MOST: usize = 16 << 10;

/// Which part of the kernel is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Interfaces, addresses, routes (rtnetlink(7)).
    Route,
    /// nf_tables, among others.
    Netfilter,
}

/// Attributes of a message, one after the other (struct nlattr).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// And this one.
    pub fn with(mut self, kind: u16, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let len = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// And this text, which ends with a zero.
    pub fn text(self, kind: u16, text: &str) -> Self {
        self.with(kind, [text.as_bytes(), &[0]].concat())
    }

    /// And these attributes in one.
    pub fn nest(self, kind: u16, inner: Self) -> Self {
        self.with(kind | NESTED, inner.0)
    }

    /// In one, with `header` before them, as some attributes are messages themselves.
    pub fn nest_after(self, kind: u16, header: &[u8], inner: &Self) -> Self {
        self.with(kind | NESTED, [header, &inner.0].concat())
    }
}

/// NLA_F_NESTED.
const NESTED: u16 = 1 << 15;

/// An order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its type.
    pub kind: u16,
    /// NLM_F_*, without those that every order has.
    pub flags: i32,
    /// What its family wants before the attributes.
    pub header: Vec<u8>,
    /// The attributes.
    pub attributes: Attributes,
}

impl Order {
    fn bytes(&self, acknowledged: bool) -> Vec<u8> {
        let body = [self.header.as_slice(), &self.attributes.0].concat();
        let len = u32::try_from(body.len().saturating_add(HEADER)).unwrap_or(u32::MAX);
        let flags = self.flags | libc::NLM_F_REQUEST | if acknowledged { libc::NLM_F_ACK } else { 0 };
        let flags = u16::try_from(flags).unwrap_or_default();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]); // sequence and port: one exchange has one socket
        bytes.extend_from_slice(&body);
        bytes
    }
}

/// A conversation in the network namespace that this thread was in when it began.
#[derive(Debug)]
pub struct Conversation(OwnedFd);

impl Conversation {
    /// With this part of the kernel.
    pub fn begin(part: Part) -> Result<Self, Errno> {
        let protocol: Option<Protocol> = match part {
            Part::Route => None, // NETLINK_ROUTE is 0
            Part::Netfilter => Some(NETFILTER),
        };
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).map(Self)
    }

    /// Gives an order; an error is the kernel's.
    pub fn order(&self, order: &Order) -> Result<(), Errno> {
        self.exchange(&order.bytes(true))
    }

    /// Gives orders that are followed all or not at all (nfnetlink): `around` are the first and the last.
    pub fn batch(&self, around: [&Order; 2], orders: &[Order]) -> Result<(), Errno> {
        let [first, last] = around;
        let mut bytes = first.bytes(false);
        for order in orders {
            bytes.extend_from_slice(&order.bytes(true));
        }
        bytes.extend_from_slice(&last.bytes(false));
        self.exchange(&bytes)
    }

    fn exchange(&self, bytes: &[u8]) -> Result<(), Errno> {
        send(&self.0, bytes, SendFlags::empty())?;
        let (mut heard, mut answered) = (vec![0; MOST], false);
        loop {
            let (_, count) = match recv(&self.0, heard.as_mut_slice(), RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) if answered => return Ok(()),
                Err(Errno::AGAIN) => return Err(Errno::PROTO),
                received => received?,
            };
            answers(heard.get(..count).unwrap_or_default())?;
            answered = true;
        }
    }
}

/// The first error among the answers (struct nlmsgerr; 0 is an acknowledgement).
fn answers(mut bytes: &[u8]) -> Result<(), Errno> {
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() {
        let [a, b, c, d, e, f, ..] = *header;
        if i32::from(u16::from_ne_bytes([e, f])) == libc::NLMSG_ERROR {
            let code = rest.first_chunk().map_or(-libc::EPROTO, |code| i32::from_ne_bytes(*code));
            if code != 0 {
                return Err(Errno::from_raw_os_error(code.saturating_neg()));
            }
        }
        let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX).max(HEADER);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_stand_at_multiples_of_four() {
        let inner = Attributes::default().text(1, "veth");
        let bytes = Attributes::default().with(3, [7, 8, 9]).nest(18, inner).0;
        assert_eq!(bytes, [7, 0, 3, 0, 7, 8, 9, 0, 16, 0, 18, 0x80, 9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0]);
    }

    #[test]
    fn an_order_has_its_length_and_flags() {
        let attributes = Attributes::default().with(1, [1; 4]);
        let order = Order { kind: 16, flags: libc::NLM_F_CREATE, header: vec![2; 4], attributes };
        let bytes = order.bytes(true);
        assert_eq!(bytes[..8], [28, 0, 0, 0, 16, 0, 5, 4]);
        assert_eq!(bytes[16..], [2, 2, 2, 2, 8, 0, 1, 0, 1, 1, 1, 1]);
    }

    #[test]
    fn the_first_error_counts() {
        let answer = |code: i32| {
            let mut bytes =
                [36_u32.to_ne_bytes().as_slice(), &2_u16.to_ne_bytes(), &[0; 10], &code.to_ne_bytes()].concat();
            bytes.resize(36, 0);
            bytes
        };
        assert_eq!(answers(&[answer(0), answer(0)].concat()), Ok(()));
        assert_eq!(answers(&[answer(0), answer(-17), answer(-1)].concat()), Err(Errno::EXIST));
        assert_eq!(answers(&answer(-17)[..17]), Err(Errno::PROTO));
        assert_eq!(answers(&[0; 15]), Ok(()));
        assert_eq!(answers(&[0; 40]), Ok(()), "no length leads to no end of it");
    }
}
