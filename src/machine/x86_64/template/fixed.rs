//! Firecracker's static CPU templates, as tables: which bits of which registers they clear and set.
//!
//! Source: Firecracker, docs/cpu_templates/cpu-templates.md, and what its releases do to each register (values are facts
//! to be compatible with). Names of bits: Intel SDM vol. 2, CPUID; vol. 4, IA32_ARCH_CAPABILITIES.

use std::arch::x86_64::__cpuid;

use super::{Bitmap, CpuidChange, MsrChange, Register, Template};
use crate::config::TemplateName;
use crate::x86_64::msr::IA32_ARCH_CAPABILITIES;

/// Family, model, type and stepping in EAX of leaf 1.
const VERSION: u64 = 0x0fff_3fff;
const HASWELL: u64 = 0x0003_06f2;
const IVY_BRIDGE: u64 = 0x0003_06e4;

/// Changes of one register: leaf, subleaf, register, bits to clear, bits to set.
struct Row(u32, u32, Register, &'static [u32], &'static [u32]);

use Register::{Eax, Ebx, Ecx, Edx};

/// What T2, T2S, T2CL and T2A share.
const T2: [Row; 7] = [
    // DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA
    Row(0x1, 0, Ecx, &[2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 18], &[]),
    // PSN, DS, ACPI, SS, TM, IA-64, PBE; MCE and MTRR are there
    Row(0x1, 0, Edx, &[18, 21, 22, 27, 29, 30, 31], &[7, 12]),
    // SGX, HLE, RTM, RDT-M, MPX, RDT-A, AVX512F, AVX512DQ, RDSEED, ADX, AVX512_IFMA, PCOMMIT, CLFLUSHOPT, CLWB, processor
    // trace, AVX512PF, ER and CD, SHA, AVX512BW and VL; ERMS is there
    Row(0x7, 0, Ebx, &[2, 4, 11, 12, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], &[9]),
    // AVX512_VBMI, UMIP, PKU, OSPKE, AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_VNNI and BITALG, VPOPCNTDQ, LA57, RDPID,
    // SGX_LC
    Row(0x7, 0, Ecx, &[1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 14, 16, 22, 30], &[]),
    // AVX512_4VNNIW, AVX512_4FMAPS, FSRM, AVX512_VP2INTERSECT
    Row(0x7, 0, Edx, &[2, 3, 4, 8], &[]),
    XCR0,
    XSAVE,
];
/// State of MPX, AVX-512 and PKRU in XCR0.
const XCR0: Row = Row(0xd, 0, Eax, &[3, 4, 5, 6, 7, 9], &[]);
/// XSAVEC, XGETBV with ECX = 1, XSAVES.
const XSAVE: Row = Row(0xd, 1, Eax, &[1, 2, 3], &[]);
/// WBNOINVD.
const NO_WBNOINVD: Row = Row(0x8000_0008, 0, Ebx, &[9], &[]);

/// T2 and T2S: PREFETCHW, MONITORX; 1-GByte pages.
const T2_INTEL: [Row; 3] = [Row(0x8000_0001, 0, Ecx, &[8, 29], &[]), Row(0x8000_0001, 0, Edx, &[26], &[]), NO_WBNOINVD];

/// T2CL and T2A: SSE4A, MisAlignSse, PREFETCHW, MONITORX; MmxExt, MMX, FXSR, FFXSR, 1-GByte pages.
const PARITY: [Row; 2] =
    [Row(0x8000_0001, 0, Ecx, &[6, 7, 8, 29], &[]), Row(0x8000_0001, 0, Edx, &[22, 23, 24, 25, 26], &[])];

/// T2A: CLZERO, RstrFpErrPtrs, WBNOINVD; IbrsPreferred and IbrsSameMode are there.
const T2A: Row = Row(0x8000_0008, 0, Ebx, &[0, 2, 9], &[18, 19]);

