//! A pause, seen by every device's driver: nothing is lost, nothing happens meanwhile, and nobody notices.

use super::*;

#[test]
fn a_pause_loses_nothing_and_serves_nothing() {
    for_every_device(|device, rig| {
        for features in [V1, V1 | EVENT_IDX] {
            device.drive(rig, features);
            for _ in 0..3 {
                rig.free_all();
                assert!(device.answers(rig), "{}", device.name);
                let request = device.request(rig);
                rig.pause();
                let head = rig.post(device.queue, &request);
                rig.kick(device.queue);
                rig.settle();
                assert!(rig.take_used(device.queue).is_none(), "{} serves during a pause", device.name);
                rig.pause(); // a second time is nothing
                rig.resume();
                assert_eq!(rig.wait_used(device.queue).0, head, "{}: the kick of the pause is heard", device.name);
                rig.resume();
                assert!(device.answers(rig), "{}", device.name);
            }
            assert!(!rig.needs_reset());
        }
    });
}

#[test]
fn what_waits_when_the_pause_comes_is_served_after_it() {
    for_every_device(|device, rig| {
        device.drive(rig, V1 | EVENT_IDX);
        for _ in 0..20 {
            rig.free_all();
            let request = device.request(rig);
            let mut heads: Vec<u16> = (0..20).map(|_| rig.post(device.queue, &request)).collect();
            rig.kick(device.queue);
            rig.pause(); // with some of them served, or in flight, or not begun
            rig.resume();
            let mut used: Vec<u16> = heads.iter().map(|_| rig.wait_used(device.queue).0).collect();
            used.sort_unstable();
            heads.sort_unstable();
            assert_eq!(used, heads, "{}: each is served once", device.name);
        }
    });
}

#[test]
fn a_pause_before_a_driver_or_with_a_broken_device_changes_nothing() {
    for_every_device(|device, rig| {
        rig.pause();
        rig.resume();
        device.drive(rig, V1);
        rig.make_available(device.queue, 0xffff);
        rig.kick(device.queue);
        rig.settle();
        assert!(rig.needs_reset(), "{}", device.name);
        rig.pause();
        rig.resume();
        rig.kick(device.queue);
        rig.settle();
        assert!(rig.needs_reset(), "{}", device.name);
        device.drive(rig, V1);
        assert!(device.answers(rig), "{}: a reset mends it, as without the pause", device.name);
    });
}
