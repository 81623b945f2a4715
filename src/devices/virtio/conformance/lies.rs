//! Rings that no honest driver makes: the device asks for a reset, and the next driver is served.

use std::sync::atomic::Ordering;

use super::*;

/// What a lying driver does to the rings of a queue.
type Lie = fn(&mut Rig, u32);

const LIES: [(&str, Lie); 10] = [
    ("a head out of the table", |rig, queue| rig.make_available(queue, 0xffff)),
    ("a head just out of the table", |rig, queue| rig.make_available(queue, 64)),
    ("a loop", |rig, queue| {
        rig.write_desc(rig.table(queue), 0, 0x50000, 16, 1, 1);
        rig.write_desc(rig.table(queue), 1, 0x50000, 16, 1, 0);
        rig.make_available(queue, 0);
    }),
    ("a next out of the table", |rig, queue| {
        rig.write_desc(rig.table(queue), 0, 0x50000, 16, 1, 64);
        rig.make_available(queue, 0);
    }),
    ("a readable after a writable buffer", |rig, queue| {
        rig.write_desc(rig.table(queue), 0, 0x50000, 16, 1 | 2, 1);
        rig.write_desc(rig.table(queue), 1, 0x50000, 16, 0, 0);
        rig.make_available(queue, 0);
    }),
    ("avail.idx far ahead", |rig, queue| rig.set_avail_idx(queue, 65)),
    ("an indirect table of no whole descriptors", |rig, queue| {
        rig.write_desc(rig.table(queue), 0, 0x50000, 17, 4, 0);
        rig.make_available(queue, 0);
    }),
    ("an indirect table out of RAM", |rig, queue| {
        rig.write_desc(rig.table(queue), 0, RAM, 16, 4, 0);
        rig.make_available(queue, 0);
    }),
    ("an indirect table in an indirect table", |rig, queue| {
        rig.write_desc(0x50000, 0, 0x50000, 16, 4, 0);
        rig.write_desc(rig.table(queue), 0, 0x50000, 16, 4, 0);
        rig.make_available(queue, 0);
    }),
    ("more than 4 GiB", |rig, queue| {
        rig.write_desc(rig.table(queue), 0, 0x50000, u32::MAX, 1 | 2, 1);
        rig.write_desc(rig.table(queue), 1, 0x50000, u32::MAX, 2, 0);
        rig.make_available(queue, 0);
    }),
];

#[test]
fn a_lying_driver_gets_needs_reset_and_may_start_again() {
    for_every_device(|device, rig| {
        for (lie, tell) in LIES {
            rig.begin();
            assert!(rig.negotiate(rig_features() | device.features));
            assert!(rig.set_up_queue(device.queue, 64));
            rig.finish();
            tell(rig, device.queue);
            rig.kick(device.queue);
            let bits = rig.wait_interrupt();
            assert_eq!(bits & 2, 2, "{} {lie}: a configuration change tells of it", device.name);
            assert!(rig.needs_reset(), "{} {lie}", device.name);
            let status = rig.status();
            rig.write(offset::STATUS, status & !NEEDS_RESET | 0x80);
            assert!(rig.needs_reset(), "only a reset ends it");
            rig.kick(device.queue);
            rig.settle();
            assert!(rig.take_interrupt().is_none(), "{lie}: it is silent until then");
            rig.free_all();
            device.drive(rig, V1);
            assert!(!rig.needs_reset());
            assert!(device.answers(rig), "{} after {lie}", device.name);
        }
        assert_eq!(rig.transport().worker().counters().broken.load(Ordering::Relaxed), 10);
    });
}

fn rig_features() -> u64 {
    V1 | 1 << VIRTIO_RING_F_INDIRECT_DESC
}

#[test]
fn an_indirect_table_may_be_long_but_not_endless() {
    for_every_device(|device, rig| {
        for (count, fits) in [(1024_u16, true), (1025, false), (40_000, false)] {
            device.drive(rig, V1);
            rig.free_all();
            let table = rig.alloc(u64::from(count) * 16);
            rig.write_desc(table, 0, 0x200, 16, 1, 1);
            for index in 1..count {
                let flags = if index + 1 < count { 1 | 2 } else { 2 };
                rig.write_desc(table, index, 0x100, 1, flags, index + 1);
            }
            rig.write_desc(rig.table(device.queue), 0, table, u32::from(count) * 16, 4, 0);
            rig.make_available(device.queue, 0);
            rig.kick(device.queue);
            rig.settle();
            assert_eq!(rig.needs_reset(), !fits, "{count}");
        }
    });
}
