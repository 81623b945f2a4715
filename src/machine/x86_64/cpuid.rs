//! CPU identification: what the host offers, cut and completed for one vCPU.
//!
//! Pure: a list of leaves in, a list of leaves out; the control thread calls it once per vCPU. Sources: Intel SDM vol. 2
//! CPUID; AMD APM vol. 3 appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst for the leaves at 0x4000_0000.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Where one vCPU sits among its siblings. The APIC id is the vCPU's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs of the VM, all in one package.
    pub cpus: u32,
    /// Hardware threads per core: 1 or 2.
    pub threads_per_core: u32,
}

impl Topology {
    fn cores(self) -> u32 {
        self.cpus.div_ceil(self.threads_per_core)
    }

    /// Bits of the APIC id below the core number.
    fn thread_bits(self) -> u32 {
        self.threads_per_core.next_power_of_two().trailing_zeros()
    }

    /// Bits of the APIC id below the package number.
    fn package_bits(self) -> u32 {
        self.cpus.next_power_of_two().trailing_zeros()
    }
}

/// The leaves of vCPU `id`, from those that KVM supports on this host (KVM_GET_SUPPORTED_CPUID).
pub fn leaves(
    supported: &[kvm_cpuid_entry2],
    id: u32,
    topology: Topology,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let amd = is_amd(supported);
    let mut leaves: Vec<_> = supported.iter().filter(|leaf| !is_rebuilt(leaf.function)).copied().collect();
    for leaf in &mut leaves {
        edit(leaf, id, topology, tsc_deadline, amd);
    }
    leaves.extend(extended_topology(0xb, id, topology));
    if highest(supported, 0) >= 0x1f {
        leaves.extend(extended_topology(0x1f, id, topology));
    }
    if amd {
        leaves.extend(amd_caches(topology, highest(supported, 0x8000_0000)));
        leaves.push(amd_topology(id, topology));
    }
    leaves
}

/// Bits of a guest-physical address, as KVM says (leaf 0x8000_0008): EAX 23:16 where it sets them, else those of the
/// processor, EAX 7:0.
pub fn address_bits(supported: &[kvm_cpuid_entry2]) -> u32 {
    const WITHOUT_THE_LEAF: u32 = 36;
    let eax = supported.iter().find(|leaf| leaf.function == 0x8000_0008).map_or(WITHOUT_THE_LEAF, |leaf| leaf.eax);
    match (eax >> 16 & 0xff, eax & 0xff) {
        (0, bits) => bits,
        (guest, _) => guest,
    }
}

/// Leaves that are written anew rather than edited.
pub(super) fn is_rebuilt(function: u32) -> bool {
    matches!(function, 0xb | 0x1f | 0x8000_001d | 0x8000_001e)
}

fn is_amd(supported: &[kvm_cpuid_entry2]) -> bool {
    // "AuthenticAMD" or "HygonGenuine", by EBX.
    supported.iter().any(|leaf| leaf.function == 0 && matches!(leaf.ebx, 0x6874_7541 | 0x6f67_7948))
}

fn highest(supported: &[kvm_cpuid_entry2], base: u32) -> u32 {
    supported.iter().find(|leaf| leaf.function == base).map_or(0, |leaf| leaf.eax)
}

fn edit(leaf: &mut kvm_cpuid_entry2, id: u32, topology: Topology, tsc_deadline: bool, amd: bool) {
    match leaf.function {
        // The extended topology leaf must be within the range that is announced.
        0x0 => leaf.eax = leaf.eax.max(0xb),
        0x1 => edit_features(leaf, id, topology, tsc_deadline),
        0x4 => edit_cache(leaf, topology),
        // Architectural performance counters are not offered: they would tie the guest to this host.
        0xa => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        0x8000_0000 if amd => leaf.eax = leaf.eax.max(0x8000_001e),
        0x8000_0001 if amd => {
            set(&mut leaf.ecx, 1, topology.cpus > 1); // CmpLegacy
            set(&mut leaf.ecx, 22, true); // TopologyExtensions
            set(&mut leaf.ecx, 23, false); // PerfCtrExtCore
        }
        0x8000_0008 if amd => leaf.ecx = (topology.package_bits() << 12) | (topology.cpus - 1).min(0xff),
        _ => {}
    }
}

