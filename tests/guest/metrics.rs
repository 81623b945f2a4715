//! What a running VM tells of itself: counters that a guest moves by known amounts.

use std::collections::HashMap;
use std::path::Path;

use api::client;
use serde_json::{Value, json};

use crate::api::Remote;
use crate::api::schema::Documents;
use crate::disk::{checksum, disk, folder, full};
use crate::vm::{PATIENCE, Vm};

/// The lines of a file of metrics.
pub fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a file of metrics");
    assert!(text.ends_with('\n'), "whole lines");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// What a counter has counted in all lines.
pub fn sum(lines: &[Value], group: &str, name: &str) -> u64 {
    lines.iter().map(|line| line[group][name].as_u64().unwrap_or_else(|| panic!("no {group}.{name} in {line}"))).sum()
}

/// The samples of a page for Prometheus.
fn samples(page: &Value) -> HashMap<&str, f64> {
    let lines = page.as_str().expect("a text").lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name, value.parse().expect("a number"))
        })
        .collect()
}

#[test]
fn what_a_guest_does_is_counted() {
    let folder = folder();
    let path = folder.path().join("metrics");
    let image = full(folder.path(), "data", 4 << 20);
    let before = checksum(&image);
    let script = "dmesg -n 1; dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null
        dd if=/dev/vda of=/tmp/x bs=64k count=4 iflag=direct 2>/dev/null
        dd if=/tmp/x of=/dev/vda bs=64k oflag=direct conv=fsync 2>/dev/null
        dd if=/dev/hwrng of=/dev/null bs=16 count=1 2>/dev/null; echo READY; read go";
    let vm =
        Vm::tuned().args(disk(&image, ",id=data")).args(["--rng", "--id", "counted", "--receipt"]).run(script).pipe();
    let settings = json!({ "metrics_path": path, "emit_id": true, "properties": { "test": "yes" } });
    let mut remote = Remote::start(vm.args(["--set", &format!("metrics={settings}")]));
    remote.vm.expect("READY");
    let log = folder.path().join("log");
    remote.call("PUT", "/logger", json!({ "log_path": log, "level": "Info", "format": "json" }));
    remote.set_state("Paused"); // nothing moves while the two are compared
    remote.call("PUT", "/actions", json!({ "action_type": "FlushMetrics" }));
    let page = remote.call("GET", "/metrics", Value::Null);
    remote.set_state("Resumed");
    let until_now = lines(&path);
    assert_eq!(until_now.len(), 2, "one at the start, one by request");
    let page = samples(&page);
    for (name, sample) in [
        ("read_bytes", "vmm_block_bytes_in_total{id=\"data\"}"),
        ("write_bytes", "vmm_block_bytes_out_total{id=\"data\"}"),
        ("read_count", "vmm_block_moves_in_total{id=\"data\"}"),
        ("flush_count", "vmm_block_flushes_total{id=\"data\"}"),
        ("interrupts", "vmm_block_interrupts_total{id=\"data\"}"),
    ] {
        let counted = sum(&until_now, "block_data", name);
        assert!(counted > 0 && counted == sum(&until_now, "block", name), "{name}");
        assert_eq!(page.get(sample), Some(&(counted as f64)), "{sample}");
    }
    let said = |line: &Value| line["message"].as_str().expect("a message").to_owned();
    assert_eq!(lines(&log).iter().map(said).collect::<Vec<_>>()[..2], ["PUT /logger", "PATCH /vm"]);
    let config = remote.call("GET", "/vm/config", Value::Null);
    assert_eq!((&config["logger"]["level"], &config["logger"]["format"]), (&json!("Info"), &json!("json")));
    remote.vm.send("\n");
    let ended = remote.vm.ends(0);
    let all = lines(&path);
    assert_eq!(all.len(), 3, "one at the end");
    let receipt = ended.errors.lines().find(|line| line.starts_with("vmm: counted: up ")).expect("a receipt");
    let disks = ["read_bytes", "write_bytes"].map(|name| sum(&all, "block", name));
    let disks = format!(" disks {} bytes read, {} written,", disks[0], disks[1]);
    assert!(receipt.contains("guest entered ") && receipt.contains("first virtio driver ready "), "{receipt}");
    assert!(receipt.contains(&disks) && receipt.ends_with("exit 0: the guest powered off"), "{receipt}");
    assert!(all.iter().all(|line| line["id"] == "counted" && line["properties"]["test"] == "yes"));
    // The kernel looks for partitions, too.
    assert!(sum(&all, "block_data", "read_bytes") >= 20 << 16);
    assert_eq!(sum(&all, "block_data", "write_bytes"), 4 << 16);
    assert_eq!(sum(&all, "block_data", "execute_fails"), 0);
    let count = |what: &str| sum(&all, "block_data", what);
    let requests: u64 = all.iter().filter_map(|line| line["block_data"]["request_time"]["count"].as_u64()).sum();
    assert_eq!((requests, count("requests") >= count("read_count") + count("write_count")), (count("requests"), true));
    assert!(sum(&all, "entropy", "entropy_bytes") >= 16);
    assert!(sum(&all, "vcpu", "exit_io_out") >= sum(&all, "vcpu_0", "exit_io_out"));
    let kept: u64 = all.iter().filter_map(|line| line["vcpu_0"]["exit_time"]["count"].as_u64()).sum();
    let exits =
        ["exit_io_in", "exit_io_out", "exit_mmio_read", "exit_mmio_write"].map(|kind| sum(&all, "vcpu_0", kind));
    // The exit that powers off is still under way, or has just ended.
    let under_way = exits.iter().sum::<u64>() - kept;
    assert!(under_way <= 1, "{under_way} exits without a time");
    assert!(sum(&all, "uart", "write_count") >= ended.console.len() as u64);
    assert_eq!(sum(&all, "vcpu", "failures"), 0);
    assert!(sum(&all, "interrupts", "triggers") > 0);
    assert!(all[1]["latencies_us"]["pause_vm"].as_u64().is_some_and(|micros| micros > 0));
    assert_eq!(checksum(&image), before, "the guest wrote what it had read");
}

