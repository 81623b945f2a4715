//! The running thing: memory, VM, register devices, virtio devices with their workers, vCPUs.
//!
//! One assembly path, walked by the control thread. Fields are dropped in the order in which they are declared: vCPUs
//! first, so that nobody pokes a device that is gone, then the VM, then the memory that it shows to the guest.

mod saving;

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use devices::legacy::console_out::ConsoleOut;
use devices::legacy::i8042::Unread;
use devices::mmds::store::Store;
use devices::seams::{Doorbell, Notify};
use devices::virtio::mmio::MmioTransport;
use devices::virtio::net::Net;
use devices::virtio::registers::{self, offset};
use devices::virtio::worker::Worker;
use devices::virtio::{Change, DeviceConfig, OpenError, UpdateError};
use devices::window::{Window, Writes};
use vmm_sys_util::eventfd::EventFd;

use crate::attached::Attached;
use crate::boot;
use crate::config::VmConfig;
use crate::core::{self, CpuState};
use crate::cpu::GuestCpu;
use crate::error::{Doing, HostError};
use crate::events::Events;
use crate::gdb::Guest;
use crate::input::SharedSerial;
use crate::kvm::Vm;
use crate::memory::{PAGE, Ram, RamKind};
use crate::metrics::Source;
use crate::plan::{Plan, Slot};
use crate::registers::Registers;
use crate::resident::{Mapping, resident, resident_pages};
use crate::snapshot;
use crate::timeline::Mark;
use crate::vcpu::{Buses, VcpuHandle};
use crate::windows;
use crate::x86_64::acpi::{self, Hardware};
use crate::x86_64::layout;
use crate::x86_64::regs::{self, Entry};

/// A virtual machine, built and parked.
pub struct Machine {
    vcpus: Vec<VcpuHandle>,
    registers: Registers,
    events: Arc<Events>,
    vm: Option<Vm>,
    /// Their registers are mapped into the guest, like the memory: they outlive the VM.
    devices: Vec<Attached>,
    /// Mapped into the guest, too.
    windows: Vec<Arc<Window>>,
    ram: Ram,
    /// It goes on where another one was, in the place of booting.
    goes_on: bool,
    /// A checksum of what the first vCPU sees of itself.
    cpuid_crc32: u32,
}

impl Machine {
    /// Opens what the configuration names, creates the VM and everything in it. Nothing runs yet.
    ///
    /// `console` takes the serial port's output; without it the VM has no serial port. `metadata` is what the metadata
    /// service has to tell, where there is one.
    pub fn build(
        config: &VmConfig,
        plan: &Plan,
        console: Option<ConsoleOut>,
        events: Arc<Events>,
        metadata: &Arc<Store>,
    ) -> Result<Self, HostError> {
        let timeline = |mark| events.timeline().mark(mark);
        let mut opened = open_devices(config, &plan.devices, metadata)?;
        let template = config.template();
        let saved = config.snapshot.as_ref().map(snapshot::read).transpose()?;
        // KVM_CREATE_VM waits for the host's kernel (milliseconds, for a grace period); meanwhile memory is filled.
        let (vm, loaded) = thread::scope(|scope| {
            let vm =
                thread::Builder::new().name("kvm".into()).spawn_scoped(scope, || Vm::create(&template.capabilities));
            let loaded = load(config, plan, &events);
            let vm = vm.doing(|| "start a thread").and_then(|vm| vm.join().unwrap_or_else(|bug| resume_unwind(bug)));
            (vm, loaded)
        });
        let (ram, entry) = loaded?;
        let vm = vm?;
        map_ram(&vm, &ram)?;
        timeline(Mark::Vm);

        let notify: Notify = {
            let events = events.clone();
            Arc::new(move |event| events.guest(event))
        };
        let mut buses = Buses::default();
        let registers = Registers::attach(&vm, &mut buses, console, plan.keyboard, &notify)?;
        let windows = windows::show(&vm, &mut buses, plan, &mut opened)?;
        let mut devices = Vec::new();
        for (slot, device) in plan.devices.iter().zip(opened) {
            devices.push(attach_virtio(&vm, &ram, &mut buses, slot, device, &notify)?);
        }
        timeline(Mark::Devices);

        let buses = Arc::new(buses);
        let cpu = GuestCpu::new(&vm, config, template)?;
        let vcpus = create_vcpus(&vm, plan, &cpu, entry, &buses, &events)?;
        timeline(Mark::Vcpus);
        let goes_on = saved.is_some();
        let machine = Self {
            vcpus,
            registers,
            events,
            vm: Some(vm),
            devices,
            windows,
            ram,
            goes_on,
            cpuid_crc32: cpu.checksum(),
        };
        saved.map_or(Ok(()), |saved| machine.load(&saved))?;
        Ok(machine)
    }

