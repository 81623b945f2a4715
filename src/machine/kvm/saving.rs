//! What KVM has for all vCPUs: interrupt controllers, timer and clock. The control thread's, while no vCPU runs.

use devices::state::check;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip, kvm_pit_state2,
    kvm_xsave,
};
use kvm_ioctls::Cap;

use super::Vm;
use crate::error::{Doing, HostError};
use crate::state::{VcpuShape, VmState};

impl Vm {
    /// What its vCPUs have to save.
    pub fn vcpu_shape(&self) -> Result<VcpuShape, HostError> {
        let msrs = self.kvm.get_msr_index_list().doing(|| "list the MSRs that KVM has (KVM_GET_MSR_INDEX_LIST)")?;
        let told = usize::try_from(self.fd.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let xsave_words = told.max(size_of::<kvm_xsave>()).div_ceil(4);
        Ok(VcpuShape { msrs: msrs.as_slice().to_vec(), xsave_words, has_xsave2: told > 0 })
    }

    /// Reads it all.
    pub fn save(&self) -> Result<VmState, HostError> {
        let pit = self.fd.get_pit2().doing(|| "save the timer (KVM_GET_PIT2)")?;
        let clock = self.fd.get_clock().doing(|| "save the clock (KVM_GET_CLOCK)")?;
        Ok(VmState {
            pic_master: self.save_chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: self.save_chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: self.save_chip(KVM_IRQCHIP_IOAPIC)?,
            pit: without_host_time(pit),
            clock_ns: clock.clock,
        })
    }

    /// Puts it into a VM whose vCPUs are loaded: the IOAPIC sends them what it holds back.
    pub fn load(&self, state: &VmState) -> Result<(), HostError> {
        let chips = [
            (KVM_IRQCHIP_PIC_MASTER, &state.pic_master),
            (KVM_IRQCHIP_PIC_SLAVE, &state.pic_slave),
            (KVM_IRQCHIP_IOAPIC, &state.ioapic),
        ];
        for (id, chip) in chips {
            let doing = || format!("load interrupt controller {id} (KVM_SET_IRQCHIP)");
            check(chip.chip_id == id, || format!("it is the state of controller {}", chip.chip_id)).doing(doing)?;
            self.fd.set_irqchip(chip).doing(doing)?;
        }
        self.fd.set_pit2(&state.pit).doing(|| "load the timer (KVM_SET_PIT2)")?;
        let clock = kvm_clock_data { clock: state.clock_ns, ..Default::default() };
        self.fd.set_clock(&clock).doing(|| "load the clock (KVM_SET_CLOCK)")
    }

    fn save_chip(&self, chip_id: u32) -> Result<kvm_irqchip, HostError> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.fd.get_irqchip(&mut chip).doing(|| format!("save interrupt controller {chip_id} (KVM_GET_IRQCHIP)"))?;
        Ok(chip)
    }
}

/// KVM tells when a channel was loaded by the host's own clock, and does not take that back.
fn without_host_time(mut pit: kvm_pit_state2) -> kvm_pit_state2 {
    for channel in &mut pit.channels {
        channel.count_load_time = 0;
    }
    pit
}
