//! The state of a vCPU, read and written on its own thread while it is parked.
//!
//! Source: Linux, Documentation/virt/kvm/api.rst; the ioctls' names are in the errors.
#![allow(unsafe_code)] // the extended state, whose size KVM tells

use devices::state::{StateError, check};
use kvm_bindings::{
    Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave, kvm_xsave2,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::raw;
use crate::error::{Doing, HostError};

/// IA32_TSC_DEADLINE: to be loaded behind the clock that it is compared with.
const TSC_DEADLINE: u32 = 0x6e0;
/// Most MSRs of one ioctl (KVM_MAX_MSR_ENTRIES).
const BATCH: usize = 256;
/// 32-bit words of the state that every KVM knows.
const XSAVE_WORDS: usize = size_of::<kvm_xsave>() / 4;

/// What all vCPUs of a VM have in common.
#[derive(Debug, Clone)]
pub struct VcpuShape {
    /// The MSRs that this host's KVM can save (KVM_GET_MSR_INDEX_LIST).
    pub msrs: Vec<u32>,
    /// 32-bit words of the extended state, at least those that every KVM knows.
    pub xsave_words: usize,
    /// KVM_GET_XSAVE2 exists.
    pub has_xsave2: bool,
}

/// A model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrState {
    /// Its number.
    pub index: u32,
    /// Its value.
    pub data: u64,
}

/// A vCPU. Its CPUID is not here: that comes of the configuration and the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// Whether it runs, is halted, or waits for another to start it (KVM_GET_MP_STATE).
    pub mp_state: u32,
    /// General registers.
    #[serde(with = "raw")]
    pub regs: kvm_regs,
    /// Segments and control registers.
    #[serde(with = "raw")]
    pub sregs: kvm_sregs,
    /// x87, SSE, AVX and what else XSAVE knows, as 32-bit words.
    pub xsave: Vec<u32>,
    /// Extended control registers.
    #[serde(with = "raw")]
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    #[serde(with = "raw")]
    pub debugregs: kvm_debugregs,
    /// The local APIC.
    #[serde(with = "raw")]
    pub lapic: kvm_lapic_state,
    /// Frequency of the time stamp counter, kHz, where the host tells.
    pub tsc_khz: Option<u32>,
    /// Model-specific registers: those of KVM's list that can be read.
    pub msrs: Vec<MsrState>,
    /// Exceptions and interrupts under way.
    #[serde(with = "raw")]
    pub events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads it all. The mp_state comes first, as KVM takes an INIT or a SIPI that waits in then.
    pub fn save(vcpu: &VcpuFd, shape: &VcpuShape) -> Result<Self, HostError> {
        Ok(Self {
            mp_state: vcpu.get_mp_state().doing(|| "save the mp_state (KVM_GET_MP_STATE)")?.mp_state,
            regs: vcpu.get_regs().doing(|| "save the registers (KVM_GET_REGS)")?,
            sregs: vcpu.get_sregs().doing(|| "save system registers (KVM_GET_SREGS)")?,
            xsave: save_xsave(vcpu, shape)?,
            xcrs: vcpu.get_xcrs().doing(|| "save extended control registers (KVM_GET_XCRS)")?,
            debugregs: vcpu.get_debug_regs().doing(|| "save debug registers (KVM_GET_DEBUGREGS)")?,
            lapic: vcpu.get_lapic().doing(|| "save the local APIC (KVM_GET_LAPIC)")?,
            tsc_khz: vcpu.get_tsc_khz().ok(),
            msrs: save_msrs(vcpu, shape)?,
            events: vcpu.get_vcpu_events().doing(|| "save events (KVM_GET_VCPU_EVENTS)")?,
        })
    }

    /// Puts it into a vCPU with the same CPUID that has not run. Segments come before the local APIC, whose place and mode
    /// are in an MSR of theirs; the APIC before the MSR of its deadline.
    pub fn load(&self, vcpu: &VcpuFd, shape: &VcpuShape) -> Result<(), HostError> {
        self.check(shape).doing(|| "load a vCPU")?;
        let mp_state = kvm_mp_state { mp_state: self.mp_state };
        vcpu.set_mp_state(mp_state).doing(|| format!("load the mp_state {} (KVM_SET_MP_STATE)", self.mp_state))?;
        vcpu.set_regs(&self.regs).doing(|| "load the registers (KVM_SET_REGS)")?;
        vcpu.set_sregs(&self.sregs).doing(|| "load system registers (KVM_SET_SREGS)")?;
        load_xsave(vcpu, &self.xsave)?;
        // A CPU without XSAVE has none, and KVM then takes not even none.
        if self.xcrs.nr_xcrs != 0 {
            vcpu.set_xcrs(&self.xcrs).doing(|| "load extended control registers (KVM_SET_XCRS)")?;
        }
        vcpu.set_debug_regs(&self.debugregs).doing(|| "load debug registers (KVM_SET_DEBUGREGS)")?;
        vcpu.set_lapic(&self.lapic).doing(|| "load the local APIC (KVM_SET_LAPIC)")?;
        if let Some(khz) = self.tsc_khz.filter(|khz| vcpu.get_tsc_khz().ok() != Some(*khz)) {
            vcpu.set_tsc_khz(khz)
                .doing(|| format!("let time stamps count at {khz} kHz as before (KVM_SET_TSC_KHZ)"))?;
        }
        self.load_msrs(vcpu)?;
        vcpu.set_vcpu_events(&self.events).doing(|| "load events (KVM_SET_VCPU_EVENTS)")
    }

    fn check(&self, shape: &VcpuShape) -> Result<(), StateError> {
        let (ours, saved) = (shape.xsave_words * 4, self.xsave.len() * 4);
        check(ours == saved, || {
            format!("this host's CPUs have {ours} bytes of extended state, and {saved} were saved")
        })?;
        let unknown = self.msrs.iter().find(|msr| !shape.msrs.contains(&msr.index));
        check(unknown.is_none(), || format!("this host's KVM has no MSR {:#x}", unknown.map_or(0, |msr| msr.index)))?;
        check(self.msrs.len() <= shape.msrs.len(), || "an MSR was saved twice".to_owned())
    }

    /// What KVM does not let be written may be one that never changes: then it has to be right already.
    fn load_msrs(&self, vcpu: &VcpuFd) -> Result<(), HostError> {
        let (last, first): (Vec<&MsrState>, Vec<&MsrState>) =
            self.msrs.iter().partition(|msr| msr.index == TSC_DEADLINE);
        let entries: Vec<_> = first.into_iter().chain(last).map(|msr| entry(msr.index, msr.data)).collect();
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let (batch, _) = rest.split_at(rest.len().min(BATCH));
            let msrs = Msrs::from_entries(batch).doing(|| "load MSRs")?;
            let done = vcpu.set_msrs(&msrs).doing(|| "load MSRs (KVM_SET_MSRS)")?;
            let refused = batch.get(done);
            if let Some(refused) = refused
                && read(vcpu, &[refused.index])?.first().map(|now| now.data) != Some(refused.data)
            {
                let text = format!("KVM refuses the value {:#x}", refused.data);
                return Err(HostError::new(format!("load MSR {:#x}", refused.index), text));
            }
            rest = rest.get(done + usize::from(refused.is_some())..).unwrap_or_default();
        }
        Ok(())
    }
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

