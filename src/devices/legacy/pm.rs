//! Power management by ACPI's reduced-hardware interface (ACPI 6.5, 4.8.3): sleep control and status, the reset
//! register (4.8.3.6) and the event register of the machine's Generic Event Device (5.6.9). vCPU threads; the control
//! thread presses the power button.

use crate::bus::BusDevice;
use crate::seams::{GuestEvent, Interrupt, Notify};
use crate::state::{StateError, check};

/// Ports of the device.
pub const PORTS: u64 = 8;
/// Offset of the sleep control register: bits 2 to 4 SLP_TYPx, bit 5 SLP_EN.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register: bit 7 WAK_STS, never set, for nothing sleeps and wakes.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// Offset of the event register: reading returns the pending events and forgets them.
pub const EVENTS: u64 = 3;
/// What to write to [`RESET`] (FADT, RESET_VALUE).
pub const RESET_VALUE: u8 = 1;
/// SLP_TYPx of soft-off (the DSDT's \_S5).
pub const S5: u8 = 5;
/// Event: the power button was pressed.
pub const POWER_BUTTON: u8 = 1 << 0;

const SLP_EN: u8 = 1 << 5;

/// The device.
pub struct Pm {
    interrupt: Interrupt,
    notify: Notify,
    events: u8,
}

impl Pm {
    /// Nothing is pending. `interrupt` is the Generic Event Device's.
    pub fn new(interrupt: Interrupt, notify: Notify) -> Self {
        Self { interrupt, notify, events: 0 }
    }

    /// Asks the guest to power off.
    pub fn press_power_button(&mut self) {
        self.events |= POWER_BUTTON;
        self.interrupt.trigger();
    }

    /// What is to be kept: the events that are pending.
    pub fn save(&self) -> u8 {
        self.events
    }

    /// Becomes what was saved. Who has an event to read gets the interrupt again, lest it was under way.
    pub fn load(&mut self, events: u8) -> Result<(), StateError> {
        check(events & !POWER_BUTTON == 0, || format!("there are no power events {events:#x}"))?;
        self.events = events;
        if events != 0 {
            self.interrupt.trigger();
        }
        Ok(())
    }

    /// The line to bind to the Generic Event Device's GSI.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

impl BusDevice for Pm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = match offset {
                SLEEP_CONTROL | SLEEP_STATUS | RESET => 0,
                EVENTS => std::mem::take(&mut self.events),
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, byte) in (offset..).zip(data) {
            match offset {
                SLEEP_CONTROL if byte & SLP_EN != 0 && byte >> 2 & 7 == S5 => (self.notify)(GuestEvent::PowerOff),
                RESET if *byte == RESET_VALUE => (self.notify)(GuestEvent::Reset),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn powers_off_resets_and_rings() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = heard.clone();
        let mut pm = Pm::new(Interrupt::new().unwrap(), Arc::new(move |event| ear.lock().unwrap().push(event)));
        pm.write(SLEEP_CONTROL, &[S5 << 2]); // no SLP_EN
        pm.write(SLEEP_CONTROL, &[3 << 2 | SLP_EN]); // S3
        pm.write(RESET, &[0]);
        assert!(heard.lock().unwrap().is_empty());
        pm.write(SLEEP_CONTROL, &[S5 << 2 | SLP_EN]);
        pm.write(RESET, &[RESET_VALUE]);
        assert_eq!(*heard.lock().unwrap(), [GuestEvent::PowerOff, GuestEvent::Reset]);
    }

    #[test]
    fn the_power_button_is_an_event_that_is_read_once() {
        let mut pm = Pm::new(Interrupt::new().unwrap(), Arc::new(|_| {}));
        pm.press_power_button();
        assert_eq!(pm.interrupt().event().read().unwrap(), 1);
        let mut events = [0xaa];
        pm.read(EVENTS, &mut events);
        assert_eq!(events, [POWER_BUTTON]);
        pm.read(EVENTS, &mut events);
        assert_eq!(events, [0]);
    }

    #[test]
    fn a_press_that_was_not_read_is_kept() {
        let mut pm = Pm::new(Interrupt::new().unwrap(), Arc::new(|_| {}));
        pm.load(POWER_BUTTON).unwrap();
        assert_eq!((pm.save(), pm.interrupt().event().read().unwrap()), (POWER_BUTTON, 1));
        assert_eq!(pm.load(2).unwrap_err().to_string(), "there are no power events 0x2");
        pm.load(0).unwrap();
        assert!(pm.save() == 0 && pm.interrupt().event().read().is_err());
    }
}
