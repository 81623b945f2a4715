//! `vmm image` from outside, with images that umoci and skopeo make on the spot, and a registry on loopback.

#[path = "image/local.rs"]
mod local;
#[path = "image/login.rs"]
mod login;
#[path = "image/proxy.rs"]
mod proxy;
#[path = "image/registry.rs"]
mod registry;
#[path = "image/seen.rs"]
mod seen;
#[path = "image/server.rs"]
mod server;
#[path = "image/support.rs"]
mod support;
#[path = "guest/terminal.rs"]
#[allow(dead_code)] // whose settings are looked at in guest tests
mod terminal;