    /// Lets every vCPU run. Only the boot processor has something to run; the others wait for it to start them.
    pub fn boot(&self) {
        self.start_devices();
        match self.goes_on {
            true => self.resume_vcpus(),
            false => self.vcpus.iter().for_each(VcpuHandle::run),
        }
    }

    /// Lets the devices work of which a driver that goes on has queues already. A part of [`Self::boot`], and what comes before
    /// a debugger lets the vCPUs run.
    pub fn start_devices(&self) {
        if self.goes_on {
            self.resume_devices();
        }
    }

    /// Parks every vCPU, then takes the queues from the devices. When it returns nothing touches guest memory but who
    /// writes to it past the devices (another process that has it).
    pub fn pause(&self) {
        let answers: Vec<_> = self.vcpus.iter().map(VcpuHandle::pause).collect();
        for parked in answers {
            let _ = parked.recv();
        }
        self.devices.iter().for_each(Attached::pause);
    }

    /// Undoes [`Self::pause`], but for the vCPUs.
    pub fn resume_devices(&self) {
        self.devices.iter().for_each(Attached::resume);
    }

    /// Lets the vCPUs go on after [`Self::resume_devices`].
    pub fn resume_vcpus(&self) {
        self.vcpus.iter().for_each(VcpuHandle::resume);
    }

