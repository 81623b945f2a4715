//! virtio: the device contract, the transport, the worker, and the devices (virtio 1.2).
//!
//! Who runs what: a vCPU thread writes registers ([`mmio`]), which drives the status machine ([`transport`]); the
//! device itself lives alone on its [`worker`] thread, which owns its queues while the driver is up.

pub mod balloon;
pub mod block;
pub mod chain;
#[cfg(test)]
mod conformance;
pub mod fs;
pub mod image;
pub mod io;
pub mod lend;
pub mod mmio;
pub mod net;
pub mod pieces;
pub mod pmem;
pub mod registers;
pub mod rng;
pub mod state;
pub mod transport;
pub mod update;
mod used;
pub mod vhost_user;
pub mod vsock;
pub mod worker;

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;

pub use chain::Chain;
pub use io::{Broken, Counters, Held, Io, Served};
pub use update::{Change, UpdateError};

use balloon::{Balloon, BalloonConfig};
use block::Block;
use block::config::DriveConfig;
use fs::Fs;
use fs::config::ShareConfig;
use net::Net;
use net::config::NetConfig;
use pmem::{Pmem, PmemConfig};
use rng::{EntropyConfig, Rng};
use state::DeviceState;
use vsock::{Vsock, VsockConfig};

use crate::state::StateError;
use crate::tally::Tally;
use crate::window::Window;

/// What a virtio device is, as data.
#[derive(Clone, Default)]
pub struct Facts {
    /// Device id (virtio 1.2, 5).
    pub virtio_id: u32,
    /// Device-specific feature bits (0 to 23 and 50 up). The transport adds those of the rings.
    pub features: u64,
    /// Most entries of each queue: powers of two, at most 32768.
    pub queue_sizes: Vec<u16>,
    /// The device configuration space.
    pub config: Vec<u8>,
    /// The bytes of it that the driver may write.
    pub config_writable: Range<usize>,
    /// Back-end files to wait for while the driver is up.
    pub sources: Vec<Source>,
    /// Queues that the device lends ([`Io::lend`]): who borrows them hears their kicks, and interrupts the driver past the
    /// registers.
    pub lent: Range<usize>,
    /// Memory of the host that the guest shall see, in the order of [`Device::placed`]'s numbers.
    pub windows: Vec<Arc<Window>>,
    /// What the device counts beside [`Counters`]; looked at once, before the worker runs.
    pub tally: Option<Arc<dyn Tally>>,
}

/// A back-end file: when it can be read, [`Device::ready`] is called with `token`. Edges only: read until it would
/// block.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Whatever tells the device which file it was.
    pub token: u16,
    /// The file; it must stay open as long as the device lives.
    pub fd: RawFd,
}

/// Why a device stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The driver is gone: what it negotiated and what it asked for is forgotten.
    Reset,
    /// The machine pauses: the queues come back, and the device goes on as if nothing had been.
    Pause,
}

/// A virtio device. Its worker thread calls every method; [`Broken`] makes the worker ask the driver for a reset.
pub trait Device: Send {
    /// What the device is. Called before the worker runs and after a configuration write.
    fn facts(&self) -> Facts;

    /// The guest finds window number `window` of [`Facts::windows`] at `gpa`. Before the worker runs.
    fn placed(&mut self, _window: usize, _gpa: u64) {}

    /// The driver has put buffers into `queue` (or may have: once after every start). Of a queue that is lent only the
    /// start is heard.
    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken>;

    /// A queue's doorbell rang; [`Self::kicked`] comes next. For who counts kicks queue by queue.
    fn heard(&mut self, _queue: usize) {}

    /// The driver is up (DRIVER_OK); `io` knows the negotiated features. Not called after a pause.
    fn started(&mut self, _io: &mut Io<'_>) -> Result<(), Broken> {
        Ok(())
    }

    /// A back-end file of [`Facts::sources`] can be read.
    fn ready(&mut self, _token: u16, _io: &mut Io<'_>) -> Result<(), Broken> {
        Ok(())
    }

