//! The first serial port: a 16550A (vm-superio), with flow control for its input. vCPU threads read and write its
//! registers; the control thread feeds it input under the same lock.
//!
//! Input enters the FIFO only while the driver has the received-data interrupt on. A driver that opens the port empties
//! the receiver before it turns that interrupt on, so bytes that were there earlier would be lost; they wait with the
//! control thread instead, which asks for [`Serial::room`] and is told by [`Serial::input_ready`] when to ask again.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::console_out::ConsoleOut;
use crate::bus::BusDevice;
use crate::seams::{GuestEvent, Interrupt, Notify};

/// Ports of the device.
pub const PORTS: u64 = 8;

/// Interrupt enable register, and its received-data bit.
const IER: u8 = 1;
const IER_RDA: u8 = 1 << 0;
/// Line control register, and its bit that shows the baud rate's divisor in place of registers 0 and 1.
const LCR: u8 = 3;
const LCR_DLAB: u8 = 1 << 7;

/// Where the guest's output goes.
#[derive(Clone)]
pub enum SerialOut {
    /// Nowhere.
    Discard,
    /// A file, pipe or terminal, without ever blocking the guest.
    Console(ConsoleOut),
}

impl From<ConsoleOut> for SerialOut {
    fn from(out: ConsoleOut) -> Self {
        Self::Console(out)
    }
}

/// The device.
pub struct Serial {
    uart: vm_superio::Serial<Line, Arc<Input>, Sink>,
    input: Arc<Input>,
    /// The driver has the received-data interrupt on.
    listens: bool,
}

struct Line(Interrupt);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.trigger();
        Ok(())
    }
}

/// Tells the control thread when it may bring more input.
struct Input {
    ready: EventFd,
    /// The control thread found no room.
    starved: AtomicBool,
}

impl Input {
    fn feed(&self) {
        if self.starved.swap(false, Ordering::SeqCst) {
            let _ = self.ready.write(1);
        }
    }
}

impl SerialEvents for Input {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.feed();
    }
}

struct Sink {
    out: SerialOut,
    /// Until the first byte.
    first: Option<Notify>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(notify) = self.first.take() {
            notify(GuestEvent::FirstSerialByte);
        }
        if let SerialOut::Console(out) = &self.out {
            out.push(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// A port as at power-on.
    pub fn new(interrupt: Interrupt, out: SerialOut, notify: Notify) -> io::Result<Self> {
        let ready = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let input = Arc::new(Input { ready, starved: AtomicBool::new(false) });
        let sink = Sink { out, first: Some(notify) };
        Ok(Self {
            uart: vm_superio::Serial::with_events(Line(interrupt), Arc::clone(&input), sink),
            input,
            listens: false,
        })
    }

    /// Bytes of input that the port takes now. When it is 0, [`Self::input_ready`] is signalled once it may be more.
    pub fn room(&self) -> usize {
        let room = if self.listens { self.uart.fifo_capacity() } else { 0 };
        if room == 0 {
            self.input.starved.store(true, Ordering::SeqCst);
        }
        room
    }

    /// Gives the port input; returns how much it took. When that is not all, [`Self::input_ready`] is signalled once
    /// there may be room for more.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let room = self.room();
        let taken = bytes.get(..room).unwrap_or(bytes);
        let done = self.uart.enqueue_raw_bytes(taken).unwrap_or(0);
        if done < bytes.len() {
            self.input.starved.store(true, Ordering::SeqCst);
        }
        done
    }

    /// Readable when the driver has emptied the FIFO, or begun to listen, after room was asked for in vain.
    pub fn input_ready(&self) -> &EventFd {
        &self.input.ready
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = match u8::try_from(offset) {
                Ok(register @ 0..8) => self.uart.read(register),
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, byte) in (offset..).zip(data) {
            let Ok(register @ 0..8) = u8::try_from(offset) else { continue };
            // The line and the sink never fail; what else can is nothing that a guest should hear of.
            let _ = self.uart.write(register, *byte);
            if register == IER && self.uart.read(LCR) & LCR_DLAB == 0 {
                self.listens = byte & IER_RDA != 0;
                if self.listens {
                    self.input.feed();
                }
            }
        }
    }
}
