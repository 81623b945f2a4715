//! What a debugger needs of a machine: its vCPUs' threads and its memory. The control thread's.

use devices::memory::{Bytes, GuestAddress, GuestRam};
use kvm_ioctls::VcpuFd;

use crate::vcpu::VcpuHandle;

/// vCPUs and memory of a machine.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    vcpus: &'a [VcpuHandle],
    memory: &'a GuestRam,
}

impl<'a> Guest<'a> {
    /// These vCPUs, in this memory.
    pub fn new(vcpus: &'a [VcpuHandle], memory: &'a GuestRam) -> Self {
        Self { vcpus, memory }
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// Lets one run.
    pub fn run(&self, vcpu: usize) {
        if let Some(vcpu) = self.vcpus.get(vcpu) {
            vcpu.resume();
        }
    }

    /// Parks all.
    pub fn park(&self) {
        let answers: Vec<_> = self.vcpus.iter().map(VcpuHandle::pause).collect();
        for parked in answers {
            let _ = parked.recv();
        }
    }

    /// What `what` says on the thread of a vCPU; nothing where there is no such vCPU.
    pub fn with<R: Send + 'static>(
        &self,
        vcpu: usize,
        what: impl FnOnce(&mut VcpuFd) -> R + Send + 'static,
    ) -> Option<R> {
        self.vcpus.get(vcpu)?.with(what).recv().ok()
    }

    /// Reads guest memory at a guest-physical address; `false` where it is not all RAM.
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> bool {
        self.memory.read_slice(to, GuestAddress(gpa)).is_ok()
    }

    /// Writes it.
    pub fn write(&self, gpa: u64, from: &[u8]) -> bool {
        self.memory.write_slice(from, GuestAddress(gpa)).is_ok()
    }
}
