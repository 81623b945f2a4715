//! Streams from the host, which fill several of the guest's buffers at once.

use super::*;

/// Bytes that tell where in the stream they are.
fn stream(len: usize) -> Vec<u8> {
    (0_u32..).flat_map(u32::to_be_bytes).take(len).collect()
}

/// Sends `sent` to a guest with these buffers and this credit, and returns what comes, packet by packet.
fn received(guest: &mut Guest, credit: u32, sent: &[u8]) -> Vec<Vec<u8>> {
    let mut host = guest.dial(5000);
    let ports = (5000, guest.hears(op::REQUEST).src_port);
    guest.send(Header { op: op::RESPONSE, buf_alloc: credit, ..header(ports) }, &[]);
    line(&mut host);
    let mut packets = Vec::new();
    let (mut got, mut taken) = (0_u32, 0_u32);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            host.write_all(sent).unwrap();
            host.shutdown(std::net::Shutdown::Write).unwrap();
        });
        loop {
            let (packet, data) = guest.hear();
            match packet.op {
                op::RW => {
                    got += packet.len;
                    assert!(got - taken <= credit, "more than the credit");
                    packets.push(data);
                }
                op::CREDIT_REQUEST => {}
                op::SHUTDOWN => break,
                other => panic!("op {other}"),
            }
            if got - taken == credit {
                taken = got;
                guest.send(Header { op: op::CREDIT_UPDATE, buf_alloc: credit, fwd_cnt: taken, ..header(ports) }, &[]);
            }
        }
    });
    packets
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the sizes of the guest's buffers, its credit and the stream's length.
    #[test]
    fn every_byte_comes_once_and_in_order(
        sizes in proptest::collection::vec(45_u32..9000, 1..40),
        credit in 1000_u32..200_000,
        len in 0_usize..300_000,
    ) {
        let mut guest = Guest::with_places(&sizes);
        let sent = stream(len);
        prop_assert_eq!(received(&mut guest, credit, &sent).concat(), sent);
    }
}

#[test]
fn what_is_not_filled_goes_back_to_the_ring() {
    let mut guest = Guest::new();
    let packets = received(&mut guest, PLENTY, &stream(500_000)).len();
    // The host's end goes, which the guest may hear, too.
    guest.rig.settle();
    let late = std::iter::from_fn(|| guest.try_hear()).count();
    guest.rig.settle();
    // The request and the shutdown, the guest's response and the packets of data, no more: what went back is not counted.
    assert_eq!(guest.rig.counted("requests"), u64::try_from(packets + late + 3).unwrap());
}
