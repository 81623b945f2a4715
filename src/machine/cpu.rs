//! The CPU that the guest sees: what KVM supports, changed by a template, completed for each vCPU. The control thread's.

use std::io;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::config::{CpuConfig, CpuidModifier, MsrModifier, RegisterModifier, VmConfig};
use crate::error::{Doing, HostError};
use crate::kvm::Vm;
use crate::x86_64::cpuid::{self, Topology};
use crate::x86_64::msr;
use crate::x86_64::template::{Register, Template};

/// What all vCPUs of a VM have in common.
pub struct GuestCpu {
    /// KVM's leaves, with the template's changes.
    leaves: CpuId,
    topology: Topology,
    tsc_deadline: bool,
    template: Template,
}

/// What this host's KVM can show a guest (KVM_GET_SUPPORTED_CPUID).
pub fn supported(kvm: &Kvm) -> Result<CpuId, HostError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(io::Error::from).doing(|| "read the CPUID that KVM supports")
}

impl GuestCpu {
    /// The CPU of a VM with this configuration; `template` is what it asks for.
    pub fn new(vm: &Vm, config: &VmConfig, template: Template) -> Result<Self, HostError> {
        let mut leaves = supported(vm.kvm())?;
        if let Some((_, missing)) = template.missing_leaf(leaves.as_slice()) {
            let (leaf, subleaf) = (missing.leaf, missing.subleaf);
            let text = format!("this host's KVM has no leaf {leaf:#x}, subleaf {subleaf:#x}");
            return Err(HostError::new("change CPUID (cpu-config, cpu_template)", text));
        }
        template.apply(leaves.as_mut_slice());
        let wants = &config.machine_config;
        let pairs = wants.smt && wants.vcpu_count > 1;
        Ok(Self {
            leaves,
            topology: Topology { cpus: wants.vcpu_count, threads_per_core: if pairs { 2 } else { 1 } },
            tsc_deadline: vm.kvm().check_extension(Cap::TscDeadlineTimer),
            template,
        })
    }

    /// A checksum (CRC-32) of what vCPU 0 sees of itself: a guest that goes on elsewhere relies on it. Not on what is said of
    /// caches, in which the cores of one host may differ.
    pub fn checksum(&self) -> u32 {
        const CACHES: [u32; 6] = [0x2, 0x4, 0x18, 0x8000_0005, 0x8000_0006, 0x8000_001d];
        let mut sum = crc32fast::Hasher::new();
        let leaves = cpuid::leaves(self.leaves.as_slice(), 0, self.topology, self.tsc_deadline);
        for leaf in leaves.into_iter().filter(|leaf| !CACHES.contains(&leaf.function)) {
            let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, .. } = leaf;
            [function, index, flags, eax, ebx, ecx, edx].iter().for_each(|word| sum.update(&word.to_le_bytes()));
        }
        sum.finalize()
    }

    /// Gives vCPU `id` its CPUID and MSRs.
    pub fn set_up(&self, vcpu: &VcpuFd, id: u32) -> Result<(), HostError> {
        let leaves = cpuid::leaves(self.leaves.as_slice(), id, self.topology, self.tsc_deadline);
        let leaves = CpuId::from_entries(&leaves).doing(|| "describe the CPU")?;
        vcpu.set_cpuid2(&leaves).map_err(io::Error::from).doing(|| format!("set the CPUID of vCPU {id}"))?;
        self.template.set_msrs(vcpu)?;
        msr::set_up(vcpu)
    }
}

/// What vCPU 0 of a VM with this configuration would see, as a `cpu-config` that says every bit. Makes a VM without memory
/// and drops it.
pub fn dump(config: &VmConfig) -> Result<CpuConfig, HostError> {
    let template = config.template();
    let vm = Vm::create(&template.capabilities)?;
    let cpu = GuestCpu::new(&vm, config, template)?;
    let vcpu = vm.create_vcpu(0)?;
    cpu.set_up(&vcpu, 0)?;
    let leaves =
        vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(io::Error::from).doing(|| "read the CPUID of a vCPU")?;
    let known = vm.kvm().get_msr_index_list().map_err(io::Error::from).doing(|| "list the MSRs that KVM has")?;
    let mut msrs: Vec<u32> = known.as_slice().iter().copied().filter(|index| !is_of_the_moment(*index)).collect();
    // Features of the CPU that KVM lists elsewhere.
    msrs.extend([msr::IA32_ARCH_CAPABILITIES].iter().filter(|index| !msrs.contains(index)).collect::<Vec<_>>());
    msrs.sort_unstable();
    let cpuid_modifiers = filled(leaves.as_slice()).iter().map(describe).collect();
    let msr_modifiers = msrs.into_iter().filter_map(|index| {
        let mut entries = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
        let read = vcpu.get_msrs(&mut entries).ok()?;
        let data = entries.as_slice().first().filter(|_| read == 1)?.data;
        Some(MsrModifier { addr: format!("{index:#x}"), bitmap: format!("0b{data:064b}") })
    });
    Ok(CpuConfig { kvm_capabilities: Vec::new(), cpuid_modifiers, msr_modifiers: msr_modifiers.collect() })
}

