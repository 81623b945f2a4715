//! The first serial port: a 16550A (vm-superio), with flow control for its input. vCPU threads read and write its
//! registers; the control thread feeds it input under the same lock.
//!
//! Input enters the FIFO only while the driver has the received-data interrupt on. A driver that opens the port empties
//! the receiver before it turns that interrupt on, so bytes that were there earlier would be lost; they wait with the
//! control thread instead, which asks for [`Serial::room`] and is told by [`Serial::input_ready`] when to ask again.

mod state;

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::state::SerialState;
use super::console_out::ConsoleOut;
use crate::bus::BusDevice;
use crate::seams::{GuestEvent, Interrupt, Notify};
use crate::tally;
use crate::tally::count;

/// Ports of the device.
pub const PORTS: u64 = 8;

/// Interrupt enable register, and its received-data bit.
const IER: u8 = 1;
const IER_RDA: u8 = 1 << 0;
/// Interrupt identification register, its low bits, which hold the cause, and two causes.
const IIR: u8 = 2;
const IIR_CAUSE: u8 = 0x0f;
const IIR_RDA: u8 = 0x04;
const IIR_THR: u8 = 0x02;
/// Line control register, and its bit that shows the baud rate's divisor in place of registers 0 and 1.
const LCR: u8 = 3;
const LCR_DLAB: u8 = 1 << 7;
/// Line status register, and its bit for received data.
const LSR: u8 = 5;
const LSR_DR: u8 = 1 << 0;

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
    tally: Arc<Uart>,
}

impl Input {
    fn feed(&self) {
        if self.starved.swap(false, Ordering::SeqCst) {
            let _ = self.ready.write(1);
        }
    }
}

impl SerialEvents for Input {
    fn buffer_read(&self) {
        count(&self.tally.bytes_in, 1);
    }
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.feed();
    }
}

tally! {
    /// What the port counts.
    pub struct Uart {
        /// Bytes of input that the guest read.
        pub bytes_in: AtomicU64,
        /// Bytes that the guest wrote.
        pub bytes_out: AtomicU64,
        /// Of these, bytes that nobody will see: they came faster than they were taken, or nobody is there to take them.
        pub bytes_lost: AtomicU64,
    }
}

struct Sink {
    out: SerialOut,
    tally: Arc<Uart>,
    /// Until the first byte.
    first: Option<Notify>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(notify) = self.first.take() {
            notify(GuestEvent::FirstSerialByte);
        }
        let len = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        count(&self.tally.bytes_out, len(bytes.len()));
        if let SerialOut::Console(out) = &self.out {
            count(&self.tally.bytes_lost, len(out.push(bytes)));
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
        let tally = Arc::<Uart>::default();
        let input = Arc::new(Input { ready, starved: AtomicBool::new(false), tally: tally.clone() });
        let sink = Sink { out, tally, first: Some(notify) };
        Ok(Self {
            uart: vm_superio::Serial::with_events(Line(interrupt), Arc::clone(&input), sink),
            input,
            listens: false,
        })
    }

    /// What it has counted.
    pub fn tally(&self) -> Arc<Uart> {
        self.input.tally.clone()
    }

