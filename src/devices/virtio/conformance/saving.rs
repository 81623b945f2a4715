//! Save, load and save again, over every kind of device: the second state is the first, and the loaded device goes on with
//! its driver's rings where the other one stopped. Nothing of a state is believed.

use serde_json::{Value, json};

use super::*;
use crate::state::StateError;
use crate::virtio::Change;
use crate::virtio::balloon::{BalloonChange, Hint};
use crate::virtio::state::VirtioState;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;

/// What is saved, as it is read back from text.
fn save(rig: &mut Rig) -> VirtioState {
    let state = rig.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<VirtioState>(&text).unwrap(), state);
    state
}

/// Another device takes over, and saves what it was given. It is paused.
pub(super) fn succeed(device: &Subject, rig: &mut Rig) {
    let state = save(rig);
    rig.succeed(|| device.open(), &state).unwrap();
    assert_eq!(save(rig), state, "{}", device.name);
}

/// Gives a device of any kind something to keep: by its driver, and by its user.
fn live(device: &Subject, rig: &mut Rig) {
    let features = rig.offered();
    rig.drive(features);
    rig.free_all();
    let limits = json!({
        "bandwidth": { "size": 1_000_000, "refill_time": 3_600_000, "one_time_burst": 1000 },
        "ops": { "size": 1_000_000, "refill_time": 3_600_000 }
    });
    let limits = Some(serde_json::from_value(limits).unwrap());
    let mut config = device.config.clone();
    let key = match &mut config {
        DeviceConfig::Balloon(balloon) => {
            rig.transport().write(offset::CONFIG + 4, &77_u32.to_le_bytes());
            let hint = BalloonChange { hint: Some(Hint::Start { acknowledge_on_stop: true }), ..Default::default() };
            rig.transport().transport().update(Change::Balloon(hint)).unwrap();
            // Reports that are paused are not answered.
            let pause_reporting = Some(device.name != "balloon, reports");
            let paused = BalloonChange { pause_reporting, ..Default::default() };
            rig.transport().transport().update(Change::Balloon(paused)).unwrap();
            balloon.amount_mib = 5;
            "amount_mib"
        }
        DeviceConfig::Block(drive) => {
            drive.rate_limiter = limits;
            "rate_limiter"
        }
        DeviceConfig::Net(net) => {
            for order in [&[0, 0, 0][..], &[0, 1, 1], &[1, 1, 2, 0, 0, 0, 0, 9], &[2, 0, 5, 0], &[2, 0, 0xff, 0x0f]] {
                let request = [rig.readable(order), rig.writable(1)];
                assert_eq!(rig.request(2, &request), 1);
                assert_eq!(rig.bytes(request[1]), [0], "{order:?}");
            }
            let tables = [&[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 8][..], &[0; 4]].concat();
            let request = [rig.readable(&tables), rig.writable(1)];
            rig.request(2, &request);
            assert_eq!(rig.bytes(request[1]), [0]);
            net.tx_rate_limiter = limits;
            "tx_rate_limiter"
        }
        DeviceConfig::Pmem(pmem) => {
            pmem.rate_limiter = limits;
            "rate_limiter"
        }
        DeviceConfig::Rng(rng) => {
            rng.rate_limiter = limits;
            "rate_limiter"
        }
        // The greeting of a host's connection takes a port.
        DeviceConfig::Vsock(vsock) => {
            let mut host = std::os::unix::net::UnixStream::connect(&vsock.uds_path).unwrap();
            std::io::Write::write_all(&mut host, b"CONNECT 52\n").unwrap();
            let place = rig.writable(4096);
            rig.post(0, &[place]);
            rig.kick(0);
            rig.wait_used(0);
            return;
        }
        // The other side knows of one request more.
        DeviceConfig::Fs(_) => return assert!(device.answers(rig)),
    };
    rig.update(&config, &[key]).unwrap();
}

#[test]
fn every_kind_of_device_is_in_the_table() {
    let number = |config: &DeviceConfig| match config {
        DeviceConfig::Balloon(_) => 0_usize,
        DeviceConfig::Block(_) => 1,
        DeviceConfig::Fs(_) => 2,
        DeviceConfig::Net(_) => 3,
        DeviceConfig::Pmem(_) => 4,
        DeviceConfig::Rng(_) => 5,
        DeviceConfig::Vsock(_) => 6,
    };
    let mut found: Vec<_> = every_device().iter().map(|device| number(&device.config)).collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (0..7).collect::<Vec<_>>());
}

