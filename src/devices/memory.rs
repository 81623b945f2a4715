//! The door to guest RAM: one type for the whole project.
//!
//! Guest RAM is shared with a running guest, so there is never a Rust reference into it: all access goes through
//! vm-memory's volatile reads, writes and slices.

use std::sync::Arc;

use vm_memory::bitmap::AtomicBitmap;
pub use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion};

/// Guest RAM. The bitmap is present where the monitor tracks the pages it dirties itself (snapshots need that).
pub type GuestRam = vm_memory::GuestMemoryMmap<Option<AtomicBitmap>>;

/// Guest RAM as threads share it.
pub type SharedRam = Arc<GuestRam>;
