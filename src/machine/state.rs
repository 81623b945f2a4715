//! What is kept of a VM so that another one goes on in its place: everything but its files and its memory, to which belongs what
//! it has changed in windows whose writes are private.
//!
//! Plain data, in the kernel's own structures where they are KVM's. `save` reads it from a VM that is paused, `load` puts it
//! into one that was built from the same configuration and has not run. A state is not to be trusted: what is checked here is
//! what KVM does not check itself.

mod raw;
mod vcpu;

use devices::legacy::cmos::CmosState;
use devices::legacy::i8042::I8042State;
use devices::legacy::serial::SerialState;
use devices::virtio::state::VirtioState;
use kvm_bindings::{kvm_irqchip, kvm_pit_state2};
use serde::{Deserialize, Serialize};

pub use self::vcpu::{MsrState, VcpuShape, VcpuState};

/// A VM.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// A checksum of what the first CPU saw of itself (CPUID), for all of them.
    pub cpuid_crc32: u32,
    /// Its CPUs, by their APIC ids.
    pub vcpus: Vec<VcpuState>,
    /// What KVM has for all of them.
    pub vm: VmState,
    /// Its register devices.
    pub registers: RegistersState,
    /// Its virtio devices, in the order of their slots.
    pub devices: Vec<AttachedState>,
}

/// Interrupt controllers, timer and clock.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// The two 8259s and the IOAPIC (KVM_GET_IRQCHIP).
    #[serde(with = "raw")]
    pub pic_master: kvm_irqchip,
    /// See [`Self::pic_master`].
    #[serde(with = "raw")]
    pub pic_slave: kvm_irqchip,
    /// See [`Self::pic_master`].
    #[serde(with = "raw")]
    pub ioapic: kvm_irqchip,
    /// The 8254 (KVM_GET_PIT2). Its channels begin to count anew when they are loaded.
    #[serde(with = "raw")]
    pub pit: kvm_pit_state2,
    /// The KVM clock, nanoseconds (KVM_GET_CLOCK). It stands from the save to the load.
    pub clock_ns: u64,
}

/// The small register devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistersState {
    /// The serial port, where there is one.
    pub serial: Option<SerialState>,
    /// The clock and its RAM.
    pub cmos: CmosState,
    /// The keyboard controller, and the keyboard where there is one.
    pub keyboard: I8042State,
    /// Power events that the guest has not read.
    pub power_events: u8,
    /// The last progress code.
    pub debug_port: u8,
}

/// A virtio device with its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachedState {
    /// Its name in the configuration.
    pub id: String,
    /// The device and its transport.
    pub state: VirtioState,
}
