//! Everything that a guest's drivers can poke: register devices and virtio devices.
//!
//! No KVM here: this crate builds and tests on any Linux, as any user. What a device needs of the machine around it
//! comes through three seams ([`seams`]): an [`Interrupt`](seams::Interrupt) towards the guest, a
//! [`Doorbell`](seams::Doorbell) from it, and a [`Notify`](seams::Notify) for what ends or changes the whole VM.
//! Every length, index and address that a guest wrote is hostile until checked.
#![warn(clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]
#![warn(clippy::arithmetic_side_effects)] // what can overflow is checked, saturates, or wraps by specification
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::arithmetic_side_effects))]

pub mod bus;
mod child;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
pub mod legacy;
pub mod listener;
pub mod lock;
mod log_limit;
pub mod memory;
pub mod mmds;
pub mod rate_limit;
pub mod seams;
pub mod state;
pub mod tally;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;
pub mod window;