#[test]
fn a_saved_device_is_loaded_and_saved_again_at_every_step_of_a_driver() {
    for device in every_device() {
        let mut rig = device.rig();
        succeed(&device, &mut rig);
        rig.write(offset::STATUS, ACKNOWLEDGE | DRIVER);
        rig.write(offset::DEVICE_FEATURES_SEL, 1);
        rig.write(offset::QUEUE_SEL, 77);
        rig.write(offset::DRIVER_FEATURES_SEL, 9);
        rig.write(offset::DRIVER_FEATURES, 1);
        succeed(&device, &mut rig);
        assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER);
        assert_eq!(
            (rig.read(offset::QUEUE_NUM_MAX), rig.read(offset::DEVICE_FEATURES) & 1),
            (0, 1),
            "by the selectors"
        );
        rig.begin();
        assert!(rig.negotiate(V1 | device.features));
        succeed(&device, &mut rig);
        rig.write(offset::QUEUE_SEL, device.queue);
        rig.write(offset::QUEUE_NUM, 3);
        rig.write(offset::QUEUE_DESC_HIGH, 0xdead_beef);
        succeed(&device, &mut rig);
        assert!(rig.read(offset::QUEUE_NUM_MAX) > 0);
        assert!(!rig.set_up_raw(device.queue, 3, 0x1000, 0x2000, 0x3000));
        succeed(&device, &mut rig);
        rig.finish();
        assert!(rig.needs_reset(), "{}: a queue was refused", device.name);
        succeed(&device, &mut rig);
        device.drive(&mut rig, V1);
        assert!(device.answers(&mut rig), "{}: and then it is a device as any", device.name);
    }
}

#[test]
fn what_a_driver_and_a_user_asked_for_is_kept() {
    for device in every_device() {
        let mut rig = device.rig();
        rig.drive(V1);
        rig.pause();
        let before = save(&mut rig);
        rig.resume();
        live(&device, &mut rig);
        rig.pause();
        let state = save(&mut rig);
        assert_ne!(state.device, before.device, "{}", device.name);
        let config = rig.config(0, 12);
        rig.resume();
        rig.pause();
        assert_eq!(save(&mut rig).device, state.device, "{}: a pause changes nothing", device.name);
        succeed(&device, &mut rig);
        assert_eq!(rig.config(0, 12), config, "{}", device.name);
        rig.resume();
        rig.settle();
        assert!(!rig.needs_reset(), "{}", device.name);
        rig.free_all();
        device.drive(&mut rig, V1);
        assert!(device.answers(&mut rig), "{}: for another driver, too", device.name);
    }
}

#[test]
fn a_loaded_device_goes_on_with_the_rings() {
    for device in every_device() {
        for features in [V1, V1 | EVENT_IDX] {
            let mut rig = device.rig();
            device.drive(&mut rig, features);
            for round in 0..5 {
                rig.free_all();
                assert!(device.answers(&mut rig), "{}: before pause {round}", device.name);
                let request = device.request(&mut rig);
                let mut heads: Vec<_> = (0..10).map(|_| rig.post(device.queue, &request)).collect();
                rig.kick(device.queue);
                rig.pause(); // with some of them served, or none
                heads.push(rig.post(device.queue, &request));
                succeed(&device, &mut rig);
                rig.resume(); // no kick comes for any of them
                let mut used: Vec<_> = heads.iter().map(|_| rig.wait_used(device.queue).0).collect();
                used.sort_unstable();
                heads.sort_unstable();
                assert_eq!(used, heads, "{}: each once", device.name);
            }
            assert!(device.answers(&mut rig) && !rig.needs_reset(), "{}", device.name);
        }
    }
}

#[test]
fn a_broken_device_stays_broken_until_its_reset() {
    for device in every_device() {
        let mut rig = device.rig();
        device.drive(&mut rig, V1);
        rig.make_available(device.queue, 0xffff);
        rig.kick(device.queue);
        rig.settle();
        rig.pause();
        succeed(&device, &mut rig);
        rig.resume();
        rig.kick(device.queue);
        rig.settle();
        assert!(rig.needs_reset(), "{}", device.name);
        device.drive(&mut rig, V1);
        assert!(device.answers(&mut rig), "{}", device.name);
    }
}

