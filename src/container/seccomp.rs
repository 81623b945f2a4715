//! Which system calls a container may make: a profile in Docker's format, or in that of the OCI runtime specification,
//! becomes the `linux.seccomp` of a container with certain capabilities. Pure.
//!
//! Docker's rules may depend on capabilities, architectures and kernels. Guests are x86-64 and newer than any kernel that
//! a profile asks for.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The profile of a container for which nothing else is said.
const USUAL: &str = include_str!("../../resources/seccomp/container.json");

/// What cannot be a profile.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// The file is not there, or cannot be read.
    #[error("--security-opt seccomp={0}: {1}; `unconfined` or a file's name is expected")]
    Read(String, #[source] std::io::Error),
    /// It says something else.
    #[error("--security-opt seccomp={0}: {1}")]
    Format(String, #[source] serde_json::Error),
}

/// What a container may ask of the kernel.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Confinement {
    /// What programs use; not what changes the VM, or what is only for the kernel's own people.
    #[default]
    Usual,
    /// Everything.
    Unconfined,
    /// As a file says.
    Profile(Box<Profile>),
}

/// A profile. Keys that are not here (`architectures`, `archMap`, `comment`, …) say nothing to an x86-64 guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Vec<Argument>>,
    #[serde(default, skip_serializing)]
    includes: Option<Condition>,
    #[serde(default, skip_serializing)]
    excludes: Option<Condition>,
}

/// What is done with a call. `SCMP_ACT_NOTIFY` is not known: nobody would be there to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_KILL")]
    Kill,
    #[serde(rename = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
}

/// An argument of a call, and what it is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    Different,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    AtMost,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    AtLeast,
    #[serde(rename = "SCMP_CMP_GT")]
    More,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// When a rule holds, or does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

impl Confinement {
    /// The profile of a file.
    pub fn read(path: &Path) -> Result<Self, SeccompError> {
        let name = || path.display().to_string();
        let text = std::fs::read(path).map_err(|error| SeccompError::Read(name(), error))?;
        let profile = serde_json::from_slice(&text).map_err(|error| SeccompError::Format(name(), error))?;
        Ok(Self::Profile(Box::new(profile)))
    }

    /// The specification's `linux.seccomp` of a container with these capabilities (`CAP_CHOWN`); none: no filter.
    pub fn of(&self, capabilities: &[String]) -> Option<Value> {
        let profile = match self {
            Self::Unconfined => return None,
            Self::Usual => serde_json::from_str(USUAL).expect("the profile that is part of this program"),
            Self::Profile(profile) => Profile::clone(profile),
        };
        Some(serde_json::to_value(profile.of(capabilities)).expect("a profile has nothing but names and numbers"))
    }
}

impl Profile {
    fn of(mut self, capabilities: &[String]) -> Self {
        self.syscalls.retain(|rule| rule.holds(capabilities));
        self
    }
}

impl Rule {
    /// As Docker has it: all of the included capabilities, none of the excluded ones.
    fn holds(&self, capabilities: &[String]) -> bool {
        let here = |arch: &String| arch == "amd64" || arch == "x86_64";
        let included = self.includes.as_ref().is_none_or(|included| {
            included.caps.iter().all(|name| capabilities.contains(name))
                && (included.arches.is_empty() || included.arches.iter().any(here))
        });
        let excluded = self.excludes.as_ref().is_some_and(|excluded| {
            excluded.caps.iter().any(|name| capabilities.contains(name)) || excluded.arches.iter().any(here)
        });
        included && !excluded
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What becomes of a call, where no argument matters: the action, and its number.
    fn fate(seccomp: &Value, name: &str) -> Value {
        let rules = seccomp["syscalls"].as_array().unwrap();
        let names = |rule: &&Value| rule["names"].as_array().unwrap().contains(&json!(name));
        rules.iter().find(names).map_or_else(|| seccomp["defaultAction"].clone(), |rule| rule["action"].clone())
    }

    #[test]
    fn the_usual_profile_depends_on_capabilities() {
        let with = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Confinement::Usual.of(&names).unwrap()
        };
        let (plain, admin) = (with(&["CAP_CHOWN"]), with(&["CAP_SYS_ADMIN"]));
        assert_eq!(plain["defaultErrnoRet"], 1);
        for name in ["mount", "unshare", "setns", "bpf", "keyctl", "reboot", "init_module", "clone3"] {
            assert_eq!(fate(&plain, name), "SCMP_ACT_ERRNO", "{name}");
        }
        for name in ["mount", "unshare", "setns", "clone3", "read"] {
            assert_eq!(fate(&admin, name), "SCMP_ACT_ALLOW", "{name}");
        }
        assert_eq!(fate(&with(&["CAP_SYS_BOOT"]), "reboot"), "SCMP_ACT_ALLOW");
        assert_eq!(fate(&admin, "keyctl"), "SCMP_ACT_ERRNO"); // keys are not of any namespace
        assert_eq!(Confinement::Unconfined.of(&[]), None);
    }

    #[test]
    fn a_profile_of_dockers_becomes_one_of_the_specification() {
        let text = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
            "syscalls": [
                {"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": null, "comment": "x"},
                {"names": ["b"], "action": "SCMP_ACT_KILL", "includes": {"arches": ["arm64"]}},
                {"names": ["c"], "action": "SCMP_ACT_LOG", "excludes": {"caps": ["CAP_BPF"]}, "includes": {}},
                {"names": ["d"], "action": "SCMP_ACT_TRAP",
                 "args": [{"index": 1, "value": 7, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 6}]},
            ],
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text.to_string()).unwrap();
        let seccomp = Confinement::read(file.path()).unwrap().of(&["CAP_BPF".to_owned()]).unwrap();
        let expected = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["d"], "action": "SCMP_ACT_TRAP",
             "args": [{"index": 1, "value": 7, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 6}]},
        ]});
        assert_eq!(seccomp, expected);
    }

    #[test]
    fn what_is_no_profile_is_refused_with_its_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"defaultAction\":\n\"SCMP_ACT_NOTIFY\"}").unwrap();
        let why = Confinement::read(file.path()).unwrap_err().to_string();
        assert!(why.contains("unknown variant `SCMP_ACT_NOTIFY`") && why.contains("line 2"), "{why}");
        let why = Confinement::read(Path::new("/missing")).unwrap_err().to_string();
        assert!(why.starts_with("--security-opt seccomp=/missing: No such file"), "{why}");
    }
}
