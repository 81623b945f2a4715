//! Why a vCPU stopped for good, in words and with its registers. Runs on the vCPU's own thread.
//!
//! Source: Linux, include/uapi/linux/kvm.h (exit reasons, internal error suberrors, system events).
#![allow(unsafe_code)] // one union of kvm_run

use std::fmt;
use std::io;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_debug_exit_arch};
use kvm_ioctls::{VcpuExit, VcpuFd};

/// Why a vCPU stopped.
#[derive(Debug)]
pub enum VcpuStop {
    /// Not a stop: a kick asked it to look at its messages.
    Kicked,
    /// Not a stop: KVM_EXIT_DEBUG, for the debugger.
    Debug(kvm_debug_exit_arch),
    /// KVM_EXIT_SHUTDOWN: the guest faulted while delivering a double fault.
    TripleFault(Box<Registers>),
    /// KVM_EXIT_SYSTEM_EVENT: shutdown.
    SystemShutdown,
    /// KVM_EXIT_SYSTEM_EVENT: reset.
    SystemReset,
    /// KVM_EXIT_SYSTEM_EVENT: crash.
    SystemCrash,
    /// KVM_EXIT_INTERNAL_ERROR: KVM could not go on, for instance with an instruction that it cannot emulate.
    InternalError {
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// What KVM adds to it.
        data: Vec<u64>,
        /// Where.
        registers: Box<Registers>,
    },
    /// KVM_EXIT_FAIL_ENTRY: the hardware refused the guest's state.
    FailEntry {
        /// The hardware's reason: VMX's exit reason or SVM's error code.
        reason: u64,
        /// Host CPU.
        cpu: u32,
        /// Where.
        registers: Box<Registers>,
    },
    /// KVM_EXIT_MEMORY_FAULT: the guest touched memory that the host cannot provide.
    MemoryFault {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// Where.
        registers: Box<Registers>,
    },
    /// An exit that this monitor never asks for.
    Unexpected {
        /// The reason's name, or its number.
        reason: String,
        /// Where.
        registers: Box<Registers>,
    },
    /// KVM_RUN itself failed.
    Host(io::Error),
}

/// The registers that tell where a guest was.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Registers {
    general: kvm_bindings::kvm_regs,
    cr: [u64; 4],
    efer: u64,
    cs: u16,
}

impl Registers {
    /// Reads them; zeros where KVM refuses.
    fn read(fd: &VcpuFd) -> Self {
        let general = fd.get_regs().unwrap_or_default();
        let system = fd.get_sregs().unwrap_or_default();
        let cr = [system.cr0, system.cr2, system.cr3, system.cr4];
        Self { general, cr, efer: system.efer, cs: system.cs.selector }
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.general;
        let [cr0, cr2, cr3, cr4] = self.cr;
        writeln!(f, "  rip {:#018x}  cs {:#06x}  rflags {:#x}", r.rip, self.cs, r.rflags)?;
        writeln!(f, "  rax {:#018x}  rbx {:#018x}  rcx {:#018x}  rdx {:#018x}", r.rax, r.rbx, r.rcx, r.rdx)?;
        writeln!(f, "  rsi {:#018x}  rdi {:#018x}  rsp {:#018x}  rbp {:#018x}", r.rsi, r.rdi, r.rsp, r.rbp)?;
        writeln!(f, "  r8  {:#018x}  r9  {:#018x}  r10 {:#018x}  r11 {:#018x}", r.r8, r.r9, r.r10, r.r11)?;
        writeln!(f, "  r12 {:#018x}  r13 {:#018x}  r14 {:#018x}  r15 {:#018x}", r.r12, r.r13, r.r14, r.r15)?;
        write!(f, "  cr0 {cr0:#x}  cr2 {cr2:#x}  cr3 {cr3:#x}  cr4 {cr4:#x}  efer {:#x}", self.efer)
    }
}

