//! One table of tests over every kind of device, and the status machine tested with a device made for it.
//!
//! virtio 1.2, sections 2.1, 2.2, 2.7, 3.1 and 4.2.2.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, GuestAddress};

use super::balloon::BalloonConfig;
use super::block::config::{CacheType, DriveConfig, IoEngine};
use super::registers::offset;
use super::rng::EntropyConfig;
use super::transport::RING_FEATURES;
use super::vsock::VsockConfig;
use super::{Broken, Device, DeviceConfig, Facts, Io, open};
use crate::bus::BusDevice;
use crate::seams::GuestEvent;
use crate::testing::{Buffer, PATIENCE, RAM, Rig};

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 0x40;

/// Every kind of device, with what it needs kept alive.
fn every_config() -> Vec<(DeviceConfig, tempfile::NamedTempFile)> {
    let disk = |is_read_only, cache_type, io_engine| {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let drive = DriveConfig {
            drive_id: "disk".to_owned(),
            path_on_host: image.path().to_owned(),
            is_read_only,
            cache_type,
            io_engine,
            num_queues: Some(2),
            ..DriveConfig::default()
        };
        (DeviceConfig::Block(drive), image)
    };
    let name = tempfile::NamedTempFile::new().unwrap();
    let uds_path = name.path().with_extension("sock");
    let vsock = (DeviceConfig::Vsock(VsockConfig { guest_cid: 3, uds_path, vsock_id: None }), name);
    vec![
        disk(false, CacheType::Writeback, IoEngine::Sync),
        disk(true, CacheType::Unsafe, IoEngine::Sync),
        disk(false, CacheType::Writeback, IoEngine::Async),
        (balloon(), tempfile::NamedTempFile::new().unwrap()),
        (DeviceConfig::Rng(EntropyConfig::default()), tempfile::NamedTempFile::new().unwrap()),
        vsock,
    ]
}

/// Those of them whose queue 0 answers requests; a vsock's has nothing to say by itself.
fn for_every_server(test: impl Fn(&DeviceConfig, &mut Rig)) {
    for (config, _kept) in every_config() {
        if !matches!(config, DeviceConfig::Vsock(_)) {
            let mut rig = Rig::new(open(&config).unwrap());
            test(&config, &mut rig);
        }
    }
}

fn for_every_device(test: impl Fn(&DeviceConfig, &mut Rig)) {
    for (config, _kept) in every_config() {
        let mut rig = Rig::new(open(&config).unwrap());
        test(&config, &mut rig);
    }
}

/// A request that the device answers, whatever it is: 16 zero bytes to read (the header of a block read of sector 0),
/// one sector and a status byte to write.
fn any_request(rig: &mut Rig) -> Vec<Buffer> {
    vec![rig.readable(&[0; 16]), rig.writable(512), rig.writable(1)]
}

/// Whether the device's answers have no bytes in them.
fn writes_nothing(config: &DeviceConfig) -> bool {
    matches!(config, DeviceConfig::Balloon(_))
}

/// Whether the device answers a request as it should.
fn answers(config: &DeviceConfig, rig: &mut Rig, request: &[Buffer]) -> bool {
    rig.request(0, request) > 0 || writes_nothing(config)
}

fn balloon() -> DeviceConfig {
    DeviceConfig::Balloon(BalloonConfig {
        amount_mib: 1,
        deflate_on_oom: true,
        stats_polling_interval_s: 1,
        free_page_reporting: true,
    })
}

