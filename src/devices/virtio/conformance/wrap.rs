//! Ring indices run over 65,535 and start again (virtio 1.2, 2.7.6 to 2.7.10): nothing is served twice, no kick and no
//! interrupt is lost, and none comes that nobody asked for.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use super::*;

/// Requests of a test: the indices wrap, and go on after it.
const REQUESTS: u32 = 70_000;

/// The numbers of a test, the same each time (xorshift32, Marsaglia).
struct Chance(u32);

impl Chance {
    fn below(&mut self, end: u16) -> u16 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 % u32::from(end)) as u16
    }
}

/// Whether the step of an index from `old` to `new` goes past `event` (2.7.10), by trying every value on the way.
fn passes(event: u16, old: u16, new: u16) -> bool {
    let mut at = old;
    while at != new {
        if at == event {
            return true;
        }
        at = at.wrapping_add(1);
    }
    false
}

/// One device for each way of serving a queue: all at once (`Io::drain`), and one by one (`Io::take`, `Io::give`).
fn subjects() -> Vec<Subject> {
    every_device().into_iter().filter(|device| ["rng", "net, control"].contains(&device.name)).collect()
}

fn drive(device: &Subject, rig: &mut Rig, size: u16, features: u64) {
    rig.begin();
    assert!(rig.negotiate(V1 | features | device.features));
    assert!(rig.set_up_queue(device.queue, size));
    rig.finish();
    rig.settle();
}

/// Batch by batch: what is used, whether the device interrupts, and which kick it wants next.
#[test]
fn every_batch_is_as_the_model_says() {
    for device in subjects() {
        for (size, features) in [(16, EVENT_IDX), (64, 0)] {
            let mut rig = device.rig();
            drive(&device, &mut rig, size, features);
            let buffers = [rig.readable(device.header), rig.writable(1)];
            let (queue, chance) = (device.queue, &mut Chance(u32::from(size)));
            let (mut idx, mut done) = (0_u16, 0_u32);
            while done < REQUESTS {
                let count = 1 + chance.below(size / 2);
                let new = idx.wrapping_add(count);
                // Behind, within, just past, and far from the step that follows.
                let event = match chance.below(4) {
                    0 => idx.wrapping_sub(1 + chance.below(3)),
                    1 => idx.wrapping_add(chance.below(count)),
                    2 => new.wrapping_add(chance.below(3)),
                    _ => idx ^ 0x8000,
                };
                rig.set_used_event(queue, event);
                if features == EVENT_IDX {
                    assert_eq!(rig.avail_event(queue), idx, "{}: it wants the next kick", device.name);
                }
                let heads: Vec<u16> = (0..count).map(|_| rig.post(queue, &buffers)).collect();
                rig.kick(queue);
                rig.settle();
                for head in heads {
                    assert_eq!(rig.take_used(queue).map(|used| used.0), Some(head), "{} at {idx}", device.name);
                }
                assert!(rig.take_used(queue).is_none());
                let wanted = features == 0 || passes(event, idx, new);
                let came = rig.take_interrupt().is_some();
                assert_eq!(came, wanted, "{} of {size}: used_event {event}, from {idx} to {new}", device.name);
                (idx, done) = (new, done + u32::from(count));
            }
            assert!(!rig.needs_reset());
        }
    }
}

/// The driver adds while the device serves, kicks only where it is asked to, and sleeps until it is told: whoever lost
/// a notification would wait for ever.
#[test]
fn no_notification_is_lost_in_a_race() {
    for device in subjects() {
        for size in [4, 64] {
            let mut rig = device.rig();
            drive(&device, &mut rig, size, EVENT_IDX);
            let buffers = [rig.readable(device.header), rig.writable(1)];
            let (queue, chance) = (device.queue, &mut Chance(7));
            let (mut idx, mut done, mut posted) = (0_u16, 0_u32, VecDeque::new());
            while done < REQUESTS {
                let old = idx;
                for _ in 0..chance.below(1 + size / 2 - u16::try_from(posted.len()).unwrap()) {
                    posted.push_back(rig.post(queue, &buffers));
                    idx = idx.wrapping_add(1);
                }
                fence(Ordering::SeqCst); // the index before the question (2.7.13.4.1)
                if passes(rig.avail_event(queue), old, idx) {
                    rig.kick(queue);
                }
                for _ in 0..chance.below(u16::try_from(posted.len()).unwrap() + 1) {
                    assert_eq!(rig.wait_used(queue).0, posted.pop_front().unwrap(), "{} of {size}", device.name);
                    done += 1;
                }
            }
            assert!(!rig.needs_reset());
        }
    }
}
