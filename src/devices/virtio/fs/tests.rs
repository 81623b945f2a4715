//! A shared directory as a driver sees it, with back ends that work, and with ones that do not (virtio 1.2, 5.11).

mod later;

use std::time::Duration;

use super::*;
use crate::testing::{Buffer, PATIENCE, RAM, Rig, shared_ram};
use crate::virtio::DeviceConfig;
use crate::virtio::transport::RING_FEATURES;
use crate::virtio::vhost_user::fake::{Behaviour, Fake};
use crate::virtio::vhost_user::ring::SLOTS;

const REQUESTS: u32 = 1;

fn share(behaviour: Behaviour) -> (Box<Fs>, Fake) {
    let (fake, stream) = Fake::start(behaviour);
    (stand_in::share(stream, PATIENCE).unwrap(), fake)
}

/// A share whose back end answers whatever it is asked.
pub fn fake_share(_config: &DeviceConfig) -> Result<Box<dyn Device>, OpenError> {
    Ok(share(Behaviour::Serve).0)
}

fn rig(behaviour: Behaviour) -> (Rig, Fake) {
    let (share, fake) = share(behaviour);
    let mut rig = Rig::with(share, shared_ram());
    rig.drive(RING_FEATURES);
    (rig, fake)
}

/// A request with this number: a fuse_in_header and room for an answer.
fn request(rig: &mut Rig, unique: u64) -> [Buffer; 3] {
    request_for(rig, 0, unique)
}

/// The same, for this opcode.
fn request_for(rig: &mut Rig, opcode: u32, unique: u64) -> [Buffer; 3] {
    let header = [&40_u32.to_le_bytes()[..], &opcode.to_le_bytes(), &unique.to_le_bytes(), &[0; 24]].concat();
    [rig.readable(&header), rig.writable(16), rig.writable(100)]
}

/// Error and number in an answer.
fn answer(rig: &Rig, request: &[Buffer; 3]) -> (i32, u64) {
    let bytes = rig.bytes(request[1]);
    (i32::from_le_bytes(bytes[4..8].try_into().unwrap()), u64::from_le_bytes(bytes[8..].try_into().unwrap()))
}

#[test]
fn it_has_a_tag_and_a_request_queue() {
    let (mut rig, _fake) = rig(Behaviour::Serve);
    let config = rig.config(0, 40);
    assert_eq!(&config[..4], b"src\0");
    assert!(config[4..36].iter().all(|byte| *byte == 0));
    assert_eq!(config[36..], 1_u32.to_le_bytes());
}

#[test]
fn requests_are_answered_by_the_back_end() {
    let (mut rig, _fake) = rig(Behaviour::Serve);
    for unique in 0..3 * u64::from(SLOTS) {
        rig.free_all();
        let sent = request(&mut rig, unique);
        assert_eq!(rig.request(REQUESTS, &sent), 16);
        assert_eq!(answer(&rig, &sent), (0, unique));
    }
    rig.settle(); // an answer is there before its time is noted
    assert_eq!(rig.counted("request_time"), 3 * u64::from(SLOTS));
}

/// More than the ring has room for, posted at once, wait for their turn.
#[test]
fn a_full_ring_loses_nothing() {
    let (mut rig, _fake) = rig(Behaviour::Serve);
    let buffers = request(&mut rig, 5);
    for _ in 0..SLOTS + 40 {
        rig.post(REQUESTS, &buffers);
    }
    rig.kick(REQUESTS);
    for _ in 0..SLOTS + 40 {
        assert_eq!(rig.wait_used(REQUESTS).1, 16);
    }
}

#[test]
fn a_second_driver_finds_the_back_end_again() {
    let (mut rig, fake) = rig(Behaviour::Serve);
    for _ in 0..3 {
        let sent = request(&mut rig, 9);
        assert_eq!(rig.request(REQUESTS, &sent), 16);
        rig.drive(RING_FEATURES);
    }
    drop(rig);
    let heard = fake.heard();
    let times = |request| heard.iter().filter(|it| **it == request).count();
    assert_eq!((times(3), times(5), times(11)), (1, 4, 8), "SET_OWNER, SET_MEM_TABLE, GET_VRING_BASE: {heard:?}");
}

/// Those that are out when it dies, and those that come later.
#[test]
fn a_dead_back_end_is_an_error_for_every_request() {
    let (mut rig, fake) = rig(Behaviour::Hold);
    let sent = [1, 2, 3].map(|unique| request(&mut rig, unique));
    for buffers in &sent {
        rig.post(REQUESTS, buffers);
    }
    rig.kick(REQUESTS);
    rig.settle();
    fake.die();
    for _ in &sent {
        assert_eq!(rig.wait_used(REQUESTS).1, 16);
    }
    for (unique, buffers) in (1..).zip(&sent) {
        assert_eq!(answer(&rig, buffers), (-libc::ENOTCONN, unique));
    }
    let late = request(&mut rig, 77);
    assert_eq!(rig.request(REQUESTS, &late), 16);
    assert_eq!(answer(&rig, &late), (-libc::ENOTCONN, 77));
    // FUSE_FORGET has no answer.
    let forget = [rig.readable(&[0; 48])];
    assert_eq!(rig.request(0, &forget), 0);
    rig.drive(RING_FEATURES);
    let late = request(&mut rig, 78);
    rig.request(REQUESTS, &late);
    assert_eq!(answer(&rig, &late), (-libc::ENOTCONN, 78), "after a reset too");
}

#[test]
fn a_back_end_that_lies_is_not_believed() {
    for lie in [5000, u32::MAX, u32::from(SLOTS) - 1] {
        let (mut rig, _fake) = rig(Behaviour::Lie(lie));
        for unique in [1, 2] {
            let sent = request(&mut rig, unique);
            rig.request(REQUESTS, &sent);
            assert_eq!(answer(&rig, &sent), (-libc::ENOTCONN, unique), "{lie}");
        }
        assert!(!rig.needs_reset());
    }
    let (mut rig, _fake) = rig(Behaviour::Boast);
    let sent = request(&mut rig, 1);
    assert_eq!(rig.request(REQUESTS, &sent), 116, "no more than there was room for");
}

/// The back end never sees what is not RAM.
#[test]
fn buffers_outside_of_ram_are_refused() {
    let (mut rig, fake) = rig(Behaviour::Serve);
    for (addr, len) in [(RAM - 8, 16), (1 << 50, 16), (u64::MAX - 4, 16)] {
        let [header, ..] = request(&mut rig, 4);
        assert_eq!(rig.request(REQUESTS, &[header, Buffer { addr, len, writable: true }]), 0);
    }
    let sent = request(&mut rig, 6);
    assert_eq!(rig.request(REQUESTS, &sent), 16);
    let nothing = [Buffer { len: 0, ..sent[1] }];
    assert_eq!(rig.request(REQUESTS, &nothing), 0);
    drop(rig);
    fake.heard();
}

/// A pause waits for what is out; what does not come back is answered with an error when the back end is gone.
#[test]
fn a_reset_takes_all_requests_home() {
    let (mut rig, fake) = rig(Behaviour::Hold);
    let sent = request(&mut rig, 1);
    rig.post(REQUESTS, &sent);
    rig.kick(REQUESTS);
    rig.settle();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            fake.die();
        });
        rig.begin(); // a reset: it returns when virtiofsd can not write any more
    });
    assert_eq!(answer(&rig, &sent), (-libc::ENOTCONN, 1));
}
