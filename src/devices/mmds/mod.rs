//! MMDS, Firecracker's metadata service: what the API puts into a [`store`], a guest reads by HTTP/1.1 at an IPv4
//! address that exists nowhere but in its network interface. The user guide: Firecracker, docs/mmds/mmds-user-guide.md.
//!
//! An interface that has it owns a [`Service`] and asks it on its worker thread: whether a frame that the guest sends
//! is for it ([`detour`]), and which frames it has for the guest. TCP/IP is smoltcp's ([`stack`]); requests are answered
//! in `http.rs`, with `token.rs` for sessions. Without a service an interface asks nobody.

pub mod config;
mod connection;
pub mod counts;
mod detour;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod http;
mod neighbor;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod peer;
mod service;
mod stack;
pub mod store;
#[cfg(test)]
mod tests;
mod token;

pub use service::Service;
