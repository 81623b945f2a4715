//! One table of tests over every kind of device, and the status machine tested with a device made for it.
//!
//! virtio 1.2, sections 2.1, 2.2, 2.7, 3.1 and 4.2.2.

mod flood;
mod handshake;
mod lies;
mod pause;
mod random;
mod rings;
mod saving;
mod slow;
mod strange_states;
mod wrap;

use std::any::Any;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::balloon::BalloonConfig;
use super::block::config::{CacheType, DriveConfig, IoEngine, PartitionConfig};
use super::fs::config::ShareConfig;
use super::fs::tests::fake_share;
use super::net::Net;
use super::net::config::NetConfig;
use super::pmem::PmemConfig;
use super::registers::offset;
use super::rng::EntropyConfig;
use super::transport::RING_FEATURES;
use super::vsock::VsockConfig;
use super::{Device, DeviceConfig, OpenError, open};
use crate::bus::BusDevice;
use crate::mmds::store::Store;
use crate::seams::GuestEvent;
use crate::testing::{Buffer, PATIENCE, RAM, Rig, ram, shared_ram};

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 0x40;

/// A device, and how one of its queues is used.
struct Subject {
    name: &'static str,
    config: DeviceConfig,
    /// How it is made.
    open: fn(&DeviceConfig) -> Result<Box<dyn Device>, OpenError>,
    /// Device id (virtio 1.2, 5).
    id: u32,
    /// The queue that gets requests.
    queue: u32,
    /// Features without which the device does not serve it.
    features: u64,
    /// What the device reads of a request.
    header: &'static [u8],
    /// Whether its answers have bytes in them.
    writes: bool,
    /// What the device needs while it is opened.
    _kept: Box<dyn Any>,
}

impl Subject {
    fn new(name: &'static str, config: DeviceConfig, id: u32, queue: u32) -> Self {
        Self { name, config, open, id, queue, features: 0, header: &[0; 16], writes: true, _kept: Box::new(()) }
    }

    /// The device at power-on. A back end in another process needs memory that can be shared with it.
    fn rig(&self) -> Rig {
        let memory = if matches!(self.config, DeviceConfig::Fs(_)) { shared_ram() } else { ram() };
        Rig::with(self.open(), memory)
    }

    /// The device, opened. A child of another test may hold a copy of a lock that was given up, between its fork and its exec.
    fn open(&self) -> Box<dyn Device> {
        let since = Instant::now();
        loop {
            match (self.open)(&self.config) {
                Err(error) if error.to_string().contains("another process uses") && since.elapsed() < PATIENCE => {
                    std::thread::yield_now();
                }
                opened => return opened.unwrap(),
            }
        }
    }

    /// A request that the device gives back: some bytes to read, then room for one sector and for a status.
    fn request(&self, rig: &mut Rig) -> Vec<Buffer> {
        vec![rig.readable(self.header), rig.writable(512), rig.writable(1)]
    }

    /// Whether the device answers a request as it should.
    fn answers(&self, rig: &mut Rig) -> bool {
        let request = self.request(rig);
        (rig.request(self.queue, &request) > 0) == self.writes
    }

    /// The whole handshake with these features and those that the queue takes.
    fn drive(&self, rig: &mut Rig, features: u64) {
        rig.drive(features | self.features);
    }
}

/// Every kind of device, with every back end that changes how its queues are served.
///
/// Two can not be here, and are tested in a guest (`tests/guest`): vhost-net, where the host's kernel serves the queues,
/// takes /dev/vhost-net and a TAP device (`net.rs`; `net/vhost.rs` has what needs neither). passt is a process for the
/// whole test; its frames come as those of any stream do, and a stream is here (`user_net.rs`). The balloon's queue of
/// statistics answers a request only when the next one is due (`balloon/tests.rs`).
fn every_device() -> Vec<Subject> {
    vec![
        disk("disk", |_| {}),
        disk("read-only disk", |drive| (drive.is_read_only, drive.cache_type) = (true, CacheType::Unsafe)),
        disk_of_files(),
        disk("asynchronous disk", |drive| drive.io_engine = IoEngine::Async),
        disk("direct disk", |drive| drive.direct = true),
        disk("direct asynchronous disk", |drive| (drive.direct, drive.io_engine) = (true, IoEngine::Async)),
        Subject { writes: false, ..Subject::new("balloon", balloon(), 5, 0) },
        Subject { features: ALL_OF_BALLOON, writes: false, ..Subject::new("balloon, hints", balloon(), 5, 3) },
        Subject { features: ALL_OF_BALLOON, writes: false, ..Subject::new("balloon, reports", balloon(), 5, 4) },
        Subject { open: fake_share, ..Subject::new("share", DeviceConfig::Fs(ShareConfig::default()), 26, 1) },
        Subject { open: fake_share, ..Subject::new("share, urgent", DeviceConfig::Fs(ShareConfig::default()), 26, 0) },
        Subject::new("rng", DeviceConfig::Rng(EntropyConfig::default()), 4, 0),
        pmem("pmem", |_| {}),
        pmem("read-only pmem", |pmem| pmem.read_only = true),
        pmem("private pmem", |pmem| pmem.private = true),
        vsock(),
        Subject { queue: 1, header: &[7; 80], writes: false, ..net("net, transmit") },
        Subject { queue: 1, header: &[7; 80], writes: false, ..stream("net, transmit to a stream") },
        Subject {
            open: with_metadata,
            queue: 1,
            header: &METADATA_ARP,
            writes: false,
            ..net("net, transmit to the metadata service")
        },
        Subject {
            queue: 2,
            features: 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_CTRL_RX,
            header: &[0, 0, 1],
            ..net("net, control")
        },
    ]
}

