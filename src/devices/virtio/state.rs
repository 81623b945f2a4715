//! What is kept of a virtio device: what its driver said by the registers (virtio 1.2, 2.1 to 2.6), where its queues are
//! (2.7), and what the device itself knows. Saved and loaded by the control thread while the VM is paused.

use serde::{Deserialize, Serialize};

use super::balloon::BalloonState;
use super::block::BlockState;
use super::fs::FsState;
use super::net::NetState;
use super::pmem::PmemState;
use super::rng::RngState;
use super::vsock::VsockState;

/// A device with its transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioState {
    /// What the driver said.
    pub transport: TransportState,
    /// What the device knows.
    pub device: DeviceState,
}

/// The status machine, and the registers that are not the device's alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    /// Device status (2.1).
    pub status: u32,
    /// DeviceFeaturesSel (4.2.2).
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// What the driver wrote to DriverFeatures, bits 0 to 63; settled once the status has FEATURES_OK.
    pub driver_features: u64,
    /// The driver wrote feature bits above 63.
    pub exotic_features: bool,
    /// QueueSel.
    pub queue_sel: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The configuration space as the driver saw it last.
    pub config: Vec<u8>,
    /// The device has the queues. With DRIVER_OK it lacks them only where it could not start and asks for a reset.
    pub running: bool,
    /// All queues, whether the driver uses them or not.
    pub queues: Vec<QueueState>,
}

/// One queue (2.7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// QueueNum as the driver wrote it; it is a size only where the queue is ready.
    pub num: u32,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring.
    pub driver: u64,
    /// Guest-physical address of the used ring.
    pub device: u64,
    /// QueueReady.
    pub ready: bool,
    /// The driver wanted it ready and it could not be.
    pub refused: bool,
    /// Where in the available ring to go on.
    pub next_avail: u16,
    /// Where in the used ring to go on.
    pub next_used: u16,
}

/// What a device knows beside its configuration and its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// Of a memory balloon.
    Balloon(BalloonState),
    /// Of a disk.
    Block(BlockState),
    /// Of a shared directory.
    Fs(FsState),
    /// Of a network interface.
    Net(NetState),
    /// Of a file as memory.
    Pmem(PmemState),
    /// Of a random number generator.
    Rng(RngState),
    /// Of sockets between guest and host.
    Vsock(VsockState),
}
