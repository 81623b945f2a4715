//! One microVM: a config is a value; a plan turns it into addresses; a machine runs it.
//!
//! The only crate that speaks to KVM.

mod attached;
pub mod boot;
pub mod config;
pub mod control;
pub mod core;
pub mod cpu;
pub mod error;
pub mod events;
pub mod gdb;
pub mod input;
pub mod journal;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod plan;
pub mod probe;
mod registers;
mod resident;
pub mod signals;
pub mod snapshot;
mod sparse;
pub mod state;
pub mod stop;
pub mod timeline;
#[cfg(test)]
mod tiny;
pub mod vcpu;
mod windows;
pub mod x86_64;

/// What the metadata service has to tell: written by the API, read by guests.
pub use devices::mmds::store as metadata;
/// Sockets with names, and the locks under which they are taken over: those of devices, the API's, the debugger's.
pub use devices::{listener, lock};