fn edit_features(leaf: &mut kvm_cpuid_entry2, id: u32, topology: Topology, tsc_deadline: bool) {
    const CLFLUSH_QUADWORDS: u32 = 8;
    let siblings = topology.cpus.next_power_of_two().min(0xff);
    leaf.ebx = (leaf.ebx & 0xff) | (CLFLUSH_QUADWORDS << 8) | (siblings << 16) | ((id & 0xff) << 24);
    set(&mut leaf.ecx, 21, true); // x2APIC
    set(&mut leaf.ecx, 24, tsc_deadline);
    set(&mut leaf.ecx, 31, true); // hypervisor present
    set(&mut leaf.edx, 28, topology.cpus > 1); // HTT
}

/// Deterministic cache parameters: who shares a cache, and how many cores a package has.
fn edit_cache(leaf: &mut kvm_cpuid_entry2, topology: Topology) {
    if leaf.eax & 0x1f == 0 {
        return;
    }
    let level = (leaf.eax >> 5) & 0x7;
    let sharing = if level < 3 { topology.threads_per_core } else { topology.cpus.next_power_of_two() };
    let cores = topology.cores().next_power_of_two();
    leaf.eax = (leaf.eax & 0x3fff) | ((sharing - 1) << 14) | ((cores - 1).min(0x3f) << 26);
}

