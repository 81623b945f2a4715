//! The control queue: what each command does, and that a lie gets VIRTIO_NET_ERR.

use super::*;
use crate::virtio::net::filter::TABLE_MAX;

/// The control queue of an interface of one pair.
const QUEUE: u32 = 2;
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

fn rig_of(features: u64) -> (Rig, UnixDatagram) {
    let config = NetConfig { guest_mac: Some("02:00:00:00:00:07".into()), ..NetConfig::default() };
    let (mut rig, host) = rig_with(config);
    rig.drive(RING_FEATURES | features);
    (rig, host)
}

fn own_rig() -> (Rig, UnixDatagram) {
    rig_of(MRG | CONTROL | 1 << VIRTIO_NET_F_MAC)
}

/// Sends a request; the answer.
fn ask(rig: &mut Rig, queue: u32, request: &[u8]) -> u8 {
    rig.free_all();
    let buffers = [rig.readable(request), rig.writable(1)];
    assert_eq!(rig.request(queue, &buffers), 1);
    rig.bytes(buffers[1])[0]
}

pub fn order(rig: &mut Rig, queue: u32, class: u8, command: u8, rest: &[u8]) -> u8 {
    ask(rig, queue, &[&[class, command], rest].concat())
}

fn table(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let part = |macs: &[[u8; 6]]| [&(macs.len() as u32).to_le_bytes()[..], &macs.concat()].concat();
    [part(unicast), part(multicast)].concat()
}

fn to(mac: [u8; 6]) -> Vec<u8> {
    [&mac[..], &[2, 0, 0, 0, 0, 9, 8, 0], &[0; 46]].concat()
}

/// Which of these addresses' frames arrive, by sending to each and then to the broadcast address.
fn heard(rig: &mut Rig, host: &UnixDatagram, macs: &[[u8; 6]]) -> Vec<[u8; 6]> {
    rig.free_all();
    let mut arrived = Vec::new();
    for mac in macs.iter().chain([&[0xff; 6]]) {
        host.send(&to(*mac)).unwrap();
    }
    loop {
        let buffer = rig.writable(100);
        rig.post(0, &[buffer]);
        rig.kick(0);
        assert_eq!(rig.wait_used(0).1, 72);
        let mac: [u8; 6] = rig.bytes(buffer)[HEADER..][..6].try_into().unwrap();
        if mac == [0xff; 6] {
            return arrived;
        }
        arrived.push(mac);
    }
}

#[test]
fn modes_and_tables_choose_what_arrives() {
    let (mut rig, host) = own_rig();
    let all = [OWN, OTHER, GROUP];
    assert_eq!(heard(&mut rig, &host, &all), all, "promiscuous before the first command");
    assert_eq!(order(&mut rig, QUEUE, 0, 0, &[0]), 0);
    assert_eq!(heard(&mut rig, &host, &all), [OWN]);
    assert_eq!(rig.counted("frames_filtered"), 2);
    assert_eq!(order(&mut rig, QUEUE, 0, 1, &[1]), 0);
    assert_eq!(heard(&mut rig, &host, &all), [OWN, GROUP]);
    assert_eq!(order(&mut rig, QUEUE, 0, 1, &[0]), 0);
    assert_eq!(order(&mut rig, QUEUE, 1, 0, &table(&[OTHER], &[GROUP])), 0);
    assert_eq!(heard(&mut rig, &host, &all), all);
    assert_eq!(order(&mut rig, QUEUE, 0, 4, &[1]), 0);
    assert_eq!(heard(&mut rig, &host, &all), [GROUP]);
    rig.drive(RING_FEATURES | MRG);
    assert_eq!(heard(&mut rig, &host, &all), all, "a driver without a control queue hears all");
}

#[test]
fn the_address_changes_and_a_reset_brings_the_first_one_back() {
    let (mut rig, host) = own_rig();
    assert_eq!(order(&mut rig, QUEUE, 0, 0, &[0]), 0);
    assert_eq!(order(&mut rig, QUEUE, 1, 1, &OTHER), 0);
    assert_eq!(rig.config(0, 6), OTHER);
    assert_eq!(heard(&mut rig, &host, &[OWN, OTHER]), [OTHER]);
    for bad in [GROUP, [0xff; 6], [0; 6]] {
        assert_eq!(order(&mut rig, QUEUE, 1, 1, &bad), 1);
    }
    assert_eq!(rig.config(0, 6), OTHER);
    rig.begin();
    assert_eq!(rig.config(0, 6), OWN);
    rig.drive(RING_FEATURES | CONTROL);
    assert_eq!(order(&mut rig, QUEUE, 0, 0, &[0]), 0);
    assert_eq!(heard(&mut rig, &host, &[OWN, OTHER]), [OWN]);
    assert_eq!(order(&mut rig, QUEUE, 1, 1, &OTHER), 0);
    assert_eq!(rig.config(0, 6), OWN, "without VIRTIO_NET_F_MAC the field is not this driver's");
}

#[test]
fn vlans_are_chosen_one_by_one() {
    let (mut rig, host) = own_rig();
    assert_eq!(order(&mut rig, QUEUE, 0, 0, &[0]), 0);
    let send = |host: &UnixDatagram| {
        let mut frame = to(OWN);
        frame.splice(12..12, [0x81, 0, 0, 5]);
        host.send(&frame).unwrap();
        host.send(&to(OWN)).unwrap();
    };
    let next = |rig: &mut Rig| {
        let buffer = rig.writable(100);
        rig.post(0, &[buffer]);
        rig.kick(0);
        rig.wait_used(0).1
    };
    send(&host);
    assert_eq!(next(&mut rig), 72, "the one without a tag");
    assert_eq!(order(&mut rig, QUEUE, 2, 0, &[5, 0]), 0);
    send(&host);
    assert_eq!([next(&mut rig), next(&mut rig)], [76, 72]);
    assert_eq!(order(&mut rig, QUEUE, 2, 1, &[5, 0]), 0);
    send(&host);
    assert_eq!(next(&mut rig), 72);
}

