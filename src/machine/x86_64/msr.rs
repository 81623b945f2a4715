//! Model-specific registers at boot. Source: Intel SDM vol. 4; arch/x86/include/asm/msr-index.h.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::error::{Doing, HostError};

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_IA32_MISC_ENABLE_FAST_STRING: u64 = 1;
/// Which flaws of CPUs this one does not have.
pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, default type write-back: all RAM is cached without a variable range.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Registers whose value at boot differs from the one that KVM gives them at reset.
pub fn boot_entries() -> [kvm_msr_entry; 2] {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    [entry(MSR_IA32_MISC_ENABLE, MSR_IA32_MISC_ENABLE_FAST_STRING), entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)]
}

/// Sets them on one vCPU.
pub fn set_up(vcpu: &VcpuFd) -> Result<(), HostError> {
    let entries = boot_entries();
    let msrs = Msrs::from_entries(&entries).doing(|| "set MSRs")?;
    let done = vcpu.set_msrs(&msrs).doing(|| "set MSRs (KVM_SET_MSRS)")?;
    match entries.get(done) {
        None => Ok(()),
        Some(refused) => Err(HostError::new("set MSRs", format!("KVM refused MSR {:#x}", refused.index))),
    }
}