/// A disk that is made of two files.
fn disk_of_files() -> Subject {
    let images = [1 << 20, 5000].map(|len| {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(len).unwrap();
        image
    });
    let part = |image: &tempfile::NamedTempFile| PartitionConfig { path_on_host: image.path().into(), name: None };
    let drive = DriveConfig {
        drive_id: "disk".to_owned(),
        partitions: images.iter().map(part).collect(),
        is_read_only: true,
        num_queues: Some(2),
        ..DriveConfig::default()
    };
    Subject { _kept: Box::new(images), ..Subject::new("disk of files", DeviceConfig::Block(drive), 2, 0) }
}

fn disk(name: &'static str, change: fn(&mut DriveConfig)) -> Subject {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let mut drive = DriveConfig {
        drive_id: "disk".to_owned(),
        path_on_host: Some(image.path().to_owned()),
        num_queues: Some(2),
        ..DriveConfig::default()
    };
    change(&mut drive);
    Subject { _kept: Box::new(image), ..Subject::new(name, DeviceConfig::Block(drive), 2, 0) }
}

/// VIRTIO_BALLOON_F_STATS_VQ, _FREE_PAGE_HINT and _REPORTING: their queues are numbers 2, 3 and 4 where all are taken.
const ALL_OF_BALLOON: u64 = 1 << 1 | 1 << 3 | 1 << 5;

fn balloon() -> DeviceConfig {
    DeviceConfig::Balloon(BalloonConfig {
        amount_mib: 1,
        deflate_on_oom: true,
        stats_polling_interval_s: 1,
        free_page_reporting: true,
        free_page_hinting: true,
    })
}

/// Its transmit queue: a packet of zeros comes from nobody and is given back.
fn vsock() -> Subject {
    let folder = tempfile::tempdir().unwrap();
    let uds_path = folder.path().join("sock");
    let config = DeviceConfig::Vsock(VsockConfig { guest_cid: 3, uds_path, vsock_id: None });
    Subject { header: &[0; 44], writes: false, _kept: Box::new(folder), ..Subject::new("vsock", config, 19, 1) }
}

/// Its requests are flushes.
fn pmem(name: &'static str, change: fn(&mut PmemConfig)) -> Subject {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(3 << 20).unwrap();
    let mut pmem = PmemConfig { id: "pmem".into(), path_on_host: image.path().to_owned(), ..PmemConfig::default() };
    change(&mut pmem);
    Subject { header: &[0; 4], _kept: Box::new(image), ..Subject::new(name, DeviceConfig::Pmem(pmem), 27, 0) }
}

fn net(name: &'static str) -> Subject {
    let ends = UnixDatagram::pair().unwrap();
    interface(name, ends.0.as_raw_fd(), Box::new(ends))
}

/// Whose other end reads all that comes.
fn stream(name: &'static str) -> Subject {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || std::io::copy(&mut theirs, &mut std::io::sink()));
    interface(name, ours.as_raw_fd(), Box::new(ours))
}

fn interface(name: &'static str, fd: RawFd, kept: Box<dyn Any>) -> Subject {
    let config = NetConfig {
        iface_id: "eth0".into(),
        host_fd: Some(fd),
        guest_mac: Some("02:00:00:00:00:07".into()),
        ..NetConfig::default()
    };
    Subject { _kept: kept, ..Subject::new(name, DeviceConfig::Net(config), 1, 0) }
}

/// A header of the device's, and a question by ARP for the metadata service.
#[rustfmt::skip]
const METADATA_ARP: [u8; 54] = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6,
    0, 1, 8, 0, 6, 4, 0, 1,
    2, 0, 0, 0, 0, 7, 192, 168, 0, 2,
    0, 0, 0, 0, 0, 0, 169, 254, 169, 254,
];

fn with_metadata(config: &DeviceConfig) -> Result<Box<dyn Device>, OpenError> {
    let DeviceConfig::Net(config) = config else { panic!("it is for network interfaces") };
    let mmds = serde_json::from_str("{\"network_interfaces\": [\"eth0\"]}").unwrap();
    let store = Arc::new(Store::new(1000).unwrap());
    Ok(Box::new(Net::open(config)?.with_metadata(&mmds, &store)?))
}

fn for_every_device(test: impl Fn(&Subject, &mut Rig)) {
    for device in every_device() {
        let mut rig = device.rig();
        test(&device, &mut rig);
    }
}
