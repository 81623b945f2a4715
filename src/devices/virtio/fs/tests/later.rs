//! A share whose directory comes while its driver is up, goes, and is followed by another one.

use super::*;

const NOBODY: i32 = -libc::ENOTCONN;

/// A share without a directory, with a driver, in a guest whose memory no other process can map.
fn spare() -> Rig {
    let mut rig = Rig::new(stand_in::spare());
    rig.drive(RING_FEATURES);
    rig
}

/// Gives it a back end.
fn give(rig: &mut Rig, behaviour: Behaviour) -> Fake {
    let (fake, stream) = Fake::start(behaviour);
    let change = stand_in::change(stream, Duration::from_millis(20)).unwrap();
    rig.transport().transport().update(change).unwrap();
    fake
}

fn take_away(rig: &mut Rig) {
    let change = Change::Fs(FsChange::Another(None));
    rig.transport().transport().update(change).unwrap();
}

/// The error that a request for this is answered with.
fn error_of(rig: &mut Rig, opcode: u32) -> i32 {
    rig.free_all();
    let sent = request_for(rig, opcode, 7);
    assert_eq!(rig.request(REQUESTS, &sent), 16);
    let (error, unique) = answer(rig, &sent);
    assert_eq!(unique, 7);
    error
}

/// Whether the guest can mount it and use it.
fn serves(rig: &mut Rig) -> bool {
    [FUSE_INIT, 1].map(|opcode| error_of(rig, opcode)) == [0, 0]
}

#[test]
fn a_driver_comes_before_the_directory() {
    let mut rig = spare();
    assert_eq!(&rig.config(0, 4), b"src\0");
    assert_eq!((error_of(&mut rig, FUSE_INIT), error_of(&mut rig, 1)), (NOBODY, NOBODY));
    let forget = [rig.readable(&[0; 48])];
    assert_eq!(rig.request(0, &forget), 0, "it has no answer");
    let fake = give(&mut rig, Behaviour::Serve);
    assert!(serves(&mut rig) && !rig.needs_reset());
    drop(rig);
    fake.heard();
}

