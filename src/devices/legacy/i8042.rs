//! The keyboard controller without a keyboard (Intel 8042): enough that a guest's probe gets its answers at once and
//! that its reset commands work. vCPU threads. (vm-superio's has no answers, which costs a probing guest half a second
//! for every command.)

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::seams::{GuestEvent, Notify};
use crate::tally;
use crate::tally::count;

/// Offset of the data port (0x60).
pub const DATA: u64 = 0;
/// Offset of the status (read) and command (write) port (0x64).
pub const COMMAND: u64 = 4;
/// Ports from the data port to the command port; those between belong to others.
pub const PORTS: u64 = 5;

/// Status: an answer waits at the data port.
const OUTPUT_FULL: u8 = 1 << 0;
/// Status: the controller passed its self-test, and the keyboard is not locked.
const READY: u8 = 1 << 2 | 1 << 4;
/// Command byte at power-on: both ports off, no interrupts.
const POWER_ON: u8 = 1 << 4 | 1 << 5 | 1 << 2;
/// Output port, bit 0: 0 resets the CPU.
const NO_RESET: u8 = 1 << 0;

/// What the next byte at the data port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// The keyboard, which is not there.
    Keyboard,
    /// The controller's command byte.
    CommandByte,
    /// The output port.
    OutputPort,
    /// One that is taken and forgotten.
    Nothing,
    /// One that comes back, as from a port without AUX.
    Echo,
}

/// What is kept of the device: every value is one that a guest can bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042State {
    /// The controller's command byte.
    pub command_byte: u8,
    /// The output port.
    pub output_port: u8,
    /// What waits at the data port.
    pub answer: Option<u8>,
    /// What the next byte there is for.
    pub expect: Expect,
}

tally! {
    /// What the controller counts; named as Firecracker's.
    pub struct KeyboardCounts {
        /// Bytes that the guest read from it.
        pub read_count: AtomicU64,
        /// Bytes that the guest wrote to it.
        pub write_count: AtomicU64,
        /// Bytes that were read or written where it has no register.
        pub error_count: AtomicU64,
        /// Times that the guest asked it for a reset.
        pub reset_count: AtomicU64,
    }
}

/// The device.
pub struct I8042 {
    notify: Notify,
    state: I8042State,
    tally: Arc<KeyboardCounts>,
}

impl I8042 {
    /// As at power-on. Resets are told to `notify`.
    pub fn new(notify: Notify) -> Self {
        let output_port = NO_RESET | 1 << 1; // A20 is on
        let state = I8042State { command_byte: POWER_ON, output_port, answer: None, expect: Expect::Keyboard };
        Self { notify, state, tally: Arc::default() }
    }

    /// What it counts.
    pub fn tally(&self) -> Arc<KeyboardCounts> {
        self.tally.clone()
    }

    fn note(&self, offset: u64, counter: &AtomicU64) {
        let known = offset == DATA || offset == COMMAND;
        count(if known { counter } else { &self.tally.error_count }, 1);
    }

    fn reset(&self) {
        count(&self.tally.reset_count, 1);
        (self.notify)(GuestEvent::Reset);
    }

    /// What is to be kept.
    pub fn save(&self) -> I8042State {
        self.state
    }

    /// Becomes what was saved.
    pub fn load(&mut self, state: &I8042State) {
        self.state = *state;
    }

    fn command(&mut self, command: u8) {
        self.state.expect = Expect::Keyboard;
        match command {
            0x20 => self.state.answer = Some(self.state.command_byte),
            0x60 => self.state.expect = Expect::CommandByte,
            0xa7 => self.state.command_byte |= 1 << 5,
            0xa8 => self.state.command_byte &= !(1 << 5),
            0xa9 => self.state.answer = Some(0x01), // test of the AUX port: clock stuck, there is none
            0xaa => self.state.answer = Some(0x55), // self-test passed
            0xab => self.state.answer = Some(0x00), // test of the keyboard port passed
            0xad => self.state.command_byte |= 1 << 4,
            0xae => self.state.command_byte &= !(1 << 4),
            0xc0 => self.state.answer = Some(0x80), // input port: keyboard not locked
            0xd0 => self.state.answer = Some(self.state.output_port),
            0xd1 => self.state.expect = Expect::OutputPort,
            0xd2 | 0xd3 => self.state.expect = Expect::Echo,
            0xd4 => self.state.expect = Expect::Nothing,
            // Pulse output lines: bit 0 clear pulses the CPU's reset.
            0xf0..=0xff if command & NO_RESET == 0 => self.reset(),
            _ => {}
        }
    }

    fn data(&mut self, byte: u8) {
        match std::mem::replace(&mut self.state.expect, Expect::Keyboard) {
            Expect::CommandByte => self.state.command_byte = byte,
            Expect::OutputPort => {
                self.state.output_port = byte;
                if byte & NO_RESET == 0 {
                    self.reset();
                }
            }
            Expect::Echo => self.state.answer = Some(byte),
            Expect::Keyboard | Expect::Nothing => {} // nobody is there to answer
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            self.note(offset, &self.tally.read_count);
            *byte = match offset {
                DATA => self.state.answer.take().unwrap_or(0),
                COMMAND if self.state.answer.is_some() => READY | OUTPUT_FULL,
                COMMAND => READY,
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, byte) in (offset..).zip(data) {
            self.note(offset, &self.tally.write_count);
            match offset {
                DATA => self.data(*byte),
                COMMAND => self.command(*byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn device() -> (I8042, Arc<AtomicUsize>) {
        let resets = Arc::new(AtomicUsize::new(0));
        let seen = resets.clone();
        let notify: Notify = Arc::new(move |event| {
            assert_eq!(event, GuestEvent::Reset);
            seen.fetch_add(1, Ordering::SeqCst);
        });
        (I8042::new(notify), resets)
    }

    fn read(device: &mut I8042, offset: u64) -> u8 {
        let mut byte = [0];
        device.read(offset, &mut byte);
        byte[0]
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
    }

    #[test]
    fn a_command_that_is_half_said_is_kept() {
        let (mut first, _) = device();
        first.write(COMMAND, &[0xaa]);
        first.write(COMMAND, &[0x60]);
        let (mut second, _) = device();
        second.load(&first.save());
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
}