#[test]
fn what_is_no_command_gets_an_error() {
    let (mut rig, host) = own_rig();
    let long = |count: u32, len: usize| [&count.to_le_bytes()[..], &vec![2; len]].concat();
    let wrong: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0, 0],
        vec![0, 0, 1, 1],
        vec![0, 6, 1],
        vec![9, 0],
        vec![3, 0],
        vec![1, 1, 2, 0, 0, 0, 0],
        vec![1, 1, 2, 0, 0, 0, 0, 1, 1],
        vec![1, 0],
        [&[1, 0][..], &long(1, 6)].concat(), // no second table
        [&[1, 0][..], &long(1, 5), &long(0, 0)].concat(),
        [&[1, 0][..], &long(0, 0), &long(1, 7)].concat(),
        [&[1, 0][..], &long(u32::MAX, 60)].concat(),
        [&[1, 0][..], &long(0, 0), &long(u32::MAX / 6 + 1, 60)].concat(),
        [&[1, 2][..], &OWN].concat(),
        vec![2, 0, 5],
        vec![2, 2, 5, 0],
        vec![4, 0, 1, 0], // VIRTIO_NET_F_MQ is not negotiated
    ];
    for request in &wrong {
        // An empty request is a descriptor of no bytes.
        assert_eq!(ask(&mut rig, QUEUE, request), 1, "{request:?}");
    }
    assert_eq!(rig.transport().worker().counters().failed.load(Ordering::Relaxed), wrong.len() as u64);
    let outside = [Buffer { addr: RAM - 1, len: 3, writable: false }, rig.writable(1)];
    assert_eq!(rig.request(QUEUE, &outside), 1);
    assert_eq!(rig.bytes(outside[1]), [1]);
    assert!(!rig.needs_reset());
    assert_eq!(heard(&mut rig, &host, &[OTHER, GROUP]), [OTHER, GROUP], "nothing of it had an effect");
}

/// A table of more addresses than are kept lets all of their kind through, and takes no more memory for it.
#[test]
fn a_long_table_hears_all_of_its_kind() {
    let (mut rig, host) = own_rig();
    assert_eq!(order(&mut rig, QUEUE, 0, 0, &[0]), 0);
    let stranger = [2, 9, 9, 9, 9, 9];
    let many: Vec<[u8; 6]> = (0..=TABLE_MAX as u8).map(|last| [2, 0, 0, 0, 1, last]).collect();
    assert_eq!(order(&mut rig, QUEUE, 1, 0, &table(&many[1..], &[])), 0);
    assert_eq!(heard(&mut rig, &host, &[stranger, many[1], GROUP]), [many[1]]);
    assert_eq!(order(&mut rig, QUEUE, 1, 0, &table(&many, &[])), 0);
    assert_eq!(heard(&mut rig, &host, &[stranger, many[1], GROUP]), [stranger, many[1]]);
    assert_eq!(order(&mut rig, QUEUE, 1, 0, &table(&[], &[])), 0);
    assert_eq!(heard(&mut rig, &host, &[stranger, many[1], GROUP]), [[0; 6]; 0]);
}

#[test]
fn commands_need_their_features() {
    let orders: [(u32, u8, u8, &[u8]); 5] = [
        (VIRTIO_NET_F_CTRL_RX, 0, 0, &[1]),
        (VIRTIO_NET_F_CTRL_RX_EXTRA, 0, 5, &[0]),
        (VIRTIO_NET_F_CTRL_RX, 1, 0, &[0; 8]),
        (VIRTIO_NET_F_CTRL_MAC_ADDR, 1, 1, &OWN),
        (VIRTIO_NET_F_CTRL_VLAN, 2, 0, &[1, 0]),
    ];
    for (feature, class, command, rest) in orders {
        let (mut rig, _host) = rig_of(CONTROL);
        assert_eq!(order(&mut rig, QUEUE, class, command, rest), 0, "{class} {command}");
        rig.drive(RING_FEATURES | CONTROL & !(1 << feature));
        assert_eq!(order(&mut rig, QUEUE, class, command, rest), 1, "{class} {command}");
    }
}

#[test]
fn a_request_without_room_for_the_answer_breaks_it() {
    for writable in [None, Some(Buffer { addr: RAM, len: 1, writable: true })] {
        let (mut rig, _host) = own_rig();
        let buffers: Vec<Buffer> = [rig.readable(&[0, 0, 1])].into_iter().chain(writable).collect();
        rig.post(QUEUE, &buffers);
        rig.kick(QUEUE);
        rig.wait_interrupt();
        assert!(rig.needs_reset());
    }
}

/// A driver may split a request as it likes.
#[test]
fn requests_come_in_pieces() {
    let (mut rig, _host) = own_rig();
    for parts in [&[&[0, 0, 1][..]][..], &[&[0], &[0], &[1]], &[&[0, 0], &[1]]] {
        let mut buffers: Vec<Buffer> = parts.iter().map(|part| rig.readable(part)).collect();
        buffers.push(rig.writable(1));
        assert_eq!(rig.request(QUEUE, &buffers), 1);
        assert_eq!(rig.bytes(*buffers.last().unwrap()), [0]);
    }
}
