//! The guest as gdb's protocol sees it: a process whose threads are the vCPUs.
//!
//! The control thread owns it. Registers and address translation are asked of a vCPU's own thread, which must be parked; the
//! protocol's state machine sees to that, as it asks only while the guest is stopped.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use kvm_bindings as kvm;
use kvm_ioctls::VcpuFd;

use super::guest::Guest;
use super::paging;
use super::points::{INT3, Points, Replaced, Watched};
use super::registers::{self, GuestRegisters, X86Guest};

const PAGE: u64 = 4096;
/// What gdb is told when memory or a register cannot be had.
const EFAULT: u8 = libc::EFAULT as u8;

/// What a debugger does to a guest.
pub struct Debugged<'a> {
    guest: Guest<'a>,
    /// Where it stops.
    pub points: Points,
    /// vCPUs that take one step when the guest runs next.
    steps: BTreeSet<usize>,
    /// vCPUs that run.
    goes_on: BTreeSet<usize>,
    /// Those that gdb does not name stay where they are.
    locked: bool,
    /// gdb wants the guest to run.
    pub running: bool,
    /// Flags of KVM_SET_GUEST_DEBUG that a step takes.
    step_flags: u32,
}

/// The thread of a vCPU.
pub fn tid(vcpu: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu)
}

fn vcpu_of(tid: Tid) -> usize {
    tid.get() - 1
}

impl<'a> Debugged<'a> {
    /// A guest that nobody debugs yet. `block_interrupts` is whether KVM can keep interrupts from a vCPU that is stepped.
    pub fn new(guest: Guest<'a>, block_interrupts: bool) -> Self {
        let step_flags = kvm::KVM_GUESTDBG_SINGLESTEP | if block_interrupts { kvm::KVM_GUESTDBG_BLOCKIRQ } else { 0 };
        let (steps, goes_on) = Default::default();
        Self { guest, points: Points::default(), steps, goes_on, locked: false, running: false, step_flags }
    }

    /// Whether a vCPU was to take one step.
    pub fn is_stepped(&self, vcpu: usize) -> bool {
        self.steps.contains(&vcpu)
    }

    /// Lets run what is to run; every vCPU is parked.
    pub fn start(&self) {
        for vcpu in 0..self.guest.vcpus() {
            let stepped = self.steps.contains(&vcpu);
            if stepped || !self.locked || self.goes_on.contains(&vcpu) {
                self.arm(vcpu, if stepped { self.step_flags } else { 0 });
                self.guest.run(vcpu);
            }
        }
    }

    /// Lets every vCPU run, with nothing to stop at.
    pub fn start_plainly(&self) {
        (0..self.guest.vcpus()).for_each(|vcpu| self.guest.run(vcpu));
    }

    /// Lets one vCPU go on after an exception of the guest's own: gives it back to the guest.
    pub fn give_back(&self, vcpu: usize, inject: u32) {
        let stepped = self.steps.contains(&vcpu);
        self.arm(vcpu, inject | if stepped { self.step_flags } else { 0 });
        self.guest.run(vcpu);
    }

    /// Parks every vCPU.
    pub fn stop(&mut self) {
        self.guest.park();
        self.running = false;
    }

    /// Puts back every instruction, and lets the guest be as if nobody had debugged it. It is parked.
    pub fn release(&mut self) {
        for (_, replaced) in std::mem::take(&mut self.points.software) {
            // The memory was there when the breakpoint was set, and RAM does not go away.
            let _ = self.guest.write(replaced.gpa, &[replaced.byte]);
        }
        self.points.clear_hardware();
        (self.steps, self.goes_on, self.locked) = Default::default();
        for vcpu in 0..self.guest.vcpus() {
            let nothing = kvm::kvm_guest_debug::default();
            let _ = self.guest.with(vcpu, move |fd| fd.set_guest_debug(&nothing));
        }
    }

    /// Tells KVM what a vCPU stops at (KVM_SET_GUEST_DEBUG).
    fn arm(&self, vcpu: usize, more: u32) {
        let mut debug = kvm::kvm_guest_debug {
            control: kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_USE_SW_BP | more,
            ..Default::default()
        };
        if self.points.uses_hardware() {
            debug.control |= kvm::KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg = self.points.debug_registers();
        }
        if let Some(Err(error)) = self.guest.with(vcpu, move |fd| fd.set_guest_debug(&debug)) {
            tracing::warn!(vcpu, %error, "KVM_SET_GUEST_DEBUG: this vCPU does not stop where gdb wants it to");
        }
    }

    /// Where a virtual address is in guest memory, as vCPU `vcpu` sees it.
    fn translate(&self, vcpu: usize, address: u64) -> Option<u64> {
        let found = self.guest.with(vcpu, move |fd| fd.translate_gva(address))?.ok()?;
        if found.valid != 0 {
            return Some(found.physical_address);
        }
        let system = self.guest.with(vcpu, |fd| fd.get_sregs())?.ok()?;
        paging::find(&system, address, |gpa| {
            let mut entry = [0; 8];
            self.guest.read(gpa, &mut entry).then(|| u64::from_le_bytes(entry))
        })
    }

