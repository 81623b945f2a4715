//! `vmm image` from outside, with images that umoci and skopeo make on the spot, and a registry on loopback.

#[path = "image/local.rs"]
mod local;
#[path = "image/support.rs"]
mod support;
