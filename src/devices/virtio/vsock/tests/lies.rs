//! Packets and buffers that no honest driver sends.

use super::*;

#[test]
fn lies_are_reset_or_ignored() {
    let mut guest = Guest::new();
    guest.send_raw(&[1; 43]);
    guest.send(Header { op: op::RW, src_cid: 4, ..header((1, 2)) }, &[]);
    guest.say(op::RST, (1, 2), 0, &[]);
    guest.hears_nothing();
    assert_eq!(guest.rig.transport().worker().counters().failed.load(Ordering::Relaxed), 2);
    for lie in [
        Header { op: 0, ..header((1, 2)) },
        Header { op: 99, ..header((1, 2)) },
        Header { op: op::RW, ..header((1, 2)) },
        Header { op: op::REQUEST, kind: 2, ..header((1, 2)) },
        Header { op: op::REQUEST, dst_cid: 9, ..header((1, 2)) },
        Header { op: op::REQUEST, len: 1, ..header((1, 2)) },
    ] {
        guest.send(lie, &[]);
        let (reset, _) = guest.hear();
        assert_eq!(reset, Header { buf_alloc: 0, ..lie.reset() });
    }
    for lie in [
        Header { op: 0, ..Header::default() },
        Header { op: op::RW, len: u32::MAX, ..Header::default() },
        Header { op: op::RW, len: 1, ..Header::default() },
        Header { op: op::RESPONSE, ..Header::default() },
        Header { op: op::REQUEST, ..Header::default() },
    ] {
        let (mut host, ports) = guest.up();
        guest.send(Header { op: lie.op, len: lie.len, ..header(ports) }, &[]);
        guest.hears(op::RST);
        assert!(matches!(host.read(&mut [0; 8]), Ok(0)), "{lie:?}");
    }
    let (_host, ports) = guest.up();
    guest.send(Header { kind: 7, op: op::RW, ..header(ports) }, &[]);
    guest.hears(op::RST);
}

#[test]
fn a_receive_buffer_without_room_for_a_header_breaks_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(Box::new(Vsock::open(&config(folder.path().join("v"))).unwrap()));
    rig.drive(RING_FEATURES);
    let place = rig.writable(43);
    rig.post(0, &[place]);
    let packet = rig.readable(&Header { op: op::RW, ..header((1, 2)) }.to_bytes());
    rig.post(1, &[packet]);
    rig.kick(1);
    rig.settle();
    assert!(rig.needs_reset());
}

#[test]
fn without_receive_buffers_nothing_piles_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(Box::new(Vsock::open(&config(folder.path().join("v"))).unwrap()));
    rig.drive(RING_FEATURES);
    let packet = rig.readable(&Header { op: op::RW, ..header((1, 2)) }.to_bytes());
    let mut served = 0;
    for _ in 0..4 {
        (0..128).for_each(|_| _ = rig.post(1, &[packet]));
        rig.kick(1);
        rig.settle();
        rig.settle();
        served += std::iter::from_fn(|| rig.take_used(1)).count();
        if served < 256 {
            continue;
        }
        break;
    }
    assert_eq!(served, MAX_REPLIES);
    (0..100).for_each(|_| _ = rig.post(1, &[packet]));
    rig.kick(1);
    rig.settle();
    assert!(rig.take_used(1).is_none(), "packets wait while resets do");
    let place = rig.writable(PLACE);
    (0..128).for_each(|_| _ = rig.post(0, &[place]));
    rig.kick(0);
    let since = Instant::now();
    while rig.take_used(1).is_none() {
        assert!(since.elapsed() < PATIENCE, "they are served when there is room again");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A guest that makes connections and drops them, and never takes a packet.
#[test]
fn connections_that_are_gone_do_not_pile_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut vsock = Vsock::open(&config(folder.path().join("v"))).unwrap();
    let host = UnixListener::bind(folder.path().join("v_2")).unwrap();
    let request = Header { op: op::REQUEST, ..header((2, 1)) };
    let ports = Ports { host: 2, guest: 1 };
    for _ in 0..2 * QUEUED_MAX {
        vsock.connect(&request, ports);
        host.accept().unwrap();
        let id = vsock.by_ports[&ports];
        vsock.remove(id);
        assert!(vsock.queued.len() <= QUEUED_MAX);
    }
    vsock.connect(&request, ports);
    assert_eq!(vsock.queued.back(), vsock.by_ports.get(&ports), "and who lives has its turn");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any packets at all; then a proper connection works.
    #[test]
    fn random_packets_do_no_harm(packets in proptest::collection::vec(
        (0_u16..10, 0_u32..4, 0_u32..4, any::<(u32, u32, u32)>(), 0_u32..300, 0_usize..200, 0_u64..4, 0_u16..3), 1..60,
    )) {
        let mut guest = Guest::new();
        let _listeners = [guest.listen(0), guest.listen(1)];
        let _hosts = [guest.dial(0), guest.dial(1)];
        for (op, from, to, (flags, buf_alloc, fwd_cnt), len, data, cid, kind) in packets {
            let to = if to == 3 { FIRST_PORT + 1 } else { to };
            let buf_alloc = if cid == 0 { buf_alloc } else { 100 };
            let dst_cid = if cid == 1 { 1 } else { HOST_CID };
            let kind = if kind == 0 { 0 } else { TYPE_STREAM };
            let lie = Header { src_cid: CID, dst_cid, src_port: from, dst_port: to, len, kind, op, flags, buf_alloc, fwd_cnt };
            guest.send(lie, &vec![9; data]);
            while guest.try_hear().is_some() {}
        }
        prop_assert!(!guest.rig.needs_reset());
        let mut host = guest.dial(7777);
        let request = loop {
            let (header, _) = guest.hear();
            if header.dst_port == 7777 { break header; }
        };
        guest.say(op::RESPONSE, (7777, request.src_port), 0, &[]);
        prop_assert_eq!(line(&mut host), format!("OK {}", request.src_port));
    }
}
