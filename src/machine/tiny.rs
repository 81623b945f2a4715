//! For tests: a VM of a few instructions on /dev/kvm.
#![allow(unsafe_code)] // a VM's memory slots

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::memory::{Bytes, GuestAddress};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::config::HugePages;
use crate::events::Events;
use crate::kvm::Vm;
use crate::memory::{Ram, RamKind};
use crate::plan::RamRange;
use crate::timeline::Timeline;
use crate::vcpu::{Buses, VcpuHandle};
use crate::x86_64::regs::{self, Entry};

/// Where the code is.
pub const START: u64 = 0x10_0000;
/// The second NOP, for a breakpoint.
pub const POINT: u64 = START + 8;
/// 32-bit code without paging, which counts in EAX for ever.
pub const CODE: [u8; 13] = [
    0x90, // +0 nop
    0x40, // +1 inc eax
    0x40, // +2 inc eax
    0xa3, 0x00, 0x20, 0x10, 0x00, // +3 mov [START + 0x2000], eax
    0x90, // +8 nop
    0xe6, 0x80, // +9 out 0x80, al
    0xeb, 0xf3, // +11 jmp +0
];

/// A VM whose guest is [`CODE`]. Its vCPUs must be dropped before it.
pub struct Tiny {
    /// The VM.
    pub vm: Vm,
    /// Its memory.
    pub ram: Ram,
    /// What happens to it.
    pub events: Arc<Events>,
}

impl Tiny {
    /// A VM with that code, and a vCPU at its start; nothing where there is no /dev/kvm, which is said.
    pub fn new() -> Option<(Self, VcpuFd)> {
        if let Err(error) = Kvm::new() {
            let refused = Vm::create(&[]).err().expect("no VM without /dev/kvm");
            assert!(refused.to_string().starts_with("open /dev/kvm"), "{refused} ({error})");
            return None;
        }
        let vm = Vm::create(&[]).unwrap();
        let kind = RamKind { pages: HugePages::None, dirty: false, shared: false };
        let ram = Ram::map(&[RamRange { start: 0, len: 4 << 20 }], kind).unwrap();
        for (gpa, len, host) in ram.slots() {
            // SAFETY: the memory outlives the VM, which is dropped before it; nothing refers into it.
            unsafe { vm.map_memory(gpa, len, host, false).unwrap() };
        }
        ram.guest().write_slice(&CODE, GuestAddress(START)).unwrap();
        let entry = Entry::Pvh { eip: START as u32 };
        regs::write_boot_tables(ram.guest(), entry).unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        regs::set_up(&fd, entry).unwrap();
        let timeline = Arc::new(Timeline::new(Instant::now(), Duration::ZERO));
        let events = Arc::new(Events::new(timeline).unwrap());
        Some((Self { vm, ram, events }, fd))
    }

    /// Its vCPU on a thread, parked.
    pub fn start(&self, fd: VcpuFd) -> VcpuHandle {
        VcpuHandle::spawn(0, fd, Arc::new(Buses::default()), self.events.clone()).unwrap()
    }
}
