//! KVM: the device, the capabilities, and whether hardware stands behind them.

use std::fs;
use std::io;

use machine::probe::{self, API_VERSION, Capability, KvmProbe, Need};

use super::report::Check;

/// Looks at CPU and KVM.
pub fn look() -> Vec<Check> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut checks = vec![extensions(&cpuinfo)];
    match probe::probe() {
        Ok(probe) => {
            checks.push(Check::good("/dev/kvm", "can be opened").needed());
            checks.push(backing(&cpuinfo));
            checks.extend(of_probe(&probe));
        }
        Err(error) => checks.push(refused(&error)),
    }
    checks.push(nested());
    checks
}

fn flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"))?;
    ["vmx", "svm"].into_iter().find(|flag| flags.split_whitespace().any(|word| word == *flag))
}

fn extensions(cpuinfo: &str) -> Check {
    const NAME: &str = "CPU virtualization";
    match flag(cpuinfo) {
        Some("vmx") => Check::good(NAME, "Intel VT-x (vmx)"),
        Some(_) => Check::good(NAME, "AMD-V (svm)"),
        None => Check::limited(
            NAME,
            "the CPU shows neither vmx nor svm",
            "switch it on in the firmware; inside a VM, ask for nested virtualization; or use tools/lab",
        ),
    }
}

fn refused(error: &io::Error) -> Check {
    const NAME: &str = "/dev/kvm";
    match error.raw_os_error() {
        Some(libc::ENOENT) => Check::missing(
            NAME,
            "does not exist",
            "modprobe kvm_intel or kvm_amd; in a container, pass the device in (--device /dev/kvm); or use tools/lab",
        ),
        Some(libc::EACCES | libc::EPERM) => Check::missing(
            NAME,
            "this user may not open it",
            "usermod -aG kvm USER and log in again, or setfacl -m u:USER:rw /dev/kvm",
        ),
        Some(libc::ENODEV | libc::ENXIO) => {
            Check::missing(NAME, "is there, but no KVM module stands behind it", "modprobe kvm_intel or kvm_amd")
        }
        _ => Check::missing(NAME, format!("cannot be opened: {error}"), "see the system log (dmesg)"),
    }
    .needed()
}

/// Which module answers /dev/kvm.
fn backing(cpuinfo: &str) -> Check {
    const NAME: &str = "hardware assistance";
    let loaded = |module: &str| fs::metadata(format!("/sys/module/{module}")).is_ok();
    if loaded("kvm_pvm") {
        return Check::limited(
            NAME,
            "none: software virtualization (kvm_pvm)",
            "stock kernels may not boot under it; use tools/lab or a host with VT-x or AMD-V",
        );
    }
    match flag(cpuinfo) {
        Some(flag) => Check::good(NAME, format!("yes ({flag})")),
        None => Check::limited(
            NAME,
            "none to be seen",
            "stock kernels may not boot; use tools/lab or a host with VT-x or AMD-V",
        ),
    }
}

fn of_probe(probe: &KvmProbe) -> Vec<Check> {
    let upgrade = "a newer kernel on the host";
    let mut checks = vec![match probe.api_version {
        API_VERSION => Check::good("KVM API version", "12").needed(),
        other => Check::missing("KVM API version", format!("{other}, not 12"), upgrade).needed(),
    }];
    checks.push(match &probe.create {
        Ok(()) => Check::good("creating a VM", "works").needed(),
        Err(error) => {
            let cure = "see the system log (dmesg); another hypervisor may hold the CPU's virtualization";
            Check::missing("creating a VM", format!("failed: {error}"), cure).needed()
        }
    });
    checks.extend(probe.capabilities.iter().map(|capability| of_capability(capability, upgrade)));
    let (most, good) = (probe.max_vcpus, probe.recommended_vcpus);
    checks.push(Check::good("CPUs of one VM", format!("at most {most}; KVM recommends up to {good}")));
    checks.push(match probe.memory_slots {
        slots if slots >= 32 => Check::good("memory slots of one VM", slots.to_string()),
        slots => Check::limited("memory slots of one VM", slots.to_string(), upgrade),
    });
    checks
}

fn of_capability(capability: &Capability, upgrade: &str) -> Check {
    let Capability { name, need, purpose, value } = capability;
    match (value, need) {
        (1.., Need::Needed) => Check::good(*name, *purpose).needed(),
        (1.., Need::Wanted) => Check::good(*name, *purpose),
        (_, Need::Needed) => Check::missing(*name, format!("no: {purpose}"), upgrade).needed(),
        (_, Need::Wanted) => Check::limited(*name, format!("no: {purpose}"), upgrade),
    }
}

fn nested() -> Check {
    const NAME: &str = "nested virtualization";
    let read = |module: &str| fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok();
    for module in ["kvm_intel", "kvm_amd"] {
        match read(module).as_deref().map(str::trim) {
            Some("Y" | "1") => return Check::good(NAME, format!("on ({module})")),
            Some(_) => {
                let cure = format!("only for VMs inside VMs: modprobe -r {module} && modprobe {module} nested=1");
                return Check::limited(NAME, format!("off ({module})"), cure);
            }
            None => {}
        }
    }
    Check::limited(NAME, "neither kvm_intel nor kvm_amd is loaded", "only needed for VMs inside VMs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::Status;

    #[test]
    fn the_cpus_flags_are_read() {
        assert_eq!(flag("processor\t: 0\nflags\t\t: fpu vmx sse\n"), Some("vmx"));
        assert_eq!(flag("flags\t\t: fpu svm_lock svm\n"), Some("svm"));
        assert_eq!(flag("flags\t\t: fpu svm_lock\n"), None);
        assert_eq!(extensions("").status, Status::Limited);
    }

    #[test]
    fn each_refusal_has_its_cure() {
        for (errno, cure) in [
            (libc::ENOENT, "modprobe"),
            (libc::EACCES, "usermod -aG kvm"),
            (libc::ENODEV, "modprobe"),
            (libc::EIO, "dmesg"),
        ] {
            let check = refused(&io::Error::from_raw_os_error(errno));
            assert!(check.needed && check.status == Status::Missing);
            assert!(check.cure.as_deref().unwrap().contains(cure), "{check:?}");
        }
    }

    #[test]
    fn a_missing_capability_is_as_bad_as_its_need() {
        let capability = |need, value| Capability { name: "KVM_CAP_X", need, purpose: "p", value };
        assert_eq!(
            of_capability(&capability(Need::Needed, 0), "u"),
            Check::missing("KVM_CAP_X", "no: p", "u").needed()
        );
        assert_eq!(of_capability(&capability(Need::Wanted, 0), "u").status, Status::Limited);
        assert_eq!(of_capability(&capability(Need::Wanted, 7), "u").status, Status::Good);
    }
}
