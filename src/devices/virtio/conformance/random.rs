//! Registers and rings as chance wants them: no harm is done, and a proper driver is served afterwards.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::saving::succeed;
use super::*;
use crate::bus::BusDevice;

/// One access of a driver gone mad.
#[derive(Debug, Clone)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Kick,
    Handshake,
    Pause,
    Resume,
    Succeed,
}

fn any_access() -> impl Strategy<Value = Access> {
    let known = prop::sample::select(vec![
        offset::DEVICE_FEATURES_SEL,
        offset::DRIVER_FEATURES,
        offset::DRIVER_FEATURES_SEL,
        offset::QUEUE_SEL,
        offset::QUEUE_NUM,
        offset::QUEUE_READY,
        offset::QUEUE_NOTIFY,
        offset::INTERRUPT_ACK,
        offset::STATUS,
        offset::QUEUE_DESC_LOW,
        offset::QUEUE_DESC_HIGH,
        offset::QUEUE_DRIVER_LOW,
        offset::QUEUE_DEVICE_LOW,
        offset::CONFIG,
    ]);
    let at = || prop_oneof![0..0x120_u64, 0..0x1100_u64, any::<u64>()];
    let value = prop_oneof![0..16_u32, Just(0x1000), Just(0x2000), Just(0x3000), any::<u32>()];
    prop_oneof![
        1 => (at(), 0..17_usize).prop_map(|(at, len)| Access::Read(at, len)),
        1 => (at(), prop::collection::vec(any::<u8>(), 0..17)).prop_map(|(at, data)| Access::Write(at, data)),
        6 => (known, value).prop_map(|(at, value)| Access::Write(at, value.to_le_bytes().to_vec())),
        1 => Just(Access::Kick),
        1 => Just(Access::Handshake),
        1 => Just(Access::Pause),
        1 => Just(Access::Resume),
        1 => Just(Access::Succeed),
    ]
}

/// Whatever a driver has done, the device can be saved, and another one goes on in its place.
fn move_on(device: &Subject, rig: &mut Rig) {
    rig.pause();
    succeed(device, rig);
    rig.resume();
}

/// Descriptors that are often nearly right.
fn any_table() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let addr = prop_oneof![0x40000..0x60000_u64, Just(0x1000), RAM - 64..RAM + 64, any::<u64>()];
    let len = prop_oneof![0..64_u32, Just(512), Just(1), Just(16), any::<u32>()];
    let flags = prop_oneof![0..8_u16, any::<u16>()];
    prop::collection::vec((addr, len, flags, 0..10_u16), 8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_register_accesses_do_no_harm(accesses in prop::collection::vec(any_access(), 1..80)) {
        for_every_device(|device, rig| {
            for access in &accesses {
                match access {
                    Access::Read(at, len) => rig.transport().read(*at, &mut vec![0; *len]),
                    Access::Write(at, data) => rig.transport().write(*at, data),
                    Access::Kick => rig.kick(device.queue),
                    Access::Handshake => device.drive(rig, V1),
                    Access::Pause => rig.pause(),
                    Access::Resume => rig.resume(),
                    Access::Succeed => move_on(device, rig),
                }
            }
            rig.resume();
            rig.settle();
            device.drive(rig, V1);
            assert!(device.answers(rig), "a proper driver is served after all that");
        });
    }

    #[test]
    fn random_rings_do_no_harm(
        table in any_table(),
        indirect in any_table(),
        heads in prop::collection::vec(prop_oneof![0..8_u16, any::<u16>()], 1..12),
        idx in prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)],
        header in any::<[u8; 16]>(),
        features in prop_oneof![Just(V1), Just(V1 | EVENT_IDX)],
    ) {
        for_every_device(|device, rig| {
            rig.begin();
            assert!(rig.negotiate(features | device.features));
            assert!(rig.set_up_queue(device.queue, 8));
            rig.memory().write_slice(&header, GuestAddress(0x40000)).unwrap();
            for (at, entries) in [(rig.table(device.queue), &table), (0x41000, &indirect)] {
                for (index, (addr, len, flags, next)) in (0..).zip(entries) {
                    rig.write_desc(at, index, *addr, *len, *flags, *next);
                }
            }
            // One that leads to the other table, and one whole request made of what is there.
            rig.write_desc(rig.table(device.queue), 7, 0x41000, 128, 4, 0);
            rig.finish();
            for head in &heads {
                rig.make_available(device.queue, *head);
            }
            if let Some(idx) = idx {
                rig.set_avail_idx(device.queue, idx);
            }
            rig.kick(device.queue);
            rig.settle();
            move_on(device, rig);
            rig.settle();
            device.drive(rig, features);
            assert!(device.answers(rig), "a proper driver is served after all that");
        });
    }
}
