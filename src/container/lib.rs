//! The container engine of the host: images by reference, their content-addressed store, and layers as read-only
//! file-system images that a guest mounts.
//!
//! Nothing in here needs KVM: images are pulled, converted and looked at on any Linux, without root.

pub mod add;
pub mod digest;
pub mod document;
pub mod erofs;
pub mod export;
mod fetch;
pub mod layer;
pub mod progress;
pub mod reference;
pub mod source;
pub mod store;