    /// [`Self::stopping`] or [`Self::update`] comes next, and the queues are still here: what is in flight can be waited
    /// for and given back, and what only waits is put back. Every queue is kicked afterwards, if there is an afterwards.
    /// Not called where the device is broken.
    fn finish(&mut self, _io: &mut Io<'_>) -> Result<(), Broken> {
        Ok(())
    }

    /// The queues go away after this, and nothing may touch guest memory later. After [`Stop::Pause`] they come back.
    fn stopping(&mut self, _why: Stop) {}

    /// The user changes the device while the VM exists, whether the driver is up or not. Where it is, [`Self::finish`]
    /// came before; the worker then looks at [`Self::facts`] again: the configuration space, of which the driver is told,
    /// and the sources. On an error the device is as it was.
    fn update(&mut self, _change: Change) -> Result<(), UpdateError> {
        Err(UpdateError::new("it has nothing that can be changed while the VM exists"))
    }

    /// What another device of the same configuration must know to go on in this one's place, beside what is in its queues and
    /// what [`Self::started`] finds out. The machine pauses: nothing is in flight.
    fn save(&mut self) -> Result<DeviceState, StateError> {
        Err(StateError::new("this kind of device can not be saved"))
    }

    /// Becomes what [`Self::save`] said of another one. Before the worker serves anything; where a driver was up,
    /// [`Self::started`] came first. Nothing of `state` is to be trusted. After an error [`Self::stopping`] follows, as at a
    /// reset.
    fn load(&mut self, _state: &DeviceState) -> Result<(), StateError> {
        Err(StateError::new("this kind of device can not be loaded"))
    }

    /// What the device has to tell beside its counters, as the API shows it.
    fn inspect(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// The driver wrote `data` at `offset` of the configuration space, inside [`Facts::config_writable`].
    fn wrote_config(&mut self, _offset: usize, _data: &[u8]) {}
}

/// A virtio device that the user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceConfig {
    /// A memory balloon.
    Balloon(BalloonConfig),
    /// A disk.
    Block(DriveConfig),
    /// A shared directory.
    Fs(ShareConfig),
    /// A network interface.
    Net(NetConfig),
    /// A file of the host as memory.
    Pmem(PmemConfig),
    /// A random number generator.
    Rng(EntropyConfig),
    /// Sockets between guest and host.
    Vsock(VsockConfig),
}

impl DeviceConfig {
    /// The device's name, unique in the VM.
    pub fn id(&self) -> String {
        match self {
            Self::Balloon(_) => "balloon".to_owned(),
            Self::Block(drive) => drive.drive_id.clone(),
            Self::Fs(share) => share.tag.clone(),
            Self::Net(net) => net.iface_id.clone(),
            Self::Pmem(pmem) => pmem.id.clone(),
            Self::Rng(_) => "rng".to_owned(),
            Self::Vsock(_) => "vsock".to_owned(),
        }
    }

    /// What kind of device it is, in one word of small letters.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Balloon(_) => "balloon",
            Self::Block(_) => "block",
            Self::Fs(_) => "fs",
            Self::Net(_) => "net",
            Self::Pmem(_) => "pmem",
            Self::Rng(_) => "entropy",
            Self::Vsock(_) => "vsock",
        }
    }
}

/// A device could not be opened. The text says what was tried, on what, why it failed and, where known, the cure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(String);

impl OpenError {
    /// The whole sentence, without a full stop.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Opens the files of a device and takes its locks.
pub fn open(config: &DeviceConfig) -> Result<Box<dyn Device>, OpenError> {
    Ok(match config {
        DeviceConfig::Balloon(balloon) => Box::new(Balloon::open(balloon)?),
        DeviceConfig::Block(drive) => Box::new(Block::open(drive)?),
        DeviceConfig::Fs(share) => Box::new(Fs::open(share)?),
        DeviceConfig::Net(net) => Box::new(Net::open(net)?),
        DeviceConfig::Pmem(pmem) => Box::new(Pmem::open(pmem)?),
        DeviceConfig::Rng(entropy) => Box::new(Rng::new(entropy)?),
        DeviceConfig::Vsock(vsock) => Box::new(Vsock::open(vsock)?),
    })
}