/// What the back end reads and writes of copies is what the guest has, however that is cut, up to the largest request.
#[test]
fn copies_are_what_the_guest_has() {
    let noise = |len: u32| (0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>();
    let request = |rig: &mut Rig, lens: &[u32], room: &[u32]| {
        rig.free_all();
        let mut readable: Vec<Buffer> = Vec::new();
        let bytes = noise(lens.iter().sum());
        let mut rest = &bytes[..];
        for len in lens {
            let (now, later) = rest.split_at(*len as usize);
            readable.push(rig.readable(now));
            rest = later;
        }
        let writable: Vec<Buffer> = room.iter().map(|len| rig.writable(*len)).collect();
        let written = rig.request(REQUESTS, &[&readable[..], &writable].concat());
        (bytes, written, writable.iter().flat_map(|buffer| rig.bytes(*buffer)).collect::<Vec<_>>())
    };
    let mut rig = spare();
    let fake = give(&mut rig, Behaviour::Serve);
    assert!(serves(&mut rig));
    fake.behave(Behaviour::Echo);
    for lens in [&[40][..], &[40, 40, 4096], &[16384], &[16383, 2, 16384], &[1 << 19], &[40, 40, 1 << 19]] {
        let len: u32 = lens.iter().sum();
        for room in [&[len][..], &[1, 2, len], &[16, len - 16]] {
            let (sent, written, answer) = request(&mut rig, lens, room);
            assert_eq!((written, &answer[..sent.len()]), (len, &sent[..]), "{lens:?} {room:?}");
            assert!(answer[sent.len()..].iter().all(|byte| *byte == 0xa5), "no more than was written");
        }
    }
    let (_, written, answer) = request(&mut rig, &[1 << 19], &[100]);
    assert_eq!((written, answer), (100, noise(100)), "as much as there is room for");
    // Too large for any guest that is not hostile; and the device goes on.
    let (_, written, answer) = request(&mut rig, &[1 << 20], &[16, 1 << 19]);
    assert_eq!((written, &answer[4..8]), (16, &NOBODY.to_le_bytes()[..]));
    fake.behave(Behaviour::Serve);
    assert!(serves(&mut rig) && !rig.needs_reset());
}

#[test]
fn the_directory_comes_before_a_driver() {
    let mut rig = Rig::new(stand_in::spare());
    let _fake = give(&mut rig, Behaviour::Serve);
    for _ in 0..3 {
        rig.drive(RING_FEATURES);
        assert!(serves(&mut rig));
    }
}

/// What the guest still has of another directory is not for the new one: its numbers mean other files there.
#[test]
fn nothing_is_heard_before_a_mount() {
    let mut rig = spare();
    let old = give(&mut rig, Behaviour::Serve);
    assert!(serves(&mut rig));
    let _new = give(&mut rig, Behaviour::Serve);
    for _ in 0..3 {
        assert_eq!(error_of(&mut rig, 1), NOBODY);
    }
    // One that is too short to be one.
    let nothing = [rig.readable(&[26, 0, 0]), rig.writable(16)];
    assert_eq!(rig.request(REQUESTS, &nothing), 0);
    assert_eq!(error_of(&mut rig, 1), NOBODY);
    rig.pause();
    rig.resume();
    assert_eq!(error_of(&mut rig, 1), NOBODY, "after a pause");
    rig.drive(RING_FEATURES);
    assert_eq!(error_of(&mut rig, 1), NOBODY, "for another driver");
    assert!(serves(&mut rig));
    old.heard();
}

/// Those that are out when it is taken away, and those that come later; then the same place has another directory.
#[test]
fn a_directory_goes_with_requests_out() {
    let mut rig = spare();
    for round in 0..3 {
        let fake = give(&mut rig, Behaviour::Serve);
        assert!(serves(&mut rig), "round {round}");
        fake.behave(Behaviour::Hold);
        rig.free_all();
        let sent = [1, 2, 3].map(|unique| request(&mut rig, unique));
        for buffers in &sent {
            rig.post(REQUESTS, buffers);
        }
        rig.kick(REQUESTS);
        rig.settle();
        take_away(&mut rig);
        for _ in &sent {
            assert_eq!(rig.wait_used(REQUESTS).1, 16);
        }
        for (unique, buffers) in (1..).zip(&sent) {
            assert_eq!(answer(&rig, buffers), (NOBODY, unique));
        }
        assert_eq!(error_of(&mut rig, FUSE_INIT), NOBODY);
        fake.heard();
    }
    assert!(!rig.needs_reset());
}

/// More than its ring has room for wait when the directory is exchanged: each is answered once, by whomever.
#[test]
fn a_full_ring_is_emptied() {
    let shared = || Rig::with(stand_in::spare(), shared_ram());
    for mut rig in [spare(), shared()] {
        rig.drive(RING_FEATURES);
        full(&mut rig);
    }
}

fn full(rig: &mut Rig) {
    let fake = give(rig, Behaviour::Serve);
    assert!(serves(rig));
    fake.behave(Behaviour::Hold);
    let buffers = request(rig, 5);
    for _ in 0..SLOTS + 40 {
        rig.post(REQUESTS, &buffers);
    }
    rig.kick(REQUESTS);
    rig.settle();
    let _other = give(rig, Behaviour::Serve);
    for _ in 0..SLOTS + 40 {
        assert_eq!(rig.wait_used(REQUESTS).1, 16);
    }
    assert!(serves(rig));
}

/// A driver that broke its rings keeps the device waiting for a reset; the directory is exchanged all the same.
#[test]
fn a_broken_device_takes_another_directory() {
    let mut rig = spare();
    let fake = give(&mut rig, Behaviour::Serve);
    assert!(serves(&mut rig));
    fake.behave(Behaviour::Hold);
    let sent = request(&mut rig, 5);
    rig.post(REQUESTS, &sent);
    rig.kick(REQUESTS);
    rig.settle();
    rig.make_available(REQUESTS, 0xffff);
    rig.kick(REQUESTS);
    rig.settle();
    assert!(rig.needs_reset());
    let _other = give(&mut rig, Behaviour::Serve);
    assert!(rig.needs_reset());
    rig.drive(RING_FEATURES);
    assert!(serves(&mut rig));
}

#[test]
fn a_paused_guest_finds_another_directory() {
    let mut rig = spare();
    let old = give(&mut rig, Behaviour::Serve);
    assert!(serves(&mut rig));
    rig.pause();
    let _new = give(&mut rig, Behaviour::Serve);
    rig.resume();
    assert!(serves(&mut rig));
    rig.pause();
    take_away(&mut rig);
    rig.resume();
    assert_eq!(error_of(&mut rig, FUSE_INIT), NOBODY);
    old.heard();
}

#[test]
fn one_that_died_is_followed_by_another() {
    let mut rig = spare();
    let fake = give(&mut rig, Behaviour::Serve);
    assert!(serves(&mut rig));
    fake.die();
    while error_of(&mut rig, 1) == 0 {}
    assert_eq!(error_of(&mut rig, FUSE_INIT), NOBODY);
    let _other = give(&mut rig, Behaviour::Serve);
    assert!(serves(&mut rig));
}

/// A state says whether there was a directory, and whether the guest had mounted it.
#[test]
fn a_saved_share_is_loaded_as_it_was() {
    let mut rig = spare();
    let save = |rig: &mut Rig| {
        rig.pause();
        let state = rig.save().unwrap();
        let DeviceState::Fs(of_device) = state.device.clone() else { panic!("it is a share") };
        (state, of_device.back_end)
    };
    let (state, back_end) = save(&mut rig);
    assert_eq!(back_end, BackEndState::Absent);
    rig.succeed(|| stand_in::spare(), &state).unwrap();
    rig.resume();
    assert_eq!(error_of(&mut rig, FUSE_INIT), NOBODY);
    let mut fakes = vec![give(&mut rig, Behaviour::Serve)];
    let mut another = || {
        let (share, fake) = share(Behaviour::Serve);
        fakes.push(fake);
        share as Box<dyn Device>
    };
    let (state, back_end) = save(&mut rig);
    assert!(matches!(back_end, BackEndState::Present { awaits_mount: true, .. }), "{back_end:?}");
    rig.succeed(&mut another, &state).unwrap();
    rig.resume();
    assert_eq!(error_of(&mut rig, 1), NOBODY);
    assert!(serves(&mut rig));
    let (state, back_end) = save(&mut rig);
    assert!(matches!(back_end, BackEndState::Present { awaits_mount: false, .. }), "{back_end:?}");
    rig.succeed(&mut another, &state).unwrap();
    rig.resume();
    assert_eq!(error_of(&mut rig, 1), 0, "it is mounted");
    let (state, _) = save(&mut rig);
    let refused = rig.succeed(|| stand_in::spare(), &state).unwrap_err();
    assert_eq!(refused.to_string(), "it had a directory, and has none");
}
