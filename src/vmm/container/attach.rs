//! A user's terminal or pipes at a container's process: bytes both ways, signals and window sizes in, its end out.
//!
//! The main thread hears what the agent says. One thread reads standard input, one waits for signals.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;

use ::container::session::{Session, SessionError, Speaker};
use machine::signals::Signals;
use protocol::frame::{Kind, MOST_DATA};
use protocol::message::{Exit, Failure, Input, Report, Window};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::tcgetwinsize;

use crate::terminal::RawTerminal;

/// Signals that are the process's, where they are not the terminal's keys.
pub const SIGNALS: [i32; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// Why a process did not come to an end that can be told.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It did not begin.
    #[error("{}", .0.why)]
    Failed(Failure),
    /// The agent was lost.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// This side's streams.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

impl AttachError {
    /// The exit status that tells it, as Docker's.
    pub fn status(&self) -> ExitCode {
        match self {
            Self::Failed(failure) => failure.kind.status(),
            _ => 125,
        }
        .into()
    }
}

/// The size of this process's terminal; where it does not say, that of the first ones.
pub fn window() -> Window {
    match tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())) {
        Ok(size) => Window { rows: size.ws_row, columns: size.ws_col },
        Err(_) => Window { rows: 24, columns: 80 },
    }
}

/// Carries the streams of the process that was ordered in this conversation, until its end.
pub fn attach(mut session: Session, signals: Signals, stdin: bool, terminal: bool) -> Result<Exit, AttachError> {
    match session.message()? {
        Report::Started { .. } => (),
        Report::Failed(failure) => return Err(AttachError::Failed(failure)),
        Report::Exited(exit) => return Ok(exit),
    }
    // The terminal's keys are the process's from now on.
    let raw = if terminal { RawTerminal::enter().map_err(|error| AttachError::Io("terminal", error))? } else { None };
    let speaker = session.speaker()?;
    let again = speaker.again()?;
    if stdin {
        thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || send_input(speaker))
            .map_err(|error| AttachError::Io("start a thread", error))?;
    }
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || send_signals(&signals, again, terminal))
        .map_err(|error| AttachError::Io("start a thread", error))?;
    let ended = hear(&mut session);
    session.close();
    drop(raw);
    ended
}

fn hear(session: &mut Session) -> Result<Exit, AttachError> {
    let (mut out, mut errors) = (io::stdout(), io::stderr());
    let (mut out_open, mut errors_open) = (true, true);
    // A stream that nobody reads any more does not end the process: it finds out when it is told so by a signal.
    let write = |to: &mut dyn Write, open: &mut bool, bytes: &[u8]| {
        *open = *open && to.write_all(bytes).and_then(|()| to.flush()).is_ok();
    };
    while let Some(frame) = session.hear()? {
        match frame.kind {
            Kind::Stdout => write(&mut out, &mut out_open, &frame.body),
            Kind::Stderr => write(&mut errors, &mut errors_open, &frame.body),
            Kind::Stdin => (),
            Kind::Message => match frame.open().map_err(SessionError::from)? {
                Report::Exited(exit) => return Ok(exit),
                Report::Failed(failure) => return Err(AttachError::Failed(failure)),
                Report::Started { .. } => (),
            },
        }
    }
    Err(SessionError::Closed.into())
}

/// Standard input to the process, and its end.
fn send_input(mut to: Speaker) {
    let mut bytes = vec![0; MOST_DATA];
    loop {
        let count = match io::stdin().read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
            Ok(count) => count,
        };
        let part = bytes.get(..count).unwrap_or_default();
        if to.input(part).is_err() || count == 0 {
            return;
        }
    }
}

/// Signals to the process; a changed window's size to its terminal.
fn send_signals(signals: &Signals, mut to: Speaker, terminal: bool) {
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(_) => return,
        }
        while let Some(signal) = signals.next() {
            let said = match (signal, terminal) {
                (libc::SIGWINCH, true) => to.say(&Input::Resize(window())),
                (libc::SIGWINCH, false) => Ok(()),
                (signal, _) => to.say(&Input::Signal(signal)),
            };
            if said.is_err() {
                return;
            }
        }
    }
}
