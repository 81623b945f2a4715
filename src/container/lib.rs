//! The container engine of the host: images by reference, their content-addressed store, and layers as read-only
//! file-system images that a guest mounts.
//!
//! Nothing in here needs KVM: images are pulled, converted and looked at on any Linux, without root.

pub mod digest;
pub mod erofs;
pub mod layer;
pub mod reference;
