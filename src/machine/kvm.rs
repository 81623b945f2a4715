//! The VM's file descriptor: memory slots, interrupt lines, doorbells, vCPUs. Used by the control thread.
//!
//! Source: Linux, Documentation/virt/kvm/api.rst (section numbers below are its).

mod saving;

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use devices::seams::{Doorbell, Interrupt};
use kvm_bindings::{
    KVM_CAP_SET_GUEST_DEBUG, KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_X2APIC_API, KVM_GUESTDBG_BLOCKIRQ,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_irqchip, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};

use crate::error::{Doing, HostError};
use crate::x86_64::layout;
use crate::x86_64::template::CapabilityCheck;

/// Capabilities that a machine cannot do without, with the name that api.rst gives them.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
];

/// A virtual machine as KVM knows it.
pub struct Vm {
    kvm: Kvm,
    /// Shared with the interrupt lines, weakly: whoever drops this closes it.
    fd: Arc<VmFd>,
    /// Held while an edge is raised on a pin of the IOAPIC: devices may share one.
    pins: Arc<[Mutex<()>; PINS]>,
    /// The number of the next memory slot; none is used twice.
    next_slot: Cell<u32>,
}

/// Pins of KVM's IOAPIC (KVM_IOAPIC_NUM_PINS).
const PINS: usize = 24;