/// Leaf 0xB or 0x1F: the levels thread, core and "no more".
fn extended_topology(function: u32, id: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const LEVEL_SMT: u32 = 1 << 8;
    const LEVEL_CORE: u32 = 2 << 8;
    let level = |index: u32, eax: u32, ebx: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | kind,
        edx: id,
        ..Default::default()
    };
    [
        level(0, topology.thread_bits(), topology.threads_per_core, LEVEL_SMT),
        level(1, topology.package_bits(), topology.cpus, LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

/// Leaf 0x8000_001D: the host's caches, shared as the VM's topology says. KVM does not report this leaf.
fn amd_caches(topology: Topology, host_highest: u32) -> Vec<kvm_cpuid_entry2> {
    let mut leaves = Vec::new();
    if host_highest >= 0x8000_001d {
        for index in 0..8 {
            let host = __cpuid_count(0x8000_001d, index);
            let mut leaf = kvm_cpuid_entry2 {
                function: 0x8000_001d,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: host.eax & 0x03ff,
                ebx: host.ebx,
                ecx: host.ecx,
                edx: host.edx,
                ..Default::default()
            };
            edit_cache(&mut leaf, topology);
            leaf.eax &= 0x03ff_ffff; // bits 31:26 are reserved on AMD
            leaves.push(leaf);
            if host.eax & 0x1f == 0 {
                break;
            }
        }
    }
    leaves
}

/// Leaf 0x8000_001E: APIC id, core, threads per core, one node.
fn amd_topology(id: u32, topology: Topology) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: 0x8000_001e,
        eax: id,
        ebx: ((id >> topology.thread_bits()) & 0xff) | ((topology.threads_per_core - 1) << 8),
        ..Default::default()
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = (*register & !(1 << bit)) | (u32::from(on) << bit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn intel() -> Vec<kvm_cpuid_entry2> {
        let l3 = 3 | (3 << 5);
        vec![
            leaf(0, 0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            leaf(1, 0x806f8, 0x0010_0800, 0, 0),
            leaf(4, 1 | (1 << 5), 0, 0, 0),
            leaf(4, l3, 0, 0, 0),
            leaf(0xa, 0x0730_0405, 0, 0, 0x603),
            leaf(0xb, 1, 2, 3, 4),
            leaf(0x4000_0000, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
        ]
    }

    fn amd() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            leaf(1, 0, 0, 0, 0),
            leaf(0x8000_0000, 0x8000_0008, 0, 0, 0),
            leaf(0x8000_0001, 0, 0, 1 << 23, 0),
            leaf(0x8000_0008, 0x3030, 0, 0xffff, 0),
        ]
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *leaves.iter().filter(|leaf| leaf.function == function).nth(index as usize).unwrap()
    }

    #[test]
    fn leaf_1_names_the_cpu_and_its_siblings() {
        let topology = Topology { cpus: 4, threads_per_core: 1 };
        let one = find(&leaves(&intel(), 3, topology, true), 1, 0);
        assert_eq!(one.ebx >> 24, 3);
        assert_eq!((one.ebx >> 16) & 0xff, 4);
        assert_eq!(one.edx >> 28 & 1, 1);
        assert_eq!((one.ecx >> 21 & 1, one.ecx >> 24 & 1, one.ecx >> 31), (1, 1, 1));
        let alone = find(&leaves(&intel(), 0, Topology { cpus: 1, threads_per_core: 1 }, false), 1, 0);
        assert_eq!((alone.edx >> 28 & 1, alone.ecx >> 24 & 1), (0, 0));
    }

    #[test]
    fn topology_leaves_agree() {
        for (cpus, threads, core_bits, package_bits) in [(1, 1, 0, 0), (2, 2, 1, 1), (6, 1, 0, 3), (8, 2, 1, 3)] {
            let topology = Topology { cpus, threads_per_core: threads };
            for id in 0..cpus {
                let leaves = leaves(&intel(), id, topology, true);
                for function in [0xb, 0x1f] {
                    let (smt, core) = (find(&leaves, function, 0), find(&leaves, function, 1));
                    assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (core_bits, threads, 0x100, id));
                    assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (package_bits, cpus, 0x201, id));
                    assert_eq!(find(&leaves, function, 2).ecx, 2);
                    assert_eq!(leaves.iter().filter(|leaf| leaf.function == function).count(), 3);
                }
            }
        }
    }

    #[test]
    fn caches_are_shared_as_the_topology_says() {
        let leaves = leaves(&intel(), 0, Topology { cpus: 4, threads_per_core: 2 }, true);
        let (l1, l3) = (find(&leaves, 4, 0), find(&leaves, 4, 1));
        assert_eq!((l1.eax >> 14 & 0xfff, l1.eax >> 26), (1, 1));
        assert_eq!((l3.eax >> 14 & 0xfff, l3.eax >> 26), (3, 1));
    }

    #[test]
    fn performance_counters_are_hidden_and_kvm_leaves_kept() {
        let leaves = leaves(&intel(), 0, Topology { cpus: 1, threads_per_core: 1 }, true);
        assert_eq!(find(&leaves, 0xa, 0).eax, 0);
        assert_eq!(find(&leaves, 0x4000_0000, 0).ebx, 0x4b4d_564b);
    }

    #[test]
    fn amd_leaves_are_complete() {
        let leaves = leaves(&amd(), 5, Topology { cpus: 8, threads_per_core: 2 }, true);
        assert_eq!(find(&leaves, 0x8000_0000, 0).eax, 0x8000_001e);
        let features = find(&leaves, 0x8000_0001, 0);
        assert_eq!((features.ecx >> 1 & 1, features.ecx >> 22 & 1, features.ecx >> 23 & 1), (1, 1, 0));
        assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, (3 << 12) | 7);
        let unit = find(&leaves, 0x8000_001e, 0);
        assert_eq!((unit.eax, unit.ebx, unit.ecx), (5, 2 | (1 << 8), 0));
        assert_eq!(find(&leaves, 0, 0).eax, 0xd);
    }
}
