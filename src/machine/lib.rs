//! One microVM: a config is a value; a plan turns it into addresses; a machine runs it.
//!
//! The only crate that speaks to KVM.

pub mod config;
pub mod plan;
pub mod x86_64;
