//! What the host and the agent in a guest say to each other, over vsock.
//!
//! Messages and their frames only: nothing is opened here, no threads, no unsafe. Both sides use it, and neither trusts the bytes: the
//! host, because a container may have taken the guest over; the agent, because an older or newer host may be there.
//!
//! A connection begins with a message: from the agent [`message::Hello`] when it calls the host's port [`PORT`], from
//! the host an [`message::Order`] when it calls the agent's port [`PORT`]. What follows depends on the order.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod cpus;
pub mod disks;
pub mod frame;
pub mod message;
pub mod modules;
pub mod network;
pub mod pieces;

/// The version of this protocol: both sides must have the same.
pub const VERSION: u32 = 6;
/// The name of the partition with the container runtime.
pub const RUNTIME: &str = "runtime";

/// The vsock port on which the agent listens in the guest, and which it calls on the host when it is up.
pub const PORT: u32 = 1024;
