//! A vCPU: one thread, a message-driven state machine (parked, running), and KVM's exits in words.
//!
//! Messages come through a channel, each followed by a signal. The signal's handler sets `immediate_exit` in the
//! `kvm_run` page of its own thread, so a kick that arrives just before KVM_RUN is not lost: KVM_RUN then returns at
//! once. The thread clears the flag *before* it looks at the channel. (Linux, Documentation/virt/kvm/api.rst, 5.)
#![allow(unsafe_code)] // the signal handler writes to the kvm_run page of its thread

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use devices::bus::Bus;
use devices::tally;
use devices::tally::{Span, Times, count};
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, register_signal_handler, unblock_signal};

use crate::error::{Doing, HostError};
use crate::events::Events;
use crate::stop::{self, VcpuStop as Stop};
use crate::timeline::Mark;

pub use crate::stop::VcpuStop;

const RFLAGS_IF: u64 = 1 << 9;

/// The signal that kicks a vCPU out of the guest.
fn kick_signal() -> i32 {
    libc::SIGRTMIN() + 1
}

thread_local! {
    /// This thread's `kvm_run` page, for the signal handler.
    static KVM_RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// The I/O ports and MMIO registers of a VM.
#[derive(Default)]
pub struct Buses {
    /// I/O ports.
    pub io: Bus,
    /// Memory-mapped registers.
    pub mmio: Bus,
}

tally! {
    /// How often a vCPU came back to the monitor; named as Firecracker's.
    pub struct ExitCounts {
        /// Exits for I/O port reads.
        pub exit_io_in: AtomicU64,
        /// Exits for I/O port writes.
        pub exit_io_out: AtomicU64,
        /// Exits for register reads.
        pub exit_mmio_read: AtomicU64,
        /// Exits for register writes.
        pub exit_mmio_write: AtomicU64,
        /// How long a port or register access kept the vCPU in the monitor.
        pub exit_time: Times,
        /// The same for I/O port reads alone.
        pub exit_io_in_agg: Span,
        /// For I/O port writes.
        pub exit_io_out_agg: Span,
        /// For register reads.
        pub exit_mmio_read_agg: Span,
        /// For register writes.
        pub exit_mmio_write_agg: Span,
        /// Accesses to ports and registers that no device has.
        pub unclaimed: AtomicU64,
        /// Times that KVM did not take the word of a pause for the guest's watchdogs: it has no KVM clock.
        pub kvmclock_ctrl_fails: AtomicU64,
        /// Times that the vCPU was called out of the guest.
        pub kicked: AtomicU64,
        /// Times that KVM could not go on, or did something that was not asked for.
        pub failures: AtomicU64,
    }
}

impl ExitCounts {
    /// Counts an access that found no device.
    fn claim(&self, found: bool) {
        if !found {
            count(&self.unclaimed, 1);
        }
    }
}

enum Message {
    /// Run until told otherwise.
    Run,
    /// The same, after a pause.
    Resume,
    /// Park, then answer.
    Pause(SyncSender<()>),
    /// Say whether nothing but a reset can wake this vCPU.
    AskHalted(SyncSender<bool>),
    /// Do this on the vCPU's thread.
    Do(Box<dyn FnOnce(&mut VcpuFd) + Send>),
    /// End the thread.
    Quit,
}

/// The control thread's end of a vCPU. Dropping it ends the thread.
pub struct VcpuHandle {
    thread: Option<JoinHandle<()>>,
    messages: Sender<Message>,
    /// How often it came back, by kind.
    pub exits: Arc<ExitCounts>,
}

struct Vcpu {
    id: u32,
    fd: VcpuFd,
    buses: Arc<Buses>,
    events: Arc<Events>,
    exits: Arc<ExitCounts>,
}

/// Installs the kick's signal handler, once per process.
pub fn install_kick() -> Result<(), HostError> {
    extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        KVM_RUN.with(|run| {
            let run = run.get();
            if !run.is_null() {
                // SAFETY: the pointer is this thread's kvm_run page, mapped as long as it is set; the kernel reads
                // the byte at any time, hence volatile. Nothing here allocates or locks.
                unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
            }
        });
    }
    let doing = || "install the vCPU signal handler";
    register_signal_handler(kick_signal(), on_kick).doing(doing)?;
    // Whoever started this process may have had it blocked.
    unblock_signal(kick_signal()).map_err(|error| format!("{error:?}")).doing(doing)
}

