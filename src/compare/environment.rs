//! The circumstances of a measurement: what somebody has to know who wants to see the same numbers.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use subject::{CALLS, CHILDREN, DATA_BYTES, STEPS};

use crate::host::{Host, version};
use crate::world::World;

/// As JSON.
pub(crate) fn environment(host: &Host) -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags: Vec<&str> = field(&cpuinfo, "flags").split_whitespace().collect();
    let (kernel, percent) = (host.asked.kernel.as_deref(), host.asked.percent);
    let worlds = host.asked.worlds.iter().map(|world| (world.name().to_owned(), told(*world, host)));
    json!({
        "unix_time": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "host": {
            "kernel": line("/proc/sys/kernel/osrelease"),
            "kernel_version": line("/proc/sys/kernel/version"),
            "command_line": line("/proc/cmdline"),
            "cpu": field(&cpuinfo, "model name"),
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "memory_kib": subject::facts::facts().memory_kib,
            "clock": line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            "is_itself_virtual": flags.contains(&"hypervisor"),
        },
        "kvm": {
            "kind": kvm(Path::new("/dev/kvm").exists(), &flags),
            "module": if Path::new("/sys/module/kvm_intel").exists() { "kvm_intel" }
                else if Path::new("/sys/module/kvm_amd").exists() { "kvm_amd" } else { "" },
        },
        "versions": {
            "vmm": env!("CARGO_PKG_VERSION"),
            "runc": host.runc.as_deref().map(version),
        },
        "guest_kernel": kernel.map(|path| json!({"path": path, "bytes": fs::metadata(path).map_or(0, |file| file.len())})),
        "memory_mib": host.asked.memory_mib,
        "image": {
            "manifest_with_subject": host.derived.image.descriptor.digest,
            "layers": host.derived.image.config.rootfs.diff_ids,
        },
        "work": {
            "cpu_steps": STEPS * percent, "getpid_calls": CALLS * percent, "children": CHILDREN * percent, "bytes_written": DATA_BYTES,
            "bytes_read": DATA_BYTES,
        },
        "worlds": worlds.collect::<serde_json::Map<String, Value>>(),
        "arguments": std::env::args().collect::<Vec<_>>(),
    })
}

fn told(world: World, host: &Host) -> Value {
    let files = host.files.get(&world).cloned().unwrap_or_default();
    let files: Vec<Value> = files.iter().map(|(path, bytes)| json!({"path": path, "bytes": bytes})).collect();
    let started = match world {
        World::Process => "chroot(2), execve(2)",
        World::Container => "mount(2) of an overlay, runc run --bundle BUNDLE ID",
        World::Vm => "vmm --config FILE",
        World::VmContainer => {
            "vmm run --rm -i --user 0 --workdir / --entrypoint '' --hostname NAME --memory SIZE IMAGE"
        }
    };
    json!({"is": world.means(), "started_by": started, "files": files})
}

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of the first line of this name in /proc/cpuinfo.
fn field<'a>(cpuinfo: &'a str, name: &str) -> &'a str {
    let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.trim() == name).map_or("", |(_, value)| value.trim())
}

/// What runs guests: the processor, or something that is there in its place.
fn kvm(there: bool, flags: &[&str]) -> &'static str {
    match (there, flags.contains(&"vmx"), flags.contains(&"svm"), flags.contains(&"hypervisor")) {
        (false, ..) => "missing",
        (_, false, false, _) => "without vmx and svm",
        (.., true) => "nested: the host is a virtual machine itself",
        _ => "hardware",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU: fast\nflags\t\t: fpu vmx\n\nprocessor\t: 1\n";
        assert_eq!((field(cpuinfo, "model name"), field(cpuinfo, "none")), ("A CPU: fast", ""));
        assert_eq!(kvm(true, &["vmx"]), "hardware");
        assert_eq!(kvm(true, &["svm", "hypervisor"]), "nested: the host is a virtual machine itself");
        assert_eq!((kvm(true, &["fpu"]), kvm(false, &["vmx"])), ("without vmx and svm", "missing"));
    }
}