#[test]
fn identifies_itself() {
    for_every_device(|config, rig| {
        assert_eq!(rig.read(offset::MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
        assert_eq!(rig.read(offset::VERSION), 2);
        let id = match config {
            DeviceConfig::Balloon(_) => 5,
            DeviceConfig::Block(_) => 2,
            DeviceConfig::Net(_) => 1,
            DeviceConfig::Rng(_) => 4,
            DeviceConfig::Vsock(_) => 19,
        };
        assert_eq!(rig.read(offset::DEVICE_ID), id, "{}", config.kind_name());
        assert_eq!(rig.read(offset::SHM_LEN_LOW), u32::MAX);
        assert_eq!(rig.read(offset::STATUS), 0);
        assert_eq!(rig.offered() & RING_FEATURES, RING_FEATURES);
        rig.write(offset::DEVICE_FEATURES_SEL, 2);
        assert_eq!(rig.read(offset::DEVICE_FEATURES), 0);
    });
}

#[test]
fn serves_requests_with_every_set_of_ring_features() {
    for_every_server(|config, rig| {
        let offered = rig.offered();
        for features in [V1, V1 | EVENT_IDX, V1 | 1 << VIRTIO_RING_F_INDIRECT_DESC, offered] {
            rig.drive(features); // a second, third, ... driver on the same device
            assert_eq!(rig.events().last(), Some(&GuestEvent::DriverOk(7)));
            for _ in 0..600 {
                rig.free_all();
                let request = any_request(rig);
                assert!(answers(config, rig, &request), "{} {features:#x}", config.kind_name());
            }
            rig.free_all();
            let request = any_request(rig);
            let head = rig.post_indirect(0, &request);
            rig.kick(0);
            let (used, len) = rig.wait_used(0);
            assert_eq!(used, head);
            assert!(len > 0 || writes_nothing(config));
            assert!(!rig.needs_reset());
        }
    });
}

#[test]
fn many_requests_by_one_kick_fill_the_ring() {
    for_every_server(|_, rig| {
        rig.drive(V1 | EVENT_IDX);
        let request = any_request(rig);
        rig.write(offset::QUEUE_SEL, 0);
        let count = rig.read(offset::QUEUE_NUM_MAX) / 3;
        let heads: Vec<u16> = (0..count).map(|_| rig.post(0, &request)).collect();
        rig.kick(0);
        for head in heads {
            assert_eq!(rig.wait_used(0).0, head);
        }
        assert!(rig.take_used(0).is_none());
    });
}

#[test]
fn refuses_features() {
    for_every_device(|_, rig| {
        let offered = rig.offered();
        for bad in [0, offered & !V1, offered | 1 << 63, V1 | 1 << 50, V1 | 1 << 28 << 32] {
            rig.begin();
            assert!(!rig.negotiate(bad), "{bad:#x}");
            assert!(!rig.set_up_queue(0, 8), "no queue before FEATURES_OK");
            rig.finish();
            assert_eq!(rig.status(), 3, "DRIVER_OK needs FEATURES_OK");
            // The driver may try again with less (3.1.1 leaves it to the driver; the device stays usable).
            assert!(rig.negotiate(V1));
        }
        rig.begin();
        rig.write(offset::DRIVER_FEATURES_SEL, 2);
        rig.write(offset::DRIVER_FEATURES, 1);
        assert!(!rig.negotiate(V1), "feature bits above 63 are not offered");
        rig.begin();
        assert!(rig.negotiate(offered));
        rig.write(offset::DRIVER_FEATURES_SEL, 0);
        rig.write(offset::DRIVER_FEATURES, u32::MAX); // too late
        assert!(rig.set_up_queue(0, 8));
        rig.finish();
        assert_ne!(rig.status() & DRIVER_OK, 0);
    });
}

#[test]
fn refuses_queues_that_can_not_work() {
    for_every_device(|_, rig| {
        rig.write(offset::QUEUE_SEL, 0);
        let max = rig.read(offset::QUEUE_NUM_MAX);
        rig.write(offset::QUEUE_SEL, 99);
        assert_eq!(rig.read(offset::QUEUE_NUM_MAX), 0);
        let good = (8, 0x1000, 0x2000, 0x3000);
        let bad = [
            (0, 0x1000, 0x2000, 0x3000),
            (3, 0x1000, 0x2000, 0x3000),
            (max * 2, 0x1000, 0x2000, 0x3000),
            (0x10000, 0x1000, 0x2000, 0x3000),
            (u32::MAX, 0x1000, 0x2000, 0x3000),
            (8, 0x1008, 0x2000, 0x3000),
            (8, 0x1000, 0x2001, 0x3000),
            (8, 0x1000, 0x2000, 0x3002),
            (8, RAM, 0x2000, 0x3000),
            (8, RAM - 16, 0x2000, 0x3000),
            (8, 0x1000, RAM, 0x3000),
            (8, 0x1000, 0, 0x3000),
            (8, 0x1000, 0x2000, RAM - 4),
            (8, u64::MAX - 15, 0x2000, 0x3000),
            (8, 0x1000, 0x2000, u64::MAX - 3),
        ];
        for (size, desc, avail, used) in bad {
            rig.begin();
            assert!(rig.negotiate(V1));
            assert!(!rig.set_up_raw(0, size, desc, avail, used), "{size} {desc:#x} {avail:#x} {used:#x}");
            rig.finish();
            assert_eq!(rig.status() & (DRIVER_OK | NEEDS_RESET), NEEDS_RESET);
            // A driver that corrects itself before DRIVER_OK is welcome.
            rig.begin();
            assert!(rig.negotiate(V1));
            assert!(!rig.set_up_raw(0, size, desc, avail, used));
            assert!(rig.set_up_raw(0, good.0, good.1, good.2, good.3));
            rig.finish();
            assert_eq!(rig.status() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
        }
    });
}

#[test]
fn the_status_only_goes_forward() {
    for_every_server(|config, rig| {
        rig.write(offset::STATUS, 0);
        for out_of_order in [2, 4, 8, 0x40, 0x100, 0xffff_ff00] {
            rig.write(offset::STATUS, out_of_order);
            assert_eq!(rig.status(), 0, "{out_of_order:#x}");
        }
        rig.drive(V1);
        let up = rig.status();
        for backwards in [1, 3, 11, 4, 0x7] {
            rig.write(offset::STATUS, backwards);
            assert_eq!(rig.status(), up, "{backwards:#x}");
        }
        let request = any_request(rig);
        assert!(answers(config, rig, &request), "and the device goes on");
        rig.write(offset::STATUS, up | 0x80);
        assert_eq!(rig.status(), up | 0x80, "FAILED is noted");
        assert!(rig.transport().counters().bad_accesses.load(Ordering::Relaxed) > 0);
        rig.write(offset::STATUS, 0);
        assert_eq!((rig.status(), rig.read(offset::QUEUE_READY)), (0, 0));
    });
}

#[test]
fn a_kick_before_driver_ok_is_served_after_it_and_not_before() {
    for_every_server(|_, rig| {
        rig.kick(0);
        rig.begin();
        assert!(rig.negotiate(V1));
        assert!(rig.set_up_queue(0, 8));
        let request = any_request(rig);
        let head = rig.post(0, &request);
        rig.kick(0);
        rig.write(offset::QUEUE_NOTIFY, 0);
        rig.settle();
        assert!(rig.take_used(0).is_none() && rig.take_interrupt().is_none());
        rig.finish();
        assert_eq!(rig.wait_used(0).0, head);
    });
}

#[test]
fn a_write_to_queue_notify_is_a_kick() {
    for_every_server(|_, rig| {
        rig.drive(V1);
        let request = any_request(rig);
        rig.post(0, &request);
        rig.write(offset::QUEUE_NOTIFY, 0);
        rig.wait_used(0);
        rig.write(offset::QUEUE_NOTIFY, 1); // there is none
        rig.write(offset::QUEUE_NOTIFY, u32::MAX);
    });
}

/// What a lying driver does to its rings.
type Lie = fn(&mut Rig);

const LIES: [(&str, Lie); 10] = [
    ("a head out of the table", |rig| rig.make_available(0, 0xffff)),
    ("a head just out of the table", |rig| rig.make_available(0, 64)),
    ("a loop", |rig| {
        rig.write_desc(rig.table(0), 0, 0x50000, 16, 1, 1);
        rig.write_desc(rig.table(0), 1, 0x50000, 16, 1, 0);
        rig.make_available(0, 0);
    }),
    ("a next out of the table", |rig| {
        rig.write_desc(rig.table(0), 0, 0x50000, 16, 1, 64);
        rig.make_available(0, 0);
    }),
    ("a readable after a writable buffer", |rig| {
        rig.write_desc(rig.table(0), 0, 0x50000, 16, 1 | 2, 1);
        rig.write_desc(rig.table(0), 1, 0x50000, 16, 0, 0);
        rig.make_available(0, 0);
    }),
    ("avail.idx far ahead", |rig| rig.set_avail_idx(0, 65)),
    ("an indirect table of no whole descriptors", |rig| {
        rig.write_desc(rig.table(0), 0, 0x50000, 17, 4, 0);
        rig.make_available(0, 0);
    }),
    ("an indirect table out of RAM", |rig| {
        rig.write_desc(rig.table(0), 0, RAM, 16, 4, 0);
        rig.make_available(0, 0);
    }),
    ("an indirect table in an indirect table", |rig| {
        rig.write_desc(0x50000, 0, 0x50000, 16, 4, 0);
        rig.write_desc(rig.table(0), 0, 0x50000, 16, 4, 0);
        rig.make_available(0, 0);
    }),
    ("more than 4 GiB", |rig| {
        rig.write_desc(rig.table(0), 0, 0x50000, u32::MAX, 1 | 2, 1);
        rig.write_desc(rig.table(0), 1, 0x50000, u32::MAX, 2, 0);
        rig.make_available(0, 0);
    }),
];

#[test]
fn a_lying_driver_gets_needs_reset_and_may_start_again() {
    for_every_server(|config, rig| {
        for (lie, tell) in LIES {
            rig.begin();
            assert!(rig.negotiate(rig_features()));
            assert!(rig.set_up_queue(0, 64));
            rig.finish();
            tell(rig);
            rig.kick(0);
            let bits = rig.wait_interrupt();
            assert_eq!(bits & 2, 2, "{} {lie}: a configuration change tells of it", config.kind_name());
            assert!(rig.needs_reset(), "{} {lie}", config.kind_name());
            let status = rig.status();
            rig.write(offset::STATUS, status & !NEEDS_RESET | 0x80);
            assert!(rig.needs_reset(), "only a reset ends it");
            rig.kick(0);
            rig.settle();
            assert!(rig.take_interrupt().is_none(), "{lie}: it is silent until then");
            rig.free_all();
            rig.drive(V1);
            assert!(!rig.needs_reset());
            let request = any_request(rig);
            assert!(answers(config, rig, &request), "{} after {lie}", config.kind_name());
        }
        assert_eq!(rig.transport().worker().counters().broken.load(Ordering::Relaxed), 10);
    });
}

fn rig_features() -> u64 {
    V1 | 1 << VIRTIO_RING_F_INDIRECT_DESC
}

#[test]
fn an_indirect_table_may_be_long_but_not_endless() {
    for_every_server(|_, rig| {
        for (count, fits) in [(1024_u16, true), (1025, false), (40_000, false)] {
            rig.drive(V1);
            rig.free_all();
            let table = rig.alloc(u64::from(count) * 16);
            rig.write_desc(table, 0, 0x200, 16, 1, 1);
            for index in 1..count {
                let flags = if index + 1 < count { 1 | 2 } else { 2 };
                rig.write_desc(table, index, 0x100, 1, flags, index + 1);
            }
            rig.write_desc(rig.table(0), 0, table, u32::from(count) * 16, 4, 0);
            rig.make_available(0, 0);
            rig.kick(0);
            rig.settle();
            assert_eq!(rig.needs_reset(), !fits, "{count}");
        }
    });
}

/// In a machine the write of 1 to InterruptACK ends in the host's kernel, and bit 0 of InterruptStatus stays: no
/// interrupt may depend on it.
#[test]
fn interrupts_come_whether_or_not_the_last_one_was_acknowledged() {
    for_every_server(|_, rig| {
        rig.drive(V1);
        let request = any_request(rig);
        for _ in 0..20 {
            rig.post(0, &request);
            rig.kick(0);
            while rig.take_used(0).is_none() {
                rig.settle();
            }
            rig.settle();
            assert!(rig.transport().interrupt().event().read().is_ok());
            assert_eq!(rig.read(offset::INTERRUPT_STATUS), 1);
        }
        rig.write(offset::STATUS, 0);
        assert_eq!(rig.read(offset::INTERRUPT_STATUS), 0, "a reset clears it");
    });
}

#[test]
fn without_event_idx_the_no_interrupt_flag_is_honoured() {
    for_every_server(|_, rig| {
        rig.drive(V1);
        let request = any_request(rig);
        rig.set_avail_flags(0, 1);
        rig.post(0, &request);
        rig.kick(0);
        rig.settle();
        assert!(rig.take_used(0).is_some() && rig.take_interrupt().is_none());
        rig.set_avail_flags(0, 0);
        rig.post(0, &request);
        rig.kick(0);
        assert_eq!(rig.wait_interrupt(), 1);
    });
}

#[test]
fn with_event_idx_the_driver_chooses_when_to_be_interrupted() {
    for_every_server(|_, rig| {
        rig.drive(V1 | EVENT_IDX);
        let request = any_request(rig);
        rig.set_used_event(0, 2); // interrupt after the third
        for n in 0..2 {
            rig.post(0, &request);
            rig.kick(0);
            rig.settle();
            assert!(rig.take_used(0).is_some() && rig.take_interrupt().is_none(), "{n}");
            assert_eq!(rig.avail_event(0), n + 1, "the device asks for the next kick");
        }
        rig.post(0, &request);
        rig.kick(0);
        assert_eq!(rig.wait_interrupt(), 1);
        assert_eq!(rig.transport().worker().counters().interrupts.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn config_space_is_read_at_any_width_and_written_only_where_it_may_be() {
    for_every_server(|config, rig| {
        let before = rig.config(0, 0xf00);
        for at in 0..16 {
            for width in [1, 2, 4, 8] {
                assert_eq!(rig.config(at, width), before[at as usize..][..width]);
            }
        }
        for at in (0..0xf00).chain([0xfff - 0x100, u64::MAX - 0x100]) {
            rig.transport().write(offset::CONFIG.saturating_add(at), &[0x5a; 4]);
        }
        let mut after = rig.config(0, 0xf00);
        let writable = rig.transport().worker().facts().config_writable.clone();
        after[writable.clone()].copy_from_slice(&before[writable]);
        assert_eq!(after, before);
        rig.drive(V1);
        rig.transport().write(offset::CONFIG, &[1; 8]);
        let request = any_request(rig);
        assert!(answers(config, rig, &request));
    });
}

#[test]
fn a_queue_can_be_taken_from_a_running_device() {
    for_every_server(|_, rig| {
        rig.drive(V1);
        rig.write(offset::QUEUE_SEL, 0);
        rig.write(offset::QUEUE_READY, 0);
        assert_eq!(rig.read(offset::QUEUE_READY), 0);
        let request = any_request(rig);
        rig.post(0, &request);
        rig.kick(0);
        rig.settle();
        assert!(rig.take_used(0).is_none() && !rig.needs_reset());
        rig.write(offset::QUEUE_READY, 1);
        assert_eq!(rig.read(offset::QUEUE_READY), 0, "queues are set up before DRIVER_OK only");
    });
}

#[test]
fn drivers_may_outlive_workers() {
    for_every_device(|_, rig| {
        rig.drive(V1);
        rig.transport().worker().quit();
        rig.transport().worker().quit();
        rig.kick(0);
        rig.write(offset::STATUS, 0);
        rig.begin();
        assert!(rig.negotiate(V1) && rig.set_up_queue(0, 8));
        rig.finish();
        assert!(rig.needs_reset());
    });
}

/// A device whose requests wait for the test, and that tells what is called.
struct Slow {
    said: Sender<&'static str>,
    go: Receiver<()>,
    config: Vec<u8>,
}

impl Device for Slow {
    fn facts(&self) -> Facts {
        Facts {
            virtio_id: 42,
            features: 1,
            queue_sizes: vec![16, 4],
            config: self.config.clone(),
            config_writable: 2..4,
            sources: Vec::new(),
        }
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        io.drain(queue, |chain| {
            let _ = self.said.send("begun");
            let _ = self.go.recv_timeout(PATIENCE);
            chain.write(0, &[1]).map_err(|_| Broken("no room"))?;
            let _ = self.said.send("done");
            Ok(1)
        })
    }

    fn started(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        assert_ne!(io.features() & V1, 0);
        let _ = self.said.send("started");
        Ok(())
    }

    fn stopping(&mut self) {
        let _ = self.said.send("stopping");
    }

    fn wrote_config(&mut self, offset: usize, data: &[u8]) {
        self.config[offset..][..data.len()].copy_from_slice(data);
    }
}

fn slow() -> (Rig, Receiver<&'static str>, Sender<()>) {
    let ((said, hear), (tell, go)) = (mpsc::channel(), mpsc::channel());
    (Rig::new(Box::new(Slow { said, go, config: vec![0; 6] })), hear, tell)
}

#[test]
fn a_reset_waits_for_the_request_at_hand_and_drops_the_rest() {
    let (mut rig, hear, tell) = slow();
    rig.drive(V1 | 1);
    let buffer = rig.writable(1);
    for _ in 0..3 {
        rig.post(0, &[buffer]);
    }
    rig.kick(0);
    assert_eq!(hear.recv_timeout(PATIENCE), Ok("started"));
    assert_eq!(hear.recv_timeout(PATIENCE), Ok("begun"));
    let (reset, is_reset) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rig.write(offset::STATUS, 0);
            reset.send(()).unwrap();
        });
        // The reset can not be over while the device is busy. (A wrong one would show here or in the order below.)
        assert!(is_reset.recv_timeout(Duration::from_millis(50)).is_err());
        tell.send(()).unwrap();
        is_reset.recv_timeout(PATIENCE).unwrap();
    });
    let after: Vec<_> = hear.try_iter().collect();
    assert_eq!(after, ["done", "stopping"], "the other two requests were not begun");
    assert_eq!(rig.status(), 0);

    rig.drive(V1); // a second driver, with other features
    let head = rig.post(1, &[buffer]);
    rig.kick(1);
    tell.send(()).unwrap();
    assert_eq!(rig.wait_used(1), (head, 1));
}

#[test]
fn config_writes_reach_the_device_only_where_it_wants_them() {
    let (mut rig, _hear, _tell) = slow();
    let generation = rig.read(offset::CONFIG_GENERATION);
    for (at, data) in [(0, &[9_u8][..]), (1, &[9, 9]), (3, &[9, 9]), (4, &[9]), (2, &[7]), (3, &[8])] {
        rig.transport().write(offset::CONFIG + at, data);
    }
    assert_eq!(rig.config(0, 6), [0, 0, 7, 8, 0, 0]);
    assert_ne!(rig.read(offset::CONFIG_GENERATION), generation);
}

#[test]
fn one_of_two_queues_goes_on_when_the_other_is_taken_away() {
    let (mut rig, _hear, tell) = slow();
    rig.drive(V1);
    rig.write(offset::QUEUE_SEL, 0);
    rig.write(offset::QUEUE_READY, 0);
    let buffer = rig.writable(1);
    let head = rig.post(1, &[buffer]);
    rig.kick(1);
    tell.send(()).unwrap();
    assert_eq!(rig.wait_used(1), (head, 1));
}

/// One access of a driver gone mad.
#[derive(Debug, Clone)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Kick,
    Handshake,
}

fn any_access() -> impl Strategy<Value = Access> {
    let known = prop::sample::select(vec![
        offset::DEVICE_FEATURES_SEL,
        offset::DRIVER_FEATURES,
        offset::DRIVER_FEATURES_SEL,
        offset::QUEUE_SEL,
        offset::QUEUE_NUM,
        offset::QUEUE_READY,
        offset::QUEUE_NOTIFY,
        offset::INTERRUPT_ACK,
        offset::STATUS,
        offset::QUEUE_DESC_LOW,
        offset::QUEUE_DESC_HIGH,
        offset::QUEUE_DRIVER_LOW,
        offset::QUEUE_DEVICE_LOW,
        offset::CONFIG,
    ]);
    let at = || prop_oneof![0..0x120_u64, 0..0x1100_u64, any::<u64>()];
    let value = prop_oneof![0..16_u32, Just(0x1000), Just(0x2000), Just(0x3000), any::<u32>()];
    prop_oneof![
        1 => (at(), 0..17_usize).prop_map(|(at, len)| Access::Read(at, len)),
        1 => (at(), prop::collection::vec(any::<u8>(), 0..17)).prop_map(|(at, data)| Access::Write(at, data)),
        6 => (known, value).prop_map(|(at, value)| Access::Write(at, value.to_le_bytes().to_vec())),
        1 => Just(Access::Kick),
        1 => Just(Access::Handshake),
    ]
}

/// Descriptors that are often nearly right.
fn any_table() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let addr = prop_oneof![0x40000..0x60000_u64, Just(0x1000), RAM - 64..RAM + 64, any::<u64>()];
    let len = prop_oneof![0..64_u32, Just(512), Just(1), Just(16), any::<u32>()];
    let flags = prop_oneof![0..8_u16, any::<u16>()];
    prop::collection::vec((addr, len, flags, 0..10_u16), 8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_register_accesses_do_no_harm(accesses in prop::collection::vec(any_access(), 1..80)) {
        for_every_server(|config, rig| {
            for access in &accesses {
                match access {
                    Access::Read(at, len) => rig.transport().read(*at, &mut vec![0; *len]),
                    Access::Write(at, data) => rig.transport().write(*at, data),
                    Access::Kick => rig.kick(0),
                    Access::Handshake => rig.drive(V1),
                }
            }
            rig.settle();
            rig.drive(V1);
            let request = any_request(rig);
            assert!(answers(config, rig, &request), "a proper driver is served after all that");
        });
    }

    #[test]
    fn random_rings_do_no_harm(
        table in any_table(),
        indirect in any_table(),
        heads in prop::collection::vec(prop_oneof![0..8_u16, any::<u16>()], 1..12),
        idx in prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)],
        header in any::<[u8; 16]>(),
        features in prop_oneof![Just(V1), Just(V1 | EVENT_IDX)],
    ) {
        for_every_server(|config, rig| {
            rig.begin();
            assert!(rig.negotiate(features));
            assert!(rig.set_up_queue(0, 8));
            rig.memory().write_slice(&header, GuestAddress(0x40000)).unwrap();
            for (at, entries) in [(rig.table(0), &table), (0x41000, &indirect)] {
                for (index, (addr, len, flags, next)) in (0..).zip(entries) {
                    rig.write_desc(at, index, *addr, *len, *flags, *next);
                }
            }
            // One that leads to the other table, and one whole request made of what is there.
            rig.write_desc(rig.table(0), 7, 0x41000, 128, 4, 0);
            rig.finish();
            for head in &heads {
                rig.make_available(0, *head);
            }
            if let Some(idx) = idx {
                rig.set_avail_idx(0, idx);
            }
            rig.kick(0);
            rig.settle();
            rig.drive(features);
            let request = any_request(rig);
            assert!(answers(config, rig, &request), "a proper driver is served after all that");
        });
    }
}

#[test]
fn files_are_released_with_the_device() {
    for (config, kept) in every_config() {
        drop(Rig::new(open(&config).unwrap()));
        let again = open(&config).map(|_| ());
        assert!(again.is_ok(), "{:?} {:?}", again, File::open(kept.path()));
    }
}
