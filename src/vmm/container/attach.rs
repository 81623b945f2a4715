//! A user's terminal or pipes at a container's process: bytes both ways, signals and window sizes in, its end out.
//!
//! The main thread hears what the agent says. One thread reads standard input, one waits for signals.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use ::container::output::Log;
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
    pub fn status(&self) -> u8 {
        match self {
            Self::Failed(failure) => failure.kind.status(),
            _ => 125,
        }
    }
}

/// The size of this process's terminal; where it does not say, that of the first ones.
pub fn window() -> Window {
    match tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())) {
        Ok(size) => Window { rows: size.ws_row, columns: size.ws_col },
        Err(_) => Window { rows: 24, columns: 80 },
    }
}

/// This process's side of a conversation: of the first process of a container, and of the next one when it is started
/// again.
#[derive(Debug, Default)]
pub struct Ends {
    /// Standard input goes to the process.
    pub stdin: bool,
    /// This process's terminal is the process's.
    pub terminal: bool,
    /// Nobody sees what it writes.
    pub hidden: bool,
    /// What it writes is kept.
    pub log: Option<Log>,
    /// Those that are the process's, until the thread that waits for them has them.
    pub signals: Option<Signals>,
    pub(super) mouth: Arc<Mouth>,
    /// The thread that reads standard input is there.
    pub(super) listens: bool,
}

/// Where input and signals go: to the process that runs now.
#[derive(Debug, Default)]
pub(super) struct Mouth(Mutex<Option<Speaker>>);

impl Mouth {
    fn say(&self, what: impl FnOnce(&mut Speaker) -> Result<(), SessionError>) {
        // What comes when nothing runs, or too late, is for nobody.
        let mut speaker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = speaker.as_mut().map(what);
    }

    fn set(&self, speaker: Option<Speaker>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = speaker;
    }
}

impl Ends {
    /// Carries the streams of the process that was ordered in this conversation, until its end. `started` is called when
    /// it runs.
    pub fn attach(&mut self, mut session: Session, started: impl FnOnce()) -> Result<Exit, AttachError> {
        match session.message()? {
            Report::Started { .. } => started(),
            Report::Failed(failure) => return Err(AttachError::Failed(failure)),
            Report::Exited(exit) => return Ok(exit),
        }
        // The terminal's keys are the process's from now on, if it reads any; otherwise Ctrl-C is a signal to this one.
        let raw = match self.terminal && self.stdin && !self.hidden {
            true => RawTerminal::enter().map_err(|error| AttachError::Io("terminal", error))?,
            false => None,
        };
        self.mouth.set(Some(session.speaker()?));
        self.listen()?;
        let ended = self.hear(&mut session);
        self.mouth.set(None);
        session.close();
        drop(raw);
        ended
    }

    /// Starts the threads that wait for input and signals, once.
    fn listen(&mut self) -> Result<(), AttachError> {
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
            thread.map(drop).map_err(|error| AttachError::Io("start a thread", error))
        };
        if self.stdin && !std::mem::replace(&mut self.listens, true) {
            let mouth = Arc::clone(&self.mouth);
            start("stdin", Box::new(move || send_input(&mouth)))?;
        }
        if let Some(signals) = self.signals.take() {
            let (mouth, terminal) = (Arc::clone(&self.mouth), self.terminal);
            start("signals", Box::new(move || send_signals(&signals, &mouth, terminal)))?;
        }
        Ok(())
    }

    fn hear(&mut self, session: &mut Session) -> Result<Exit, AttachError> {
        let (mut out, mut errors) = (io::stdout(), io::stderr());
        let (mut out_open, mut errors_open) = (!self.hidden, !self.hidden);
        // A stream that nobody reads any more does not end the process: it finds out when it is told so by a signal.
        let write = |to: &mut dyn Write, open: &mut bool, bytes: &[u8]| {
            *open = *open && to.write_all(bytes).and_then(|()| to.flush()).is_ok();
        };
        while let Some(frame) = session.hear()? {
            if let (Some(log), Kind::Stdout | Kind::Stderr) = (&mut self.log, frame.kind)
                && !frame.body.is_empty()
                && let Err(error) = log.write(frame.kind, &frame.body)
            {
                eprintln!("vmm: keep what the container writes: {error}; no more of it is kept");
                self.log = None;
            }
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
}

/// Standard input to the process, and its end.
fn send_input(to: &Mouth) {
    let mut bytes = vec![0; MOST_DATA];
    loop {
        let count = match io::stdin().read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
            Ok(count) => count,
        };
        let part = bytes.get(..count).unwrap_or_default();
        to.say(|to| to.input(part));
        if count == 0 {
            return;
        }
    }
}

/// Signals to the process; a changed window's size to its terminal.
fn send_signals(signals: &Signals, to: &Mouth, terminal: bool) {
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(_) => return,
        }
        while let Some(signal) = signals.next() {
            match (signal, terminal) {
                (libc::SIGWINCH, true) => to.say(|to| to.say(&Input::Resize(window()))),
                (libc::SIGWINCH, false) => (),
                (signal, _) => to.say(|to| to.say(&Input::Signal(signal))),
            }
        }
    }
}
