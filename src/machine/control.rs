//! The control thread's loop: it owns the machine and waits for signals, vCPUs, the guest, console input and requests.

mod configure;
mod console;
mod debug;
mod mailbox;
mod obey;
mod watch;

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::legacy::console_out::ConsoleOut;
use devices::listener::Listener;
use devices::seams::GuestEvent;
use tracing::{info, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub use self::configure::{Begin, configure};
pub use devices::virtio::balloon::Hint;

pub use self::mailbox::{Answer, Client, Letter, Mailbox, Refusal, Remote, Reply, Request, State};

use self::console::Polled;
use self::watch::Watch;
use crate::config::{LoggerConfig, VmConfig};
use crate::error::{Doing, HostError};
use crate::events::Event;
use crate::gdb::Gdb;
use crate::input::Input;
use crate::journal::{Happening, Journal};
use crate::machine::Machine;
use crate::metrics::{self, Metrics};
use crate::signals::{self, Signals};
use crate::stop::VcpuStop;

/// A grace time beyond what a clock can hold.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// What epoll says is ready.
const EVENTS: u64 = 0;
const SIGNALS: u64 = 1;
const INPUT: u64 = 2;
const DRAINED: u64 = 3;
const REQUESTS: u64 = 4;
const GDB: u64 = 5;
const DEBUGGER: u64 = 6;
const CLIENT: u64 = 7;

/// Why a VM ended.
#[derive(Debug)]
pub enum End {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// No vCPU can ever wake: the guest halted its CPUs with interrupts off.
    Halted,
    /// A vCPU stopped for a reason of its own.
    Vcpu(u32, VcpuStop),
    /// A signal asked for the end and the guest did not power off in time, or a second signal came.
    Killed(i32),
    /// The user left by the escape key.
    Left,
    /// A request asked for the end.
    Stopped,
    /// A request asked for a reset, whatever a reboot of the guest does.
    ResetByRequest,
    /// A signal came before there was a VM.
    NotStarted(i32),
}

impl End {
    /// The process's exit status; docs/exit-codes.md lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Vcpu(_, VcpuStop::SystemShutdown) => 0,
            Self::Reset | Self::ResetByRequest | Self::Vcpu(_, VcpuStop::SystemReset) => 3,
            Self::Panicked | Self::Vcpu(_, VcpuStop::SystemCrash) => 4,
            Self::Vcpu(_, VcpuStop::TripleFault(_)) => 5,
            Self::Halted => 6,
            Self::Vcpu(_, VcpuStop::InternalError { .. } | VcpuStop::Unexpected { .. }) => 7,
            Self::Vcpu(_, VcpuStop::Kicked | VcpuStop::Debug(_)) => 7,
            Self::Vcpu(_, VcpuStop::FailEntry { .. }) => 8,
            Self::Vcpu(_, VcpuStop::MemoryFault { .. } | VcpuStop::Host(_)) => 9,
            Self::Killed(_) | Self::NotStarted(_) => 10,
            Self::Left => 11,
            Self::Stopped => 12,
        }
    }

    /// The guest wants to be started again.
    pub fn is_reset(&self) -> bool {
        matches!(self, Self::Reset | Self::Vcpu(_, VcpuStop::SystemReset))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::Reset => write!(f, "the guest asked for a reset"),
            Self::Panicked => write!(f, "the guest's kernel panicked"),
            Self::Halted => write!(f, "the guest halted: no vCPU can wake"),
            Self::Vcpu(id, stop) => write!(f, "vCPU {id} stopped: {stop}"),
            Self::Killed(signal) => {
                write!(f, "killed after {}: the guest did not power off in time", signals::name(*signal))
            }
            Self::Left => write!(f, "left by the escape key"),
            Self::Stopped => write!(f, "stopped by a request"),
            Self::ResetByRequest => write!(f, "reset by a request"),
            Self::NotStarted(signal) => write!(f, "{} came before the VM was started", signals::name(*signal)),
        }
    }
}

