//! Requests to the control thread, and their answers. Any thread asks; the control thread alone answers.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::time::{Duration, Instant};

use devices::virtio::balloon::Hint;
use serde_json::{Map, Value};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::{Edit, JsonPath, VmConfig};
use crate::error::{Doing, HostError};

/// What the control thread is asked to do. Nothing here knows the kinds of devices.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Change the configuration of a VM that is not started: all of these, or nothing.
    Configure(Vec<Edit>),
    /// Take a device out of the configuration of a VM that is not started.
    Remove {
        /// The device's name.
        id: String,
    },
    /// Build the VM and let it run.
    Start,
    /// Park the vCPUs and take the queues from the devices.
    Pause,
    /// Undo [`Self::Pause`].
    Resume,
    /// Press the power button.
    PowerButton,
    /// Press Ctrl+Alt+Del; the power button where the guest does not listen to a keyboard.
    CtrlAltDel,
    /// End the VM now.
    Stop,
    /// Start the guest again from the beginning, as its own reset does under `on-reboot: restart`. Running or paused; answered
    /// when it runs.
    Reset,
    /// Write the guest's memory and registers to a file.
    CoreDump {
        /// The file, which must not be there.
        path: PathBuf,
    },
    /// Write the VM, which is paused, into two new files.
    Save {
        /// The file for its state.
        state: PathBuf,
        /// The file for its memory.
        memory: PathBuf,
    },
    /// Write a line of metrics.
    FlushMetrics,
    /// Change a device of a VM that is started.
    Update {
        /// The device's name.
        id: String,
        /// The keys of its configuration that change, and what they become.
        patch: Map<String, Value>,
        /// What asks for it, for messages.
        source: String,
    },
    /// Ask the guest of a VM that is started for its free pages, or no longer.
    Hint(Hint),
    /// Let reports of free pages wait, or no longer, in a VM that is started.
    PauseReporting(bool),
    /// Which pages of a VM that is started the host has given it.
    Resident,
    /// Where the memory of a VM that is started lies.
    Mappings,
    /// What a device of a VM that is started has to tell.
    Inspect {
        /// The device's name.
        id: String,
    },
    /// Somebody speaks to the guest's console from now on, in the place of who did so far.
    Console(Client),
    /// The state and the configuration.
    Describe,
}

/// A connection that goes to the console.
#[derive(Debug, Clone)]
pub struct Client {
    /// The connection; what comes from it is for the guest.
    pub stream: Arc<UnixStream>,
    /// When it asked for the console.
    pub asked: Instant,
    /// What is sent to it before anything of the guest's, if it took so long until then.
    pub greeting: fn(Duration) -> Vec<u8>,
}

impl PartialEq for Client {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.stream, &other.stream)
    }
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is being configured.
    NotStarted,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are parked.
    Paused,
}

impl State {
    /// Firecracker's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        }
    }
}

/// What a request brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It was done.
    Done,
    /// What a device has to tell, null where it has nothing; or the answer to [`Request::Resident`] or
    /// [`Request::Mappings`].
    Told(Value),
    /// The answer to [`Request::Describe`].
    Described {
        /// Where the VM is in its life.
        state: State,
        /// What it is, or is to be.
        config: Box<VmConfig>,
        /// The same as JSON; without `boot-source` as long as there is none.
        json: Value,
    },
}

/// Why a request was not carried out; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not in this state of the VM.
    #[error("{0}")]
    WrongState(&'static str),
    /// There is no such device.
    #[error("there is no device `{0}`")]
    NoDevice(String),
    /// It is wrong, or the host refused it.
    #[error("{0}")]
    Refused(String),
    /// The VM has ended.
    #[error("the VM has ended")]
    Ended,
}

/// What a request gets.
pub type Reply = Result<Answer, Refusal>;

/// A request, and the way back.
#[derive(Debug)]
pub struct Letter {
    /// What is asked.
    pub request: Request,
    reply: SyncSender<Reply>,
}

impl Letter {
    /// Answers it. Nobody may wait any more.
    pub fn answer(self, reply: Reply) {
        let _ = self.reply.send(reply);
    }
}

/// The control thread's end.
pub struct Mailbox {
    letters: Receiver<Letter>,
    wake: Arc<EventFd>,
}

/// Everyone else's end.
#[derive(Clone)]
pub struct Remote {
    letters: Sender<Letter>,
    wake: Arc<EventFd>,
}

impl Mailbox {
    /// Both ends.
    pub fn new() -> Result<(Self, Remote), HostError> {
        let (sender, letters) = mpsc::channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).doing(|| "create an event")?);
        Ok((Self { letters, wake: wake.clone() }, Remote { letters: sender, wake }))
    }

    /// The next letter, if there is one. Once there is none, [`AsRawFd`]'s descriptor becomes ready with the next.
    pub fn next(&self) -> Option<Letter> {
        if let Ok(letter) = self.letters.try_recv() {
            return Some(letter);
        }
        let _ = self.wake.read();
        // One that came between.
        self.letters.try_recv().ok()
    }
}

impl AsRawFd for Mailbox {
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

impl Remote {
    /// Asks, and waits for the answer.
    pub fn ask(&self, request: Request) -> Reply {
        let (reply, answer) = mpsc::sync_channel(1);
        self.letters.send(Letter { request, reply }).map_err(|_| Refusal::Ended)?;
        let _ = self.wake.write(1);
        answer.recv().unwrap_or(Err(Refusal::Ended))
    }

    /// Puts `value` at `path` of the configuration because `source` asks for it.
    pub fn configure(&self, path: JsonPath, value: Value, source: &str) -> Reply {
        self.ask(Request::Configure(vec![Edit::set(path, value, source)]))
    }

    /// The VM's state.
    pub fn state(&self) -> Result<State, Refusal> {
        match self.ask(Request::Describe)? {
            Answer::Described { state, .. } => Ok(state),
            _ => Err(Refusal::Ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn every_letter_is_answered() {
        let (mailbox, remote) = Mailbox::new().unwrap();
        assert!(mailbox.next().is_none());
        let asking = thread::spawn(move || [remote.ask(Request::Pause), remote.ask(Request::Resume)]);
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let Some(letter) = mailbox.next() else {
                thread::yield_now();
                continue;
            };
            seen.push(letter.request.clone());
            let reply = if seen.len() == 1 { Ok(Answer::Done) } else { Err(Refusal::WrongState("no")) };
            letter.answer(reply);
        }
        assert_eq!(seen, [Request::Pause, Request::Resume]);
        assert_eq!(asking.join().unwrap(), [Ok(Answer::Done), Err(Refusal::WrongState("no"))]);
    }

    #[test]
    fn who_asks_after_the_end_hears_of_it() {
        let (mailbox, remote) = Mailbox::new().unwrap();
        let early = remote.clone();
        let asking = thread::spawn(move || early.ask(Request::Pause));
        while mailbox.next().is_none_or(|letter| letter.request != Request::Pause) {
            thread::yield_now();
        }
        assert_eq!(asking.join().unwrap(), Err(Refusal::Ended), "a letter that is dropped");
        drop(mailbox);
        assert_eq!(remote.ask(Request::Pause), Err(Refusal::Ended));
    }
}
