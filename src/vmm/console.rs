//! `vmm ctl ID console`: this terminal is the guest's console, until the escape key, a signal or the end of the VM.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;

use machine::input::{Escape, Step};
use machine::signals::Signals;
use rustix::event::{PollFd, PollFlags, poll};

use crate::terminal::{self, RawTerminal};

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;
/// Most bytes of a terminal that wait for a guest that does not read. Reading goes on, for the escape key's sake, and what is
/// typed beyond this is lost, as on a UART.
const WAITING_MAX: usize = 4096;

/// Why it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Over {
    /// The user left; the VM goes on.
    Left,
    /// The other end is gone: the VM has ended, or another client has the console.
    Closed,
}

/// Passes bytes between `stream` and standard input and output.
pub fn speak(stream: &UnixStream) -> io::Result<Over> {
    let signals = Signals::block(&machine::signals::ENDING)?;
    terminal::restore_on_every_exit();
    let raw = RawTerminal::enter()?;
    // A terminal in whose background this runs is not to be read.
    let reads = raw.is_some() || !io::stdin().is_terminal();
    stream.set_nonblocking(true)?;
    let mut typed = Typed { escape: raw.is_some().then(Escape::default), waiting: Vec::new(), ended: !reads };
    loop {
        let [input, output, has_signal] = wait(stream, &signals, &typed)?;
        if has_signal && signals.next().is_some() {
            return Ok(Over::Left);
        }
        if input && typed.read()? {
            return Ok(Over::Left);
        }
        typed.send(stream)?;
        if output && !show(stream)? {
            return Ok(Over::Closed);
        }
    }
}

/// Waits, and says whether there is input, output or a signal.
fn wait(stream: &UnixStream, signals: &Signals, typed: &Typed) -> io::Result<[bool; 3]> {
    let stdin = io::stdin();
    let flags = |wanted: bool, flags: PollFlags| if wanted { flags } else { PollFlags::empty() };
    let speaks = PollFlags::IN | flags(!typed.waiting.is_empty(), PollFlags::OUT);
    let mut waits = vec![PollFd::new(stream, speaks), PollFd::new(signals, PollFlags::IN)];
    if typed.wants_more() {
        waits.push(PollFd::new(&stdin, PollFlags::IN));
    }
    match poll(&mut waits, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let came = |place: usize, but: PollFlags| waits.get(place).is_some_and(|wait| !(wait.revents() - but).is_empty());
    Ok([came(2, PollFlags::empty()), came(0, PollFlags::OUT), came(1, PollFlags::empty())])
}

/// Prints what the guest wrote. False when no more will come.
fn show(mut stream: &UnixStream) -> io::Result<bool> {
    let mut chunk = [0; CHUNK];
    match stream.read(&mut chunk) {
        Ok(0) => Ok(false),
        Ok(len) => {
            let mut out = io::stdout().lock();
            out.write_all(chunk.get(..len).unwrap_or_default()).and_then(|()| out.flush())?;
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
        Err(error) => Err(error),
    }
}

/// Standard input, on its way to the guest.
struct Typed {
    /// On a terminal.
    escape: Option<Escape>,
    waiting: Vec<u8>,
    ended: bool,
}

impl Typed {
    fn wants_more(&self) -> bool {
        !self.ended && (self.waiting.is_empty() || self.escape.is_some())
    }

    /// Reads once. True when the user leaves.
    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        // Past the buffer of std's stdin, of which poll(2) knows nothing.
        let len = match rustix::io::read(io::stdin(), &mut chunk) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(false),
            len => len?,
        };
        self.ended = len == 0;
        Ok(self.take(chunk.get(..len).unwrap_or_default()))
    }

    /// Takes bytes. True when the user leaves.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let Some(escape) = &mut self.escape else {
            self.waiting.extend_from_slice(bytes);
            return false;
        };
        for byte in bytes {
            match escape.step(*byte) {
                Step::Pass(byte) if self.waiting.len() < WAITING_MAX => self.waiting.push(byte),
                Step::Pass(_) | Step::Swallow => {}
                Step::Ask(_) => return true,
            }
        }
        false
    }

    /// Sends what the other end takes. When it is gone, [`show`] sees that.
    fn send(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        while !self.waiting.is_empty() {
            match stream.write(&self.waiting) {
                Ok(len) => drop(self.waiting.drain(..len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    self.waiting.clear();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(terminal: bool) -> Typed {
        Typed { escape: terminal.then(Escape::default), waiting: Vec::new(), ended: false }
    }

    #[test]
    fn a_terminal_has_an_escape_key_and_a_pipe_has_not() {
        let mut pipe = typed(false);
        assert!(!pipe.take(b"a\x01x") && !pipe.wants_more());
        assert_eq!(pipe.waiting, b"a\x01x");
        let mut terminal = typed(true);
        assert!(!terminal.take(b"a\x01\x01b"));
        assert_eq!(terminal.waiting, b"a\x01b");
        // The guest is deaf: the key is heard all the same.
        assert!(!terminal.take(&[b'z'; 2 * WAITING_MAX]) && terminal.wants_more());
        assert_eq!(terminal.waiting.len(), WAITING_MAX);
        assert!(terminal.take(b"\x01x"));
    }

    #[test]
    fn what_the_other_end_does_not_take_waits() {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let mut pipe = typed(false);
        pipe.take(&vec![b'x'; 8 << 20]);
        pipe.send(&here).unwrap();
        assert!(!pipe.waiting.is_empty() && !pipe.wants_more());
        drop(there);
        pipe.send(&here).unwrap();
        assert!(pipe.waiting.is_empty());
        assert!(!show(&here).unwrap());
    }
}
