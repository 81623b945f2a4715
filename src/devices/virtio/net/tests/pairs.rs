//! Several queue pairs, each over a socket of its own.

use super::*;

const MQ: u64 = 1 << VIRTIO_NET_F_MQ;
/// The control queue of an interface of two pairs.
const QUEUE: u32 = 4;

/// An interface of two pairs: what a TAP device with two queues makes.
fn two(features: u64) -> (Rig, [UnixDatagram; 2]) {
    let (ours, hosts) = ends();
    let mut rig = Rig::new(open(&ours));
    rig.drive(RING_FEATURES | features);
    (rig, hosts)
}

/// The ends of both pairs, ours and the host's.
fn ends() -> ([UnixDatagram; 2], [UnixDatagram; 2]) {
    let [first, second] = [(); 2].map(|()| {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        (ours, theirs)
    });
    ([first.0, second.0], [first.1, second.1])
}

fn open(ends: &[UnixDatagram; 2]) -> Box<dyn Device> {
    let config = |end: &UnixDatagram| NetConfig { host_fd: Some(end.as_raw_fd()), ..NetConfig::default() };
    let mut net = Net::open(&config(&ends[0])).unwrap();
    net.pairs.extend(BackEnd::open(&config(&ends[1])).unwrap().into_iter().map(|end| Pair::new(end, None, 2)));
    Box::new(net)
}

fn use_pairs(rig: &mut Rig, pairs: u16) -> u8 {
    control::order(rig, QUEUE, 4, 0, &pairs.to_le_bytes())
}

#[test]
fn pairs_are_offered_and_taken_into_use_by_command() {
    let (mut rig, hosts) = two(CONTROL | MQ);
    assert_eq!(rig.offered() & MQ, MQ);
    assert_eq!(rig.config(8, 2), [2, 0], "max_virtqueue_pairs");
    for wrong in [0, 3, u16::MAX] {
        assert_eq!(use_pairs(&mut rig, wrong), 1);
    }
    hosts[1].send(&frame(61)).unwrap();
    let buffer = rig.writable(100);
    rig.post(2, &[buffer]);
    rig.kick(2);
    rig.settle();
    assert!(rig.take_used(2).is_none(), "one pair is in use at first");
    assert_eq!(use_pairs(&mut rig, 2), 0);
    assert_eq!(rig.wait_used(2).1, 73);
    for (pair, host) in (0..).zip(&hosts) {
        let out = rig.readable(&[pair; HEADER + 60]);
        rig.request(u32::from(pair) * 2 + 1, &[out]);
        assert_eq!(received(host), [pair; 60]);
    }
    assert_eq!(use_pairs(&mut rig, 1), 0);
    hosts[1].send(&frame(61)).unwrap();
    rig.post(2, &[buffer]);
    rig.kick(2);
    rig.settle();
    assert!(rig.take_used(2).is_none());
    let out = rig.readable(&[9; HEADER + 60]);
    rig.request(3, &[out]);
    assert_eq!(received(&hosts[0]), [9; 60], "what a pair out of use sends takes the first one's way");
}

/// A frame that waited in a pair that is taken out of use leaves its buffers behind.
#[test]
fn a_pair_out_of_use_gives_its_buffers_back() {
    let (mut rig, hosts) = two(CONTROL | MQ | MRG);
    assert_eq!(use_pairs(&mut rig, 2), 0);
    let few = rig.writable(600);
    let head = rig.post(2, &[few]);
    hosts[1].send(&frame(1500)).unwrap();
    rig.settle();
    rig.settle();
    assert_eq!(use_pairs(&mut rig, 1), 0);
    assert_eq!(use_pairs(&mut rig, 2), 0);
    hosts[1].send(&frame(100)).unwrap();
    assert_eq!(rig.wait_used(2), (head, 112));
}

#[test]
fn a_reset_leaves_one_pair_in_use() {
    let (mut rig, hosts) = two(CONTROL | MQ);
    assert_eq!(use_pairs(&mut rig, 2), 0);
    rig.drive(RING_FEATURES | CONTROL | MQ);
    hosts[1].send(&frame(61)).unwrap();
    let buffer = rig.writable(100);
    rig.post(2, &[buffer]);
    rig.kick(2);
    rig.settle();
    assert!(rig.take_used(2).is_none());
}

/// virtio 1.2, 5.1.2: without VIRTIO_NET_F_MQ the control queue is the third.
#[test]
fn a_driver_of_one_pair_finds_the_control_queue_behind_it() {
    let (mut rig, hosts) = two(CONTROL);
    assert_eq!(control::order(&mut rig, 2, 0, 0, &[1]), 0);
    assert_eq!(control::order(&mut rig, 2, 4, 0, &[2, 0]), 1, "not negotiated");
    let buffer = rig.writable(100);
    rig.post(0, &[buffer]);
    hosts[0].send(&frame(60)).unwrap();
    assert_eq!(rig.wait_used(0).1, 72);
}

/// Sends one frame and receives one by `pair`.
fn exchange(rig: &mut Rig, host: &UnixDatagram, pair: u32) {
    let out = rig.readable(&[pair as u8; HEADER + 60]);
    rig.request(pair * 2 + 1, &[out]);
    assert_eq!(received(host), [pair as u8; 60]);
    let room = rig.writable(100);
    rig.post(pair * 2, &[room]);
    rig.kick(pair * 2);
    host.send(&frame(61)).unwrap();
    assert_eq!(rig.wait_used(pair * 2).1, 73);
}

/// Save, load and save again: all rings are where they were, and as many pairs are in use.
#[test]
fn a_loaded_interface_has_the_pairs_that_were_in_use() {
    let (ours, hosts) = ends();
    let mut rig = Rig::new(open(&ours));
    rig.drive(RING_FEATURES | CONTROL | MQ);
    for (in_use, rounds) in [(1, 3), (2, 5), (2, 2), (1, 1)] {
        rig.free_all();
        assert_eq!(use_pairs(&mut rig, in_use), 0);
        for _ in 0..rounds {
            (0..).zip(&hosts).take(in_use.into()).for_each(|(pair, host)| exchange(&mut rig, host, pair));
        }
        rig.pause();
        let state = rig.save().unwrap();
        let DeviceState::Net(net) = &state.device else { panic!("{state:?}") };
        assert_eq!(net.active_pairs, in_use);
        rig.succeed(|| open(&ours), &state).unwrap();
        assert_eq!(rig.save().unwrap(), state);
        rig.resume();
        (0..).zip(&hosts).take(in_use.into()).for_each(|(pair, host)| exchange(&mut rig, host, pair));
        assert_eq!(use_pairs(&mut rig, 3), 1, "the control queue is behind both pairs, as before");
    }
}
