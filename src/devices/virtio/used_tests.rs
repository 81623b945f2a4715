//! The used ring's arithmetic against what the specification says in words (virtio 1.2, 2.7.8 and 2.7.10).

use proptest::prelude::*;
use virtio_queue::QueueT;

use super::*;
use crate::testing::ram;

/// Where an index may stand when it steps: all that is special, and something in between.
const FROM: [u16; 7] = [0, 1, 0x1234, 0x7fff, 0x8000, 0xfffe, 0xffff];

/// Every event for every one of these steps: an interrupt is due where the index was at the event and left it.
#[test]
fn an_interrupt_is_due_when_the_index_leaves_the_event() {
    for from in FROM {
        let mut left = vec![false; 1 << 16]; // by their indices, what the step has left so far
        let mut now = from;
        for count in 0..=1024_u32 {
            if count < 40 || count == 1024 {
                for (event, left) in (0..=u16::MAX).zip(&left) {
                    let due = passes(Wrapping(event), Wrapping(from), Wrapping(now));
                    assert_eq!(due, *left, "event {event}, from {from} to {now}");
                }
            }
            left[usize::from(now)] = true;
            now = now.wrapping_add(1);
        }
    }
}

const USED: u64 = 0x3000;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Wherever the index stands, chains get the elements that follow it, and nothing else is written.
    #[test]
    fn chains_are_put_where_the_index_says(
        order in 0..8_u32,
        from in prop_oneof![any::<u16>(), 0xfff0..=u16::MAX],
        chains in prop::collection::vec((0..256_u16, any::<u32>()), 1..40),
    ) {
        let size = 1_u16 << order;
        let chains: Vec<_> = chains.into_iter().take(usize::from(size)).map(|(head, len)| (head % size, len)).collect();
        let memory = ram();
        let mut queue = Queue::new(256).unwrap();
        queue.set_size(size);
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_next_used(from);
        queue.set_ready(true);
        let bytes = 4 + 8 * usize::from(size) + 8;
        memory.write_slice(&vec![0xa5; bytes], GuestAddress(USED)).unwrap();
        put(&mut queue, &memory, &chains).unwrap();

        let mut model = vec![0xa5; bytes];
        let end = (0..).zip(&chains).fold(from, |_, (count, (head, len))| {
            let at = 4 + 8 * usize::from(from.wrapping_add(count) % size);
            let element = [u32::from(*head).to_le_bytes(), len.to_le_bytes()].concat();
            model[at..at + 8].copy_from_slice(&element);
            from.wrapping_add(count + 1)
        });
        model[2..4].copy_from_slice(&end.to_le_bytes());
        let mut found = vec![0; bytes];
        memory.read_slice(&mut found, GuestAddress(USED)).unwrap();
        prop_assert_eq!(found, model);
        prop_assert_eq!(queue.next_used(), end);
    }
}
