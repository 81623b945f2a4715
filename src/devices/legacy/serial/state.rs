//! What is kept of the serial port: its registers, and the input that the guest has not read. The control thread saves and
//! loads it, while no vCPU runs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{IER_RDA, LSR_DR, Line, Serial, Sink};
use crate::state::{StateError, check};

/// Registers of a 16550A, and its receiver's FIFO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// Divisor latch, low and high byte.
    pub divisor: [u8; 2],
    /// Interrupt enable.
    pub interrupt_enable: u8,
    /// Interrupt identification.
    pub interrupt_identification: u8,
    /// Line control.
    pub line_control: u8,
    /// Line status.
    pub line_status: u8,
    /// Modem control.
    pub modem_control: u8,
    /// Modem status.
    pub modem_status: u8,
    /// Scratch.
    pub scratch: u8,
    /// Input that waits.
    pub input: Vec<u8>,
}

impl Serial {
    /// What is to be kept.
    pub fn save(&self) -> SerialState {
        let state = self.uart.state();
        SerialState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    /// Becomes what was saved. What is pending gets its interrupt again, lest it was under way.
    pub fn load(&mut self, state: &SerialState) -> Result<(), StateError> {
        let has_data = state.line_status & LSR_DR != 0;
        check(has_data != state.input.is_empty(), || "the serial port's status and its input disagree".to_owned())?;
        let [baud_divisor_low, baud_divisor_high] = state.divisor;
        let registers = vm_superio::serial::SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input.clone(),
        };
        let (line, sink) = (Line(self.uart.interrupt_evt().0.clone()), self.uart.writer());
        // Its first byte was told by the guest that was saved.
        let sink = Sink { out: sink.out.clone(), tally: sink.tally.clone(), first: None };
        let loaded = vm_superio::Serial::from_state(&registers, line, Arc::clone(&self.input), sink);
        let bytes = state.input.len();
        self.uart = loaded.map_err(|_| StateError::new(format!("the serial port has no room for {bytes} bytes")))?;
        self.listens = state.interrupt_enable & IER_RDA != 0;
        if self.listens {
            if has_data {
                self.uart.interrupt_evt().0.trigger();
            }
            self.input.feed();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{get, port};
    use super::*;
    use crate::bus::BusDevice;
    use crate::legacy::serial::SerialOut;

    #[test]
    fn input_and_registers_are_kept() {
        let (mut first, _, _) = port(SerialOut::Discard);
        for (register, value) in [(3, 0x80), (0, 12), (1, 3), (3, 3), (1, 1), (4, 8), (7, 0x5a)] {
            first.write(register, &[value]);
        }
        assert_eq!(first.enqueue(b"hello"), 5);
        get(&mut first, 0);
        let state = first.save();
        assert_eq!((state.divisor, state.scratch, state.input.as_slice()), ([12, 3], 0x5a, &b"ello"[..]));

        let (mut second, line, heard) = port(SerialOut::Discard);
        assert_eq!(second.room(), 0);
        second.load(&state).unwrap();
        assert_eq!(second.save(), state);
        assert!(line.event().read().is_ok(), "there is input");
        assert!(second.input_ready().read().is_ok(), "and room for more, which was asked for");
        assert_eq!((0..4).map(|_| get(&mut second, 0)).collect::<Vec<_>>(), b"ello");
        second.write(0, b"x");
        assert!(heard.lock().unwrap().is_empty(), "it is not its first byte");
    }

    #[test]
    fn a_state_that_can_not_be_is_refused() {
        let (mut port, _, _) = port(SerialOut::Discard);
        let good = port.save();
        let full = SerialState { line_status: good.line_status | LSR_DR, input: vec![0; 65], ..good.clone() };
        assert_eq!(port.load(&full).unwrap_err().to_string(), "the serial port has no room for 65 bytes");
        let lie = SerialState { input: vec![1], ..good.clone() };
        assert_eq!(port.load(&lie).unwrap_err().to_string(), "the serial port's status and its input disagree");
        assert_eq!(port.save(), good);
    }
}