/// Neither a FIFO that nobody reads nor one that is full holds a VM up.
#[test]
fn nobody_has_to_read_the_metrics() {
    let folder = folder();
    let path = folder.path().join("fifo");
    crate::vm::host("mkfifo", &[path.as_ref()]);
    let vm = Vm::tuned().args(["--metrics-path".as_ref(), path.as_os_str()]).run("echo READY; read go").pipe();
    let mut remote = Remote::start(vm);
    remote.vm.expect("READY");
    for _ in 0..200 {
        remote.call("PUT", "/actions", json!({ "action_type": "FlushMetrics" }));
    }
    let page = remote.call("GET", "/metrics", Value::Null);
    let missed = samples(&page)["vmm_logger_missed_metrics_count_total"];
    assert!(missed > 0.0 && missed < 200.0, "{missed}");
    remote.vm.send("\n");
    remote.vm.ends(0);
}

/// From its start to its panic, with the console's last words; who follows late hears it all the same.
#[test]
fn a_vm_s_life_is_told() {
    let script = "echo READY; read go; printf '\\140' | dd of=/dev/port bs=1 seek=128 2>/dev/null
        printf '\\141' | dd of=/dev/port bs=1 seek=128 2>/dev/null; echo TOLD; read go; echo c > /proc/sysrq-trigger";
    let mut remote = Remote::start(Vm::boot("debian12/vmlinux").run(script).pipe());
    remote.vm.expect("READY");
    let socket = remote.socket.clone();
    let (said, hear) = std::sync::mpsc::channel();
    let following = std::thread::spawn(move || {
        client::follow(&socket, |line| said.send(serde_json::from_str(line).expect("JSON")).expect("a listener"))
    });
    let documents = Documents::read();
    let next = |name: &str| -> Value {
        let event: Value = hear.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no event {name}"));
        assert_eq!(event["event"], name, "{event}");
        assert_eq!(documents.faults(&json!({ "$ref": "#/components/schemas/Event" }), &event, "event"), [""; 0]);
        event
    };
    assert_eq!(next("started")["number"], 0);
    remote.vm.send("\n");
    remote.vm.expect("TOLD");
    next("userspace"); // once
    remote.set_state("Paused");
    next("paused");
    remote.set_state("Paused");
    remote.set_state("Resumed");
    next("resumed");
    remote.vm.send("\n");
    let panic = next("panic");
    let lines: Vec<_> = panic["console"].as_array().expect("lines").iter().filter_map(Value::as_str).collect();
    assert!(lines.iter().any(|line| line.contains("Kernel panic - not syncing")), "{panic}");
    assert_eq!(panic["crash_kernel"], false);
    let exit = next("exit");
    assert_eq!((&exit["status"], &exit["reason"]), (&json!(4), &json!("the guest's kernel panicked")));
    following.join().expect("the thread").expect("the stream ends with the VM");
    remote.vm.ends(4);
}