const C3: [Row; 9] = [
    // DTES64, MONITOR, DS-CPL, VMX, TM2, CNXT-ID, SDBG, FMA, xTPR, PDCM, MOVBE
    Row(0x1, 0, Ecx, &[2, 3, 4, 5, 8, 10, 11, 12, 14, 15, 22], &[]),
    // PSN, DS, ACPI, SS, TM, PBE; MCE and MTRR are there
    Row(0x1, 0, Edx, &[18, 21, 22, 27, 29, 31], &[7, 12]),
    // SGX, BMI1, HLE, AVX2, BMI2, INVPCID, RTM, RDT-M, MPX, RDT-A, AVX512F, AVX512DQ, RDSEED, ADX, AVX512_IFMA, CLFLUSHOPT,
    // CLWB, processor trace, AVX512PF, ER and CD, SHA, AVX512BW and VL
    Row(0x7, 0, Ebx, &[2, 3, 4, 5, 8, 10, 11, 12, 14, 15, 16, 17, 18, 19, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31], &[]),
    // AVX512_VBMI, UMIP, PKU, OSPKE, AVX512_VNNI, VPOPCNTDQ, LA57, RDPID, SGX_LC
    Row(0x7, 0, Ecx, &[1, 2, 3, 4, 11, 14, 16, 22, 30], &[]),
    // AVX512_4VNNIW, AVX512_4FMAPS
    Row(0x7, 0, Edx, &[2, 3], &[]),
    XCR0,
    XSAVE,
    // LZCNT, PREFETCHW
    Row(0x8000_0001, 0, Ecx, &[5, 8], &[]),
    // 1-GByte pages
    Row(0x8000_0001, 0, Edx, &[26], &[]),
];

/// T2S: exactly RSBA, SKIP_L1DFL_VMENTRY, IF_PSCHANGE_MC_NO, MISC_PACKAGE_CTLS, ENERGY_FILTERING_CTL, RRSBA, GDS_NO.
const T2S_CAPABILITIES: Bitmap = Bitmap { mask: u64::MAX, value: bits(&[2, 3, 6, 10, 11, 19, 26]) };
/// T2CL: what names a mitigation stays the host's; all else is cleared (MCU_CONTROL, MISC_PACKAGE_CTLS,
/// ENERGY_FILTERING_CTL, DOITM, FB_CLEAR_CTRL, BHI_NO, XAPIC_DISABLE_STATUS, OVERCLOCKING_STATUS, GDS_CTRL, reserved bits).
const T2CL_CAPABILITIES: Bitmap = {
    let kept = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 17, 19, 24, 26, 27]);
    Bitmap { mask: !kept, value: 0 }
};

const fn bits(list: &[u32]) -> u64 {
    let (mut bits, mut place) = (0, 0);
    while place < list.len() {
        bits |= 1 << list[place];
        place += 1;
    }
    bits
}

/// The template of this name; none for `None`.
pub fn template(name: TemplateName) -> Option<Template> {
    let capabilities = |bitmap| vec![MsrChange { addr: IA32_ARCH_CAPABILITIES, bitmap }];
    let (version, rows, msrs): (_, Vec<&[Row]>, _) = match name {
        TemplateName::None => return None,
        TemplateName::C3 => (IVY_BRIDGE, vec![&C3], Vec::new()),
        TemplateName::T2 => (HASWELL, vec![&T2, &T2_INTEL], Vec::new()),
        TemplateName::T2S => (HASWELL, vec![&T2, &T2_INTEL], capabilities(T2S_CAPABILITIES)),
        TemplateName::T2CL => (HASWELL, vec![&T2, &PARITY, &[NO_WBNOINVD]], capabilities(T2CL_CAPABILITIES)),
        TemplateName::T2A => (HASWELL, vec![&T2, &PARITY, &[T2A]], Vec::new()),
    };
    let mut cpuid = vec![change(0x1, 0, Eax, Bitmap { mask: VERSION, value: version })];
    cpuid.extend(rows.into_iter().flatten().map(|Row(leaf, subleaf, register, clear, set)| {
        change(*leaf, *subleaf, *register, Bitmap { mask: bits(clear) | bits(set), value: bits(set) })
    }));
    Some(Template { capabilities: Vec::new(), cpuid, msrs })
}