#[test]
fn a_queue_that_was_taken_away_stays_away() {
    let device = every_device().remove(0); // a disk with two queues
    let mut rig = device.rig();
    device.drive(&mut rig, V1);
    assert!(device.answers(&mut rig));
    rig.write(offset::QUEUE_SEL, 1);
    rig.write(offset::QUEUE_READY, 0);
    rig.pause();
    succeed(&device, &mut rig);
    rig.resume();
    assert_eq!(rig.read(offset::QUEUE_READY), 0);
    assert!(device.answers(&mut rig));
}

/// A driver that waits for an interrupt gets one: it may have been under way.
#[test]
fn a_loaded_device_interrupts_a_driver_once() {
    for device in every_device() {
        let mut rig = device.rig();
        succeed(&device, &mut rig);
        assert!(rig.take_interrupt().is_none(), "{}: there is no driver", device.name);
        device.drive(&mut rig, V1);
        rig.settle();
        rig.take_interrupt();
        rig.pause();
        succeed(&device, &mut rig);
        assert!(rig.take_interrupt().is_some(), "{}", device.name);
    }
}

#[test]
fn a_device_that_runs_is_not_saved_and_one_that_was_used_is_not_loaded() {
    for device in every_device() {
        let mut rig = device.rig();
        let fresh = save(&mut rig);
        device.drive(&mut rig, V1);
        assert_eq!(rig.save().unwrap_err().to_string(), "it is not paused", "{}", device.name);
        let refused = rig.transport().load(&fresh).unwrap_err();
        assert_eq!(refused.to_string(), "a driver has used it since power-on");
        assert!(device.answers(&mut rig), "{}: and nothing has happened", device.name);
    }
}

/// The error of loading `device`'s state where `pointer` (RFC 6901) is `lie`. The device must be whole afterwards.
fn refusal(device: &Subject, state: &VirtioState, pointer: &str, lie: &Value) -> String {
    let mut changed = serde_json::to_value(state).unwrap();
    *changed.pointer_mut(pointer).unwrap_or_else(|| panic!("{}: no {pointer}", device.name)) = lie.clone();
    let mut rig = device.rig();
    let told = match serde_json::from_value::<VirtioState>(changed) {
        Err(error) => error.to_string(),
        Ok(changed) => {
            let refused: Result<(), StateError> = rig.transport().load(&changed);
            refused.expect_err(&format!("{}: {pointer} = {lie} is loaded", device.name)).to_string()
        }
    };
    assert_eq!(rig.status(), 0, "{}: {pointer}", device.name);
    device.drive(&mut rig, V1);
    assert!(device.answers(&mut rig), "{}: after {pointer} = {lie} was refused", device.name);
    told
}

/// A state of `device` with a driver, taken from a rig that is gone.
pub(super) fn state_of(device: &Subject) -> VirtioState {
    let mut rig = device.rig();
    live(device, &mut rig);
    rig.pause();
    save(&mut rig)
}

#[test]
fn a_state_that_can_not_be_is_refused() {
    let lies = [
        ("/transport/status", json!(0xff), "a device's status is never 0xff"),
        ("/transport/status", json!(ACKNOWLEDGE | DRIVER_OK), "a device's status is never 0x5"),
        ("/transport/status", json!(0), "with the status 0x0, running can not be true"),
        ("/transport/status", json!("up"), "invalid type"),
        ("/transport/running", json!(false), "with the status 0xf, running can not be false"),
        ("/transport/driver_features", json!(V1 | 1 << 30), "its driver uses the features 0x140000000, and"),
        ("/transport/driver_features", json!(0), "its driver uses the features 0x0, and"),
        ("/transport/exotic_features", json!(true), "its driver uses the features"),
        ("/transport/interrupt_status", json!(4), "InterruptStatus is never 0x4"),
        ("/transport/config", json!([1, 2, 3]), "and 3 were saved"),
        ("/transport/queues", json!([]), "queues, and 0 were saved"),
        ("/transport/queues/0/num", json!(3), "queue 0: 3 entries at"),
        ("/transport/queues/0/num", json!(65_536), "queue 0: 65536 entries at"),
        ("/transport/queues/0/num", json!(32_768), "queue 0: 32768 entries at"),
        ("/transport/queues/0/desc", json!(0x1001), "queue 0: "),
        ("/transport/queues/0/driver", json!(0), "queue 0: "),
        ("/transport/queues/0/device", json!(u64::MAX - 3), "queue 0: "),
        ("/transport/queues/0/refused", json!(true), "queue 0: it is ready and refused"),
        ("/transport/queues/0/next_avail", json!(40_000), "queue 0: 40000 requests are not answered"),
        ("/transport/queues/0/next_avail", json!(70_000), "invalid value"),
        ("/device", json!({ "Toaster": {} }), "unknown variant `Toaster`"),
    ];
    for device in every_device() {
        let mut state = state_of(&device);
        state.transport.queues[0].next_avail = 0;
        state.transport.queues[0].next_used = 0;
        for (pointer, lie, told) in &lies {
            let said = refusal(&device, &state, pointer, lie);
            assert!(said.contains(told), "{}: {pointer} = {lie}: {said}", device.name);
        }
        let mut more = serde_json::to_value(&state).unwrap();
        more["transport"]["colour"] = json!(1);
        assert!(serde_json::from_value::<VirtioState>(more).unwrap_err().to_string().contains("unknown field"));
    }
}

