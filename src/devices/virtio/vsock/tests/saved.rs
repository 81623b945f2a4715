//! A vsock that was saved and loaded: the guest hears that its connections are gone, and makes new ones.

use super::*;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7), as the device writes it.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// Another device takes over.
fn move_on(guest: &mut Guest) {
    guest.rig.pause();
    let state = guest.rig.save().unwrap();
    let path = guest.path(None);
    guest.rig.succeed(|| Box::new(Vsock::open(&config(path)).unwrap()), &state).unwrap();
    guest.rig.resume();
}

#[test]
fn connections_are_reset_and_new_ones_are_made() {
    let mut guest = Guest::new();
    let event = guest.rig.writable(8);
    guest.rig.post(2, &[event]);
    guest.rig.kick(2);
    guest.rig.settle();
    assert!(guest.rig.take_used(2).is_none(), "nothing has happened");
    let mut host = guest.dial(52);
    let asked = guest.hears(op::REQUEST);
    guest.say(op::RESPONSE, (52, asked.src_port), 0, &[]);
    let mut hello = [0; 3];
    host.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"OK ");

    move_on(&mut guest);
    assert_eq!(guest.rig.wait_used(2).1, 4);
    assert_eq!(guest.rig.bytes(event)[..4], TRANSPORT_RESET);
    assert!(std::io::read_to_string(&mut host).is_ok(), "the host's end was closed");
    guest.say(op::RW, (52, asked.src_port), 0, b"late");
    guest.hears(op::RST);

    let _second = guest.dial(52);
    let again = guest.hears(op::REQUEST);
    assert_ne!(again.src_port, asked.src_port, "a port that is new to the guest");
}

#[test]
fn a_guest_without_a_buffer_hears_of_it_later_and_once() {
    let mut guest = Guest::new();
    move_on(&mut guest);
    move_on(&mut guest);
    guest.rig.settle();
    let events = [guest.rig.writable(4), guest.rig.writable(4)];
    for event in events {
        guest.rig.post(2, &[event]);
        guest.rig.kick(2);
    }
    assert_eq!(guest.rig.wait_used(2).1, 4);
    guest.rig.settle();
    assert!(guest.rig.take_used(2).is_none());
    let short = guest.rig.writable(2);
    move_on(&mut guest);
    assert_eq!(guest.rig.wait_used(2).1, 4, "the buffer that was left");
    guest.rig.post(2, &[short]);
    move_on(&mut guest);
    guest.rig.settle();
    assert!(guest.rig.needs_reset(), "an event does not fit into two bytes");
}