fn change(leaf: u32, subleaf: u32, register: Register, bitmap: Bitmap) -> CpuidChange {
    // KVM_CPUID_FLAG_SIGNIFCANT_INDEX for the leaves that have subleaves.
    CpuidChange { leaf, subleaf, flags: u32::from(matches!(leaf, 0x7 | 0xd)), registers: vec![(register, bitmap)] }
}

/// A processor's maker and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCpu {
    /// EBX, EDX and ECX of leaf 0, as text.
    pub vendor: [u8; 12],
    /// EAX of leaf 1.
    pub version: u32,
}

impl HostCpu {
    /// The one that this runs on.
    pub fn this() -> Self {
        let name = __cpuid(0);
        let mut vendor = [0; 12];
        for (part, register) in vendor.chunks_mut(4).zip([name.ebx, name.edx, name.ecx]) {
            part.copy_from_slice(&register.to_le_bytes());
        }
        Self { vendor, version: __cpuid(1).eax }
    }

    /// Why a template is not for this processor.
    pub fn refuses(&self, name: TemplateName) -> Option<String> {
        /// Extended family, extended model, family, model, stepping: what is newer is greater.
        fn order(version: u32) -> [u32; 5] {
            [version >> 20 & 0xff, version >> 16 & 0xf, version >> 8 & 0xf, version >> 4 & 0xf, version & 0xf]
        }
        const CASCADE_LAKE: u32 = 0x0005_0657;
        let (wanted, maker): (&[u8; 12], _) = match name {
            TemplateName::None => return None,
            TemplateName::T2A => (b"AuthenticAMD", "AMD"),
            _ => (b"GenuineIntel", "Intel"),
        };
        if self.vendor != *wanted {
            let vendor = String::from_utf8_lossy(&self.vendor);
            return Some(format!("{name:?} is for {maker} processors; this host has one of {vendor}"));
        }
        let old = name == TemplateName::T2CL && order(self.version) < order(CASCADE_LAKE);
        old.then(|| {
            format!("{name:?} is for Cascade Lake or newer; this host's processor is older ({:#x})", self.version)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (mask, value) that a template has for a register of CPUID.
    fn of(name: TemplateName, leaf: u32, subleaf: u32, register: Register) -> (u64, u64) {
        let template = template(name).unwrap();
        let mut found = template.cpuid.iter().filter(|change| (change.leaf, change.subleaf) == (leaf, subleaf));
        let change = found.find_map(|change| change.registers.iter().find(|(of, _)| *of == register)).unwrap();
        (change.1.mask, change.1.value)
    }

    /// The values in the notation of Firecracker's sources.
    #[test]
    fn the_tables_are_firecrackers() {
        use TemplateName::{C3, T2, T2A, T2CL, T2S};
        assert_eq!(of(C3, 1, 0, Eax), (0b0000_1111_1111_1111_0011_1111_1111_1111, 0x0003_06e4));
        assert_eq!(of(C3, 1, 0, Ecx).0, 0b0000_0000_0100_0000_1101_1101_0011_1100);
        assert_eq!(of(C3, 1, 0, Edx).0, 0b1010_1000_0110_0100_0001_0000_1000_0000);
        assert_eq!(of(C3, 7, 0, Ebx), (0b1111_1111_1010_1111_1101_1101_0011_1100, 0));
        assert_eq!(of(C3, 7, 0, Ecx).0, 0b0100_0000_0100_0001_0100_1000_0001_1110);
        assert_eq!(of(C3, 7, 0, Edx).0, 0b1100);
        assert_eq!(of(C3, 0x8000_0001, 0, Ecx).0, 0b1_0010_0000);
        for name in [T2, T2S, T2CL, T2A] {
            assert_eq!(of(name, 1, 0, Eax), (0x0fff_3fff, 0x0003_06f2));
            assert_eq!(of(name, 1, 0, Ecx), (0b0000_0000_0000_0100_1100_1101_1111_1100, 0));
            let edx = (0b1110_1000_0110_0100_0001_0000_1000_0000, 0b0001_0000_1000_0000);
            assert_eq!(of(name, 1, 0, Edx), edx);
            assert_eq!(of(name, 7, 0, Ebx), (0b1111_1111_1110_1111_1101_1010_0001_0100, 0b0010_0000_0000));
            assert_eq!(of(name, 7, 0, Ecx), (0b0100_0000_0100_0001_0101_1111_0101_1110, 0));
            assert_eq!(of(name, 7, 0, Edx), (0b0001_0001_1100, 0));
            assert_eq!(of(name, 0xd, 0, Eax), (0b0010_1111_1000, 0));
            assert_eq!(of(name, 0xd, 1, Eax), (0b1110, 0));
        }
        assert_eq!(of(T2, 0x8000_0001, 0, Ecx).0, 0b0010_0000_0000_0000_0000_0001_0000_0000);
        assert_eq!(of(T2CL, 0x8000_0001, 0, Ecx).0, 0b0010_0000_0000_0000_0000_0001_1100_0000);
        assert_eq!(of(T2A, 0x8000_0001, 0, Edx).0, 0b0000_0111_1100_0000_0000_0000_0000_0000);
        assert_eq!(of(T2A, 0x8000_0008, 0, Ebx), (0b1100_0000_0010_0000_0101, 0b1100_0000_0000_0000_0000));
        assert_eq!(of(T2CL, 0x8000_0008, 0, Ebx), (0b0010_0000_0000, 0));
        let msr = |name| template(name).unwrap().msrs.first().map(|change| (change.addr, change.bitmap));
        let t2s = Bitmap { mask: u64::MAX, value: 0b0100_0000_1000_0000_1100_0100_1100 };
        assert_eq!(msr(T2S), Some((0x10a, t2s)));
        let low = 0b1111_0010_1111_0101_0001_1110_0000_0000;
        assert_eq!(msr(T2CL), Some((0x10a, Bitmap { mask: 0xffff_ffff_0000_0000 | low, value: 0 })));
        assert_eq!((msr(T2), msr(T2A), msr(C3)), (None, None, None));
        assert_eq!(template(TemplateName::None), None);
    }

    #[test]
    fn each_is_for_its_own_processors() {
        let cpu = |vendor: &[u8; 12], version| HostCpu { vendor: *vendor, version };
        let (skylake, cascade) = (cpu(b"GenuineIntel", 0x50654), cpu(b"GenuineIntel", 0x50657));
        let (sapphire, milan) = (cpu(b"GenuineIntel", 0x806f8), cpu(b"AuthenticAMD", 0x00a0_0f11));
        for name in [TemplateName::C3, TemplateName::T2, TemplateName::T2S, TemplateName::T2CL] {
            assert!(cascade.refuses(name).is_none() && sapphire.refuses(name).is_none(), "{name:?}");
            assert!(milan.refuses(name).is_some_and(|text| text.contains("AuthenticAMD")), "{name:?}");
        }
        let older = skylake.refuses(TemplateName::T2CL).unwrap();
        assert_eq!(older, "T2CL is for Cascade Lake or newer; this host's processor is older (0x50654)");
        assert!(skylake.refuses(TemplateName::T2S).is_none() && milan.refuses(TemplateName::T2A).is_none());
        assert!(sapphire.refuses(TemplateName::T2A).is_some() && milan.refuses(TemplateName::None).is_none());
        assert!(HostCpu::this().version != 0);
    }
}
