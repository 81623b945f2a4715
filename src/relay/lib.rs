//! Connections that go by frames: what comes from a socket goes to the other side of a conversation between host and guest
//! (`protocol`), and what that side sends goes to the socket. Who publishes a container's port on the host does so at one
//! end, the agent in the guest at the other.
//!
//! One thread carries any number of connections ([`Relay`]) and waits for nothing but all of them. Of each connection at
//! most one read's bytes are kept in each direction; while these wait, no more are read. Both ends of both directions are
//! told apart from a broken connection: an empty frame is an end, a conversation that just closes is none.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod line;
mod mailbox;
mod pair;
mod stream;
#[cfg(test)]
mod tests;
mod turns;

pub use line::Line;
pub use mailbox::Mailbox;
pub use pair::{Pair, Send as SendDatagram};
pub use turns::{Relay, Token};

/// Bytes before a datagram in a buffer that a [`Relay`] lends.
pub const HEADROOM: usize = protocol::frame::HEADER;