    /// What a debugger needs.
    pub fn debugged(&self) -> Guest<'_> {
        Guest::new(&self.vcpus, self.ram.guest())
    }

    /// An error where KVM lets nobody debug a guest.
    pub fn can_be_debugged(&self) -> Result<(), HostError> {
        match self.vm.as_ref().is_some_and(Vm::can_debug) {
            true => Ok(()),
            false => Err(HostError::new("debug the guest (gdb)", "this host's KVM lacks KVM_CAP_SET_GUEST_DEBUG")),
        }
    }

    /// Whether KVM can keep interrupts from a vCPU that a debugger steps.
    pub fn steps_without_interrupts(&self) -> bool {
        self.vm.as_ref().is_some_and(Vm::steps_without_interrupts)
    }

    /// Writes a core file of the guest, whose vCPUs are parked.
    pub fn core_dump(&self, path: &Path) -> Result<(), HostError> {
        let read = |vcpu: &VcpuHandle| {
            let state = vcpu.with(|fd| -> Result<_, kvm_ioctls::Error> {
                Ok(CpuState { general: fd.get_regs()?, system: fd.get_sregs()? })
            });
            state.recv().ok().and_then(Result::ok).unwrap_or_default()
        };
        let cpus: Vec<_> = self.vcpus.iter().map(read).collect();
        core::write(path, self.ram.guest(), &cpus)
    }

    /// Changes the device `id`, whether the machine is paused or not.
    pub fn update(&self, id: &str, change: Change) -> Result<(), UpdateError> {
        let device = self.device(id).ok_or_else(|| UpdateError::new("there is no such device"))?;
        device.update(change)
    }

    /// What the device `id` has to tell; `None` where there is no such device.
    pub fn inspect(&self, id: &str) -> Option<serde_json::Value> {
        self.device(id).map(Attached::inspect)
    }

    fn device(&self, id: &str) -> Option<&Attached> {
        self.devices.iter().find(|device| device.id() == id)
    }

    /// Takes the machine down as dropping it does, but leaves KVM's part of the work behind: for a process that ends.
    pub fn leave(mut self) {
        self.stop_threads();
        if let Some(vm) = self.vm.take() {
            vm.close_elsewhere();
        }
    }

    fn stop_threads(&mut self) {
        self.vcpus.clear();
        self.devices.iter().for_each(Attached::quit);
    }

    /// What the machine counts.
    pub fn sources(&self) -> Vec<Source> {
        let vcpus = (0..).zip(&self.vcpus);
        let vcpus = vcpus.map(|(id, vcpu): (u32, _)| Source::member("vcpu", id.to_string(), vcpu.exits.clone()));
        let serial = self.registers.serial().map(|serial| {
            let port = serial.lock().unwrap_or_else(PoisonError::into_inner);
            Source::only("uart", port.tally())
        });
        let keyboard = Source::only("i8042", self.registers.keyboard_counts());
        self.devices.iter().map(Attached::source).chain(vcpus).chain(serial).chain([keyboard]).collect()
    }

    /// Bytes of the guest's memory that the host has given it; `None` where they can not be counted.
    pub fn resident(&self) -> Option<u64> {
        self.ram.slots().map(|(_, len, host)| resident(host, len)).sum()
    }

    /// Which pages of the guest's memory are in the host's memory, a bit each, the lowest first, in the order of
    /// [`Self::mappings`].
    pub fn resident_pages(&self) -> Result<Vec<u64>, HostError> {
        resident_pages(self.ram.slots().map(|(_, len, host)| (host, len))).doing(|| "look at guest memory (mincore)")
    }

    /// The ranges of the guest's memory.
    pub fn mappings(&self) -> Vec<Mapping> {
        let ranges = self.ram.slots().scan(0, |next, (guest_phys_addr, size, base_host_virt_addr)| {
            let offset = *next;
            *next += size;
            Some(Mapping { guest_phys_addr, base_host_virt_addr, size, offset, page_size: PAGE })
        });
        ranges.collect()
    }

    /// Memory of the guest beside its RAM of which no file has what was written: what it has changed there goes with RAM, and is
    /// put back into the windows of another machine of this configuration, which has as many, in this order.
    pub fn private_windows(&self) -> impl Iterator<Item = &Window> {
        let windows = self.windows.iter().map(Arc::as_ref);
        windows.filter(|window| window.writes() == Writes::Private)
    }

    /// Guest memory.
    pub const fn ram(&self) -> &Ram {
        &self.ram
    }

    /// What happens to the VM.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The serial port, for console input.
    pub fn serial(&self) -> Option<SharedSerial> {
        self.registers.serial().cloned()
    }

    /// Signalled when the guest has read the console input that it was given.
    pub fn serial_drained(&self) -> Option<&EventFd> {
        self.registers.serial_drained()
    }

    /// Asks the guest to power off, as pressing the power button does.
    pub fn press_power_button(&self) {
        self.registers.press_power_button();
    }

    /// Asks the guest to reboot, as the three keys do; where it does not listen to a keyboard, to power off.
    pub fn press_ctrl_alt_del(&self) -> Result<(), Unread> {
        self.registers.press_ctrl_alt_del()
    }

    /// CPU time of all vCPUs.
    pub fn vcpu_time(&self) -> Duration {
        self.vcpus.iter().map(VcpuHandle::cpu_time).sum()
    }

    /// Whether no vCPU can ever wake. Interrupts a running guest for a moment; a vCPU that does not answer soon, because
    /// it waits for a device, is not halted.
    pub fn is_halted(&self) -> bool {
        const PATIENCE: Duration = Duration::from_millis(200);
        let answers: Vec<_> = self.vcpus.iter().map(VcpuHandle::ask_halted).collect();
        answers.into_iter().all(|answer| answer.recv_timeout(PATIENCE).unwrap_or(false))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

/// Maps guest memory and fills it: kernel, initrd, command line, boot parameters, ACPI tables.
fn load(config: &VmConfig, plan: &Plan, events: &Events) -> Result<(Ram, Option<Entry>), HostError> {
    let wants = &config.machine_config;
    let shared = config.shares_memory();
    let ram = Ram::map(&plan.ram, RamKind { pages: wants.huge_pages, dirty: wants.track_dirty_pages, shared })?;
    events.timeline().mark(Mark::Memory);
    if let Some(snapshot) = &config.snapshot {
        snapshot::load_memory(snapshot, &ram)?;
        events.timeline().mark(Mark::Loaded);
        return Ok((ram, None));
    }
    let rsdp = acpi::write(ram.guest(), &hardware(plan))?;
    let entry = boot::load(&ram, &config.boot_source, &plan.cmdline, rsdp)?;
    regs::write_boot_tables(ram.guest(), entry)?;
    events.timeline().mark(Mark::Loaded);
    Ok((ram, Some(entry)))
}

type OpenDevice = Box<dyn devices::virtio::Device>;

fn open_devices(config: &VmConfig, slots: &[Slot], metadata: &Arc<Store>) -> Result<Vec<OpenDevice>, HostError> {
    let open = |slot: &Slot| -> Result<OpenDevice, OpenError> {
        match (&slot.config, &config.mmds_config) {
            (DeviceConfig::Net(net), Some(mmds)) if mmds.network_interfaces.contains(&net.iface_id) => {
                Ok(Box::new(Net::open(net)?.with_metadata(mmds, metadata)?))
            }
            (device, _) => devices::virtio::open(device),
        }
    };
    slots.iter().map(|slot| open(slot).doing(|| format!("attach device '{}'", slot.id))).collect()
}

#[allow(unsafe_code)]
fn map_ram(vm: &Vm, ram: &Ram) -> Result<(), HostError> {
    for (gpa, len, host) in ram.slots() {
        // SAFETY: the memory is mapped as long as `ram`, which the machine drops after the VM; only vm-memory's
        // volatile access touches it.
        unsafe { vm.map_memory(gpa, len, host, false)? };
    }
    Ok(())
}

fn hardware(plan: &Plan) -> Hardware {
    let virtio = plan.devices.iter().map(|slot| (u32::try_from(slot.gpa).unwrap_or_default(), slot.gsi)).collect();
    Hardware { cpus: plan.cpus, serial: plan.serial, keyboard: plan.keyboard, virtio }
}

fn attach_virtio(
    vm: &Vm,
    ram: &Ram,
    buses: &mut Buses,
    slot: &Slot,
    device: OpenDevice,
    notify: &Notify,
) -> Result<Attached, HostError> {
    let memory = ram.guest().clone();
    let doing = || format!("attach device '{}'", slot.id);
    let worker = Worker::spawn(&slot.id, slot.index, device, memory.clone()).doing(doing)?;
    let transport = MmioTransport::new(slot.index, worker.clone(), memory, notify.clone()).doing(doing)?;
    vm.bind_fast_interrupt(transport.interrupt(), slot.gsi)?;
    for (queue, doorbell) in (0..).zip(transport.doorbells()) {
        vm.bind_doorbell(doorbell, slot.gpa + offset::QUEUE_NOTIFY, queue)?;
    }
    ignore_acknowledgements(vm, slot)?;
    show_registers(vm, slot, transport.registers())?;
    let transport = Arc::new(Mutex::new(transport));
    buses.mmio.insert(slot.gpa, layout::VIRTIO_MMIO_LEN, transport.clone()).doing(doing)?;
    Ok(Attached::new(slot, worker, transport))
}

/// Lets the write of 1 to InterruptACK (virtio 1.2, 4.2.2) end in the host's kernel, where otherwise every interrupt would
/// cost an exit to this process. Bit 0 of InterruptStatus, "look at the rings", then stays set until the driver resets the
/// device or acknowledges a change of configuration with it (3), which comes here.
///
/// That is sound because interrupts here are edges: each one is an event of its own, whatever the bit was before. A driver
/// that finds the bit set looks at its rings, in vain at worst; the bit can never be missing. (Clearing it later could lose
/// one: between the driver's write and the look at it, the next buffers may have been used and signalled.) Linux'
/// vm_interrupt reads the status once per interrupt; a driver that read until it is 0 would not end.
fn ignore_acknowledgements(vm: &Vm, slot: &Slot) -> Result<(), HostError> {
    const USED_BUFFER: u32 = 1;
    let nobody = Doorbell::new().doing(|| format!("attach device '{}'", slot.id))?;
    vm.bind_doorbell(&nobody, slot.gpa + offset::INTERRUPT_ACK, USED_BUFFER)
}

/// Lets the guest read a device's registers as memory: reads then cost no exit, and writes still make one.
#[allow(unsafe_code)]
fn show_registers(vm: &Vm, slot: &Slot, registers: &Arc<registers::Registers>) -> Result<(), HostError> {
    // SAFETY: the page is `layout::VIRTIO_MMIO_LEN` bytes of atomics, which the machine keeps until the VM is closed;
    // the guest can only read it.
    unsafe { vm.map_memory(slot.gpa, layout::VIRTIO_MMIO_LEN, registers.as_ptr() as u64, true) }
}

fn create_vcpus(
    vm: &Vm,
    plan: &Plan,
    cpu: &GuestCpu,
    entry: Option<Entry>,
    buses: &Arc<Buses>,
    events: &Arc<Events>,
) -> Result<Vec<VcpuHandle>, HostError> {
    const LAST_NARROW_APIC_ID: u32 = 254;
    let most = vm.max_vcpus();
    if plan.cpus as usize > most {
        let error = format!("this host's KVM allows {most} (machine-config.vcpu_count)");
        return Err(HostError::new(format!("create {} vCPUs", plan.cpus), error));
    }
    if plan.cpus > LAST_NARROW_APIC_ID {
        vm.use_wide_apic_ids()?;
        tracing::warn!("Linux guests use at most 256 vCPUs: without interrupt remapping it starts no more");
    }
    let mut vcpus = Vec::new();
    for id in 0..plan.cpus {
        let fd = vm.create_vcpu(id)?;
        cpu.set_up(&fd, id)?;
        regs::set_up_lapic(&fd)?;
        if let (0, Some(entry)) = (id, entry) {
            regs::set_up(&fd, entry)?;
        }
        vcpus.push(VcpuHandle::spawn(id, fd, buses.clone(), events.clone())?);
    }
    Ok(vcpus)
}
