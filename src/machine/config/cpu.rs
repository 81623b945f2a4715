//! What the guest's CPUs look like: `cpu-config` and the names of `machine-config.cpu_template`. Pure.
//!
//! The document's form is that of Firecracker's custom CPU templates (docs/cpu_templates/cpu-templates.md, schema.json):
//! numbers and bitmaps are texts. They are read here, so that each wrong one is named with its place.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::VmConfig;
use super::fault::Problem;
use super::path::JsonPath;
use crate::x86_64::template::fixed;
use crate::x86_64::template::{Bitmap, CapabilityCheck, CpuidChange, MsrChange, Register, Template, number};

/// Changes of what the guest sees of its CPUs: of each thing named, the bits that are named. The rest is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CpuConfig {
    /// Capabilities of KVM, by number, which the host must have; or, with a `!` before the number, need not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kvm_capabilities: Vec<String>,
    /// Changes of CPUID.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes of model-specific registers at boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub msr_modifiers: Vec<MsrModifier>,
}

/// Changes of one leaf of CPUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuidModifier {
    /// The leaf (EAX): `0x1`, `0b1` or `1`, as a text.
    pub leaf: String,
    /// The subleaf (ECX), as a text; `0x0` for a leaf without.
    pub subleaf: String,
    /// KVM_CPUID_FLAG_*: 1 where the subleaf counts, else 0.
    pub flags: u32,
    /// Changes of its registers.
    pub modifiers: Vec<RegisterModifier>,
}

/// A change of one register of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterModifier {
    /// The register.
    pub register: Register,
    /// `0b` and a digit for each of 32 bits, the highest first: `0`, `1`, or `x` for the host's. Absent ones are `x`.
    pub bitmap: String,
}

/// A change of one model-specific register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MsrModifier {
    /// Its number: `0x10a`, as a text.
    pub addr: String,
    /// `0b` and a digit for each of 64 bits, as of CPUID.
    pub bitmap: String,
}

/// Names of Firecracker's static CPU templates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TemplateName {
    /// The host's CPU.
    #[default]
    None,
    /// Intel hosts: like an AWS C3 instance (Ivy Bridge).
    C3,
    /// Intel hosts: like an AWS T2 instance (Haswell).
    T2,
    /// Intel hosts: as T2, and the same mitigations of CPU flaws on Skylake and Cascade Lake.
    T2S,
    /// Intel hosts, Cascade Lake or newer: the instructions of T2A.
    T2CL,
    /// AMD hosts, meant for Milan: the instructions of T2CL.
    T2A,
}

impl TemplateName {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// What a document may say: the object, or the path of a file with one.
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [generator.subschema_for::<CpuConfig>(), { "type": "string" }, { "type": "null" }]
    })
}

impl CpuConfig {
    /// What it means, and everything that is wrong with it; places are relative to it.
    fn read(&self) -> (Template, Vec<Problem>) {
        let mut reader = Reader::default();
        let list = JsonPath::keys(["kvm_capabilities"]);
        let checks = self.kvm_capabilities.iter().enumerate();
        let checks = checks.filter_map(|(place, text)| {
            let (needed, digits) = text.strip_prefix('!').map_or((true, text.as_str()), |digits| (false, digits));
            reader.keep(&list.index(place), number(digits)).map(|number| CapabilityCheck { number, needed })
        });
        let capabilities = checks.collect();
        let list = JsonPath::keys(["cpuid_modifiers"]);
        let leaves = self.cpuid_modifiers.iter().enumerate();
        let cpuid = leaves.filter_map(|(place, leaf)| reader.leaf(&list.index(place), leaf)).collect();
        let list = JsonPath::keys(["msr_modifiers"]);
        let msrs = self.msr_modifiers.iter().enumerate().filter_map(|(place, msr)| {
            let path = list.index(place);
            let addr = reader.keep(&path.key("addr"), number(&msr.addr));
            let bitmap = reader.keep(&path.key("bitmap"), Bitmap::parse(&msr.bitmap, 64));
            Some(MsrChange { addr: addr?, bitmap: bitmap? })
        });
        let msrs = msrs.collect();
        (Template { capabilities, cpuid, msrs }, reader.problems)
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn keep<T>(&mut self, path: &JsonPath, read: Result<T, String>) -> Option<T> {
        read.map_err(|text| self.problems.push(Problem::new(path.clone(), text))).ok()
    }

    fn leaf(&mut self, path: &JsonPath, leaf: &CpuidModifier) -> Option<CpuidChange> {
        let (function, index) = (number(&leaf.leaf), number(&leaf.subleaf));
        let (function, index) = (self.keep(&path.key("leaf"), function), self.keep(&path.key("subleaf"), index));
        let mut registers = Vec::new();
        for (place, change) in leaf.modifiers.iter().enumerate() {
            let path = path.key("modifiers").index(place).key("bitmap");
            let bitmap = self.keep(&path, Bitmap::parse(&change.bitmap, 32));
            registers.extend(bitmap.map(|bitmap| (change.register, bitmap)));
        }
        Some(CpuidChange { leaf: function?, subleaf: index?, flags: leaf.flags, registers })
    }
}

impl VmConfig {
    /// The changes that are asked for, of a configuration that was checked.
    pub fn template(&self) -> Template {
        match (&self.cpu_config, fixed::template(self.machine_config.cpu_template)) {
            (_, Some(template)) => template,
            (Some(config), None) => config.read().0,
            (None, None) => Template::default(),
        }
    }

