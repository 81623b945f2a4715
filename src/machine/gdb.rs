//! `--gdb`: a UNIX socket at which gdb finds the guest (gdb's remote serial protocol, by the crate `gdbstub`).
//!
//! The control thread runs all of this. Nothing waits for gdb: bytes come when epoll says so, and answers that gdb does not
//! read yet are kept; meanwhile nothing more is read. One gdb at a time. docs/gdb.md is the user's side.

mod guest;
mod paging;
mod points;
mod registers;
mod target;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use devices::listener::Listener;
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine as Stub;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason as Reason};
use kvm_bindings::{KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB, kvm_debug_exit_arch};
use tracing::{debug, info};

pub use guest::Guest;
use points::Why;
use target::{Debugged, tid};

/// Longest packet from gdb, bytes: all registers, or a page of memory, in hexadecimal.
const PACKET: usize = 16 << 10;

/// Answers on their way to gdb.
#[derive(Default)]
struct Outbox(Vec<u8>);

impl Connection for Outbox {
    type Error = std::convert::Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Self::Error> {
        self.0.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

struct Session<'a> {
    stream: UnixStream,
    /// Nothing only while it is being changed.
    stub: Option<Stub<'static, Debugged<'a>, Outbox>>,
    /// What was not sent yet.
    unsent: Vec<u8>,
}

/// What a session asks the control thread to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// gdb is gone, and the guest goes on without it.
    Over,
    /// The VM is to end.
    Kill,
}

/// The debugger of a machine.
pub struct Gdb<'a> {
    listener: Listener,
    session: Option<Session<'a>>,
    target: Debugged<'a>,
    /// The whole machine is paused: nothing runs, whatever gdb wants.
    paused: bool,
    /// Stops that came when another vCPU had stopped already, and that do not come again by themselves.
    late: Vec<(u32, kvm_debug_exit_arch)>,
}

impl<'a> Gdb<'a> {
    /// The debugger of a guest that has not run yet: it waits for gdb.
    pub fn new(listener: Listener, guest: Guest<'a>, block_interrupts: bool) -> Self {
        info!("the guest waits for gdb: target remote {}", listener.path().display());
        Self {
            listener,
            session: None,
            target: Debugged::new(guest, block_interrupts),
            paused: false,
            late: Vec::new(),
        }
    }

