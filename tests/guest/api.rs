//! The API with a guest behind it: started, paused and changed by requests, as another program would.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use api::client::{self, ClientError};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "../api/operations.rs"]
pub mod operations;
#[path = "../api/schema.rs"]
pub mod schema;

use crate::disk::{checksum, disk, empty, folder, full};
use crate::vm::{PATIENCE, Running, Vm, base64, guest};

/// A VM with an API, and the folder of its socket.
pub struct Remote {
    pub vm: Running,
    pub socket: PathBuf,
    _folder: TempDir,
}

impl Remote {
    /// Starts it, and waits for its API.
    pub fn start(vm: Vm) -> Self {
        let folder = folder();
        let socket = folder.path().join("api.sock");
        let mut vm = vm.args(["--api-sock".as_ref(), socket.as_os_str()]).start();
        let until = Instant::now() + PATIENCE;
        // Its name is there a moment before it listens.
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < until, "no API");
            if !vm.is_running() {
                let ended = vm.ends(0); // which says more where that is not so
                panic!("no API: {}", ended.errors);
            }
            sleep(Duration::from_millis(10));
        }
        Self { vm, socket, _folder: folder }
    }

    /// What a request brings, or why it is refused.
    pub fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        match client::call(&self.socket, method, path, (!body.is_null()).then_some(body)) {
            Err(ClientError::Refused(text)) => Err(text),
            answer => Ok(answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))),
        }
    }

    /// What a request brings.
    pub fn call(&self, method: &str, path: &str, body: Value) -> Value {
        self.try_call(method, path, &body).unwrap_or_else(|text| panic!("{method} {path} {body}: {text}"))
    }

    pub fn set_state(&self, state: &str) {
        self.call("PATCH", "/vm", json!({ "state": state }));
    }

    fn state(&self) -> Value {
        self.call("GET", "/", Value::Null)["state"].clone()
    }
}