/// What the loop waits for besides the machine itself.
pub struct Surroundings<'a> {
    /// Signals to obey.
    pub signals: &'a Signals,
    /// Console input, if there is any.
    pub input: Option<Input>,
    /// How long a guest may take to power off after it was asked to.
    pub grace: Duration,
    /// Where requests come from.
    pub mailbox: Option<&'a Mailbox>,
    /// Where gdb finds the guest, which then has not been started: it waits for gdb.
    pub gdb: Option<Listener>,
    /// The machine's configuration; a change of a device while it runs is written here.
    pub config: &'a mut VmConfig,
    /// What is counted: written from time to time, and when it is asked for.
    pub metrics: &'a Metrics,
    /// Where what happens is noted.
    pub journal: &'a Journal,
    /// The guest's console, to show its last lines when the guest panics.
    pub console: Option<&'a ConsoleOut>,
    /// What changes the log.
    pub set_log: SetLog<'a>,
    /// The API's client that has the console; it keeps it when the guest is reset.
    pub client: &'a mut Option<Arc<UnixStream>>,
}

/// Lets the log be as it is asked for, or says why that cannot be.
pub type SetLog<'a> = &'a dyn Fn(Option<&LoggerConfig>) -> Result<(), String>;

/// How a VM ended.
#[derive(Debug)]
pub struct Outcome {
    /// Why.
    pub end: End,
    /// A signal had asked for it: whatever the guest did then, it is not to be started again.
    pub asked: bool,
    /// The request that asked for a reset: to be answered when the VM runs again.
    pub reset: Option<Letter>,
}

/// Runs a booted machine to its end.
pub fn run(machine: &Machine, surroundings: Surroundings<'_>) -> Result<Outcome, HostError> {
    let mut control = Control::new(machine, surroundings)?;
    loop {
        if let Some(end) = control.turn()? {
            if let Some(gdb) = &mut control.gdb {
                gdb.farewell(end.exit_code());
            }
            let reset = control.reset.take().filter(|_| matches!(end, End::ResetByRequest));
            return Ok(Outcome { end, asked: control.deadline.is_some(), reset });
        }
    }
}

struct Control<'a> {
    machine: &'a Machine,
    signals: &'a Signals,
    input: Option<Polled>,
    client: &'a mut Option<Arc<UnixStream>>,
    client_input: Option<Polled>,
    grace: Duration,
    mailbox: Option<&'a Mailbox>,
    config: &'a mut VmConfig,
    metrics: &'a Metrics,
    journal: &'a Journal,
    console: Option<&'a ConsoleOut>,
    set_log: SetLog<'a>,
    /// When the next line of metrics is due.
    next_line: Instant,
    gdb: Option<Gdb<'a>>,
    /// gdb's descriptor that epoll waits for, and whether to write.
    gdb_polled: Option<(RawFd, bool)>,
    paused: bool,
    epoll: Epoll,
    /// When the guest's time to power off is over, and the signal that set it.
    deadline: Option<(Instant, i32)>,
    watch: Watch,
    /// Who asked for a reset, and waits.
    reset: Option<Letter>,
    /// The guest's crash kernel was announced; once is enough.
    crash_loaded: bool,
}