impl VcpuHandle {
    /// Starts the vCPU's thread, parked.
    pub fn spawn(id: u32, fd: VcpuFd, buses: Arc<Buses>, events: Arc<Events>) -> Result<Self, HostError> {
        let (messages, inbox) = channel();
        let exits = Arc::new(ExitCounts::default());
        let vcpu = Vcpu { id, fd, buses, events, exits: exits.clone() };
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(256 << 10)
            .spawn(move || vcpu.thread(&inbox))
            .doing(|| format!("start the thread of vCPU {id}"))?;
        Ok(Self { thread: Some(thread), messages, exits })
    }

    /// Lets it run.
    pub fn run(&self) {
        self.send(Message::Run);
    }

    /// Lets it run after a pause.
    pub fn resume(&self) {
        self.send(Message::Resume);
    }

    /// Parks it; the answer comes when it is parked.
    pub fn pause(&self) -> Receiver<()> {
        let (parked, answer) = sync_channel(1);
        self.send(Message::Pause(parked));
        answer
    }

    /// Asks whether nothing but a reset can wake it: halted with interrupts off, or never started.
    pub fn ask_halted(&self) -> Receiver<bool> {
        let (halted, answer) = sync_channel(1);
        self.send(Message::AskHalted(halted));
        answer
    }