/// Reads MSRs up to the first that can not be read.
fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, HostError> {
    let entries: Vec<_> = indices.iter().map(|index| entry(*index, 0)).collect();
    let mut msrs = Msrs::from_entries(&entries).doing(|| "save MSRs")?;
    let done = vcpu.get_msrs(&mut msrs).doing(|| "save MSRs (KVM_GET_MSRS)")?;
    Ok(msrs.as_slice().iter().take(done).copied().collect())
}

fn save_msrs(vcpu: &VcpuFd, shape: &VcpuShape) -> Result<Vec<MsrState>, HostError> {
    let mut rest = shape.msrs.as_slice();
    let mut saved = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        let (batch, _) = rest.split_at(rest.len().min(BATCH));
        let got = read(vcpu, batch)?;
        saved.extend(got.iter().map(|msr| MsrState { index: msr.index, data: msr.data }));
        let unreadable = usize::from(got.len() < batch.len());
        rest = rest.get(got.len() + unreadable..).unwrap_or_default();
    }
    Ok(saved)
}

fn save_xsave(vcpu: &VcpuFd, shape: &VcpuShape) -> Result<Vec<u32>, HostError> {
    if !shape.has_xsave2 {
        let xsave = vcpu.get_xsave().doing(|| "save extended state (KVM_GET_XSAVE)")?;
        return Ok(xsave.region.to_vec());
    }
    let mut xsave = Xsave::new(shape.xsave_words - XSAVE_WORDS).doing(|| "save extended state")?;
    // SAFETY: it has as many words as KVM_CAP_XSAVE2 says. Nothing here enables more features (arch_prctl(2)), so that is
    // all that KVM writes.
    unsafe { vcpu.get_xsave2(&mut xsave) }.doing(|| "save extended state (KVM_GET_XSAVE2)")?;
    Ok([&xsave.as_fam_struct_ref().xsave.region[..], xsave.as_slice()].concat())
}

/// `words` are as many as [`VcpuShape::xsave_words`].
fn load_xsave(vcpu: &VcpuFd, words: &[u32]) -> Result<(), HostError> {
    let doing = || "load extended state (KVM_SET_XSAVE)";
    let (region, extra) = words.split_first_chunk::<XSAVE_WORDS>().ok_or("it is too short").doing(doing)?;
    let mut header = kvm_xsave2 { len: extra.len(), ..Default::default() };
    header.xsave.region = *region;
    let mut xsave = Xsave::from_header(header).doing(doing)?;
    xsave.as_mut_slice().copy_from_slice(extra);
    // SAFETY: it has as many words as KVM_CAP_XSAVE2 says (`VcpuState::check`), which is all that KVM reads.
    unsafe { vcpu.set_xsave2(&xsave) }.doing(doing)
}