/// Without the places at the end that KVM_GET_CPUID2 left empty: Linux 6.1 does not say how many it filled.
fn filled(leaves: &[kvm_cpuid_entry2]) -> &[kvm_cpuid_entry2] {
    let count = leaves.iter().rposition(|leaf| *leaf != kvm_cpuid_entry2::default()).map_or(0, |last| last + 1);
    leaves.get(..count).unwrap_or_default()
}

fn describe(leaf: &kvm_cpuid_entry2) -> CpuidModifier {
    let register = |register, value: u32| RegisterModifier { register, bitmap: format!("0b{value:032b}") };
    CpuidModifier {
        leaf: format!("{:#x}", leaf.function),
        subleaf: format!("{:#x}", leaf.index),
        flags: leaf.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        modifiers: vec![
            register(Register::Eax, leaf.eax),
            register(Register::Ebx, leaf.ebx),
            register(Register::Ecx, leaf.ecx),
            register(Register::Edx, leaf.edx),
        ],
    }
}

/// MSRs that say nothing about the CPU: clocks and counters, the interrupt controller's place, and addresses in the guest's
/// memory, of KVM's own (Linux, Documentation/virt/kvm/x86/msr.rst) and Hyper-V's.
fn is_of_the_moment(index: u32) -> bool {
    const TIME_STAMP_COUNTER: u32 = 0x10;
    const APIC_BASE: u32 = 0x1b;
    const TSC_ADJUST: u32 = 0x3b;
    const TSC_DEADLINE: u32 = 0x6e0;
    matches!(
        index,
        TIME_STAMP_COUNTER | APIC_BASE | TSC_ADJUST | TSC_DEADLINE
            | 0x11 | 0x12                   // KVM_WALL_CLOCK, KVM_SYSTEM_TIME
            | 0x4000_0000..=0x4000_01ff     // Hyper-V's
            | 0x4b56_4d00..=0x4b56_4dff // KVM's
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_that_kvm_left_empty_are_no_leaves() {
        let leaf = |function, eax| kvm_cpuid_entry2 { function, eax, ..Default::default() };
        let got = [leaf(0, 13), leaf(1, 0), leaf(2, 0), leaf(0, 0), leaf(0, 0)];
        assert_eq!(filled(&got), &[leaf(0, 13), leaf(1, 0), leaf(2, 0)]);
        assert_eq!(filled(&got[..2]), &got[..2]);
        assert_eq!(filled(&got[3..]), &[]);
    }

    #[test]
    fn a_leaf_is_described_to_the_last_bit() {
        let leaf = kvm_cpuid_entry2 { function: 7, index: 1, flags: 1, eax: 5, edx: 1 << 31, ..Default::default() };
        let said = serde_json::to_value(describe(&leaf)).unwrap();
        assert_eq!((&said["leaf"], &said["subleaf"], &said["flags"]), (&json!("0x7"), &json!("0x1"), &json!(1)));
        assert_eq!(said["modifiers"][0], json!({ "register": "eax", "bitmap": format!("0b{:032b}", 5) }));
        assert_eq!(said["modifiers"][3]["bitmap"], format!("0b1{}", "0".repeat(31)));
    }

    /// What a guest would see, given back as a template, is seen again. Without /dev/kvm it is said that there is none.
    #[test]
    fn a_dump_is_a_template_of_itself() {
        let document = json!({ "boot-source": { "kernel_image_path": "k" } });
        let mut config: VmConfig = serde_json::from_value(document).unwrap();
        let first = match (dump(&config), Kvm::new()) {
            (first, Ok(_)) => first.unwrap(),
            (first, Err(_)) => {
                assert!(first.unwrap_err().to_string().starts_with("open /dev/kvm"));
                return;
            }
        };
        assert!(first.cpuid_modifiers.iter().any(|leaf| leaf.leaf == "0x1"));
        config.cpu_config = Some(CpuConfig { msr_modifiers: Vec::new(), ..first.clone() });
        assert_eq!(config.validate(), []);
        assert_eq!(dump(&config).unwrap(), first);

        // The entry of SYSCALL: any processor's, of any value.
        let lstar = MsrModifier { addr: "0xc0000082".into(), bitmap: "0b1x1".into() };
        config.cpu_config = Some(CpuConfig { msr_modifiers: vec![lstar], ..Default::default() });
        let second = dump(&config).unwrap();
        let find = |cpu: &CpuConfig| {
            let found = cpu.msr_modifiers.iter().find(|msr| msr.addr == "0xc0000082");
            u64::from_str_radix(found.unwrap().bitmap.trim_start_matches("0b"), 2).unwrap()
        };
        assert_eq!(find(&second), find(&first) | 0b101);
        let absent = MsrModifier { addr: "0x7fffffff".into(), bitmap: "0b1".into() };
        config.cpu_config = Some(CpuConfig { msr_modifiers: vec![absent], ..Default::default() });
        let refused = crate::error::chain(&dump(&config).unwrap_err());
        assert_eq!(refused, "change MSR 0x7fffffff (cpu-config): this host's KVM does not have it");
    }
}
