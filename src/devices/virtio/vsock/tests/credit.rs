//! Credit (virtio 1.2, 5.10.6.3): neither side gets more than it has room for.

use super::*;

#[test]
fn the_guest_s_credit_limits_the_host() {
    let mut guest = Guest::new();
    let mut host = guest.dial(5000);
    let ports = (5000, guest.hears(op::REQUEST).src_port);
    guest.send(Header { op: op::RESPONSE, buf_alloc: 10, ..header(ports) }, &[]);
    line(&mut host);
    host.write_all(&[7; 25]).unwrap();
    assert_eq!(guest.hear().1.len(), 10);
    guest.hears(op::CREDIT_REQUEST);
    guest.hears_nothing();
    // An answer without news is no reason to ask again.
    guest.send(Header { op: op::CREDIT_UPDATE, buf_alloc: 10, ..header(ports) }, &[]);
    guest.hears_nothing();
    guest.send(Header { op: op::CREDIT_UPDATE, buf_alloc: 10, fwd_cnt: 10, ..header(ports) }, &[]);
    assert_eq!(guest.hear().1.len(), 10);
    // A guest that takes more back than it got has no credit either.
    guest.hears(op::CREDIT_REQUEST);
    guest.send(Header { op: op::CREDIT_UPDATE, buf_alloc: 10, fwd_cnt: 21, ..header(ports) }, &[]);
    guest.hears_nothing();
}

#[test]
fn a_host_that_does_not_read_limits_its_guest_and_nobody_else() {
    let mut guest = Guest::new();
    let (mut stalled, stalled_ports) = guest.up();
    let (mut other, other_ports) = guest.up();
    // Fill the socket first: all of that is handed on and comes back as credit.
    let chunk: Vec<u8> = (0..16_384_u32).map(|at| at.to_le_bytes()[1]).collect();
    let (mut sent, mut fwd) = (0_u32, 0_u32);
    loop {
        guest.say(op::CREDIT_REQUEST, stalled_ports, 0, &[]);
        fwd = guest.hear().0.fwd_cnt.max(fwd);
        while let Some((header, _)) = guest.try_hear() {
            fwd = header.fwd_cnt;
        }
        if BUF_ALLOC - (sent - fwd) < 16_384 {
            break;
        }
        guest.say(op::RW, stalled_ports, 0, &chunk);
        sent += 16_384;
    }
    assert!(sent - fwd > BUF_ALLOC - 16_384);
    guest.say(op::RW, other_ports, 0, b"goes on");
    let mut got = [0; 7];
    other.read_exact(&mut got).unwrap();
    // All of it arrives, in order, when the host reads; and the guest gets its credit back unasked.
    let mut all = vec![0; usize::try_from(sent).unwrap()];
    stalled.read_exact(&mut all).unwrap();
    assert!(all.chunks(chunk.len()).all(|part| part == chunk));
    // One that was on its way before may come first.
    while guest.hears(op::CREDIT_UPDATE).fwd_cnt <= fwd {}
    // More than the credit is a lie.
    for _ in 0..1000 {
        guest.say(op::RW, stalled_ports, 0, &chunk);
        if let Some((header, _)) = std::iter::from_fn(|| guest.try_hear()).find(|(header, _)| header.op == op::RST) {
            assert_eq!(header.src_port, stalled_ports.1);
            return;
        }
    }
    panic!("a guest may send without credit");
}

/// What thousands of connections keep stays bounded; who is among the first has more.
#[test]
fn one_among_many_may_keep_less() {
    let mut guest = Guest::new();
    let connections: Vec<_> = (0..=FEW_CONNECTIONS)
        .map(|number| {
            let host = guest.dial(5000);
            let request = guest.hears(op::REQUEST);
            let expected = if number < FEW_CONNECTIONS { BUF_ALLOC } else { BUF_ALLOC_OF_MANY };
            assert_eq!(request.buf_alloc, expected, "connection {number}");
            (host, request.src_port)
        })
        .collect();
    // One of the first goes, and the next one takes its place.
    guest.say(op::RST, (5000, connections[0].1), 0, &[]);
    guest.say(op::RST, (5000, connections[1].1), 0, &[]);
    let _host = guest.dial(5000);
    assert_eq!(guest.hears(op::REQUEST).buf_alloc, BUF_ALLOC);
}
