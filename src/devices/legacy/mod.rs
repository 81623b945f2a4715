//! Small register devices of a PC: each one file, synchronous, called by vCPU threads under the bus lock.

pub mod cmos;
pub mod console_out;
pub mod debug_port;
pub mod i8042;
pub mod pm;
pub mod pvpanic;
pub mod serial;