#[test]
fn a_vm_comes_by_requests_alone() {
    let folder = folder();
    let image = full(folder.path(), "data", 1 << 20);
    let mut remote = Remote::start(Vm::new().pipe());
    let kernel = guest("tuned/vmlinux");
    let script = "dmesg -n 1\necho sum=$(md5sum < /dev/vda)\necho cpus=$(nproc)\necho READY; read go\n";
    remote.call("PUT", "/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 128 }));
    remote.call("PUT", "/drives/data", json!({ "drive_id": "data", "path_on_host": image, "is_root_device": false }));
    let append = format!("vmm.run={}", base64(script.as_bytes()));
    let initrd = kernel.with_file_name("initrd");
    let boot = json!({ "kernel_image_path": kernel, "initrd_path": initrd, "boot_args_append": append });
    remote.call("PUT", "/boot-source", boot);
    assert_eq!(remote.state(), "Not started");
    remote.call("PUT", "/actions", json!({ "action_type": "InstanceStart" }));
    assert_eq!(remote.state(), "Running");
    remote.vm.expect("READY");
    for (method, path, body) in [
        ("PUT", "/actions", json!({ "action_type": "InstanceStart" })),
        ("PUT", "/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 128 })),
        ("PUT", "/drives/more", json!({ "drive_id": "more", "path_on_host": image, "is_root_device": false })),
        ("DELETE", "/drives/data", Value::Null),
    ] {
        let refused = remote.try_call(method, path, &body);
        assert!(refused.as_ref().is_err_and(|text| text.contains("started already")), "{method} {path}: {refused:?}");
    }
    assert_eq!(remote.call("GET", "/vm/config", Value::Null)["drives"][0]["path_on_host"], json!(image));
    remote.vm.send("\n");
    let ended = remote.vm.ends(0);
    assert_eq!(ended.value("cpus"), "2");
    assert_eq!(ended.value("sum").split(' ').next(), Some(checksum(&image).as_str()));
}

/// A VM with one of each device that has a name or limits; the guest does nothing.
fn one_of_each(folder: &Path) -> Vm {
    let image = full(folder, "data", 1 << 20);
    let memory = full(folder, "memory", 2 << 20);
    let daemon = guest("virtiofsd/rust/virtiofsd");
    let share = format!("{}:src,virtiofsd={}", folder.display(), daemon.display());
    let pmem = format!("{},id=m", memory.display());
    let more = ["--pmem", &pmem, "--share", &share, "--net", "tap=vmmtest21", "--balloon", "0", "--memory", "256M"];
    Vm::tuned().args(disk(&image, "")).args(more).run("echo READY; read go").pipe()
}

/// Requests that are right before the start: each of docs/api.yaml that it has for then, and the start.
fn for_before_the_start() -> Vec<(&'static str, &'static str, Value)> {
    let net = json!({ "iface_id": "eth0", "host_dev_name": "vmmtest21" });
    let requests = vec![
        ("PUT", "/actions", json!({ "action_type": "InstanceStart" })),
        ("PUT", "/boot-source", json!({ "kernel_image_path": guest("tuned/vmlinux") })),
        ("PUT", "/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 128 })),
        ("PATCH", "/machine-config", json!({ "mem_size_mib": 128 })),
        ("PUT", "/cpu-config", json!({})),
        ("PUT", "/drives/disk1", json!({ "drive_id": "disk1", "path_on_host": "/dev/null" })),
        ("DELETE", "/drives/disk1", Value::Null),
        ("PUT", "/network-interfaces/eth0", net),
        ("DELETE", "/network-interfaces/eth0", Value::Null),
        ("PUT", "/pmem/m", json!({ "id": "m", "path_on_host": "/proc/self/exe", "private": true })),
        ("DELETE", "/pmem/m", Value::Null),
        ("PUT", "/shares/src", json!({ "tag": "src", "path_on_host": "/tmp" })),
        ("DELETE", "/shares/src", Value::Null),
        ("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock" })),
        ("PUT", "/entropy", json!({})),
        ("PUT", "/serial", json!({})),
        ("PUT", "/balloon", json!({ "amount_mib": 1 })),
        ("PUT", "/metrics", json!({ "metrics_path": "/dev/null" })),
        ("PUT", "/mmds/config", json!({ "network_interfaces": ["eth0"] })),
    ];
    for operation in operations::operations().iter().filter(|it| it.says("Before the start")) {
        let is_there = requests.iter().any(|(method, path, _)| operation.takes(method, path));
        assert!(is_there, "{} {}", operation.method, operation.path);
    }
    requests
}

/// The keys that docs/api.yaml has for a change of what runs.
fn changeable(path: &str) -> Vec<String> {
    let operations = operations::operations();
    let operation = operations.iter().find(|it| it.takes("PATCH", path)).expect("it is documented");
    let schema = &operation.said["requestBody"]["content"]["application/json"]["schema"]["$ref"];
    let place = schema.as_str().and_then(|it| it.strip_prefix('#')).expect("a schema of its own");
    let document = operations::document();
    document.pointer(place).and_then(|it| it["properties"].as_object()).expect("properties").keys().cloned().collect()
}

/// What runs does not change by what is for before the start, nor by a key that nobody knows; and the guest goes on.
#[test]
fn what_is_for_before_the_start_is_refused_after_it() {
    let folder = folder();
    let mut remote = Remote::start(one_of_each(folder.path()));
    remote.vm.expect("READY");
    let before = remote.call("GET", "/vm/config", Value::Null);
    let refused = |method: &str, path: &str, body: &Value, part: &str| {
        let answer = remote.try_call(method, path, body);
        assert!(answer.as_ref().is_err_and(|text| text.contains(part)), "{method} {path} {body}: {answer:?}");
        assert_eq!(remote.call("GET", "/vm/config", Value::Null), before, "{method} {path} {body}");
    };
    for state in ["Paused", "Resumed"] {
        remote.set_state(state);
        for (method, path, body) in for_before_the_start() {
            refused(method, path, &body, "the VM is started already; this can only be set before it is");
        }
        for (path, body) in [
            ("/drives/disk1", json!({ "drive_id": "disk1", "strange": 1 })),
            ("/network-interfaces/eth0", json!({ "iface_id": "eth0", "strange": 1 })),
            ("/pmem/m", json!({ "id": "m", "strange": 1 })),
            ("/shares/src", json!({ "tag": "src", "strange": 1 })),
            ("/entropy", json!({ "strange": 1 })),
            ("/serial", json!({ "strange": 1 })),
            ("/balloon", json!({ "amount_mib": 1, "strange": 1 })),
            ("/balloon/statistics", json!({ "stats_polling_interval_s": 1, "strange": 1 })),
            ("/balloon/hinting/start", json!({ "strange": 1 })),
        ] {
            refused("PATCH", path, &body, "strange: unknown key");
        }
    }
    for (path, body) in [
        ("/drives/disk1", json!({ "drive_id": "disk1", "is_read_only": true })),
        ("/network-interfaces/eth0", json!({ "iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02" })),
        ("/pmem/m", json!({ "id": "m", "private": true })),
        ("/serial", json!({ "serial_out_path": "/dev/null" })),
    ] {
        let can = format!("can not be changed while the VM exists; what can: {}", changeable(path).join(", "));
        refused("PATCH", path, &body, &can);
    }
    remote.vm.send("\n");
    remote.vm.ends(0);
}

/// The guest writes and compares without a rest while it is paused and resumed: nothing is lost, and nothing happens in a
/// pause.
fn pauses_under_load(options: &str) {
    let folder = folder();
    let image = empty(folder.path(), "data", 32 << 20);
    let script = r"
        mkdir /work; mount -t tmpfs work /work; dd if=/dev/urandom of=/work/noise bs=64k count=64 2>/dev/null
        bad=0; for i in $(seq 1 6); do
            dd if=/work/noise of=/dev/vda bs=64k seek=$((i * 64)) conv=fsync 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches
            dd if=/dev/vda bs=64k skip=$((i * 64)) count=64 2>/dev/null | cmp - /work/noise || bad=$((bad + 1)); echo ROUND $i
        done
        echo bad=$bad; echo sum=$(md5sum < /work/noise); dmesg | grep -c -i -e 'soft lockup' -e 'stall' | sed s/^/late=/";
    let args = [disk(&image, options), ["--cpus".into(), "2".into()]].concat();
    let mut remote = Remote::start(Vm::tuned().args(args).run(script));
    for round in 1..=6 {
        for _ in 0..5 {
            remote.set_state("Paused");
            assert_eq!(remote.state(), "Paused");
            let before = checksum(&image);
            sleep(Duration::from_millis(50));
            assert_eq!(checksum(&image), before, "nothing is written in a pause");
            remote.set_state("Paused");
            remote.set_state("Resumed");
            assert_eq!(remote.state(), "Running");
            sleep(Duration::from_millis(20));
        }
        remote.vm.expect(&format!("ROUND {round}"));
    }
    let ended = remote.vm.ends(0);
    assert_eq!((ended.number("bad"), ended.number("late")), (0, 0), "{}", ended.console);
    let written = std::fs::read(&image).expect("the image");
    let parts = (1..=6).map(|place| &written[place << 22..(place + 1) << 22]);
    let first = &written[1 << 22..2 << 22];
    assert!(parts.clone().all(|part| part == first) && first.iter().any(|byte| *byte != 0));
}

#[test]
fn a_pause_under_disk_load_loses_nothing() {
    pauses_under_load("");
}

#[test]
fn a_pause_with_requests_in_flight_loses_nothing() {
    pauses_under_load(",engine=async");
}

fn swap(remote: &Remote, path: &Path) -> Result<Value, String> {
    remote.try_call("PATCH", "/drives/disk1", &json!({ "drive_id": "disk1", "path_on_host": path }))
}

#[test]
fn another_image_is_seen_by_the_guest() {
    let folder = folder();
    let [one, two] = [("one", 1 << 20), ("two", 3 << 20)].map(|(name, size)| full(folder.path(), name, size));
    let script = r"
        wait_for() { for i in $(seq 600); do [ $(cat /sys/block/vda/size) = $1 ] && return; usleep 100000; done; }
        echo first=$(md5sum < /dev/vda); echo ONE; read go
        wait_for 6144; echo 3 > /proc/sys/vm/drop_caches; echo second=$(md5sum < /dev/vda); echo TWO; read go
        wait_for 8192; echo third=$(cat /sys/block/vda/size)";
    let mut remote = Remote::start(Vm::tuned().args(disk(&one, ",ro")).run(script).pipe());
    remote.vm.expect("ONE");
    let missing = swap(&remote, &folder.path().join("none")).unwrap_err();
    assert!(missing.starts_with("PATCH /drives/disk1: open disk 'disk1' at"), "{missing}");
    let fixed = remote.try_call("PATCH", "/drives/disk1", &json!({ "drive_id": "disk1", "is_read_only": false }));
    assert!(fixed.unwrap_err().contains("is_read_only can not be changed while the VM exists"));
    assert_eq!(remote.call("GET", "/vm/config", Value::Null)["drives"][0]["path_on_host"], json!(one));
    swap(&remote, &two).unwrap();
    assert_eq!(remote.call("GET", "/vm/config", Value::Null)["drives"][0]["path_on_host"], json!(two));
    remote.vm.send("\n");
    remote.vm.expect("TWO");
    let sum = checksum(&two);
    std::fs::File::options().write(true).open(&two).and_then(|file| file.set_len(4 << 20)).expect("a larger image");
    swap(&remote, &two).unwrap();
    remote.vm.send("\n");
    let ended = remote.vm.ends(0);
    assert_eq!(ended.value("first").split(' ').next(), Some(checksum(&one).as_str()));
    assert_eq!(ended.value("second").split(' ').next(), Some(sum.as_str()));
    assert_eq!(ended.number("third"), 8192);
}

#[test]
fn limits_and_the_balloon_change_while_the_guest_runs() {
    let folder = folder();
    let image = full(folder.path(), "data", 1 << 20);
    let script = r"
        free() { sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
        before=$(free); echo before=$before; echo READY; read go
        for i in $(seq 600); do [ $(free) -lt $((before - 63000)) ] && break; usleep 100000; done; echo after=$(free)
        dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null && dd if=/dev/hwrng of=/dev/null bs=64 count=1 2>/dev/null
        echo DONE; read go";
    let more = ["--balloon", "0,stats=1", "--memory", "256M", "--net", "tap=vmmtest20"].map(Into::into);
    let args = [disk(&image, "").as_slice(), &more].concat();
    let mut remote = Remote::start(Vm::boot("debian12/vmlinux").args(args).run(script).pipe());
    remote.vm.expect("READY");
    remote.call("PATCH", "/balloon", json!({ "amount_mib": 64 }));
    let bucket = json!({ "size": 1 << 20, "refill_time": 100 });
    let limits = json!({ "bandwidth": bucket });
    remote.call("PATCH", "/drives/disk1", json!({ "drive_id": "disk1", "rate_limiter": limits }));
    remote.call("PATCH", "/entropy", json!({ "rate_limiter": limits }));
    remote.call("PATCH", "/network-interfaces/eth0", json!({ "iface_id": "eth0", "tx_rate_limiter": limits }));
    remote.call("PATCH", "/serial", json!({ "rate_limiter": { "size": 1 << 20, "refill_time": 100 } }));
    let fixed = remote.try_call("PATCH", "/serial", &json!({ "serial_out_path": "/tmp/out" }));
    assert!(fixed.unwrap_err().contains("serial_out_path can not be changed while the VM exists"));
    remote.call("PATCH", "/balloon/statistics", json!({ "stats_polling_interval_s": 2 }));
    let off = remote.try_call("PATCH", "/balloon/statistics", &json!({ "stats_polling_interval_s": 0 }));
    assert!(off.unwrap_err().contains("can not be switched on or off"));
    let much = remote.try_call("PATCH", "/balloon", &json!({ "amount_mib": 256 }));
    assert!(much.unwrap_err().contains("must be less than the VM's memory"));
    remote.vm.send("\n");
    remote.vm.expect("DONE");
    let until = Instant::now() + PATIENCE;
    loop {
        let told = remote.call("GET", "/balloon/statistics", Value::Null);
        if told["actual_mib"] == 64 && told["total_memory"].as_u64().is_some_and(|bytes| bytes > 64 << 20) {
            assert_eq!(told["target_mib"], 64);
            break;
        }
        assert!(Instant::now() < until, "{told}");
        sleep(Duration::from_millis(100));
    }
    let config = remote.call("GET", "/vm/config", Value::Null);
    assert_eq!((&config["balloon"]["amount_mib"], &config["drives"][0]["rate_limiter"]), (&json!(64), &limits));
    assert_eq!(config["network-interfaces"][0]["tx_rate_limiter"], limits);
    assert_eq!(config["serial"]["rate_limiter"]["refill_time"], 100);
    remote.vm.send("\n");
    let ended = remote.vm.ends(0);
    assert!(ended.number("before") - ended.number("after") > 60 << 10, "{}", ended.console);
}

#[test]
fn the_end_can_be_asked_for_in_a_pause() {
    let mut remote = Remote::start(Vm::boot("debian12/vmlinux").run("echo READY; while :; do usleep 10000; done"));
    remote.vm.expect("READY");
    remote.set_state("Paused");
    remote.call("PUT", "/actions", json!({ "action_type": "Stop" }));
    assert!(remote.vm.ends(12).why().contains("stopped by a request"));
}
