//! Frames of all lengths into buffers of all sizes: each byte arrives where it belongs, whichever way it took.

use std::collections::VecDeque;
use std::time::Instant;

use proptest::prelude::*;

use super::*;

/// One frame, and the buffers that come before it is sent.
#[derive(Debug, Clone)]
struct Round {
    len: usize,
    /// Bytes of the two parts of each buffer.
    buffers: Vec<(u32, u32)>,
    /// So many of the buffers come after the frame.
    late: usize,
    /// The VM is paused between the two.
    pause: bool,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let len = prop_oneof![1..100_usize, 1000..1600_usize, 1..9000_usize];
    let buffer = prop_oneof![(1..20_u32, 12..60_u32), (12..13_u32, 1500..1600_u32), (1..2000_u32, 12..2000_u32)];
    let round = (len, proptest::collection::vec(buffer, 1..12), 0..4_usize, any::<bool>());
    proptest::collection::vec(round.prop_map(|(len, buffers, late, pause)| Round { len, buffers, late, pause }), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn every_byte_arrives(rounds in rounds()) {
        let (mut rig, host) = rig(MRG);
        let mut posted: VecDeque<(u16, [Buffer; 2])> = VecDeque::new();
        for (number, Round { len, buffers, late, pause }) in rounds.into_iter().enumerate() {
            let sent: Vec<u8> = (0..len).map(|at| (at * 7 + number * 13) as u8).collect();
            let early = buffers.len().saturating_sub(late);
            let post = |rig: &mut Rig, posted: &mut VecDeque<_>, (one, other): (u32, u32)| {
                let both = [rig.writable(one), rig.writable(other)];
                posted.push_back((rig.post(0, &both), both));
            };
            for sizes in &buffers[..early] {
                post(&mut rig, &mut posted, *sizes);
            }
            rig.kick(0);
            rig.settle();
            host.send(&sent).unwrap();
            rig.settle();
            if pause {
                rig.pause();
                rig.resume();
            }
            for sizes in &buffers[early..] {
                post(&mut rig, &mut posted, *sizes);
            }
            let room = |posted: &VecDeque<(u16, [Buffer; 2])>| {
                posted.iter().flat_map(|(_, both)| both).map(|buffer| buffer.len as usize).sum::<usize>()
            };
            while room(&posted) < len + HEADER {
                post(&mut rig, &mut posted, (12, 4000));
            }
            rig.kick(0);
            let (mut bytes, mut count, mut announced) = (Vec::new(), 0, None);
            while announced.is_none_or(|all| count < all) {
                let (head, used) = rig.wait_used(0);
                let (expected, both) = posted.pop_front().expect("a buffer");
                prop_assert_eq!(head, expected);
                bytes.extend(delivered(&mut rig, &both, used));
                announced = announced.or_else(|| Some(u16::from_le_bytes([*bytes.get(10)?, *bytes.get(11)?])));
                count += 1;
            }
            prop_assert_eq!(&bytes[HEADER..], &sent[..]);
        }
    }
}

/// A driver that polls sees all of a frame or nothing (virtio 1.2, 5.1.6.4): Linux drops what it finds a part of.
#[test]
fn the_buffers_of_a_frame_are_used_all_at_once() {
    let (mut rig, host) = rig(MRG);
    let buffers: Vec<Buffer> = (0..10).map(|_| rig.writable(100)).collect();
    let sent = frame(buffers.len() * 100 - HEADER);
    for _ in 0..3000 {
        for buffer in &buffers {
            rig.post(0, &[*buffer]);
        }
        rig.kick(0);
        let before = rig.used_idx(0);
        host.send(&sent).unwrap();
        let since = Instant::now();
        let seen = loop {
            match rig.used_idx(0).wrapping_sub(before) {
                0 => assert!(since.elapsed() < PATIENCE, "no buffer was used"),
                seen => break seen,
            }
        };
        assert_eq!(usize::from(seen), buffers.len());
        while rig.take_used(0).is_some() {}
    }
}