    /// Calls `each` with the guest-physical pieces of a range, each with its place in the range; until one fails. How far
    /// it came.
    fn pieces(&self, vcpu: usize, start: u64, len: usize, mut each: impl FnMut(u64, usize, usize) -> bool) -> usize {
        let mut done = 0;
        while done < len {
            let address = start.wrapping_add(done as u64);
            let left = usize::try_from(PAGE - address % PAGE).unwrap_or(1).min(len - done);
            match self.translate(vcpu, address) {
                Some(gpa) if each(gpa, done, left) => done += left,
                _ => break,
            }
        }
        done
    }

    fn ask<R: Send + 'static>(
        &self,
        tid: Tid,
        what: impl FnOnce(&mut VcpuFd) -> Result<R, kvm_ioctls::Error> + Send + 'static,
    ) -> TargetResult<R, Self> {
        let error = |error: kvm_ioctls::Error| TargetError::Errno(u8::try_from(error.errno()).unwrap_or(EFAULT));
        self.guest.with(vcpu_of(tid), what).ok_or(TargetError::NonFatal)?.map_err(error)
    }
}

impl Target for Debugged<'_> {
    type Arch = X86Guest;
    type Error = &'static str;

    fn base_ops(&mut self) -> BaseOps<'_, X86Guest, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debugged<'_> {
    fn read_registers(&mut self, to: &mut GuestRegisters, tid: Tid) -> TargetResult<(), Self> {
        *to = self.ask(tid, |fd| registers::read(fd))?;
        Ok(())
    }

    fn write_registers(&mut self, from: &GuestRegisters, tid: Tid) -> TargetResult<(), Self> {
        let wanted = from.clone();
        self.ask(tid, move |fd| registers::write(fd, &wanted))
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let len = data.len();
        let read = self.pieces(vcpu_of(tid), start, len, |gpa, at, len| {
            data.get_mut(at..at + len).is_some_and(|piece| self.guest.read(gpa, piece))
        });
        if read == 0 && len > 0 { Err(TargetError::Errno(EFAULT)) } else { Ok(read) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let written = self.pieces(vcpu_of(tid), start, data.len(), |gpa, at, len| {
            data.get(at..at + len).is_some_and(|piece| self.guest.write(gpa, piece))
        });
        if written < data.len() { Err(TargetError::Errno(EFAULT)) } else { Ok(()) }
    }

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<(), Self::Error> {
        (0..self.guest.vcpus()).for_each(|vcpu| each(tid(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Debugged<'_> {
    fn thread_extra_info(&self, tid: Tid, to: &mut [u8]) -> Result<usize, Self::Error> {
        let name = format!("vCPU {}", vcpu_of(tid));
        let len = name.len().min(to.len());
        to.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte);
        Ok(len)
    }
}

impl MultiThreadResume for Debugged<'_> {
    fn resume(&mut self) -> Result<(), Self::Error> {
        self.running = true;
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Self::Error> {
        (self.steps, self.goes_on, self.locked) = Default::default();
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Self::Error> {
        self.goes_on.insert(vcpu_of(tid));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debugged<'_> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Self::Error> {
        self.steps.insert(vcpu_of(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debugged<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Self::Error> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Debugged<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugged<'_> {
    fn add_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        if self.points.software.contains_key(&addr) {
            return Ok(true);
        }
        // A kernel's text is the same in every address space; the first vCPU that knows the address will do.
        let found = (0..self.guest.vcpus()).find_map(|vcpu| self.translate(vcpu, addr));
        let Some(gpa) = found else { return Ok(false) };
        let mut byte = [0];
        if !self.guest.read(gpa, &mut byte) || !self.guest.write(gpa, &[INT3]) {
            return Ok(false);
        }
        self.points.software.insert(addr, Replaced { gpa, byte: byte[0] });
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        let removed = self.points.software.remove(&addr);
        Ok(removed.is_some_and(|replaced| self.guest.write(replaced.gpa, &[replaced.byte])))
    }
}

impl HwBreakpoint for Debugged<'_> {
    fn add_hw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.points.watch(Watched { addr, len: 1, kind: None }))
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.points.unwatch(Watched { addr, len: 1, kind: None }))
    }
}

impl HwWatchpoint for Debugged<'_> {
    fn add_hw_watchpoint(&mut self, addr: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let fits = matches!(len, 1 | 2 | 4 | 8) && addr.is_multiple_of(len);
        Ok(fits && self.points.watch(Watched { addr, len, kind: Some(kind) }))
    }

    fn remove_hw_watchpoint(&mut self, addr: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        Ok(self.points.unwatch(Watched { addr, len, kind: Some(kind) }))
    }
}
