//! CPU templates: changes of the CPUID and MSRs that KVM offers, made before this monitor's own.
//!
//! Pure but for [`Template::set_msrs`]; the control thread uses it. Sources: Firecracker, docs/cpu_templates;
//! Linux, Documentation/virt/kvm/api.rst, 4.20 (KVM_SET_MSRS) and 4.46 (KVM_GET_SUPPORTED_CPUID).

pub mod fixed;

use kvm_bindings::{Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cpuid;
use crate::error::{Doing, HostError};

/// Everything that a template changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Capabilities of KVM to ask for, or not.
    pub capabilities: Vec<CapabilityCheck>,
    /// Changes of CPUID.
    pub cpuid: Vec<CpuidChange>,
    /// Changes of MSRs.
    pub msrs: Vec<MsrChange>,
}

/// Whether the host must have a capability of KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapabilityCheck {
    /// KVM_CAP_*.
    pub number: u32,
    /// `false`: the machine is made without it, whatever this monitor itself asks for.
    pub needed: bool,
}

/// Changes of one leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuidChange {
    /// EAX.
    pub leaf: u32,
    /// ECX.
    pub subleaf: u32,
    /// KVM_CPUID_FLAG_*, instead of KVM's.
    pub flags: u32,
    /// Changes of its registers.
    pub registers: Vec<(Register, Bitmap)>,
}

/// A change of an MSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrChange {
    /// Its number.
    pub addr: u32,
    /// The change.
    pub bitmap: Bitmap,
}

/// A register that CPUID fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Bits to set and bits to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bitmap {
    /// The bits that change.
    pub mask: u64,
    /// What they become; 0 outside of the mask.
    pub value: u64,
}

impl Bitmap {
    /// Reads `0b01x`; `_` may stand between the digits.
    pub fn parse(text: &str, bits: usize) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no bitmap; one is 0b and up to {bits} of 0, 1 and x");
        let digits = text.strip_prefix("0b").ok_or_else(wrong)?;
        let count = digits.chars().filter(|digit| *digit != '_').count();
        if count > bits {
            return Err(format!("has {count} digits; at most {bits} fit"));
        }
        let mut read = Self::default();
        for digit in digits.chars().filter(|digit| *digit != '_') {
            let (mask, value) = match digit {
                '0' => (1, 0),
                '1' => (1, 1),
                'x' => (0, 0),
                _ => return Err(wrong()),
            };
            read = Self { mask: read.mask << 1 | mask, value: read.value << 1 | value };
        }
        if count == 0 { Err(wrong()) } else { Ok(read) }
    }

    /// The value after the change.
    pub fn apply(self, value: u64) -> u64 {
        (value & !self.mask) | self.value
    }

    fn apply_to(self, register: &mut u32) {
        // A bitmap of CPUID has 32 bits.
        *register = self.apply((*register).into()) as u32;
    }
}

/// Reads a number as Firecracker's templates write them: `0x10a`, `0b1`, and `7` besides.
pub fn number(text: &str) -> Result<u32, String> {
    let radix = |digits, radix| u32::from_str_radix(digits, radix);
    let read = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
        _ if text.contains(['+', '-']) => None,
        (Some(digits), _) => radix(digits, 16).ok(),
        (_, Some(digits)) => radix(digits, 2).ok(),
        _ => radix(text, 10).ok(),
    };
    read.ok_or_else(|| format!("`{text}` is no number of 32 bits; 0x10a, 0b1 or 7 is one"))
}

impl Template {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The first change whose leaf KVM does not have, as its place among them. Leaves that describe the topology are this
    /// monitor's own, there or not: what a template says of them has no effect.
    pub fn missing_leaf(&self, supported: &[kvm_cpuid_entry2]) -> Option<(usize, &CpuidChange)> {
        let there = |change: &CpuidChange| {
            cpuid::is_rebuilt(change.leaf) || supported.iter().any(|leaf| is_leaf_of(leaf, change))
        };
        self.cpuid.iter().enumerate().find(|(_, change)| !there(change))
    }

