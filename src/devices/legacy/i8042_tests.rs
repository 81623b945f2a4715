//! The controller as a driver and as nobody's driver would use it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;

/// A controller, and the resets that it has told.
fn with(interrupt: Option<Interrupt>) -> (I8042, Arc<AtomicUsize>) {
    let resets = Arc::new(AtomicUsize::new(0));
    let seen = resets.clone();
    let notify: Notify = Arc::new(move |event| {
        assert_eq!(event, GuestEvent::Reset);
        seen.fetch_add(1, Ordering::SeqCst);
    });
    (I8042::new(notify, interrupt), resets)
}

fn device() -> (I8042, Arc<AtomicUsize>) {
    with(None)
}

/// A controller with a keyboard, and its interrupts.
fn keyboard() -> (I8042, Interrupt) {
    let line = Interrupt::new().unwrap();
    (with(Some(line.clone())).0, line)
}

/// The same after its driver has switched the interrupt on.
fn listened_to(byte: u8) -> (I8042, Interrupt) {
    let (mut device, line) = keyboard();
    device.write(COMMAND, &[0x60]);
    device.write(DATA, &[byte]);
    (device, line)
}

/// Interrupts since this was asked last.
fn edges(line: &Interrupt) -> u64 {
    line.event().read().unwrap_or(0)
}

fn read(device: &mut I8042, offset: u64) -> u8 {
    let mut byte = [0];
    device.read(offset, &mut byte);
    byte[0]
}

/// What an interrupt handler reads, which is called once for each interrupt and takes one byte.
fn handled(device: &mut I8042, line: &Interrupt) -> Vec<u8> {
    let mut bytes = Vec::new();
    while edges(line) > 0 {
        assert_eq!(read(device, COMMAND) & OUTPUT_FULL, OUTPUT_FULL);
        bytes.push(read(device, DATA));
    }
    assert_eq!(read(device, COMMAND) & OUTPUT_FULL, 0, "a byte without an interrupt");
    bytes
}

#[test]
fn answers_a_probe_and_is_never_full_for_ever() {
    let (mut device, resets) = device();
    for (command, answer) in [(0x20, POWER_ON), (0xaa, 0x55), (0xab, 0), (0xa9, 1)] {
        device.write(COMMAND, &[command]);
        assert_eq!(read(&mut device, COMMAND) & 3, OUTPUT_FULL);
        assert_eq!(read(&mut device, DATA), answer);
        assert_eq!(read(&mut device, COMMAND) & 3, 0);
    }
    device.write(COMMAND, &[0x60]);
    device.write(DATA, &[0x74]);
    device.write(COMMAND, &[0x20]);
    assert_eq!(read(&mut device, DATA), 0x74);
    device.write(DATA, &[0xf2]); // a keyboard would answer
    assert_eq!(read(&mut device, COMMAND) & OUTPUT_FULL, 0);
    assert_eq!(resets.load(Ordering::SeqCst), 0);
    assert!(!device.is_listened_to() && device.press_ctrl_alt_del().is_err());
}

#[test]
fn a_command_that_is_half_said_is_kept() {
    let (mut first, _) = device();
    first.write(COMMAND, &[0xaa]);
    first.write(COMMAND, &[0x60]);
    let (mut second, _) = device();
    second.load(&first.save()).unwrap();
    assert_eq!(second.save(), first.save());
    assert_eq!(read(&mut second, DATA), 0x55);
    second.write(DATA, &[0x33]);
    second.write(COMMAND, &[0x20]);
    assert_eq!(read(&mut second, DATA), 0x33);
}

#[test]
fn resets() {
    let (mut device, resets) = device();
    device.write(COMMAND, &[0xfe]);
    device.write(COMMAND, &[0xff]); // pulses nothing
    device.write(COMMAND, &[0xd1]);
    device.write(DATA, &[0xfe]);
    device.write(DATA, &[0xfe]); // only data now
    assert_eq!(resets.load(Ordering::SeqCst), 2);
    device.read(COMMAND, &mut [0; 2]);
    let counted = device.tally();
    let counted = [&counted.read_count, &counted.write_count, &counted.error_count, &counted.reset_count];
    assert_eq!(counted.map(|count| count.load(Ordering::SeqCst)), [1, 5, 1, 2]);
}