    pub(super) fn check_cpu(&self, problems: &mut Vec<Problem>) {
        let Some(config) = &self.cpu_config else { return };
        let path = JsonPath::keys(["cpu-config"]);
        for problem in config.read().1 {
            problems.push(Problem::new(path.within(&problem.path), problem.text));
        }
        if !config.is_empty() && !self.machine_config.cpu_template.is_none() {
            problems.push(Problem::new(path, "is given beside machine-config.cpu_template; one of them is enough"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(cpu: Value, name: &str) -> VmConfig {
        let document = json!({
            "boot-source": { "kernel_image_path": "k" }, "cpu-config": cpu, "machine-config": { "cpu_template": name }
        });
        serde_json::from_value(document).unwrap()
    }

    fn problems(config: &VmConfig) -> Vec<String> {
        let mut problems = Vec::new();
        config.check_cpu(&mut problems);
        problems.into_iter().map(|problem| format!("{}: {}", problem.path, problem.text)).collect()
    }

    #[test]
    fn firecrackers_example_is_read() {
        let example = json!({
            "kvm_capabilities": ["!56", "171"],
            "cpuid_modifiers": [{ "leaf": "0x1", "subleaf": "0b0", "flags": 0, "modifiers": [
                { "register": "eax", "bitmap": "0bxxxx000000000011xx00011011110010" }] }],
            "msr_modifiers": [{ "addr": "266", "bitmap": "0b1_0x" }]
        });
        let config = config(example, "None");
        assert_eq!(problems(&config), [""; 0]);
        let template = config.template();
        let checks = [CapabilityCheck { number: 56, needed: false }, CapabilityCheck { number: 171, needed: true }];
        assert_eq!(template.capabilities, checks);
        let eax = Bitmap { mask: 0x0fff_3fff, value: 0x0003_06f2 };
        let leaf = CpuidChange { leaf: 1, subleaf: 0, flags: 0, registers: vec![(Register::Eax, eax)] };
        assert_eq!(template.cpuid, [leaf]);
        assert_eq!(template.msrs, [MsrChange { addr: 0x10a, bitmap: Bitmap { mask: 6, value: 4 } }]);
    }

    #[test]
    fn each_wrong_text_is_named_with_its_place() {
        let wrong = json!({
            "kvm_capabilities": ["!", "9"],
            "cpuid_modifiers": [{ "leaf": "0x1_0000_0000", "subleaf": "x", "flags": 0, "modifiers": [
                { "register": "ecx", "bitmap": "0b2" }, { "register": "edx", "bitmap": "01" }] }],
            "msr_modifiers": [{ "addr": "", "bitmap": format!("0b{}", "x".repeat(65)) }]
        });
        let not = |text: &str| format!("`{text}` is no number of 32 bits; 0x10a, 0b1 or 7 is one");
        let bitmap = |text: &str| format!("`{text}` is no bitmap; one is 0b and up to 32 of 0, 1 and x");
        let leaf = "cpu-config.cpuid_modifiers[0]";
        assert_eq!(
            problems(&config(wrong, "None")),
            [
                format!("cpu-config.kvm_capabilities[0]: {}", not("")),
                format!("{leaf}.leaf: {}", not("0x1_0000_0000")),
                format!("{leaf}.subleaf: {}", not("x")),
                format!("{leaf}.modifiers[0].bitmap: {}", bitmap("0b2")),
                format!("{leaf}.modifiers[1].bitmap: {}", bitmap("01")),
                format!("cpu-config.msr_modifiers[0].addr: {}", not("")),
                "cpu-config.msr_modifiers[0].bitmap: has 65 digits; at most 64 fit".to_owned(),
            ]
        );
    }

    #[test]
    fn a_name_and_changes_exclude_each_other() {
        let changes = json!({ "msr_modifiers": [{ "addr": "0x10a", "bitmap": "0b0" }] });
        let both = problems(&config(changes, "T2"));
        assert_eq!(both, ["cpu-config: is given beside machine-config.cpu_template; one of them is enough"]);
        let named = config(json!({}), "T2S");
        assert_eq!(problems(&named), [""; 0]);
        assert_eq!(named.template().msrs.len(), 1);
    }
}
