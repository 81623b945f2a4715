//! A driver that never rests, on a CPU of its own: whoever wants the worker meanwhile gets it, and gets on.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Requests that are served before anybody wants the worker.
const REQUESTS: u16 = 200;

/// Waits until so many more requests are served.
fn works(device: &Subject, rig: &Rig) {
    let (since, begin) = (Instant::now(), rig.used_idx(device.queue));
    while rig.used_idx(device.queue).wrapping_sub(begin) < REQUESTS {
        assert!(since.elapsed() < PATIENCE, "{} serves nothing", device.name);
        std::thread::yield_now();
    }
}

#[test]
fn a_driver_that_never_rests_is_paused_and_reset() {
    for_every_device(|device, rig| {
        device.drive(rig, V1);
        let request = device.request(rig);
        let head = rig.post(device.queue, &request);
        let mut flood = rig.flood(device.queue, head);
        let (enough, since) = (AtomicBool::new(false), Instant::now());
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) && since.elapsed() < PATIENCE {
                    flood();
                }
                enough.load(Ordering::Relaxed)
            });
            works(device, rig);
            rig.pause();
            rig.resume();
            works(device, rig);
            rig.write(offset::STATUS, 0);
            assert_eq!(rig.status(), 0);
            enough.store(true, Ordering::Relaxed);
            assert!(driver.join().unwrap(), "{} let nobody in until the driver rested", device.name);
        });
        device.drive(rig, V1);
        assert!(device.answers(rig), "{}", device.name);
    });
}