/// What Linux's drivers (i8042, atkbd) do before they take a keyboard for one.
#[test]
fn a_driver_finds_the_keyboard() {
    let (mut device, line) = keyboard();
    assert!(!device.is_listened_to());
    device.write(COMMAND, &[0x20]);
    assert_eq!(read(&mut device, DATA), 0x64, "translating, as a BIOS leaves it");
    assert_eq!(edges(&line), 0);
    for byte in [0x74, 0x65] {
        device.write(COMMAND, &[0x60]);
        device.write(DATA, &[byte]);
    }
    for (bytes, answers) in [
        (&[0xf2][..], &[0xfa, 0xab, 0x41][..]),
        (&[0xf5], &[0xfa]),
        (&[0xed, 0], &[0xfa, 0xfa]),
        (&[0xf3, 0], &[0xfa, 0xfa]),
    ] {
        let answered: Vec<_> = bytes
            .iter()
            .flat_map(|byte| {
                device.write(DATA, &[*byte]);
                handled(&mut device, &line)
            })
            .collect();
        assert_eq!(answered, answers, "{bytes:x?}");
    }
    assert!(!device.is_listened_to(), "the driver has said not to scan");
    device.write(DATA, &[0xf4]);
    assert!(device.is_listened_to());
    assert_eq!(handled(&mut device, &line), [0xfa]);
    device.press_ctrl_alt_del().unwrap();
    assert_eq!(handled(&mut device, &line), [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
}

#[test]
fn without_translation_the_codes_are_those_of_set_2() {
    let (mut device, line) = listened_to(0x25);
    device.press_ctrl_alt_del().unwrap();
    assert_eq!(device.press_ctrl_alt_del(), Err(Unread));
    let codes = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];
    assert_eq!(handled(&mut device, &line), codes);
}

/// A port that is off keeps its byte, and so does one whose interrupt is off; each tells of it when it is on again.
#[test]
fn what_waits_is_told_when_it_can_be() {
    let (mut device, line) = listened_to(0x65);
    device.press_ctrl_alt_del().unwrap();
    assert_eq!((edges(&line), read(&mut device, DATA), edges(&line)), (1, 0x1d, 1));
    device.write(COMMAND, &[0xad]);
    assert_eq!((read(&mut device, COMMAND) & OUTPUT_FULL, read(&mut device, DATA)), (0, 0));
    assert!(!device.is_listened_to());
    device.write(COMMAND, &[0xae]);
    assert_eq!((edges(&line), read(&mut device, COMMAND) & OUTPUT_FULL), (1, OUTPUT_FULL));
    device.write(COMMAND, &[0x60]);
    device.write(DATA, &[0x64]);
    assert_eq!((read(&mut device, DATA), edges(&line)), (0x38, 0));
    device.write(COMMAND, &[0x60]);
    device.write(DATA, &[0x65]);
    assert_eq!(handled(&mut device, &line), [0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
    // A byte for the keyboard switches its port on.
    device.write(COMMAND, &[0xad]);
    device.write(DATA, &[0xee]);
    assert_eq!(handled(&mut device, &line), [0xee]);
}

/// The controller's own answers come first, and do not lose what the keyboard has sent.
#[test]
fn an_answer_comes_before_keys() {
    let (mut device, _) = listened_to(0x65);
    device.press_ctrl_alt_del().unwrap();
    device.write(COMMAND, &[0x20]);
    assert_eq!([read(&mut device, DATA), read(&mut device, DATA)], [0x65, 0x1d]);
}

#[test]
fn keys_under_way_are_kept() {
    let (mut first, line) = listened_to(0x65);
    first.write(DATA, &[0xed]);
    first.press_ctrl_alt_del().unwrap();
    assert_eq!((edges(&line), read(&mut first, DATA)), (1, 0xfa));
    let state = first.save();
    let (mut second, line) = keyboard();
    second.load(&state).unwrap();
    assert_eq!(second.save(), state);
    assert_eq!(handled(&mut second, &line), [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
    second.write(DATA, &[0xf2]); // the parameter of the command before
    assert_eq!(handled(&mut second, &line), [0xfa]);
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let refused = "there was a keyboard and is none, or the other way round (keyboard)";
    let (mut without, _) = device();
    let (mut with, line) = listened_to(0x65);
    assert_eq!(without.load(&with.save()).unwrap_err().to_string(), refused);
    assert_eq!(with.load(&without.save()).unwrap_err().to_string(), refused);
    let mut state = with.save();
    state.keyboard.as_mut().unwrap().sent = [0x1d; 17].into();
    assert!(with.load(&state).is_err());
    assert_eq!((edges(&line), with.save().keyboard.unwrap().sent.len()), (0, 0), "nothing was taken over");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest writes: each byte is announced, reading comes to an end, and the state is one that can be loaded.
    #[test]
    fn no_driver_brings_it_out_of_order(
        steps in prop::collection::vec((prop_oneof![Just(DATA), Just(COMMAND)], any::<u8>(), any::<bool>()), 0..300),
    ) {
        let (mut device, line) = keyboard();
        for (offset, byte, writes) in steps {
            match writes {
                true => device.write(offset, &[byte]),
                false => _ = read(&mut device, offset),
            }
            if byte == 0xaa {
                _ = device.press_ctrl_alt_del();
            }
        }
        let (mut other, _) = keyboard();
        other.load(&device.save()).unwrap();
        prop_assert_eq!(other.save(), device.save());
        device.write(COMMAND, &[0x60]);
        device.write(DATA, &[0x65]);
        edges(&line);
        let mut waiting = 0;
        while read(&mut device, COMMAND) & OUTPUT_FULL != 0 {
            prop_assert!(waiting == 0 || edges(&line) == 1, "a byte without an interrupt");
            read(&mut device, DATA);
            waiting += 1;
        }
        prop_assert!(waiting <= 17 && edges(&line) == 0);
    }
}