#[test]
fn a_device_s_own_state_is_checked_too() {
    let limits = |key: &str| -> Vec<(String, Value, &str)> {
        let at = |rest: &str| format!("/device/{key}{rest}");
        vec![
            (at("/ops/size"), json!(0), "size is 0"),
            (at("/ops/refill_time"), json!(0), "refill_time is 0"),
            (at("/bandwidth/refill_time"), json!(u64::MAX), "refill_time is 18446744073709551615"),
        ]
    };
    let own = |pointer: &str, lie: Value, told| (format!("/device/{pointer}"), lie, told);
    for device in every_device() {
        let lies = match device.config {
            DeviceConfig::Balloon(_) => vec![
                own("Balloon/amount_mib", json!(1 << 24), "its target can not be 16777216 MiB"),
                own("Balloon/stats_polling_interval_s", json!(0), "statistics are on or off from the start"),
                own("Balloon/statistics", json!([1]), "it has 16 statistics, not 1"),
                own("Balloon/hinting/host", json!(9), "hinting is at command 9, and run 2 was its last"),
            ],
            DeviceConfig::Block(_) => {
                [limits("Block/rate_limiter"), vec![own("Block/size", json!(512), "bytes, and had 512")]].concat()
            }
            DeviceConfig::Net(_) => [
                limits("Net/tx_rate_limiter"),
                vec![
                    own("Net/active_pairs", json!(2), "2 queue pairs were in use, and it has 1"),
                    own("Net/active_pairs", json!(0), "0 queue pairs were in use, and it has 1"),
                    own("Net/mac", json!(null), "its guest_mac was chosen by the user and is no longer"),
                    own("Net/mac", json!([1, 0, 0, 0, 0, 1]), "a group address is no interface's"),
                    own("Net/filter/modes", json!(64), "no modes of reception 0x40"),
                    own("Net/filter/vlans", json!([4096]), "there is no VLAN 4096"),
                    own("Net/filter/vlans", json!(null), "filter by VLANs"),
                    own("Net/filter/unicast", json!(vec![[2; 6]; 65]), "its filter has 65 addresses"),
                ],
            ]
            .concat(),
            DeviceConfig::Pmem(_) => [
                limits("Pmem/rate_limiter"),
                vec![
                    own("Pmem/gpa", json!(0), "its place is 0x100000000, and was 0x0"),
                    own("Pmem/len", json!(1), "bytes, and had 1"),
                ],
            ]
            .concat(),
            DeviceConfig::Rng(_) => limits("Rng/rate_limiter"),
            DeviceConfig::Vsock(_) => vec![
                own("Vsock/guest_cid", json!(4), "its guest_cid is 3, and was 4"),
                own("Vsock/last_port", json!(22), "the host's port 22 is none that it gives out"),
            ],
            DeviceConfig::Fs(_) => vec![
                own(
                    "Fs/back_end/Present/state",
                    json!([1]),
                    "give virtiofsd what another one knew: it says that its state was not moved",
                ),
                own("Fs/back_end", json!("Absent"), "it had no directory, and has one"),
                own("Fs/back_end", json!("Gone"), "unknown variant `Gone`"),
            ],
        };
        let state = state_of(&device);
        for (pointer, lie, told) in lies {
            let said = refusal(&device, &state, &pointer, &lie);
            assert!(said.contains(told), "{}: {pointer} = {lie}: {said}", device.name);
        }
        let other = match device.config {
            DeviceConfig::Rng(_) => json!({ "Vsock": { "guest_cid": 3, "last_port": 1_u32 << 30 } }),
            _ => json!({ "Rng": { "rate_limiter": { "bandwidth": null, "ops": null } } }),
        };
        assert!(refusal(&device, &state, "/device", &other).contains("another kind of device"));
    }
}
