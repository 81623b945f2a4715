//! Requests are served, and the driver is told of them as it asked to be (virtio 1.2, 2.7).

use std::sync::atomic::Ordering;

use super::*;

/// What a device counts is listed under names of its own, and what is common to all devices is counted for each.
#[test]
fn what_was_done_is_counted() {
    for_every_device(|device, rig| {
        let mut names = Vec::new();
        rig.transport().worker().tally().each(&mut |metric| {
            assert!(metric.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.help);
            names.push(metric.name.to_owned());
        });
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "{}: {names:?}", device.name);
        device.drive(rig, V1);
        for _ in 0..3 {
            rig.free_all();
            assert!(device.answers(rig), "{}", device.name);
        }
        rig.settle(); // an answer is there before its interrupt
        assert_eq!(rig.counted("requests"), 3, "{}", device.name);
        assert_eq!((rig.counted("interrupts"), rig.counted("broken")), (3, 0), "{}", device.name);
        assert!(rig.counted("kicks") > 0, "{}", device.name);
        assert!(rig.counted("busy_time") >= rig.counted("kicks"), "{}", device.name);
    });
}

#[test]
fn serves_requests_with_every_set_of_ring_features() {
    for_every_device(|device, rig| {
        let offered = rig.offered();
        for features in [V1, V1 | EVENT_IDX, V1 | 1 << VIRTIO_RING_F_INDIRECT_DESC, offered] {
            device.drive(rig, features); // a second, third, ... driver on the same device
            assert_eq!(rig.events().last(), Some(&GuestEvent::DriverOk(7)));
            for _ in 0..600 {
                rig.free_all();
                assert!(device.answers(rig), "{} {features:#x}", device.name);
            }
            rig.free_all();
            let request = device.request(rig);
            let head = rig.post_indirect(device.queue, &request);
            rig.kick(device.queue);
            let (used, len) = rig.wait_used(device.queue);
            assert_eq!(used, head);
            assert!((len > 0) == device.writes);
            assert!(!rig.needs_reset());
        }
    });
}

#[test]
fn many_requests_by_one_kick_fill_the_ring() {
    for_every_device(|device, rig| {
        device.drive(rig, V1 | EVENT_IDX);
        let request = device.request(rig);
        rig.write(offset::QUEUE_SEL, device.queue);
        let count = rig.read(offset::QUEUE_NUM_MAX) / 3;
        let heads: Vec<u16> = (0..count).map(|_| rig.post(device.queue, &request)).collect();
        rig.kick(device.queue);
        for head in heads {
            assert_eq!(rig.wait_used(device.queue).0, head);
        }
        assert!(rig.take_used(device.queue).is_none());
    });
}

/// In a machine the write of 1 to InterruptACK ends in the host's kernel, and bit 0 of InterruptStatus stays: no
/// interrupt may depend on it.
#[test]
fn interrupts_come_whether_or_not_the_last_one_was_acknowledged() {
    for_every_device(|device, rig| {
        device.drive(rig, V1);
        let request = device.request(rig);
        for _ in 0..20 {
            rig.post(device.queue, &request);
            rig.kick(device.queue);
            rig.poll_used(device.queue);
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
    for_every_device(|device, rig| {
        device.drive(rig, V1);
        let request = device.request(rig);
        rig.set_avail_flags(device.queue, 1);
        rig.post(device.queue, &request);
        rig.kick(device.queue);
        rig.poll_used(device.queue);
        assert!(rig.take_interrupt().is_none());
        rig.set_avail_flags(device.queue, 0);
        rig.post(device.queue, &request);
        rig.kick(device.queue);
        assert_eq!(rig.wait_interrupt(), 1);
    });
}

#[test]
fn with_event_idx_the_driver_chooses_when_to_be_interrupted() {
    for_every_device(|device, rig| {
        device.drive(rig, V1 | EVENT_IDX);
        let request = device.request(rig);
        rig.set_used_event(device.queue, 2); // interrupt after the third
        for n in 0..2 {
            rig.post(device.queue, &request);
            rig.kick(device.queue);
            rig.poll_used(device.queue);
            assert!(rig.take_interrupt().is_none(), "{n}");
            assert_eq!(rig.avail_event(device.queue), n + 1, "the device asks for the next kick");
        }
        rig.post(device.queue, &request);
        rig.kick(device.queue);
        assert_eq!(rig.wait_interrupt(), 1);
        assert_eq!(rig.transport().worker().counters().interrupts.load(Ordering::Relaxed), 1);
    });
}