impl Vm {
    /// Opens /dev/kvm and creates a VM with an in-kernel interrupt controller and timer. `checks` are more capabilities to
    /// ask for, or some not to ask for.
    pub fn create(checks: &[CapabilityCheck]) -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(io::Error::from).doing(|| "open /dev/kvm (`vmm doctor` says what is missing)")?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(HostError::new("use /dev/kvm", format!("its API version is {version}, not 12")));
        }
        let lacks = |name| HostError::new("use /dev/kvm", format!("this host's KVM lacks {name}"));
        for (cap, name) in NEEDED {
            let wanted = !checks.iter().any(|check| !check.needed && check.number == cap as u32);
            if wanted && !kvm.check_extension(cap) {
                return Err(lacks(name.to_owned()));
            }
        }
        for check in checks.iter().filter(|check| check.needed) {
            if kvm.check_extension_raw(check.number.into()) <= 0 {
                return Err(lacks(format!("capability {}, which cpu-config asks for", check.number)));
            }
        }
        let fd = loop {
            match kvm.create_vm() {
                Ok(fd) => break fd,
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(HostError::new("create a VM (KVM_CREATE_VM)", io::Error::from(error))),
            }
        };
        let vm = Self { kvm, fd: Arc::new(fd), pins: Arc::default(), next_slot: Cell::new(0) };
        vm.set_up().map_err(io::Error::from).doing(|| "set up the VM's interrupt controllers")?;
        Ok(vm)
    }

    fn set_up(&self) -> Result<(), kvm_ioctls::Error> {
        self.fd.set_tss_address(layout::KVM_TSS as usize)?;
        self.fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)?;
        self.fd.create_irq_chip()?;
        self.mask_8259s()?;
        self.fd.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })
    }

    /// Masks every line of the two 8259s. The machine has none (hardware-reduced ACPI), so a guest does not set them
    /// up; but KVM wires its GSIs below 16 to them too, and an unmasked, unconfigured one would deliver vector 0.
    fn mask_8259s(&self) -> Result<(), kvm_ioctls::Error> {
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip)?;
            chip.chip.pic.imr = 0xff;
            self.fd.set_irqchip(&chip)?;
        }
        Ok(())
    }

    /// The file of /dev/kvm itself.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Most vCPUs of one VM.
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Shows `len` bytes of this process at `host` to the guest at `gpa` (4.35, KVM_SET_USER_MEMORY_REGION).
    ///
    /// # Safety
    /// The guest reads and writes that memory from now on: it must stay mapped until the VM is closed, and nothing in
    /// this process may hold a Rust reference into it.
    #[allow(unsafe_code)]
    pub unsafe fn map_memory(&self, gpa: u64, len: u64, host: u64, readonly: bool) -> Result<(), HostError> {
        let slot = self.next_slot.get();
        let region = kvm_userspace_memory_region {
            slot,
            flags: if readonly { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: host,
        };
        // SAFETY: the caller's promise is the one that the ioctl asks for.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(io::Error::from)
            .doing(|| format!("give the guest memory slot {slot} at {gpa:#x}"))?;
        self.next_slot.set(slot + 1);
        Ok(())
    }

    /// Binds an interrupt line to a GSI (4.75, KVM_IRQFD).
    pub fn bind_interrupt(&self, interrupt: &Interrupt, gsi: u32) -> Result<(), HostError> {
        self.fd
            .register_irqfd(interrupt.event(), gsi)
            .map_err(io::Error::from)
            .doing(|| format!("bind an interrupt to GSI {gsi}"))
    }

    /// Binds an interrupt line to a GSI in two ways: by irqfd, for who has no more than the event, and by KVM_IRQ_LINE
    /// (4.25) for our own threads.
    ///
    /// Behind an IOAPIC, an irqfd leaves the injection to a worker thread of the host kernel
    /// (kvm_arch_set_irq_inatomic takes MSIs only): two context switches for each interrupt. The ioctl does the same,
    /// kvm_set_irq with 1 and then 0, at once. That must not happen twice at a time on one pin, or the second
    /// edge would vanish in the first. (KVM drops edges of the RTC's GSI, 8, that are not acknowledged yet; nobody here
    /// has that one.)
    pub fn bind_fast_interrupt(&self, interrupt: &Interrupt, gsi: u32) -> Result<(), HostError> {
        self.bind_interrupt(interrupt, gsi)?;
        let (vm, pins) = (Arc::downgrade(&self.fd), self.pins.clone());
        let pin = gsi as usize; // the plan gives out no others
        assert!(pin < PINS, "GSI {gsi} is no pin of the IOAPIC");
        interrupt.raise_by(Some(Box::new(move || {
            let Some(vm) = vm.upgrade() else { return };
            let _alone = pins[pin].lock().unwrap_or_else(PoisonError::into_inner);
            // They fail only where there is no interrupt controller in the kernel.
            let _ = vm.set_irq_line(gsi, true).and_then(|()| vm.set_irq_line(gsi, false));
        })));
        Ok(())
    }

    /// Binds a doorbell to the 32-bit write of `value` at `gpa` (4.59, KVM_IOEVENTFD).
    pub fn bind_doorbell(&self, doorbell: &Doorbell, gpa: u64, value: u32) -> Result<(), HostError> {
        self.fd
            .register_ioevent(doorbell.event(), &IoEventAddress::Mmio(gpa), value)
            .map_err(io::Error::from)
            .doing(|| format!("bind a doorbell to {gpa:#x}"))
    }

    /// Makes APIC ids above 254 addressable (7.7, KVM_CAP_X2APIC_API).
    pub fn use_wide_apic_ids(&self) -> Result<(), HostError> {
        let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        let cap = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args: [flags.into(), 0, 0, 0], ..Default::default() };
        self.fd.enable_cap(&cap).map_err(io::Error::from).doing(|| "use APIC ids above 254 (KVM_CAP_X2APIC_API)")
    }

    /// Whether vCPUs can be debugged (7.31 of old, KVM_SET_GUEST_DEBUG).
    pub fn can_debug(&self) -> bool {
        self.kvm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG.into()) > 0
    }

    /// Whether interrupts can be kept from a vCPU that is stepped (KVM_GUESTDBG_BLOCKIRQ).
    pub fn steps_without_interrupts(&self) -> bool {
        let flags = self.kvm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
        u32::try_from(flags).is_ok_and(|flags| flags & KVM_GUESTDBG_BLOCKIRQ != 0)
    }

    /// Closes the VM without waiting for it.
    ///
    /// Closing the last descriptor of a VM takes tens of milliseconds, most of them the host kernel waiting for grace
    /// periods. Whoever waits for this process need not wait for that: a child that holds nothing but the VM's
    /// descriptor, no memory of the guest, no file, no lock, and lives for just that long, closes it. vCPUs must be
    /// closed by then. Only for a process that ends next: it does not collect the child.
    #[allow(unsafe_code)]
    pub fn close_elsewhere(self) {
        let fd = self.fd.as_raw_fd() as libc::c_uint;
        let no_signal = 0;
        // SAFETY: a clone without flags is a fork. The child makes three system calls, on integers alone, and ends; it
        // takes no lock that another thread may have held. Where the clone fails, this process closes the VM itself.
        unsafe {
            if libc::syscall(libc::SYS_clone, no_signal, 0, 0, 0, 0) == 0 {
                libc::syscall(libc::SYS_close_range, fd + 1, libc::c_uint::MAX, 0);
                libc::syscall(libc::SYS_close_range, 0, fd - 1, 0);
                libc::syscall(libc::SYS_exit_group, 0);
            }
        }
    }

    /// Creates the vCPU with this APIC id (4.7, KVM_CREATE_VCPU).
    pub fn create_vcpu(&self, id: u32) -> Result<VcpuFd, HostError> {
        self.fd.create_vcpu(u64::from(id)).map_err(io::Error::from).doing(|| format!("create vCPU {id}"))
    }
}
