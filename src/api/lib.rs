//! The control interface of a VM: HTTP/1.1 over a UNIX socket, with Firecracker's routes and answers.
//!
//! [`server`] runs on a thread of its own and speaks HTTP; [`routes`] says what each request means, as requests to the
//! machine's control thread; [`client`] is the other end.

pub mod client;
mod connection;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod message;
pub mod routes;
pub mod server;
