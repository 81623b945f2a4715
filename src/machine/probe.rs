//! What this host's KVM can do, as data; `vmm doctor` puts it into words. Any thread; creates and drops one empty VM.
//!
//! Source: Linux, Documentation/virt/kvm/api.rst.

use std::io;

use kvm_bindings as kvm;
use kvm_ioctls::Kvm;

/// The only version of the API that there is.
pub const API_VERSION: i32 = 12;

/// How much a capability matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// No VM without it.
    Needed,
    /// Something is lost without it.
    Wanted,
}

/// A capability of KVM that `vmm` uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Its name in api.rst.
    pub name: &'static str,
    /// How much it matters.
    pub need: Need,
    /// What it is for.
    pub purpose: &'static str,
    /// KVM's answer: 0 for no, more for yes or for a number.
    pub value: i32,
}

/// What was found out about KVM.
#[derive(Debug)]
pub struct KvmProbe {
    /// Version of the API; 12.
    pub api_version: i32,
    /// Every capability of [`CAPABILITIES`].
    pub capabilities: Vec<Capability>,
    /// Most vCPUs of one VM.
    pub max_vcpus: usize,
    /// vCPUs of one VM that KVM recommends as most.
    pub recommended_vcpus: usize,
    /// Most memory slots of one VM.
    pub memory_slots: usize,
    /// Whether an empty VM with one vCPU could be made.
    pub create: Result<(), io::Error>,
}

const fn needed(number: u32, name: &'static str, purpose: &'static str) -> (u32, Capability) {
    (number, Capability { name, need: Need::Needed, purpose, value: 0 })
}

const fn wanted(number: u32, name: &'static str, purpose: &'static str) -> (u32, Capability) {
    (number, Capability { name, need: Need::Wanted, purpose, value: 0 })
}

/// The capabilities that `vmm` uses, with their numbers.
const CAPABILITIES: [(u32, Capability); 22] = [
    needed(kvm::KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "guest memory"),
    needed(kvm::KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel"),
    needed(kvm::KVM_CAP_PIT2, "KVM_CAP_PIT2", "the timer that old kernels calibrate with"),
    needed(kvm::KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "interrupts from device threads"),
    needed(kvm::KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "doorbells to device threads"),
    needed(kvm::KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR", "real mode on Intel"),
    needed(kvm::KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", "what CPU the guest sees"),
    needed(kvm::KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "pausing a vCPU without losing a wake-up"),
    wanted(kvm::KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "real mode on old Intel"),
    needed(kvm::KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM", "register windows that are read without an exit"),
    wanted(kvm::KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER", "the guest's precise timer"),
    wanted(kvm::KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ", "telling the guest its clock rate"),
    wanted(kvm::KVM_CAP_X2APIC_API, "KVM_CAP_X2APIC_API", "more than 255 vCPUs"),
    wanted(kvm::KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK", "the guest's clock after a pause"),
    wanted(kvm::KVM_CAP_KVMCLOCK_CTRL, "KVM_CAP_KVMCLOCK_CTRL", "no lock-up warnings after a pause"),
    wanted(kvm::KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", "seeing that a guest has halted"),
    wanted(kvm::KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS", "saving vCPUs"),
    wanted(kvm::KVM_CAP_XSAVE, "KVM_CAP_XSAVE", "saving vCPUs"),
    wanted(kvm::KVM_CAP_XCRS, "KVM_CAP_XCRS", "saving vCPUs"),
    wanted(kvm::KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS", "saving vCPUs"),
    wanted(kvm::KVM_CAP_SET_GUEST_DEBUG, "KVM_CAP_SET_GUEST_DEBUG", "a debugger (--gdb)"),
    wanted(kvm::KVM_CAP_BINARY_STATS_FD, "KVM_CAP_BINARY_STATS_FD", "KVM's own counters"),
];

/// Most vCPUs of one VM, where /dev/kvm answers.
pub fn max_vcpus() -> Option<u32> {
    u32::try_from(Kvm::new().ok()?.get_max_vcpus()).ok()
}

/// Asks /dev/kvm.
pub fn probe() -> io::Result<KvmProbe> {
    let kvm = Kvm::new().map_err(io::Error::from)?;
    let ask = |(number, capability): (u32, Capability)| Capability {
        value: kvm.check_extension_raw(number.into()),
        ..capability
    };
    let create = || {
        let vm = loop {
            match kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                other => break other?,
            }
        };
        vm.create_irq_chip()?;
        vm.create_vcpu(0).map(|_| ())
    };
    Ok(KvmProbe {
        api_version: kvm.get_api_version(),
        capabilities: CAPABILITIES.into_iter().map(ask).collect(),
        max_vcpus: kvm.get_max_vcpus(),
        recommended_vcpus: kvm.get_nr_vcpus(),
        memory_slots: kvm.get_nr_memslots(),
        create: create().map_err(|error: kvm_ioctls::Error| io::Error::from(error)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_once() {
        let mut names: Vec<_> = CAPABILITIES.iter().map(|(_, capability)| capability.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CAPABILITIES.len());
    }

    #[test]
    fn an_answer_or_a_reason() {
        match probe() {
            Ok(probe) => {
                assert_eq!(probe.api_version, API_VERSION);
                assert!(probe.max_vcpus >= 1 && probe.memory_slots >= 1);
            }
            Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
        }
    }
}