    /// Changes what KVM supports into what the guest shall see. Leaves that are not there are left out.
    pub fn apply(&self, supported: &mut [kvm_cpuid_entry2]) {
        for change in &self.cpuid {
            for leaf in supported.iter_mut().filter(|leaf| is_leaf_of(leaf, change)) {
                leaf.flags = change.flags;
                for (register, bitmap) in &change.registers {
                    bitmap.apply_to(match register {
                        Register::Eax => &mut leaf.eax,
                        Register::Ebx => &mut leaf.ebx,
                        Register::Ecx => &mut leaf.ecx,
                        Register::Edx => &mut leaf.edx,
                    });
                }
            }
        }
    }

    /// Changes the MSRs of a vCPU from what they are.
    pub fn set_msrs(&self, vcpu: &VcpuFd) -> Result<(), HostError> {
        for change in &self.msrs {
            let doing = || format!("change MSR {:#x} (cpu-config)", change.addr);
            let entry = kvm_msr_entry { index: change.addr, ..Default::default() };
            let mut msrs = Msrs::from_entries(&[entry]).doing(doing)?;
            if vcpu.get_msrs(&mut msrs).doing(doing)? != 1 {
                return Err(HostError::new(doing(), "this host's KVM does not have it"));
            }
            for entry in msrs.as_mut_slice() {
                entry.data = change.bitmap.apply(entry.data);
            }
            if vcpu.set_msrs(&msrs).doing(doing)? != 1 {
                return Err(HostError::new(doing(), "this host's KVM refuses the value"));
            }
        }
        Ok(())
    }
}

fn is_leaf_of(leaf: &kvm_cpuid_entry2, change: &CpuidChange) -> bool {
    leaf.function == change.leaf && leaf.index == change.subleaf
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: 0xffff_ffff, ..Default::default() }
    }

    fn change(leaf: u32, subleaf: u32, register: Register, bitmap: &str) -> CpuidChange {
        let bitmap = Bitmap::parse(bitmap, 32).unwrap();
        CpuidChange { leaf, subleaf, flags: 1, registers: vec![(register, bitmap)] }
    }

    #[test]
    fn numbers_are_of_three_kinds() {
        for (text, value) in [("0x10a", 0x10a), ("0b101", 5), ("17", 17), ("0xFFFFFFFF", u32::MAX)] {
            assert_eq!(number(text), Ok(value));
        }
        for text in ["", "0x", "0b2", "0x100000000", "-1", "+1", "0x+1", "1 "] {
            assert!(number(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bitmaps_leave_what_they_do_not_name() {
        let bitmap = Bitmap::parse("0b1x0", 32).unwrap();
        assert_eq!((bitmap.apply(0b0011), bitmap.apply(0b1000)), (0b0110, 0b1100));
        let full = Bitmap::parse(&format!("0b{}", "10".repeat(32)), 64).unwrap();
        assert_eq!((full.mask, full.apply(0)), (u64::MAX, 0xaaaa_aaaa_aaaa_aaaa));
        for text in ["", "0b", "0b_", "b1", "0b1y", "0bX"] {
            assert!(Bitmap::parse(text, 32).is_err(), "{text}");
        }
        assert!(Bitmap::parse(&format!("0b{}", "1".repeat(33)), 32).is_err());
    }

    #[test]
    fn only_the_leaf_and_subleaf_that_are_named_change() {
        let mut leaves = [leaf(1, 0), leaf(7, 0), leaf(7, 1)];
        let cpuid = vec![change(7, 1, Register::Eax, "0b0"), change(1, 0, Register::Edx, "0b1x")];
        let template = Template { cpuid, ..Default::default() };
        assert_eq!(template.missing_leaf(&leaves), None);
        template.apply(&mut leaves);
        assert_eq!(leaves.map(|leaf| (leaf.eax, leaf.edx)), [(u32::MAX, 2), (u32::MAX, 0), (u32::MAX - 1, 0)]);
        assert_eq!(leaves[0].flags, 1);
    }

    #[test]
    fn a_leaf_that_is_not_there_is_found_but_topology_is_ours() {
        let cpuid = vec![change(0xb, 0, Register::Eax, "0b0"), change(0x19, 2, Register::Eax, "0b0")];
        let template = Template { cpuid, ..Default::default() };
        let (place, missing) = template.missing_leaf(&[leaf(0x19, 0)]).unwrap();
        assert_eq!((place, missing.leaf, missing.subleaf), (1, 0x19, 2));
    }
}
