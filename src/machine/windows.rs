//! Shows the guest the windows of its devices: memory of the host that is not its RAM. The control thread does so, before
//! anything runs.

use std::io;
use std::sync::{Arc, Mutex};

use devices::virtio::Device;
use devices::window::{Refusal, Window, Writes};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;

use crate::error::{Doing, HostError};
use crate::kvm::Vm;
use crate::plan::Plan;
use crate::vcpu::Buses;
use crate::x86_64::cpuid;

/// Places the windows of `devices`, which are in the order of the plan's slots, and maps them into the guest. They must be
/// kept until the VM is closed.
pub fn show(
    vm: &Vm,
    buses: &mut Buses,
    plan: &Plan,
    devices: &mut [Box<dyn Device>],
) -> Result<Vec<Arc<Window>>, HostError> {
    let mut windows = Vec::new();
    for (slot, device) in devices.iter().enumerate() {
        let of_device = device.facts().windows.into_iter().enumerate();
        windows.extend(of_device.map(|(number, window)| (slot, number, window)));
    }
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    let places = plan.place(windows.iter().map(|(slot, _, window)| (*slot, window.size())));
    let end = end_of_addresses(vm)?;
    for (at, (slot, number, window)) in windows.iter().enumerate() {
        let (device, plan) = (&mut devices[*slot], &plan.devices[*slot]);
        let doing = || format!("show the guest the memory of device '{}'", plan.id);
        let mib = window.size() >> 20;
        let place = places.get(at).filter(|place| place.start + place.len <= end).ok_or_else(|| {
            let why = format!("the guest's addresses end at {end:#x}, too soon for its {mib} MiB; take a smaller file");
            HostError::new(doing(), why)
        })?;
        map(vm, place.start, window).doing(doing)?;
        if window.writes() == Writes::Refused {
            let refusal = Arc::new(Mutex::new(Refusal::new(&plan.id)));
            buses.mmio.insert(place.start, place.len, refusal).doing(doing)?;
        }
        device.placed(*number, place.start);
    }
    Ok(windows.into_iter().map(|(_, _, window)| window).collect())
}

#[allow(unsafe_code)]
fn map(vm: &Vm, gpa: u64, window: &Window) -> Result<(), HostError> {
    let read_only = window.writes() == Writes::Refused;
    // SAFETY: the window is mapped as long as the machine keeps it, which is until the VM is closed, and nothing in this
    // process goes through it.
    unsafe { vm.map_memory(gpa, window.size(), window.host_address(), read_only) }
}

/// The first address that a guest of this host can not have.
fn end_of_addresses(vm: &Vm) -> Result<u64, HostError> {
    let supported = vm.kvm().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(io::Error::from);
    let supported = supported.doing(|| "read the CPUID that KVM supports")?;
    Ok(1 << cpuid::address_bits(supported.as_slice()).min(63))
}
