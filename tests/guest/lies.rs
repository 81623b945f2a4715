//! Drivers that lie to every device: the monitor lives, says little, does not spin, and serves the real drivers again. (A
//! shared directory may be lost: virtiofsd does not answer every request that is garbage.)

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::metrics::{lines, sum};
use crate::user_net::{passt, uplink};
use crate::vm::{Running, Vm, guest};

const MEMORY_MIB: u64 = 256;
/// What passt publishes; by it the process is found.
const PORT: &str = "127.0.0.1:7190:80";

/// A process or a thread, as its `stat` in /proc tells (proc(5)).
struct Task {
    id: u32,
    name: String,
    parent: u32,
    /// CPU time, in hundredths of a second.
    ticks: u64,
}

/// All in such a folder.
fn tasks(folder: &Path) -> Vec<Task> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let task = |stat: String| {
        let (start, rest) = stat.rsplit_once(')')?;
        let (id, name) = start.split_once(" (")?;
        let fields: Vec<_> = rest.split_whitespace().collect(); // the third field of all comes first
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Task { id: id.parse().ok()?, name: name.to_owned(), parent: fields.get(1)?.parse().ok()?, ticks })
    };
    stats.filter_map(task).collect()
}

/// The CPU time of each thread that works for a VM and is no vCPU: the monitor's, those of the processes that it started
/// (passt, virtiofsd), and the host kernel's for it (vhost).
fn ticks(vm: &Running) -> BTreeMap<(u32, String), u64> {
    let processes = tasks(Path::new("/proc"));
    let mut family = vec![vm.id()];
    loop {
        let news = processes.iter().filter(|one| family.contains(&one.parent) && !family.contains(&one.id));
        let news: Vec<u32> = news.map(|one| one.id).collect();
        if news.is_empty() {
            break;
        }
        family.extend(news);
    }
    let kernels = format!("vhost-{}", vm.id());
    family.extend(processes.iter().filter(|one| one.name == kernels).map(|one| one.id));
    // passt is nobody's child: it goes to the background by itself.
    family.extend(passt("127.0.0.1/7190:80").map(|pid| pid.as_raw_nonzero().get().cast_unsigned()));
    let threads = family.iter().flat_map(|id| tasks(&Path::new("/proc").join(id.to_string()).join("task")));
    let threads = threads.filter(|thread| !thread.name.starts_with("vcpu"));
    threads.map(|thread| ((thread.id, thread.name), thread.ticks)).collect()
}

/// What of the monitor is resident, KiB, by a line of /proc/PID/status.
fn resident(vm: &Running, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.id())).expect("the monitor runs");
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).expect("a line of that name");
    line.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok()).expect("KiB")
}

/// Two seconds of an idle VM: nobody who works for it takes half of a CPU, and the monitor has not grown.
fn is_calm(vm: &Running) {
    let before = ticks(vm);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let after = ticks(vm);
    for ((id, name), ticks) in &after {
        let spent = ticks - before.get(&(*id, name.clone())).unwrap_or(&0);
        assert!(spent < 100, "{name} ({id}) took {spent} hundredths of a second of CPU in two idle seconds");
    }
    for name in ["eth0", "vhost-", "passt"] {
        assert!(after.keys().any(|(_, thread)| thread.starts_with(name)), "no {name} among {:?}", after.keys());
    }
    // Guest memory is a file's, as the share needs it; what is anonymous is the monitor's own.
    let (all, own) = (resident(vm, "VmRSS"), resident(vm, "RssAnon"));
    assert!(all < (MEMORY_MIB + 32) << 10, "{all} KiB resident with {MEMORY_MIB} MiB of guest memory");
    assert!(own < 16 << 10, "{own} KiB of the monitor's own");
}

/// To a real boot's devices, one after the other, each with its driver unbound meanwhile.
#[test]
fn every_device_survives_lies() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("victim"), vec![0; 1 << 20]).expect("a disk");
    fs::write(path("memory"), vec![0; 2 << 20]).expect("a file as memory");
    fs::create_dir(path("shared")).expect("a directory");
    let script = r#"cat /dev/vda >/tmp/lies; chmod 755 /tmp/lies; drivers=/sys/bus/platform/drivers/virtio-mmio
        sum=$(md5sum </dev/vda); for device in $drivers/LNRO0005:*; do
            name=${device##*/}; address=$(grep -m 1 $name /proc/iomem | sed 's/ *\([0-9a-f]*\)-.*/\1/')
            echo $name >$drivers/unbind; /tmp/lies $address || echo FAILED $name; echo $name >$drivers/bind
        done
        [ "$sum" = "$(md5sum </dev/vda)" ] && echo disk=works
        echo random=$(dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c)
        echo network=$(ls /sys/class/net | grep -c eth)
        echo QUIET; read go"#;
    uplink();
    let daemon = guest("virtiofsd/rust/virtiofsd");
    let lies = guest("lies/lies.img");
    let metrics = path("metrics");
    let vm = Vm::tuned().args([
        "--metrics-path".into(),
        metrics.display().to_string(),
        "--disk".into(),
        format!("{},ro", lies.display()),
        "--disk".into(),
        format!("{},engine=async", path("victim").display()),
        "--net".into(),
        "tap=vmmlies".into(),
        "--set".into(),
        "mmds-config={\"network_interfaces\": [\"eth0\", \"eth2\"]}".into(),
        "--net".into(),
        "tap=vmmlies2,vhost".into(),
        "--net".into(),
        format!("user,publish={PORT}"),
        "--log-level".into(),
        "debug".into(),
        "--vsock".into(),
        path("vsock").display().to_string(),
        "--balloon".into(),
        "0,stats=1,hinting".into(),
        "--pmem".into(),
        path("memory").display().to_string(),
        "--share".into(),
        format!("{}:shared,virtiofsd={}", path("shared").display(), daemon.display()),
    ]);
    let mut vm = vm.args(["--memory", &format!("{MEMORY_MIB}M"), "--rng"]).run(script).pipe().start();
    vm.expect("QUIET");
    is_calm(&vm);
    vm.send("\n");
    let ended = vm.ends(0);
    assert!(!ended.console.contains("FAILED"), "{}\n{}", ended.console, ended.errors);
    assert_eq!(ended.console.matches("lies: told ").count(), 10, "{}", ended.console);
    assert_eq!(ended.value("disk"), "works", "{}", ended.errors);
    assert_eq!((ended.number("random"), ended.number("network")), (16, 3), "{}", ended.errors);
    let lines = lines(&metrics);
    // Where Firecracker has a name for what a group counts, that is the line's.
    let (theirs, ours) = (["cfg_fails", "event_fails"], ["bad_accesses", "broken"]);
    for (devices, names) in [
        (&["net_eth0", "net_eth1", "net_eth2", "block_disk1", "block_disk2", "pmem_pmem0", "balloon"][..], theirs),
        (&["vsock"], ["cfg_fails", "broken"]),
        (&["fs_shared", "entropy"], ours),
    ] {
        for (device, lie) in devices.iter().flat_map(|device| names.map(|lie| (device, lie))) {
            assert!(sum(&lines, device, lie) > 0, "{device} has counted no {lie}");
        }
    }
    for disk in ["block_disk1", "block_disk2"] {
        assert!(sum(&lines, disk, "invalid_reqs_count") > 0, "{disk} was asked for nothing that is wrong");
    }
    assert!(ended.errors.lines().count() < 200, "{} lines of log", ended.errors.lines().count());
}
