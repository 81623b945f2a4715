//! Registers, status, features, queues: what driver and device agree on before and after requests (virtio 1.2, 2.1, 2.2,
//! 3.1, 4.2.2).

use std::sync::atomic::Ordering;

use super::*;

#[test]
fn identifies_itself() {
    for_every_device(|device, rig| {
        assert_eq!(rig.read(offset::MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
        assert_eq!(rig.read(offset::VERSION), 2);
        assert_eq!(rig.read(offset::DEVICE_ID), device.id, "{}", device.name);
        assert_eq!(rig.read(offset::SHM_LEN_LOW), u32::MAX);
        assert_eq!(rig.read(offset::STATUS), 0);
        assert_eq!(rig.offered() & RING_FEATURES, RING_FEATURES);
        rig.write(offset::DEVICE_FEATURES_SEL, 2);
        assert_eq!(rig.read(offset::DEVICE_FEATURES), 0);
    });
}

#[test]
fn refuses_features() {
    for_every_device(|device, rig| {
        let offered = rig.offered();
        for bad in [0, offered & !V1, offered | 1 << 63, V1 | 1 << 50, V1 | 1 << 28 << 32] {
            rig.begin();
            assert!(!rig.negotiate(bad), "{bad:#x}");
            assert!(!rig.set_up_queue(device.queue, 8), "no queue before FEATURES_OK");
            rig.finish();
            assert_eq!(rig.status(), 3, "DRIVER_OK needs FEATURES_OK");
            // The driver may try again with less (3.1.1 leaves it to the driver; the device stays usable).
            assert!(rig.negotiate(V1 | device.features));
        }
        rig.begin();
        rig.write(offset::DRIVER_FEATURES_SEL, 2);
        rig.write(offset::DRIVER_FEATURES, 1);
        assert!(!rig.negotiate(V1 | device.features), "feature bits above 63 are not offered");
        rig.begin();
        assert!(rig.negotiate(offered));
        rig.write(offset::DRIVER_FEATURES_SEL, 0);
        rig.write(offset::DRIVER_FEATURES, u32::MAX); // too late
        assert!(rig.set_up_queue(device.queue, 8));
        rig.finish();
        assert_ne!(rig.status() & DRIVER_OK, 0);
    });
}

#[test]
fn refuses_queues_that_can_not_work() {
    for_every_device(|device, rig| {
        rig.write(offset::QUEUE_SEL, device.queue);
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
            assert!(rig.negotiate(V1 | device.features));
            assert!(!rig.set_up_raw(device.queue, size, desc, avail, used), "{size} {desc:#x} {avail:#x} {used:#x}");
            rig.finish();
            assert_eq!(rig.status() & (DRIVER_OK | NEEDS_RESET), NEEDS_RESET);
            // A driver that corrects itself before DRIVER_OK is welcome.
            rig.begin();
            assert!(rig.negotiate(V1 | device.features));
            assert!(!rig.set_up_raw(device.queue, size, desc, avail, used));
            assert!(rig.set_up_raw(device.queue, good.0, good.1, good.2, good.3));
            rig.finish();
            assert_eq!(rig.status() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
        }
    });
}

#[test]
fn the_status_only_goes_forward() {
    for_every_device(|device, rig| {
        rig.write(offset::STATUS, 0);
        for out_of_order in [2, 4, 8, 0x40, 0x100, 0xffff_ff00] {
            rig.write(offset::STATUS, out_of_order);
            assert_eq!(rig.status(), 0, "{out_of_order:#x}");
        }
        device.drive(rig, V1);
        let up = rig.status();
        for backwards in [1, 3, 11, 4, 0x7] {
            rig.write(offset::STATUS, backwards);
            assert_eq!(rig.status(), up, "{backwards:#x}");
        }
        assert!(device.answers(rig), "and the device goes on");
        rig.write(offset::STATUS, up | 0x80);
        assert_eq!(rig.status(), up | 0x80, "FAILED is noted");
        assert!(rig.transport().counters().bad_accesses.load(Ordering::Relaxed) > 0);
        rig.write(offset::STATUS, 0);
        assert_eq!((rig.status(), rig.read(offset::QUEUE_READY)), (0, 0));
    });
}

#[test]
fn a_kick_before_driver_ok_is_served_after_it_and_not_before() {
    for_every_device(|device, rig| {
        rig.kick(device.queue);
        rig.begin();
        assert!(rig.negotiate(V1 | device.features));
        assert!(rig.set_up_queue(device.queue, 8));
        let request = device.request(rig);
        let head = rig.post(device.queue, &request);
        rig.kick(device.queue);
        rig.write(offset::QUEUE_NOTIFY, device.queue);
        rig.settle();
        assert!(rig.take_used(device.queue).is_none() && rig.take_interrupt().is_none());
        rig.finish();
        assert_eq!(rig.wait_used(device.queue).0, head);
    });
}

#[test]
fn a_write_to_queue_notify_is_a_kick() {
    for_every_device(|device, rig| {
        device.drive(rig, V1);
        let request = device.request(rig);
        rig.post(device.queue, &request);
        rig.write(offset::QUEUE_NOTIFY, device.queue);
        rig.wait_used(device.queue);
        rig.write(offset::QUEUE_NOTIFY, 1); // there is none
        rig.write(offset::QUEUE_NOTIFY, u32::MAX);
    });
}

#[test]
fn config_space_is_read_at_any_width_and_written_only_where_it_may_be() {
    for_every_device(|device, rig| {
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
        device.drive(rig, V1);
        rig.transport().write(offset::CONFIG, &[1; 8]);
        assert!(device.answers(rig));
    });
}

#[test]
fn a_queue_can_be_taken_from_a_running_device() {
    for_every_device(|device, rig| {
        device.drive(rig, V1);
        rig.write(offset::QUEUE_SEL, device.queue);
        rig.write(offset::QUEUE_READY, 0);
        assert_eq!(rig.read(offset::QUEUE_READY), 0);
        let request = device.request(rig);
        rig.post(device.queue, &request);
        rig.kick(device.queue);
        rig.settle();
        assert!(rig.take_used(device.queue).is_none() && !rig.needs_reset());
        rig.write(offset::QUEUE_READY, 1);
        assert_eq!(rig.read(offset::QUEUE_READY), 0, "queues are set up before DRIVER_OK only");
    });
}

#[test]
fn drivers_may_outlive_workers() {
    for_every_device(|device, rig| {
        device.drive(rig, V1);
        rig.transport().worker().quit();
        rig.transport().worker().quit();
        rig.kick(device.queue);
        rig.write(offset::STATUS, 0);
        rig.begin();
        assert!(rig.negotiate(V1 | device.features) && rig.set_up_queue(device.queue, 8));
        rig.finish();
        assert!(rig.needs_reset());
    });
}

#[test]
fn files_are_released_with_the_device() {
    for device in every_device() {
        drop(device.rig());
        drop(device.open());
    }
}
