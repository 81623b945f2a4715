//! Saving a machine, and loading one that was saved into another of the same configuration. The control thread does both, while
//! the machine pauses. Guest memory goes its own way, the changes of private windows with it, and files and processes of the host
//! stay where they are.

use devices::state::{StateError, check};

use super::Machine;
use crate::attached::Attached;
use crate::error::{Doing, HostError};
use crate::kvm::Vm;
use crate::state::{AttachedState, MachineState, VcpuShape, VcpuState};
use crate::vcpu::VcpuHandle;

impl Machine {
    /// What is to be kept of it beside its memory. It is paused, and goes on afterwards as if nothing had been.
    pub fn save(&self) -> Result<MachineState, HostError> {
        let vm = self.vm()?;
        let device = |device: &Attached| -> Result<_, HostError> {
            let state = device.save().doing(|| format!("save device '{}'", device.id()))?;
            Ok(AttachedState { id: device.id().to_owned(), state })
        };
        let shape = vm.vcpu_shape()?;
        Ok(MachineState {
            cpuid_crc32: self.cpuid_crc32,
            devices: self.devices.iter().map(device).collect::<Result<_, _>>()?,
            registers: self.registers.save(),
            vcpus: (0..).zip(&self.vcpus).map(|(id, vcpu)| save_vcpu(id, vcpu, &shape)).collect::<Result<_, _>>()?,
            vm: vm.save()?,
        })
    }

    /// Becomes what was saved of a machine with the same configuration, whose memory is loaded already. This one was built and
    /// has not run; it is paused afterwards. After an error it is good for nothing but being dropped.
    ///
    /// The order is that of interrupts on their way: local APICs, then the controllers that send to them, then devices.
    pub fn load(&self, state: &MachineState) -> Result<(), HostError> {
        self.check(state).doing(|| "load the machine")?;
        let vm = self.vm()?;
        let shape = vm.vcpu_shape()?;
        for ((id, vcpu), saved) in (0..).zip(&self.vcpus).zip(&state.vcpus) {
            load_vcpu(id, vcpu, saved, &shape)?;
        }
        vm.load(&state.vm)?;
        self.registers.load(&state.registers).doing(|| "load the register devices")?;
        for (device, saved) in self.devices.iter().zip(&state.devices) {
            device.load(&saved.state).doing(|| format!("load device '{}'", saved.id))?;
        }
        Ok(())
    }

    fn check(&self, state: &MachineState) -> Result<(), StateError> {
        let (ours, saved) = (self.vcpus.len(), state.vcpus.len());
        check(ours == saved, || format!("it has {ours} vCPUs, and {saved} were saved"))?;
        check(self.cpuid_crc32 == state.cpuid_crc32, || {
            "its guest saw another CPU: this host's CPU or KVM has changed, or the configuration of the CPU".to_owned()
        })?;
        let ours: Vec<_> = self.devices.iter().map(Attached::id).collect();
        let saved: Vec<_> = state.devices.iter().map(|device| device.id.as_str()).collect();
        check(ours == saved, || format!("its devices are {ours:?}, and {saved:?} were saved"))
    }

    fn vm(&self) -> Result<&Vm, HostError> {
        self.vm.as_ref().ok_or_else(|| HostError::new("find the VM", "it is gone"))
    }
}

fn save_vcpu(id: u32, vcpu: &VcpuHandle, shape: &VcpuShape) -> Result<VcpuState, HostError> {
    let doing = || format!("save vCPU {id}");
    let shape = shape.clone();
    vcpu.with(move |fd| VcpuState::save(fd, &shape)).recv().doing(doing)?.doing(doing)
}

fn load_vcpu(id: u32, vcpu: &VcpuHandle, state: &VcpuState, shape: &VcpuShape) -> Result<(), HostError> {
    let doing = || format!("load vCPU {id}");
    let (state, shape) = (state.clone(), shape.clone());
    vcpu.with(move |fd| state.load(fd, &shape)).recv().doing(doing)?.doing(doing)
}

#[cfg(test)]
mod tests;
