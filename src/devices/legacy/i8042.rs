//! The keyboard controller (Intel 8042), with a keyboard (`keyboard.rs`) or without one. Without, it is enough that a guest's
//! probe gets its answers at once and that its reset commands work. vCPU threads; the control thread presses keys.
//! (vm-superio's has no answers, which costs a probing guest half a second for every command.)

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};

use super::keyboard::{Keyboard, KeyboardState};
use crate::bus::BusDevice;
use crate::seams::{GuestEvent, Interrupt, Notify};
use crate::state::{StateError, check};
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
/// Command byte: an interrupt for each byte of the keyboard's port.
const INTERRUPT: u8 = 1 << 0;
/// Command byte: the controller passed its self-test.
const TESTED: u8 = 1 << 2;
/// Command byte: the keyboard's port is off.
const NO_KEYBOARD: u8 = 1 << 4;
/// Command byte: the port of a mouse is off.
const NO_AUX: u8 = 1 << 5;
/// Command byte: what the keyboard sends is translated to scan code set 1.
const TRANSLATE: u8 = 1 << 6;
/// Command byte at power-on where there is nothing: both ports off, no interrupts.
const POWER_ON: u8 = TESTED | NO_KEYBOARD | NO_AUX;
/// Command byte where there is a keyboard, as a BIOS leaves it but for the interrupts.
const WITH_KEYBOARD: u8 = TESTED | NO_AUX | TRANSLATE;
/// Output port, bit 0: 0 resets the CPU.
const NO_RESET: u8 = 1 << 0;

/// What the next byte at the data port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// The keyboard, if there is one.
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

/// What is kept of the controller itself: every value is one that a guest can bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerState {
    /// The controller's command byte.
    pub command_byte: u8,
    /// The output port.
    pub output_port: u8,
    /// What waits at the data port, before what the keyboard has sent.
    pub answer: Option<u8>,
    /// What the next byte there is for.
    pub expect: Expect,
}

/// What is kept of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042State {
    /// The controller.
    pub controller: ControllerState,
    /// The keyboard, where there is one.
    pub keyboard: Option<KeyboardState>,
}

/// There is no room for more keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest has not read what its keyboard sent before")]
pub struct Unread;

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

/// A keyboard at its port, and the interrupt for what it sends.
struct Port {
    keyboard: Keyboard,
    interrupt: Interrupt,
}

/// The device.
pub struct I8042 {
    notify: Notify,
    state: ControllerState,
    port: Option<Port>,
    tally: Arc<KeyboardCounts>,
}

impl I8042 {
    /// As at power-on, with a keyboard if there is an `interrupt` for it. Resets are told to `notify`.
    pub fn new(notify: Notify, interrupt: Option<Interrupt>) -> Self {
        let output_port = NO_RESET | 1 << 1; // A20 is on
        let command_byte = if interrupt.is_some() { WITH_KEYBOARD } else { POWER_ON };
        let state = ControllerState { command_byte, output_port, answer: None, expect: Expect::Keyboard };
        let port = interrupt.map(|interrupt| Port { keyboard: Keyboard::default(), interrupt });
        Self { notify, state, port, tally: Arc::default() }
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
        I8042State { controller: self.state, keyboard: self.port.as_ref().map(|port| port.keyboard.save()) }
    }

    /// Becomes what was saved. Who has a byte to read gets the interrupt again, lest it was under way.
    pub fn load(&mut self, state: &I8042State) -> Result<(), StateError> {
        check(self.port.is_some() == state.keyboard.is_some(), || {
            "there was a keyboard and is none, or the other way round (keyboard)".to_owned()
        })?;
        if let (Some(port), Some(saved)) = (&mut self.port, &state.keyboard) {
            port.keyboard.load(saved)?;
        }
        self.state = state.controller;
        self.announce(false);
        Ok(())
    }

    /// Whether there is a keyboard whose keys the guest's driver waits for.
    pub fn is_listened_to(&self) -> bool {
        let on = self.state.command_byte & (INTERRUPT | NO_KEYBOARD) == INTERRUPT;
        on && self.port.as_ref().is_some_and(|port| port.keyboard.is_scanning())
    }

    /// Presses Ctrl, Alt and Del and lets them go.
    pub fn press_ctrl_alt_del(&mut self) -> Result<(), Unread> {
        let (level, translates) = (self.interrupts(), self.state.command_byte & TRANSLATE != 0);
        let fits = self.port.as_mut().is_some_and(|port| port.keyboard.press_ctrl_alt_del(translates));
        self.announce(level);
        fits.then_some(()).ok_or(Unread)
    }

    /// Whether a byte waits at the data port: the controller's answer, or the keyboard's while its port is on.
    fn is_full(&self) -> bool {
        let on = self.state.command_byte & NO_KEYBOARD == 0;
        let sent = on && self.port.as_ref().is_some_and(|port| port.keyboard.has_sent());
        self.state.answer.is_some() || sent
    }

    /// The level of the interrupt line, of which the guest gets the rising edges.
    fn interrupts(&self) -> bool {
        self.is_full() && self.state.command_byte & INTERRUPT != 0
    }

    /// Interrupts the guest if it has something to read and was not told so: the line was at `level`.
    fn announce(&self, level: bool) {
        if let Some(port) = self.port.as_ref().filter(|_| !level && self.interrupts()) {
            port.interrupt.trigger();
        }
    }

    /// What waits at the data port; 0 where nothing does. The line falls, and rises again for the next byte.
    fn read_data(&mut self) -> u8 {
        if !self.is_full() {
            return 0;
        }
        let answer = self.state.answer.take();
        let byte = answer.or_else(|| self.port.as_mut().and_then(|port| port.keyboard.read()));
        self.announce(false);
        byte.unwrap_or(0)
    }

    fn command(&mut self, command: u8) {
        self.state.expect = Expect::Keyboard;
        match command {
            0x20 => self.state.answer = Some(self.state.command_byte),
            0x60 => self.state.expect = Expect::CommandByte,
            0xa7 => self.state.command_byte |= NO_AUX,
            0xa8 => self.state.command_byte &= !NO_AUX,
            0xa9 => self.state.answer = Some(0x01), // test of the AUX port: clock stuck, there is none
            0xaa => self.state.answer = Some(0x55), // self-test passed
            0xab => self.state.answer = Some(0x00), // test of the keyboard port passed
            0xad => self.state.command_byte |= NO_KEYBOARD,
            0xae => self.state.command_byte &= !NO_KEYBOARD,
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
            Expect::Keyboard => {
                if let Some(port) = &mut self.port {
                    self.state.command_byte &= !NO_KEYBOARD; // who speaks to it switches its port on
                    port.keyboard.write(byte, self.state.command_byte & TRANSLATE != 0);
                }
            }
            Expect::Nothing => {} // there is no mouse to answer
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            self.note(offset, &self.tally.read_count);
            *byte = match offset {
                DATA => self.read_data(),
                COMMAND if self.is_full() => READY | OUTPUT_FULL,
                COMMAND => READY,
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, byte) in (offset..).zip(data) {
            self.note(offset, &self.tally.write_count);
            let level = self.interrupts();
            match offset {
                DATA => self.data(*byte),
                COMMAND => self.command(*byte),
                _ => {}
            }
            self.announce(level);
        }
    }
}

#[cfg(test)]
#[path = "i8042_tests.rs"]
mod tests;
