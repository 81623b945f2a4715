//! The container engine of the host: images by reference, their content-addressed store, and layers as read-only
//! file-system images that a guest mounts; and containers of them in VMs.
//!
//! Nothing in here knows KVM: images are pulled, converted and looked at on any Linux, without root, and a VM is another
//! process, the monitor.

pub mod add;
pub mod digest;
pub mod document;
pub mod erofs;
pub mod export;
pub mod ext4;
mod fetch;
mod hostgroup;
pub mod kernel;
pub mod layer;
pub mod modules;
pub mod network;
pub mod output;
pub mod parts;
pub mod ports;
pub mod progress;
pub mod reference;
pub mod register;
mod room;
pub mod seccomp;
pub mod session;
pub mod size;
pub mod source;
pub mod spec;
pub mod store;
pub mod vm;
pub mod volume;