/// What an exit that the run loop does not handle means; registers and details are added by
/// [`VcpuStop::with_details`].
pub fn classify(exit: &VcpuExit<'_>) -> VcpuStop {
    let registers = Box::default();
    match exit {
        VcpuExit::Debug(exit) => VcpuStop::Debug(*exit),
        VcpuExit::Shutdown => VcpuStop::TripleFault(registers),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => VcpuStop::SystemShutdown,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => VcpuStop::SystemReset,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => VcpuStop::SystemCrash,
        VcpuExit::InternalError => VcpuStop::InternalError { suberror: 0, data: Vec::new(), registers },
        VcpuExit::FailEntry(reason, cpu) => VcpuStop::FailEntry { reason: *reason, cpu: *cpu, registers },
        VcpuExit::MemoryFault { gpa, size, .. } => VcpuStop::MemoryFault { gpa: *gpa, size: *size, registers },
        VcpuExit::Unsupported(number) => VcpuStop::Unexpected { reason: format!("number {number}"), registers },
        other => VcpuStop::Unexpected { reason: format!("{other:?}"), registers },
    }
}

impl VcpuStop {
    /// Adds what only the vCPU itself can tell.
    pub fn with_details(mut self, fd: &mut VcpuFd) -> Self {
        let now = Registers::read(fd);
        match &mut self {
            Self::InternalError { suberror, data, registers } => {
                // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member of the union.
                let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
                *suberror = internal.suberror;
                let len = (internal.ndata as usize).min(internal.data.len());
                *data = internal.data[..len].to_vec();
                **registers = now;
            }
            Self::TripleFault(registers)
            | Self::FailEntry { registers, .. }
            | Self::MemoryFault { registers, .. }
            | Self::Unexpected { registers, .. } => **registers = now,
            _ => {}
        }
        self
    }

    /// The registers at the stop, where they say something.
    pub fn registers(&self) -> Option<&Registers> {
        match self {
            Self::TripleFault(registers)
            | Self::InternalError { registers, .. }
            | Self::FailEntry { registers, .. }
            | Self::MemoryFault { registers, .. }
            | Self::Unexpected { registers, .. } => Some(registers),
            _ => None,
        }
    }
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "emulation failed: KVM met an instruction that it cannot emulate",
        2 => "an exception was raised while another was being delivered",
        3 => "an exit happened while an event was being delivered",
        4 => "an exit reason of the hardware that KVM does not know",
        _ => "an error that this monitor does not know",
    }
}

impl fmt::Display for VcpuStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kicked => write!(f, "was kicked"),
            Self::Debug(_) => write!(f, "stopped for a debugger"),
            Self::TripleFault(_) => write!(f, "triple fault"),
            Self::SystemShutdown => write!(f, "system event: shutdown"),
            Self::SystemReset => write!(f, "system event: reset"),
            Self::SystemCrash => write!(f, "system event: crash"),
            Self::InternalError { suberror, data, .. } => {
                write!(f, "KVM internal error {suberror} ({})", suberror_name(*suberror))?;
                if data.is_empty() { Ok(()) } else { write!(f, ", data {data:x?}") }
            }
            Self::FailEntry { reason, cpu, .. } => {
                write!(f, "the hardware refused to enter the guest: reason {reason:#x} on host CPU {cpu}")
            }
            Self::MemoryFault { gpa, size, .. } => {
                write!(f, "the host could not provide {size} bytes of guest memory at {gpa:#x}")
            }
            Self::Unexpected { reason, .. } => write!(f, "unexpected KVM exit: {reason}"),
            Self::Host(error) if error.raw_os_error() == Some(libc::EFAULT) => write!(
                f,
                "KVM_RUN: {error}: guest memory could not be read or written (was a file that it is mapped from, \
                 kernel, initrd or pmem, made shorter while the VM runs?)"
            ),
            Self::Host(error) => write!(f, "KVM_RUN: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_end_is_told_apart() {
        let words: Vec<String> = [
            classify(&VcpuExit::Shutdown),
            classify(&VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, &[])),
            classify(&VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, &[])),
            classify(&VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, &[])),
            classify(&VcpuExit::InternalError),
            classify(&VcpuExit::FailEntry(0x8000_0021, 3)),
            classify(&VcpuExit::MemoryFault { flags: 0, gpa: 0x1000, size: 4096 }),
            classify(&VcpuExit::Hlt),
            classify(&VcpuExit::Unsupported(77)),
        ]
        .iter()
        .map(ToString::to_string)
        .collect();
        let mut distinct = words.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), words.len(), "{words:?}");
        assert!(words[5].contains("0x80000021"), "{}", words[5]);
        assert!(words[8].contains("77"), "{}", words[8]);
    }
}