    /// What to wait on for a gdb that comes.
    pub fn listener(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// What to wait on for the gdb that is here, and whether it is for writing.
    pub fn client(&self) -> Option<(RawFd, bool)> {
        self.session.as_ref().map(|session| (session.stream.as_raw_fd(), !session.unsent.is_empty()))
    }

    /// Whether gdb is here, or the guest waits for it.
    pub fn is_busy(&self) -> bool {
        self.session.is_some() || !self.target.running
    }

    /// A gdb has come. Stops the guest. Another one is sent away.
    pub fn accept(&mut self) {
        let Ok(stream) = self.listener.accept() else { return };
        if self.session.is_some() {
            return;
        }
        let built = GdbStub::builder(Outbox::default()).packet_buffer_size(PACKET).build().ok();
        let stub = built.and_then(|stub| stub.run_state_machine(&mut self.target).ok());
        if let Some(stub) = stub {
            info!("gdb has come");
            self.target.stop();
            self.session = Some(Session { stream, stub: Some(stub), unsent: Vec::new() });
        }
    }

    /// Does what gdb says, or sends on what it had not read.
    pub fn serve(&mut self) -> Asked {
        let Some(session) = &mut self.session else { return Asked::Nothing };
        if !session.unsent.is_empty() {
            return if session.send().is_ok() { Asked::Nothing } else { self.end() };
        }
        let mut bytes = [0; 4096];
        let came = match session.stream.read(&mut bytes) {
            Ok(0) => return self.end(),
            Ok(came) => came,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(_) => return self.end(),
        };
        for byte in bytes.iter().take(came) {
            match self.take(*byte) {
                Asked::Nothing => {}
                asked => return asked,
            }
        }
        self.flush()
    }

    /// Gives the protocol one byte of gdb's.
    fn take(&mut self, byte: u8) -> Asked {
        let Some(session) = &mut self.session else { return Asked::Nothing };
        let target = &mut self.target;
        let was_running = target.running;
        let next = match session.stub.take() {
            Some(Stub::Idle(stub)) => stub.incoming_data(target, byte),
            Some(Stub::Running(stub)) => stub.incoming_data(target, byte),
            other => {
                session.stub = other;
                return self.end();
            }
        };
        let next = match next {
            Ok(Stub::CtrlCInterrupt(stub)) => {
                target.stop();
                let reason = Reason::SignalWithThread { tid: tid(0), signal: Signal::SIGINT };
                stub.interrupt_handled(target, Some(reason))
            }
            other => other,
        };
        match next {
            Ok(Stub::Disconnected(stub)) => {
                let reason = stub.get_reason();
                session.stub = Some(stub.into());
                // The answer to gdb's last packet.
                let _ = self.flush();
                match (self.end(), reason) {
                    (_, DisconnectReason::Kill) => Asked::Kill,
                    (asked, _) => asked,
                }
            }
            Ok(stub) => {
                session.stub = Some(stub);
                if target.running && !was_running { self.go_on() } else { Asked::Nothing }
            }
            Err(error) => {
                debug!(%error, "gdb");
                self.end()
            }
        }
    }

    /// A vCPU has stopped for the debugger.
    pub fn stopped(&mut self, vcpu: u32, exit: &kvm_debug_exit_arch) -> Asked {
        if self.session.is_none() {
            return Asked::Nothing; // it runs again already, with nothing to stop at
        }
        let vcpu = vcpu as usize;
        let why = self.target.points.why(exit, self.target.is_stepped(vcpu));
        debug!(vcpu, ?why, pc = format_args!("{:#x}", exit.pc), "stopped for gdb");
        if !self.target.running || self.paused {
            // Another vCPU was quicker; this one is parked. A breakpoint it meets again, the rest is in the past.
            if matches!(why, Why::Watch(..) | Why::GuestDebug) {
                self.late.push((vcpu as u32, *exit));
            }
            return Asked::Nothing;
        }
        let tid = tid(vcpu);
        let reason = match why {
            Why::GuestBreakpoint => return self.give_back(vcpu, KVM_GUESTDBG_INJECT_BP),
            Why::GuestDebug => return self.give_back(vcpu, KVM_GUESTDBG_INJECT_DB),
            Why::Software => Reason::SwBreak(tid),
            Why::Hardware => Reason::HwBreak(tid),
            Why::Watch(kind, addr) => Reason::Watch { tid, kind, addr },
            Why::Step => Reason::SignalWithThread { tid, signal: Signal::SIGTRAP },
        };
        self.report(reason)
    }

    fn give_back(&mut self, vcpu: usize, inject: u32) -> Asked {
        self.target.give_back(vcpu, inject);
        Asked::Nothing
    }

    /// Stops the guest and tells gdb why.
    fn report(&mut self, reason: Reason<u64>) -> Asked {
        self.target.stop();
        let Some(session) = &mut self.session else { return Asked::Nothing };
        match session.stub.take() {
            Some(Stub::Running(stub)) => match stub.report_stop(&mut self.target, reason) {
                Ok(stub) => session.stub = Some(stub),
                Err(_) => return self.end(),
            },
            other => session.stub = other,
        }
        self.flush()
    }

    /// The whole machine was paused.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Undoes [`Self::pause`]: lets run what gdb lets run. Devices have their queues again by then.
    pub fn resume(&mut self) -> Asked {
        self.paused = false;
        if self.target.running { self.go_on() } else { Asked::Nothing }
    }

    /// Lets the guest run, unless the whole machine is paused.
    fn go_on(&mut self) -> Asked {
        if self.paused {
            return Asked::Nothing;
        }
        if self.session.is_none() {
            self.target.start_plainly();
            return Asked::Nothing;
        }
        self.target.start();
        let mut asked = Asked::Nothing;
        for (vcpu, exit) in std::mem::take(&mut self.late) {
            if asked == Asked::Nothing {
                asked = self.stopped(vcpu, &exit);
            }
        }
        asked
    }

    /// The VM has ended, with this exit status.
    pub fn farewell(&mut self, status: u8) {
        if self.session.is_some() {
            let _ = self.report(Reason::Exited(status));
        }
    }

    /// Ends the session: the guest goes on as if there had been none.
    pub fn end(&mut self) -> Asked {
        if let Some(session) = self.session.take() {
            info!("gdb is gone");
            drop(session);
        }
        self.target.stop();
        self.target.release();
        self.target.running = true;
        self.late.clear();
        self.go_on();
        Asked::Over
    }

    /// Sends what the protocol has to say.
    fn flush(&mut self) -> Asked {
        let Some(session) = &mut self.session else { return Asked::Nothing };
        let outbox = match &mut session.stub {
            Some(Stub::Idle(stub)) => stub.borrow_conn(),
            Some(Stub::Running(stub)) => stub.borrow_conn(),
            Some(Stub::CtrlCInterrupt(stub)) => stub.borrow_conn(),
            Some(Stub::Disconnected(stub)) => stub.borrow_conn(),
            None => return Asked::Nothing,
        };
        session.unsent.append(&mut outbox.0);
        if session.send().is_ok() { Asked::Nothing } else { self.end() }
    }
}

impl Session<'_> {
    /// Sends as much as gdb takes now.
    fn send(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => _ = self.unsent.drain(..sent),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