impl<'a> Control<'a> {
    fn new(machine: &'a Machine, surroundings: Surroundings<'a>) -> Result<Self, HostError> {
        let epoll = Epoll::new().doing(|| "create an epoll instance")?;
        let Surroundings { signals, input, grace, mailbox, gdb, config, metrics, journal, console, set_log, client } =
            surroundings;
        let gdb = gdb.map(|socket| Gdb::new(socket, machine.debugged(), machine.steps_without_interrupts()));
        let add = |fd, token| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token)).doing(|| "wait for events")
        };
        add(machine.events().wake().as_raw_fd(), EVENTS)?;
        add(signals.as_raw_fd(), SIGNALS)?;
        if let Some(drained) = machine.serial_drained() {
            add(drained.as_raw_fd(), DRAINED)?;
        }
        if let Some(mailbox) = mailbox {
            add(mailbox.as_raw_fd(), REQUESTS)?;
        }
        if let Some(gdb) = &gdb {
            add(gdb.listener(), GDB)?;
        }
        let mut control = Self {
            machine,
            signals,
            input: input.map(Polled::new),
            client,
            client_input: None,
            grace,
            mailbox,
            config,
            metrics,
            journal,
            console,
            set_log,
            next_line: Instant::now() + metrics::PERIOD,
            gdb,
            gdb_polled: None,
            paused: false,
            epoll,
            deadline: None,
            watch: Watch::new(),
            reset: None,
            crash_loaded: false,
        };
        control.listen_to_client();
        Ok(control)
    }

    /// Waits once and handles what came.
    fn turn(&mut self) -> Result<Option<End>, HostError> {
        let mut ready = [EpollEvent::default(); 8];
        let count = match self.epoll.wait(self.timeout(), &mut ready) {
            Ok(count) => count,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => 0,
            Err(error) => return Err(HostError::new("wait for events", error)),
        };
        let mut end = None;
        for event in &ready[..count] {
            let came = match event.data() {
                EVENTS => self.events(),
                SIGNALS => self.signal(),
                INPUT => self.read_input(),
                CLIENT => self.read_client(),
                DRAINED => self.drained(),
                REQUESTS => self.requests(),
                GDB => self.gdb_comes(),
                DEBUGGER => self.gdb_speaks(),
                _ => None,
            };
            end = end.or(came);
        }
        Ok(end.or_else(|| self.clock()))
    }

    fn timeout(&self) -> i32 {
        let next = self.deadline.map_or(self.watch.next, |(at, _)| at.min(self.watch.next));
        let left = next.saturating_duration_since(Instant::now());
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1)
    }

    fn events(&mut self) -> Option<End> {
        self.machine.events().take().into_iter().find_map(|event| match event {
            Event::Guest(GuestEvent::PowerOff) => Some(End::PowerOff),
            Event::Guest(GuestEvent::Reset) => Some(End::Reset),
            Event::Guest(GuestEvent::Panicked) => {
                self.note_panic(false);
                Some(End::Panicked)
            }
            Event::Guest(GuestEvent::Progress(_)) => {
                self.journal.note(&Happening::Userspace);
                None
            }
            Event::Guest(event) => {
                if !std::mem::replace(&mut self.crash_loaded, true) {
                    info!(?event, "guest");
                    self.note_panic(true);
                }
                None
            }
            Event::Vcpu(id, stop) => Some(End::Vcpu(id, stop)),
            Event::Debug(id, exit) => self.gdb_stops(id, &exit),
        })
    }

    fn note_panic(&self, crash_kernel: bool) {
        let console = self.console.map(ConsoleOut::tail).unwrap_or_default();
        self.journal.note(&Happening::Panic { console: &console, crash_kernel });
    }

    /// The first signal presses the power button; the second one, or the end of the grace time, kills.
    fn signal(&mut self) -> Option<End> {
        let signal = self.signals.next()?;
        if signal == libc::SIGHUP {
            self.metrics.asked.sighup.0.store(1, Ordering::Relaxed);
        }
        if self.deadline.is_some() || self.grace.is_zero() {
            return Some(End::Killed(signal));
        }
        // A guest that stands still could not obey.
        self.end_gdb();
        self.resume();
        self.machine.press_power_button();
        let now = Instant::now();
        self.deadline = Some((now.checked_add(self.grace).unwrap_or(now + NEVER), signal));
        warn!("{}: asking the guest to power off; it has {:?}", signals::name(signal), self.grace);
        None
    }

    fn clock(&mut self) -> Option<End> {
        let now = Instant::now();
        if let Some((at, signal)) = self.deadline
            && now >= at
        {
            return Some(End::Killed(signal));
        }
        if now < self.watch.next {
            return None;
        }
        self.watch.next = now + watch::PERIOD;
        if now >= self.next_line {
            self.next_line = now + metrics::PERIOD;
            self.metrics.flush();
        }
        if self.deadline.is_some() {
            // A guest that was not listening yet has missed the button.
            self.machine.press_power_button();
        }
        let stands = self.paused || self.gdb.as_ref().is_some_and(Gdb::is_busy);
        (!stands && self.watch.is_dead(self.machine)).then_some(End::Halted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_codes_and_distinct_words() {
        let ends = [
            End::PowerOff,
            End::Reset,
            End::Panicked,
            End::Vcpu(0, VcpuStop::TripleFault(Box::default())),
            End::Halted,
            End::Vcpu(0, VcpuStop::InternalError { suberror: 1, data: Vec::new(), registers: Box::default() }),
            End::Vcpu(0, VcpuStop::FailEntry { reason: 7, cpu: 0, registers: Box::default() }),
            End::Vcpu(0, VcpuStop::Host(std::io::Error::from_raw_os_error(libc::EFAULT))),
            End::Killed(libc::SIGTERM),
            End::Left,
            End::Stopped,
            End::ResetByRequest,
        ];
        let codes: Vec<u8> = ends.iter().map(End::exit_code).collect();
        assert_eq!(codes, [0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 3]);
        let mut words: Vec<String> = ends.iter().map(ToString::to_string).collect();
        words.sort();
        words.dedup();
        assert_eq!(words.len(), ends.len());
    }
}