    /// Bytes of input that the port takes now. When it is 0, [`Self::input_ready`] is signalled once it may be more.
    /// That also holds when [`Self::enqueue`] used up the last of it.
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
        if done < bytes.len() || self.uart.fifo_capacity() == 0 {
            self.input.starved.store(true, Ordering::SeqCst);
        }
        done
    }

    /// The cause of the interrupt. Received data is one for as long as there is any (16550: a level): Linux reads at most
    /// 256 bytes per interrupt, and would not come back for what followed meanwhile if the register said "none" then.
    /// Data goes before the empty transmitter, which is then told in the next round.
    fn cause(&mut self) -> u8 {
        let cause = self.uart.read(IIR);
        if !self.listens || self.uart.read(LSR) & LSR_DR == 0 {
            return cause;
        }
        if cause & IIR_THR != 0 {
            let enabled = self.uart.read(IER);
            let _ = self.uart.write(IER, enabled); // raises it again
        }
        cause & !IIR_CAUSE | IIR_RDA
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
                Ok(IIR) => self.cause(),
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Mutex;

    use super::*;
    use crate::testing::PATIENCE;

    const DATA: u64 = 0;

    pub fn port(out: SerialOut) -> (Serial, Interrupt, Arc<Mutex<Vec<GuestEvent>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = heard.clone();
        let line = Interrupt::new().unwrap();
        let notify: Notify = Arc::new(move |event| ear.lock().unwrap().push(event));
        (Serial::new(line.clone(), out, notify).unwrap(), line, heard)
    }

    pub fn get(serial: &mut Serial, offset: u64) -> u8 {
        let mut byte = [0];
        serial.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn output_goes_out_and_the_first_byte_is_told_once() {
        let (mut reader, writer) = io::pipe().unwrap();
        let out = ConsoleOut::new(writer, None).unwrap();
        let (mut serial, line, heard) = port(out.clone().into());
        for byte in b"hello" {
            serial.write(DATA, &[*byte]);
        }
        assert_eq!(*heard.lock().unwrap(), [GuestEvent::FirstSerialByte]);
        assert!(out.flush(PATIENCE));
        let mut text = [0; 5];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        let counted = [&serial.tally().bytes_out, &serial.tally().bytes_lost].map(|it| it.load(Ordering::Relaxed));
        assert_eq!(counted, [5, 0]);
        assert!(line.event().read().is_err(), "no interrupt was asked for");
        serial.write(u64::from(IER), &[2]);
        assert_eq!(line.event().read().unwrap(), 1, "the transmitter is empty");
    }

    #[test]
    fn input_waits_until_the_driver_listens() {
        let (mut serial, line, _) = port(SerialOut::Discard);
        assert_eq!(serial.room(), 0);
        assert_eq!(serial.enqueue(b"early"), 0);
        assert!(serial.input_ready().read().is_err());
        get(&mut serial, DATA); // a driver that opens the port empties the receiver
        serial.write(u64::from(IER), &[IER_RDA]);
        assert_eq!(serial.input_ready().read().unwrap(), 1);
        assert_eq!(serial.enqueue(b"early"), 5);
        assert!(line.event().read().unwrap() > 0);
        let text: Vec<u8> = (0..5).map(|_| get(&mut serial, DATA)).collect();
        assert_eq!(text, b"early");
        assert_eq!(get(&mut serial, LSR.into()) & 1, 0);
        // The divisor's high byte is not the interrupt enable register.
        serial.write(u64::from(LCR), &[LCR_DLAB]);
        serial.write(u64::from(IER), &[0]);
        serial.write(u64::from(LCR), &[3]);
        assert_eq!(serial.room(), 64);
    }

    #[test]
    fn a_full_fifo_is_reported_when_it_is_empty_again() {
        let (mut serial, _, _) = port(SerialOut::Discard);
        serial.write(u64::from(IER), &[IER_RDA]);
        let text: Vec<u8> = (0..200).collect();
        let (mut sent, mut seen) = (0, Vec::new());
        while seen.len() < text.len() {
            sent += serial.enqueue(&text[sent..]);
            let room = serial.room();
            assert!(room == 0 || sent == text.len());
            assert!(serial.input_ready().read().is_err());
            while get(&mut serial, LSR.into()) & 1 != 0 {
                seen.push(get(&mut serial, DATA));
            }
            assert_eq!(serial.input_ready().read().is_ok(), room == 0, "signalled just when it was waited for");
        }
        assert_eq!(seen, text);
        assert_eq!(serial.tally().bytes_in.load(Ordering::Relaxed), 200);
    }

    #[test]
    fn filling_the_fifo_to_the_brim_counts_as_asking_for_more() {
        let (mut serial, _, _) = port(SerialOut::Discard);
        serial.write(u64::from(IER), &[IER_RDA]);
        assert_eq!(serial.enqueue(&[b'x'; 64]), 64);
        for _ in 0..64 {
            assert!(serial.input_ready().read().is_err());
            get(&mut serial, DATA);
        }
        assert!(serial.input_ready().read().is_ok());
    }

    #[test]
    fn input_survives_a_console_that_masks_interrupts_while_it_writes() {
        let (mut serial, line, _) = port(SerialOut::Discard);
        serial.write(u64::from(IER), &[IER_RDA]);
        serial.write(u64::from(IER), &[0]);
        assert_eq!(serial.enqueue(b"x"), 0);
        serial.write(u64::from(IER), &[IER_RDA]);
        assert!(serial.input_ready().read().is_ok());
        assert_eq!(serial.enqueue(b"x"), 1);
        serial.write(u64::from(IER), &[0]);
        get(&mut serial, IIR.into()); // while masked
        let _ = line.event().read();
        serial.write(u64::from(IER), &[IER_RDA]);
        assert!(line.event().read().is_ok(), "the byte that waits is announced again");
        assert_eq!(get(&mut serial, DATA), b'x');
    }

    /// Seen as a console that fell silent in the middle of a long input: Linux had read its 256 bytes.
    #[test]
    fn data_is_a_cause_until_the_last_byte_is_read() {
        let (mut serial, line, _) = port(SerialOut::Discard);
        serial.write(u64::from(IER), &[IER_RDA]);
        assert_eq!(serial.enqueue(b"abc"), 3);
        for _ in 0..3 {
            assert_eq!(get(&mut serial, IIR.into()) & IIR_CAUSE, IIR_RDA);
            get(&mut serial, DATA);
        }
        assert_eq!(get(&mut serial, IIR.into()) & IIR_CAUSE, 1, "none");
        // Both: data first, then the transmitter, with an interrupt for it.
        serial.write(u64::from(IER), &[IER_RDA | 2]);
        assert_eq!(serial.enqueue(b"d"), 1);
        let _ = line.event().read();
        assert_eq!(get(&mut serial, IIR.into()) & IIR_CAUSE, IIR_RDA);
        assert!(line.event().read().is_ok());
        get(&mut serial, DATA);
        assert_eq!(get(&mut serial, IIR.into()) & IIR_CAUSE, IIR_THR);
        assert_eq!(get(&mut serial, IIR.into()) & IIR_CAUSE, 1);
    }
}
