//! Drivers that lie to every device: the monitor lives, says little, does not spin, and serves the real drivers again. (A
//! shared directory may be lost: virtiofsd does not answer every request that is garbage.)

use std::fs;

use crate::metrics::{lines, sum};
use crate::user_net::uplink;
use crate::vm::{Running, Vm, guest};

/// Ticks of CPU time (a hundredth of a second each) of the monitor's threads that are no vCPUs.
fn ticks(vm: &Running) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", vm.id())).expect("the monitor runs");
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let of = |stat: String| {
        let (name, rest) = stat.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_whitespace().collect(); // the third field of all comes first
        let time = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        (!name.contains("(vcpu")).then_some(time)
    };
    stats.filter_map(of).sum()
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
        "user".into(),
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
    let mut vm = vm.args(["--memory", "256M", "--rng"]).run(script).pipe().start();
    vm.expect("QUIET");
    let before = ticks(&vm);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let spent = ticks(&vm) - before;
    assert!(spent < 100, "an idle VM's device threads took {spent} hundredths of a second of CPU in two seconds");
    vm.send("\n");
    let ended = vm.ends(0);
    assert!(!ended.console.contains("FAILED"), "{}\n{}", ended.console, ended.errors);
    assert_eq!(ended.console.matches("lies: told ").count(), 10, "{}", ended.console);
    assert_eq!(ended.value("disk"), "works", "{}", ended.errors);
    assert_eq!((ended.number("random"), ended.number("network")), (16, 3), "{}", ended.errors);
    let lines = lines(&metrics);
    let networks = ["net_eth0", "net_eth1", "net_eth2"];
    let others = ["block_disk1", "block_disk2", "vsock", "balloon", "pmem_pmem0", "fs_shared", "entropy"];
    for device in networks.into_iter().chain(others) {
        for lie in ["bad_accesses", "broken"] {
            assert!(sum(&lines, device, lie) > 0, "{device} has counted no {lie}");
        }
    }
    for disk in ["block_disk1", "block_disk2"] {
        assert!(sum(&lines, disk, "invalid_reqs_count") > 0, "{disk} was asked for nothing that is wrong");
    }
    assert!(ended.errors.lines().count() < 200, "{} lines of log", ended.errors.lines().count());
}
