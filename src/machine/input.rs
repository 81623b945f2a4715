//! Console input: from a terminal, pipe or file to the serial port, no faster than the guest reads.
//!
//! Runs on the control thread. On a raw terminal Ctrl-A is the escape key: Ctrl-A x leaves, Ctrl-A a sends a Ctrl-A.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::legacy::serial::Serial;

const CTRL_A: u8 = 1;
/// Bytes read at once. Small: what is read has left the terminal and waits here.
const CHUNK: usize = 256;
/// Most bytes that wait for a guest that does not read. On a raw terminal reading goes on, for the escape key's sake, and
/// what is typed beyond this is lost, as on a UART.
const PENDING_MAX: usize = 4096;

/// The serial port as the control thread shares it with the bus.
pub type SharedSerial = Arc<Mutex<Serial>>;

/// Where the input comes from, and where the next bytes go.
pub struct Input {
    file: File,
    serial: SharedSerial,
    pending: VecDeque<u8>,
    escape: Option<Escape>,
    ended: bool,
}

/// What the user asked for with the escape key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// End the VM now.
    Leave,
}

impl Input {
    /// Input from `file`; `raw_terminal` turns the escape key on.
    pub fn new(file: File, serial: SharedSerial, raw_terminal: bool) -> Self {
        Self { file, serial, pending: VecDeque::new(), escape: raw_terminal.then(Escape::default), ended: false }
    }

    /// Whether more can be taken from the file now.
    pub fn wants_more(&self) -> bool {
        !self.ended && (self.pending.is_empty() || self.escape.is_some())
    }

    /// Nothing more will come, and all that came was passed on.
    pub fn is_over(&self) -> bool {
        self.ended && self.pending.is_empty()
    }

    /// Reads once, if there is room, and passes on what the serial port takes.
    pub fn read(&mut self) -> Option<Request> {
        if !self.wants_more() {
            return None;
        }
        let mut chunk = [0; CHUNK];
        let got = match self.file.read(&mut chunk) {
            Ok(got) => got,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return None;
            }
            Err(_) => 0, // a terminal that is gone: no more input
        };
        self.ended = got == 0;
        let mut request = None;
        for byte in &chunk[..got] {
            match self.escape.as_mut().map_or(Step::Pass(*byte), |escape| escape.step(*byte)) {
                Step::Pass(byte) if self.pending.len() < PENDING_MAX => self.pending.push_back(byte),
                Step::Pass(_) | Step::Swallow => {}
                Step::Ask(asked) => request = Some(asked),
            }
        }
        self.feed();
        request
    }

    /// Passes on what the serial port takes.
    pub fn feed(&mut self) {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let room = serial.room().min(self.pending.len());
        if room > 0 {
            let bytes: Vec<u8> = self.pending.iter().take(room).copied().collect();
            let taken = serial.enqueue(&bytes);
            self.pending.drain(..taken);
        }
    }
}

impl AsRawFd for Input {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The escape key's state.
#[derive(Debug, Default)]
pub struct Escape {
    armed: bool,
}

/// What a typed byte means.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// This byte is for the guest.
    Pass(u8),
    /// It belongs to the escape key.
    Swallow,
    /// The user asks for something.
    Ask(Request),
}

impl Escape {
    /// Takes the next byte that was typed.
    pub fn step(&mut self, byte: u8) -> Step {
        match (std::mem::replace(&mut self.armed, false), byte) {
            (false, CTRL_A) => {
                self.armed = true;
                Step::Swallow
            }
            (false, byte) => Step::Pass(byte),
            (true, b'x' | b'X') => Step::Ask(Request::Leave),
            (true, b'a' | CTRL_A) => Step::Pass(CTRL_A),
            (true, _) => Step::Swallow,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn input(raw: bool) -> (Input, std::io::PipeWriter) {
        let (read, write) = std::io::pipe().unwrap();
        let notify: devices::seams::Notify = Arc::new(|_| {});
        let line = devices::seams::Interrupt::new().unwrap();
        let serial = Serial::new(line, devices::legacy::serial::SerialOut::Discard, notify).unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(read));
        (Input::new(file, Arc::new(Mutex::new(serial)), raw), write)
    }

    /// A guest that never reads must not make the escape key useless.
    #[test]
    fn the_escape_key_is_heard_while_the_guest_is_deaf() {
        let (mut input, mut write) = input(true);
        write.write_all(b"hello?").unwrap();
        assert_eq!(input.read(), None);
        for _ in 0..40 {
            write.write_all(&[b'z'; 200]).unwrap();
            assert_eq!(input.read(), None);
        }
        assert!(input.pending.len() <= PENDING_MAX);
        write.write_all(b"\x01x").unwrap();
        assert!(input.wants_more());
        assert_eq!(input.read(), Some(Request::Leave));
    }

    #[test]
    fn a_pipe_is_read_no_faster_than_the_guest_reads() {
        let (mut input, mut write) = input(false);
        write.write_all(&[b'z'; 600]).unwrap();
        assert_eq!(input.read(), None);
        assert!(!input.wants_more());
        assert_eq!(input.read(), None);
        assert_eq!(input.pending.len(), CHUNK);
    }

    #[test]
    fn an_input_is_over_when_the_guest_has_it_all() {
        let (mut input, mut write) = input(false);
        write.write_all(b"x").unwrap();
        assert_eq!(input.read(), None);
        drop(write);
        input.pending.clear();
        assert!(input.wants_more() && !input.is_over());
        assert_eq!(input.read(), None);
        assert!(input.is_over());
        input.pending.push_back(b'y');
        assert!(!input.is_over());
    }

    fn steps(bytes: &[u8]) -> Vec<Step> {
        let mut escape = Escape::default();
        bytes.iter().map(|byte| escape.step(*byte)).filter(|step| *step != Step::Swallow).collect()
    }

    #[test]
    fn ctrl_a_is_the_escape_key() {
        assert_eq!(steps(b"ab"), [Step::Pass(b'a'), Step::Pass(b'b')]);
        assert_eq!(steps(b"\x01x"), [Step::Ask(Request::Leave)]);
        assert_eq!(steps(b"\x01\x01a"), [Step::Pass(1), Step::Pass(b'a')]);
        assert_eq!(steps(b"\x01ab"), [Step::Pass(1), Step::Pass(b'b')]);
        assert_eq!(steps(b"\x01qx"), [Step::Pass(b'x')]);
    }
}