    /// What `what` says of the vCPU, on its thread. A vCPU that runs goes on afterwards.
    pub fn with<R: Send + 'static>(&self, what: impl FnOnce(&mut VcpuFd) -> R + Send + 'static) -> Receiver<R> {
        let (said, answer) = sync_channel(1);
        self.send(Message::Do(Box::new(move |fd| {
            let _ = said.send(what(fd));
        })));
        answer
    }

    /// CPU time that the thread, and the guest on it, used.
    pub fn cpu_time(&self) -> Duration {
        let Some(thread) = &self.thread else { return Duration::ZERO };
        let mut clock = 0;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the thread is not joined, so its pthread_t is valid; both out-pointers are to locals.
        let failed = unsafe {
            libc::pthread_getcpuclockid(thread.pthread_handle(), &mut clock) != 0
                || libc::clock_gettime(clock, &mut time) != 0
        };
        if failed { Duration::ZERO } else { Duration::new(time.tv_sec as u64, time.tv_nsec as u32) }
    }

    fn send(&self, message: Message) {
        // A vCPU whose thread has ended takes no messages; whoever waits for an answer sees the channel closed.
        if self.messages.send(message).is_ok()
            && let Some(thread) = &self.thread
        {
            let _ = thread.kill(kick_signal());
        }
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.send(Message::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum State {
    Parked,
    Running,
    Ended,
}

impl Vcpu {
    fn thread(mut self, inbox: &Receiver<Message>) {
        KVM_RUN.with(|run| run.set(ptr::from_mut(self.fd.get_kvm_run())));
        // A kick that came before the line above set nothing: look at the messages before entering the guest.
        self.fd.set_kvm_immediate_exit(1);
        let mut state = State::Parked;
        loop {
            state = match state {
                State::Parked => inbox.recv().map_or(State::Ended, |message| self.obey(message, State::Parked)),
                State::Running => self.run(inbox),
                State::Ended => break,
            };
        }
        KVM_RUN.with(|run| run.set(ptr::null_mut()));
    }

    fn obey(&mut self, message: Message, state: State) -> State {
        match message {
            Message::Run => State::Running,
            Message::Resume => {
                // The guest's watchdogs then know that it was the host who stopped it (Linux, KVM_KVMCLOCK_CTRL). A guest
                // without the KVM clock has nothing to be told: that is an error, which is counted and nothing more.
                if self.fd.kvmclock_ctrl().is_err() {
                    count(&self.exits.kvmclock_ctrl_fails, 1);
                }
                State::Running
            }
            Message::Pause(parked) => {
                let _ = parked.send(());
                State::Parked
            }
            Message::AskHalted(answer) => {
                let _ = answer.send(self.is_halted());
                state
            }
            Message::Do(what) => {
                what(&mut self.fd);
                state
            }
            Message::Quit => State::Ended,
        }
    }

    /// Runs the guest until a message or a fault changes the state.
    fn run(&mut self, inbox: &Receiver<Message>) -> State {
        if self.id == 0 {
            self.events.timeline().mark(Mark::FirstRun);
        }
        loop {
            match self.run_once() {
                Ok(()) => {}
                Err(Stop::Kicked) => {
                    count(&self.exits.kicked, 1);
                    self.fd.set_kvm_immediate_exit(0);
                    let mut state = State::Running;
                    // Only while it runs: a message that is taken must be obeyed.
                    while matches!(state, State::Running) {
                        let Ok(message) = inbox.try_recv() else { break };
                        state = self.obey(message, state);
                    }
                    if !matches!(state, State::Running) {
                        return state;
                    }
                }
                Err(Stop::Debug(exit)) => {
                    self.events.vcpu_debug(self.id, exit);
                    return State::Parked;
                }
                Err(stop) => {
                    count(&self.exits.failures, 1);
                    self.events.vcpu_stopped(self.id, stop);
                    return State::Parked;
                }
            }
        }
    }

    fn run_once(&mut self) -> Result<(), Stop> {
        let exit = self.fd.run().map_err(|error| match error.errno() {
            libc::EINTR | libc::EAGAIN => Stop::Kicked,
            errno => Stop::Host(io::Error::from_raw_os_error(errno)),
        })?;
        let begun = Instant::now();
        let kind = match exit {
            VcpuExit::IoIn(port, data) => {
                count(&self.exits.exit_io_in, 1);
                data.chunks_mut(access_size())
                    .for_each(|access| self.exits.claim(self.buses.io.read(port.into(), access)));
                &self.exits.exit_io_in_agg
            }
            VcpuExit::IoOut(port, data) => {
                if count(&self.exits.exit_io_out, 1) == 0 {
                    self.events.timeline().mark(Mark::FirstExit);
                }
                data.chunks(access_size())
                    .for_each(|access| self.exits.claim(self.buses.io.write(port.into(), access)));
                &self.exits.exit_io_out_agg
            }
            VcpuExit::MmioRead(address, data) => {
                count(&self.exits.exit_mmio_read, 1);
                self.exits.claim(self.buses.mmio.read(address, data));
                &self.exits.exit_mmio_read_agg
            }
            VcpuExit::MmioWrite(address, data) => {
                count(&self.exits.exit_mmio_write, 1);
                self.exits.claim(self.buses.mmio.write(address, data));
                &self.exits.exit_mmio_write_agg
            }
            VcpuExit::Intr => return Err(Stop::Kicked),
            other => {
                let stop = stop::classify(&other);
                return Err(stop.with_details(&mut self.fd));
            }
        };
        let took = begun.elapsed();
        kind.record(took);
        self.exits.exit_time.record(took);
        Ok(())
    }

    fn is_halted(&self) -> bool {
        let (Ok(state), Ok(registers)) = (self.fd.get_mp_state(), self.fd.get_regs()) else { return false };
        match state.mp_state {
            KVM_MP_STATE_UNINITIALIZED => true,
            KVM_MP_STATE_HALTED => registers.rflags & RFLAGS_IF == 0,
            _ => false,
        }
    }
}

/// Bytes of one port access of the exit at hand: a string instruction (`rep outsb`) makes several, all on one port.
fn access_size() -> usize {
    KVM_RUN.with(|run| {
        // SAFETY: set by this thread before it runs the guest, to its kvm_run page, which is mapped as long as it is
        // set; the exit was KVM_EXIT_IO, for which the kernel filled this member of the union.
        let size = unsafe { (*run.get()).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    })
}

impl fmt::Debug for VcpuHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuHandle").field("exits", &self.exits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::Tiny;

    /// A message behind a pause is one for a parked vCPU, however soon it comes.
    #[test]
    fn no_message_is_lost_behind_a_pause() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let Some((tiny, fd)) = Tiny::new() else { return };
        install_kick().unwrap();
        let vcpu = tiny.start(fd);
        vcpu.run();
        for round in 0..300 {
            let (parked, said) = (vcpu.pause(), vcpu.with(|_| ()));
            assert!(parked.recv_timeout(PATIENCE).is_ok(), "round {round}");
            assert!(said.recv_timeout(PATIENCE).is_ok(), "round {round}");
            vcpu.resume();
        }
    }
}
