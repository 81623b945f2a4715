//! The API from outside, without KVM: a VM that is configured and never starts, or can not.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::client::{self, ClientError};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "api/document.rs"]
mod document;
#[path = "api/operations.rs"]
mod operations;

const PATIENCE: Duration = Duration::from_secs(30);
/// Why there is nothing to change or to ask yet.
const NOT_STARTED: &str = "the VM is not started; start it first (InstanceStart)";

/// A `vmm` that waits for its VM, in a directory with some files.
struct Waiting {
    process: Child,
    room: TempDir,
}

impl Waiting {
    fn start(args: &[&str]) -> Self {
        let room = TempDir::new().expect("a directory");
        for (name, text) in
            [("kernel", format!("{:514}HdrS", "not a kernel")), ("disk", "a".repeat(512)), ("text", String::new())]
        {
            std::fs::write(room.path().join(name), text).expect("a file");
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command
            .args(["--api-sock", "api.sock"])
            .args(args)
            .current_dir(room.path())
            .env("VMM_RUNTIME_DIR", room.path().join("vmm"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let waiting = Self { process: command.spawn().expect("start vmm"), room };
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(waiting.socket()).is_err() {
            assert!(Instant::now() < until, "no API");
            std::thread::sleep(Duration::from_millis(5));
        }
        waiting
    }

    fn socket(&self) -> PathBuf {
        self.room.path().join("api.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("the API's socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream
    }

    fn call(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        let body = (!body.is_null()).then_some(body);
        match client::call(&self.socket(), method, path, body.as_ref()) {
            Err(ClientError::Refused(text)) => Err(text),
            answer => Ok(answer.expect("an answer")),
        }
    }

    /// What comes back for these bytes, until the other end closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// It still answers.
    fn is_well(&self) {
        assert_eq!(self.call("GET", "/", Value::Null).expect("an answer")["state"], "Not started");
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn says_what_it_is() {
    let vm = Waiting::start(&["--id", "my-vm"]);
    let wanted =
        json!({ "app_name": "vmm", "id": "my-vm", "state": "Not started", "vmm_version": env!("CARGO_PKG_VERSION") });
    assert_eq!(vm.call("GET", "/", Value::Null), Ok(wanted));
    // What `firecracker --version` prints (tests/cli/verbs.rs).
    assert_eq!(vm.call("GET", "/version", Value::Null).unwrap(), json!({ "firecracker_version": "1.17.0" }));
}

/// Everything that docs/api.yaml has is among the requests: what can be done before the start is done, what can not is
/// refused for that, and what has a body or a name is refused for a wrong one.
fn all_are_asked(cases: &[(&str, &str, Value, Result<(), &str>)]) {
    // These change what the connection is: `events_are_told_until_the_end` and `ctl_speaks_the_same_api` have them.
    let is_changing = |path: &str| ["/vm/events", "/vm/console"].contains(&path);
    let mut absent = Vec::new();
    for operation in operations::operations().iter().filter(|it| !is_changing(&it.path)) {
        let wanted = || cases.iter().filter(|case| operation.takes(case.0, case.1)).map(|case| case.3);
        let (done, early) = (wanted().any(|it| it.is_ok()), wanted().any(|it| it == Err(NOT_STARTED)));
        let is_right = match (operation.says("Before the start"), operation.says("After the start")) {
            (true, false) => done && !early,
            (false, true) => early && !done,
            _ => done || early,
        };
        let can_be_wrong = operation.said["requestBody"]["required"] == true || operation.path.contains('{');
        let is_wrong = wanted().any(|it| it.is_err_and(|text| text != NOT_STARTED));
        for (_, what) in [(is_right, "right"), (is_wrong || !can_be_wrong, "wrong")].iter().filter(|(is, _)| !is) {
            absent.push(format!("{} {}, {what}", operation.method, operation.path));
        }
    }
    assert!(absent.is_empty(), "{absent:#?}");
}

/// Every endpoint, right and wrong, before the start.
#[test]
fn requests_before_the_start() {
    let vm = Waiting::start(&[]);
    let null = Value::Null;
    let bucket = json!({ "size": 1, "refill_time": 1 });
    let cases = [
        ("GET", "/", null.clone(), Ok(())),
        ("GET", "/version", null.clone(), Ok(())),
        ("GET", "/vm/config", null.clone(), Ok(())),
        ("GET", "/machine-config", null.clone(), Ok(())),
        ("GET", "/metrics", null.clone(), Ok(())),
        (
            "PUT",
            "/boot-source",
            json!({ "kernel_image_path": "/no/kernel" }),
            Err("PUT /boot-source: kernel_image_path: /no/kernel does not exist"),
        ),
        ("PUT", "/boot-source", json!({ "kernel": "k" }), Err("PUT /boot-source: kernel: unknown key")),
        ("PUT", "/boot-source", json!({}), Err("kernel_image_path: is missing")),
        ("PUT", "/boot-source", null.clone(), Err("PUT /boot-source: has no body")),
        ("PUT", "/boot-source", json!([1]), Err("PUT /boot-source: a JSON object is expected")),
        (
            "PUT",
            "/actions",
            json!({ "action_type": "InstanceStart" }),
            Err("there is no kernel to boot; PUT /boot-source"),
        ),
        ("PUT", "/actions", json!({ "action_type": "Fly" }), Err("action_type must be one of InstanceStart")),
        ("PUT", "/actions", json!({}), Err("action_type is missing")),
        ("PUT", "/actions", json!({ "action_type": "SendCtrlAltDel" }), Err(NOT_STARTED)),
        ("PUT", "/actions", json!({ "action_type": "PowerButton" }), Err(NOT_STARTED)),
        ("PUT", "/actions", json!({ "action_type": "Reset" }), Err(NOT_STARTED)),
        ("PUT", "/actions", json!({ "action_type": "FlushMetrics" }), Err(NOT_STARTED)),
        ("PUT", "/actions", json!({ "action_type": "CoreDump", "path_on_host": "core" }), Err(NOT_STARTED)),
        ("PUT", "/actions", json!({ "action_type": "CoreDump" }), Err("path_on_host is missing")),
        (
            "PUT",
            "/actions",
            json!({ "action_type": "Stop", "path_on_host": "x" }),
            Err("path_on_host: unknown key of Stop"),
        ),
        ("GET", "/vm/console", null.clone(), Err("GET /vm/console: a header `Upgrade: vmm-console` is expected")),
        ("PATCH", "/vm", json!({ "state": "Paused" }), Err(NOT_STARTED)),
        ("PATCH", "/vm", json!({ "state": "Gone" }), Err("state must be one of Paused, Resumed")),
        ("PATCH", "/vm", json!({ "state": "Paused", "x": 1 }), Err("x: unknown key")),
        ("PUT", "/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 256 }), Ok(())),
        (
            "PUT",
            "/machine-config",
            json!({ "vcpu_count": 0, "mem_size_mib": 256 }),
            Err("PUT /machine-config: vcpu_count: must be at least 1, not 0"),
        ),
        (
            "PUT",
            "/machine-config",
            json!({ "vcpu_count": 1, "cpu_template": "V1N1" }),
            Err("PUT /machine-config: cpu_template: must be \"None\", \"C3\""),
        ),
        ("PUT", "/cpu-config", json!({ "kvm_capabilities": ["!56"], "cpuid_modifiers": [] }), Ok(())),
        (
            "PUT",
            "/cpu-config",
            json!({ "msr_modifiers": [{ "addr": "0x10a", "bitmap": "0b2" }] }),
            Err("PUT /cpu-config: msr_modifiers[0].bitmap: `0b2` is no bitmap"),
        ),
        ("PATCH", "/machine-config", json!({ "smt": true }), Ok(())),
        (
            "PATCH",
            "/machine-config",
            json!({ "vcpu_count": 3 }),
            Err("PATCH /machine-config: vcpu_count: must be 1 or even with smt, not 3"),
        ),
        ("PUT", "/drives/a", json!({ "drive_id": "a", "path_on_host": "disk", "is_root_device": true }), Ok(())),
        (
            "PUT",
            "/drives/a",
            json!({ "drive_id": "b", "path_on_host": "disk", "is_root_device": false }),
            Err("PUT /drives/a: drive_id is \"b\" in the body and `a` in the path"),
        ),
        ("PUT", "/drives/a", json!({ "path_on_host": "disk" }), Err("PUT /drives/a: drive_id is missing in the body")),
        (
            "PUT",
            "/drives/b",
            json!({ "drive_id": "b", "path_on_host": "none" }),
            Err("PUT /drives/b: path_on_host: none does not exist"),
        ),
        (
            "PUT",
            "/drives/b",
            json!({ "drive_id": "b", "path_on_host": "text", "is_root_device": true }),
            Err("drives[0] is the root device already"),
        ),
        (
            "PUT",
            "/drives/b",
            json!({ "drive_id": "b", "path_on_host": "text", "rate_limiter": { "ops": bucket.clone() } }),
            Ok(()),
        ),
        ("PUT", "/drives/a!", json!({ "drive_id": "a!", "path_on_host": "text" }), Err("`a!` contains '!'")),
        ("PATCH", "/drives/a", json!({ "drive_id": "a", "path_on_host": "text" }), Err(NOT_STARTED)),
        ("PATCH", "/drives/c", json!({ "drive_id": "c" }), Err("PATCH /drives/c: there is no `c` among drives")),
        ("DELETE", "/drives/b", null.clone(), Ok(())),
        ("DELETE", "/drives/b", null.clone(), Err("DELETE /drives/b: there is no `b` among drives")),
        (
            "PUT",
            "/network-interfaces/eth0",
            json!({ "iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:ac:10:00:02" }),
            Ok(()),
        ),
        (
            "PUT",
            "/network-interfaces/eth1",
            json!({ "iface_id": "eth1", "host_dev_name": "tap0" }),
            Err("`tap0` is network-interfaces[0]'s already"),
        ),
        ("DELETE", "/drives/eth0", null.clone(), Err("there is no `eth0` among drives")),
        ("PUT", "/mmds/config", json!({ "network_interfaces": ["eth0"], "version": "V2" }), Ok(())),
        (
            "PUT",
            "/mmds/config",
            json!({ "network_interfaces": ["eth1"] }),
            Err("PUT /mmds/config: network_interfaces[0]: there is no network interface `eth1`"),
        ),
        (
            "PUT",
            "/mmds/config",
            json!({ "network_interfaces": [] }),
            Err("PUT /mmds/config: network_interfaces: is empty"),
        ),
        (
            "PUT",
            "/mmds/config",
            json!({ "network_interfaces": ["eth0"], "ipv4_address": "10.0.0.1" }),
            Err("PUT /mmds/config: ipv4_address: `10.0.0.1`: a link-local IPv4 address is expected"),
        ),
        (
            "PUT",
            "/mmds/config",
            json!({ "network_interfaces": ["eth0"], "version": "V3" }),
            Err("PUT /mmds/config: version: must be \"V1\" or \"V2\", not \"V3\""),
        ),
        ("PUT", "/mmds/config", json!({}), Err("PUT /mmds/config: network_interfaces: is missing")),
        (
            "DELETE",
            "/network-interfaces/eth0",
            null.clone(),
            Err("mmds-config.network_interfaces[0]: there is no network interface `eth0`"),
        ),
        ("PUT", "/network-interfaces/eth1", json!({ "iface_id": "eth1", "host_dev_name": "tap1" }), Ok(())),
        ("PUT", "/mmds/config", json!({ "network_interfaces": ["eth1"] }), Ok(())),
        (
            "PATCH",
            "/network-interfaces/eth0",
            json!({ "iface_id": "eth0", "rx_rate_limiter": { "ops": bucket.clone() } }),
            Err(NOT_STARTED),
        ),
        ("DELETE", "/network-interfaces/eth0", null.clone(), Ok(())),
        (
            "PATCH",
            "/network-interfaces/eth0",
            json!({ "iface_id": "eth0" }),
            Err("PATCH /network-interfaces/eth0: there is no `eth0` among network-interfaces"),
        ),
        ("PUT", "/pmem/m", json!({ "id": "m", "path_on_host": "kernel", "private": true }), Ok(())),
        ("PUT", "/pmem/n", json!({ "id": "n", "path_on_host": "none" }), Err("none does not exist")),
        (
            "PATCH",
            "/pmem/m",
            json!({ "id": "m", "rate_limiter": { "ops": { "size": 1, "refill_time": 1 } } }),
            Err(NOT_STARTED),
        ),
        ("DELETE", "/pmem/m", null.clone(), Ok(())),
        ("PATCH", "/pmem/m", json!({ "id": "m" }), Err("PATCH /pmem/m: there is no `m` among pmem")),
        ("DELETE", "/pmem/m", null.clone(), Err("DELETE /pmem/m: there is no `m` among pmem")),
        ("PUT", "/shares/work", json!({ "tag": "work", "path_on_host": "." }), Ok(())),
        (
            "PUT",
            "/shares/text",
            json!({ "tag": "text", "path_on_host": "text" }),
            Err("PUT /shares/text: path_on_host: text is a file, not a directory"),
        ),
        ("DELETE", "/shares/work", null.clone(), Ok(())),
        ("DELETE", "/shares/work", null.clone(), Err("DELETE /shares/work: there is no `work` among shares")),
        ("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock" }), Ok(())),
        (
            "PUT",
            "/vsock",
            json!({ "guest_cid": 2, "uds_path": "v.sock" }),
            Err("PUT /vsock: guest_cid: must be from 3 to 4294967294, not 2"),
        ),
        ("PUT", "/entropy", json!({ "rate_limiter": { "bandwidth": bucket } }), Ok(())),
        ("PUT", "/entropy", json!({ "rate": 1 }), Err("PUT /entropy: rate: unknown key")),
        ("PATCH", "/entropy", json!([]), Err("PATCH /entropy: a JSON object is expected")),
        ("PATCH", "/entropy", json!({ "rate_limiter": {} }), Err(NOT_STARTED)),
        ("PATCH", "/serial", json!({ "rate_limiter": null }), Err(NOT_STARTED)),
        ("PATCH", "/serial", null.clone(), Err("PATCH /serial: has no body; a JSON object is expected")),
        ("PUT", "/serial", json!({ "serial_out_path": "out" }), Ok(())),
        ("PUT", "/serial", json!({ "serial_out_path": "no/out" }), Err("PUT /serial: serial_out_path: ")),
        ("PUT", "/logger", json!({ "log_path": "log", "level": "DEBUG", "show_level": true }), Ok(())),
        ("PUT", "/logger", json!({ "level": "Loud" }), Err("PUT /logger: level: must be")),
        ("GET", "/balloon", null.clone(), Err("there is no balloon")),
        ("PUT", "/balloon", json!({ "amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 1 }), Ok(())),
        (
            "PUT",
            "/balloon",
            json!({ "amount_mib": 256 }),
            Err("PUT /balloon: amount_mib: must be less than the VM's memory (256 MiB), not 256"),
        ),
        ("PATCH", "/balloon", json!({ "amount_mib": 1 }), Err(NOT_STARTED)),
        ("PATCH", "/balloon", json!({ "deflate_on_oom": true }), Err("deflate_on_oom: unknown key")),
        ("GET", "/balloon/statistics", null.clone(), Err(NOT_STARTED)),
        ("PATCH", "/balloon/statistics", json!({ "stats_polling_interval_s": 2 }), Err(NOT_STARTED)),
        ("PATCH", "/balloon/statistics", json!({ "amount_mib": 2 }), Err("amount_mib: unknown key")),
        ("PATCH", "/balloon/hinting/start", null.clone(), Err(NOT_STARTED)),
        ("PATCH", "/balloon/hinting/start", json!({ "acknowledge_on_stop": 1 }), Err("is true or false, not 1")),
        ("PATCH", "/balloon/hinting/start", json!({ "acknowledge": true }), Err("acknowledge: unknown key")),
        ("PATCH", "/balloon/hinting/stop", null.clone(), Err(NOT_STARTED)),
        ("GET", "/balloon/hinting/status", null.clone(), Err(NOT_STARTED)),
        ("PATCH", "/balloon/reporting/pause", null.clone(), Err(NOT_STARTED)),
        ("PATCH", "/balloon/reporting/resume", null.clone(), Err(NOT_STARTED)),
        ("GET", "/balloon/reporting/status", null.clone(), Err(NOT_STARTED)),
        ("GET", "/memory", null.clone(), Err(NOT_STARTED)),
        ("GET", "/memory/mappings", null.clone(), Err(NOT_STARTED)),
        ("PUT", "/snapshot/create", json!({}), Err("/snapshot/create (Firecracker's) is not in this version of vmm")),
        ("PUT", "/metrics", json!({ "metrics_path": "m", "emit_id": true, "properties": { "host": "h1" } }), Ok(())),
        ("PUT", "/metrics", json!({ "metrics_path": "." }), Err("PUT /metrics: metrics_path: . is a directory")),
        (
            "PUT",
            "/metrics",
            json!({ "metrics_path": "m", "properties": { "host": 1 } }),
            Err("PUT /metrics: properties.host: must be"),
        ),
        ("PUT", "/metrics", json!({}), Err("PUT /metrics: metrics_path: is missing")),
        ("PATCH", "/mmds", json!({ "a": 1 }), Err("The MMDS data store is not initialized.")),
        ("PUT", "/mmds", json!({ "a": 1 }), Ok(())),
        ("PUT", "/mmds", null.clone(), Err("PUT /mmds: the body is not JSON")),
        ("PATCH", "/mmds", json!({ "b": 2 }), Ok(())),
        ("GET", "/mmds", null.clone(), Ok(())),
        ("GET", "/balloon", null.clone(), Ok(())),
        ("PUT", "/boot-source", json!({ "kernel_image_path": "kernel" }), Ok(())),
        ("GET", "/nonsense", null.clone(), Err("Invalid request method and/or path: GET /nonsense.")),
        ("POST", "/vm", null.clone(), Err("Invalid request method and/or path: POST /vm. Known here: PATCH.")),
    ];
    all_are_asked(&cases);
    for (method, path, body, wanted) in cases {
        let before = vm.call("GET", "/vm/config", Value::Null).unwrap();
        let got = vm.call(method, path, body.clone());
        match (&got, wanted) {
            (Ok(answer), Ok(())) if answer.is_null() == (method != "GET") => {}
            (Err(text), Err(part)) if text.contains(part) => {
                assert_eq!(vm.call("GET", "/vm/config", Value::Null).unwrap(), before, "{method} {path} {body}");
            }
            _ => panic!("{method} {path} {body}: {got:?}, not {wanted:?}"),
        }
    }
    let config = vm.call("GET", "/vm/config", Value::Null).unwrap();
    assert_eq!(config["drives"].as_array().unwrap().len(), 1);
    assert_eq!((&config["logger"]["level"], &config["balloon"]["amount_mib"]), (&json!("Debug"), &json!(64)));
    let machine = vm.call("GET", "/machine-config", Value::Null).unwrap();
    assert_eq!((&machine["vcpu_count"], &machine["smt"]), (&json!(2), &json!(true)));
    assert_eq!(vm.call("GET", "/balloon", Value::Null).unwrap()["amount_mib"], 64);
}

/// What the metadata service has to tell is any JSON, of a limited size.
#[test]
fn metadata_is_put_patched_and_read() {
    let vm = Waiting::start(&["--mmds-size-limit", "30"]);
    let get = || vm.call("GET", "/mmds", Value::Null).unwrap();
    let refused = |method: &str, body: Value| vm.call(method, "/mmds", body).unwrap_err();
    assert_eq!(get(), json!({}));
    assert_eq!(refused("PATCH", json!({ "a": 1 })), "The MMDS data store is not initialized.");
    for contents in [json!([1, "two"]), json!("text"), json!({ "a": { "b": "c" } })] {
        vm.call("PUT", "/mmds", contents.clone()).unwrap();
        assert_eq!(get(), contents);
    }
    vm.call("PATCH", "/mmds", json!({ "a": { "b": null, "c": 1 }, "d": true })).unwrap();
    assert_eq!(get(), json!({ "a": { "c": 1 }, "d": true }));
    let long = json!({ "long": "x".repeat(30) });
    for method in ["PUT", "PATCH"] {
        assert_eq!(refused(method, long.clone()), "The MMDS patch request doesn't fit.");
        let (head, body) = (format!("{method} /mmds HTTP/1.1\r\n"), long.to_string());
        let answer = vm.raw(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{answer}");
    }
    assert!(vm.raw(b"PUT /mmds HTTP/1.1\r\nContent-Length: 1\r\n\r\n{").contains("the body is not JSON"));
    assert_eq!(get(), json!({ "a": { "c": 1 }, "d": true }));
    assert!(vm.call("GET", "/mmds/config", Value::Null).unwrap_err().contains("Known here: PUT."));
}

#[test]
fn the_first_metadata_may_come_from_a_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("metadata.json");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "{ \"a\": [1, 2] }").unwrap();
    let vm = Waiting::start(&["--metadata", path]);
    assert_eq!(vm.call("GET", "/mmds", Value::Null).unwrap(), json!({ "a": [1, 2] }));
}

/// Before there is a VM the page of metrics tells of the process and of what was asked.
#[test]
fn requests_are_counted() {
    let vm = Waiting::start(&[]);
    for _ in 0..3 {
        vm.is_well();
    }
    let _ = vm.call("PUT", "/drives/a", json!({}));
    let _ = vm.call("GET", "/nonsense", Value::Null);
    let answer = vm.raw(b"GET /metrics HTTP/1.1\r\n\r\n");
    let (head, page) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    for line in [
        "vmm_api_requests_total{method=\"GET\",path=\"/\"} 3",
        "vmm_api_failed_total{method=\"GET\",path=\"/\"} 0",
        "vmm_api_failed_total{method=\"PUT\",path=\"/drives/{drive_id}\"} 1",
        "vmm_api_failed_total{method=\"unknown\",path=\"/unknown\"} 1",
    ] {
        assert!(page.lines().any(|it| it == line), "{line}\n{page}");
    }
    assert!(!page.contains("/vsock"), "nobody asked for it\n{page}");
    assert_eq!(vm.call("GET", "/metrics", Value::Null).map(|it| it.is_string()), Ok(true));
}

/// What happens is told to whoever follows, also to one who says that it sends no more; who never reads disturbs nobody.
#[test]
fn events_are_told_until_the_end() {
    let mut vm = Waiting::start(&[]);
    let follow = || {
        let mut stream = vm.connect();
        stream.write_all(b"GET /vm/events HTTP/1.1\r\n\r\n").unwrap();
        let mut head = vec![0; 15];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head, b"HTTP/1.1 200 OK");
        stream
    };
    let followers = [follow(), follow()];
    followers[1].shutdown(std::net::Shutdown::Write).unwrap();
    let (_silent, mut chatty) = (follow(), follow());
    chatty.write_all(&b"GET / HTTP/1.1\r\n\r\n".repeat(1000)).unwrap();
    drop(follow());
    vm.is_well();
    let by_client = {
        let socket = vm.socket();
        std::thread::spawn(move || {
            let mut lines = Vec::new();
            // It may come too late.
            let _ = client::follow(&socket, |line| lines.push(line.to_owned()));
            lines
        })
    };
    vm.is_well();
    vm.call("PUT", "/actions", json!({ "action_type": "Stop" })).unwrap();
    for mut stream in followers {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        let (head, body) = rest.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
        let line = body.lines().find(|line| line.starts_with('{')).expect("an event");
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&event["event"], &event["status"]), (&json!("exit"), &json!(12)), "{body}");
        assert_eq!(event["reason"], "stopped by a request");
        assert!(body.ends_with("\r\n0\r\n\r\n"), "{body}");
    }
    assert!(by_client.join().unwrap().iter().all(|line| line.contains("\"exit\"")));
    assert_eq!(vm.process.wait().unwrap().code(), Some(12));
}

/// The log changes with the request, not with the start; what a request does not name stays.
#[test]
fn the_log_changes_when_it_is_asked_to() {
    let vm = Waiting::start(&["--log-file", "first", "--log-level", "off", "--log-format", "json", "--id", "logged"]);
    let read = |name: &str| std::fs::read_to_string(vm.room.path().join(name)).unwrap();
    vm.call("PUT", "/serial", json!({})).unwrap();
    vm.call("PUT", "/logger", json!({ "level": "debug" })).unwrap();
    vm.call("PUT", "/entropy", json!({})).unwrap();
    vm.call("PUT", "/logger", json!({ "log_path": "second", "levels": { "api": "Info" } })).unwrap();
    vm.is_well(); // a GET, at debug
    vm.call("DELETE", "/drives/none", Value::Null).unwrap_err();
    let lost = vm.call("PUT", "/logger", json!({ "log_path": "no/where" })).unwrap_err();
    assert!(lost.contains("the directory no does not exist"), "{lost}");
    let wrong = vm.call("PUT", "/logger", json!({ "levels": { "apo": "Info" } })).unwrap_err();
    assert_eq!(
        wrong,
        "PUT /logger: levels.apo: there is no module `apo`; the names begin with api, devices, machine, vmm"
    );
    vm.call("PUT", "/logger", json!({ "level": "Off", "levels": {}, "show_level": null })).unwrap();
    vm.call("PUT", "/serial", json!({})).unwrap();
    let lines = |name: &str| -> Vec<(String, u64)> {
        let lines = read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
        let what =
            |line: &Value| (line["message"].as_str().unwrap().to_owned(), line["fields"]["status"].as_u64().unwrap());
        assert!(lines.iter().all(|line| line["id"] == "logged" && line["module"] == "api::connection"), "{lines:?}");
        lines.iter().map(what).collect()
    };
    let wanted =
        |lines: &[(&str, u64)]| lines.iter().map(|(text, status)| ((*text).to_owned(), *status)).collect::<Vec<_>>();
    assert_eq!(lines("first"), wanted(&[("PUT /logger", 204), ("PUT /entropy", 204)]));
    let put = ("PUT /logger", 204);
    let refused = ("PUT /logger", 400);
    assert_eq!(lines("second"), wanted(&[put, ("DELETE /drives/none", 400), refused, refused]));
    let config = &vm.call("GET", "/vm/config", Value::Null).unwrap()["logger"];
    assert_eq!(
        (&config["level"], &config["format"], &config["log_path"]),
        (&json!("Off"), &json!("json"), &json!("second"))
    );
}

/// Standard error is a pipe here, which nobody reads: lines are lost, requests are not.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let mut vm = Waiting::start(&["--log-level", "vmm=off,api=debug"]);
    let lost = |vm: &Waiting| -> u64 {
        let page = vm.call("GET", "/metrics", Value::Null).unwrap();
        let line = page.as_str().unwrap().lines().find_map(|it| it.strip_prefix("vmm_logger_missed_log_count_total "));
        line.unwrap().parse().unwrap()
    };
    let mut asked = 0;
    while lost(&vm) < 10 {
        assert!(asked < 10_000, "the pipe is never full");
        (0..50).for_each(|_| vm.is_well());
        asked += 50;
    }
    vm.call("PUT", "/actions", json!({ "action_type": "Stop" })).unwrap();
    let mut text = String::new();
    vm.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("] GET / status=200 took_us=")).collect();
    assert!(lines.len() > 50 && lines.len() < asked, "{} of {asked} lines", lines.len());
}

#[test]
fn every_answer_says_how_long_it_took() {
    let vm = Waiting::start(&[]);
    // The console's 101 needs a VM that runs: tests/guest/names.rs.
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET /x HTTP/1.1\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET /vm/events HTTP/1.1\r\n\r\n",
        "GET /vm/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: vmm-console\r\n\r\n",
    ] {
        let mut stream = vm.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 4096];
        let len = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..len]);
        let value = answer.lines().find_map(|line| line.strip_prefix("Server-Timing: total;dur=")).expect("a header");
        assert!(value.parse::<f64>().unwrap() >= 0.0, "{value}");
    }
}

#[test]
fn flags_and_requests_edit_the_same_configuration() {
    let vm = Waiting::start(&["--memory", "64M", "--cpus", "2", "--disk", "disk"]);
    vm.call("PATCH", "/machine-config", json!({ "vcpu_count": 1 })).unwrap();
    let config = vm.call("GET", "/vm/config", Value::Null).unwrap();
    assert_eq!(config["machine-config"]["mem_size_mib"], 64);
    assert_eq!(config["machine-config"]["vcpu_count"], 1);
    assert_eq!(config["drives"][0]["drive_id"], "disk1");
    assert!(config.get("boot-source").is_none() && config.get("entropy").is_none());
}

#[test]
fn a_request_that_is_no_request_harms_nobody() {
    let vm = Waiting::start(&[]);
    let put = |headers: &str, body: &str| format!("PUT /entropy HTTP/1.1\r\n{headers}\r\n\r\n{body}");
    let long = put("Content-Length: 60000", &"x".repeat(60_000));
    for (bytes, part) in [
        (&b"hello\r\n\r\n"[..], "HTTP/1.1 400 "),
        (put("Content-Length: 2", "{").as_bytes(), ""),
        (put("Content-Length: 1", "{").as_bytes(), "PUT /entropy: the body is not JSON"),
        (put("Content-Length: 2", "{}").as_bytes(), "HTTP/1.1 204 "),
        (&[put("Content-Length: 4", "").as_bytes(), b"\"\xff\xfe\""].concat(), "the body is not JSON"),
        (put("Content-Length: nine", "").as_bytes(), "Content-Length is not one number"),
        (put("Transfer-Encoding: chunked", "0\r\n\r\n").as_bytes(), "HTTP/1.1 501 "),
        (long.as_bytes(), "HTTP/1.1 413 "),
        (&[0; 5000], "HTTP/1.1 400 "),
        (b"", ""),
    ] {
        let answer = vm.raw(bytes);
        assert!(answer.contains(part), "{:?}: {answer}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
        assert!(part.is_empty() == answer.is_empty(), "{answer}");
        vm.is_well();
    }
}

#[test]
fn requests_may_come_together_or_byte_by_byte() {
    let vm = Waiting::start(&[]);
    let get = "GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(vm.raw(get.repeat(50).as_bytes()).matches("HTTP/1.1 200 OK").count(), 50);
    let mut slow = vm.connect();
    for byte in get.bytes() {
        slow.write_all(&[byte]).unwrap();
        vm.is_well();
    }
    let mut first = [0; 15];
    slow.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    let mut waits = vm.connect();
    waits.write_all(b"PUT /entropy HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").unwrap();
    let mut proceed = [0; 25];
    waits.read_exact(&mut proceed).unwrap();
    assert_eq!(&proceed, b"HTTP/1.1 100 Continue\r\n\r\n");
    waits.write_all(b"{}").unwrap();
    waits.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 204 No");
}

/// Clients that are silent, that vanish in the middle, that never read their answers, and a hundred that are well.
#[test]
fn clients_do_not_disturb_each_other() {
    let vm = Waiting::start(&[]);
    let silent: Vec<_> = (0..300).map(|_| vm.connect()).collect();
    for _ in 0..50 {
        vm.connect().write_all(b"PUT /entropy HTTP/1.1\r\nContent-Length: 100\r\n\r\n{").unwrap();
    }
    let mut greedy = vm.connect();
    greedy.set_nonblocking(true).unwrap();
    let request = b"GET /vm/config HTTP/1.1\r\n\r\n".repeat(100);
    while greedy.write(&request).is_ok() {}
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..100).map(|_| scope.spawn(|| (0..10).for_each(|_| vm.is_well()))).collect();
        calls.into_iter().for_each(|call| call.join().unwrap());
    });
    drop(silent);
    vm.is_well();
}

/// A start that fails leaves everything as it was, and the next one may succeed.
#[test]
fn a_start_that_fails_is_no_end() {
    let vm = Waiting::start(&[]);
    vm.call("PUT", "/boot-source", json!({ "kernel_image_path": "kernel" })).unwrap();
    for _ in 0..2 {
        vm.call("PUT", "/actions", json!({ "action_type": "InstanceStart" })).expect_err("that is no kernel");
        vm.is_well();
    }
}

#[test]
fn its_socket_goes_with_it_and_a_left_one_is_replaced() {
    let mut vm = Waiting::start(&[]);
    let second = Command::new(env!("CARGO_BIN_EXE_vmm")).arg("--api-sock").arg(vm.socket()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process listens there"));
    vm.is_well();
    vm.process.kill().unwrap();
    vm.process.wait().unwrap();
    assert!(vm.socket().exists(), "who is killed leaves it");
    let mut again = Command::new(env!("CARGO_BIN_EXE_vmm")).arg("--api-sock").arg(vm.socket()).spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    while UnixStream::connect(vm.socket()).is_err() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    vm.call("PUT", "/actions", json!({ "action_type": "Stop" })).unwrap();
    assert_eq!(again.wait().unwrap().code(), Some(12));
    assert!(!vm.socket().exists());
}

#[test]
fn ctl_speaks_the_same_api() {
    let mut vm = Waiting::start(&["--id", "one"]);
    let socket = vm.socket();
    let ctl = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_vmm")).arg("ctl").arg(&socket).args(words).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (status, out, _) = ctl(&["state"]);
    assert_eq!((status, serde_json::from_str::<Value>(&out).unwrap()["id"].clone()), (Some(0), json!("one")));
    let (status, out, err) = ctl(&["pause"]);
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert!(err.contains("the VM is not started"), "{err}");
    let (status, out, err) = ctl(&["console"]);
    assert!(status == Some(1) && out.is_empty() && err.contains("the VM is not started"), "{err}");
    let (status, _, err) = ctl(&["update", "balloon", "amount_mib=1"]);
    assert!(status == Some(1) && err.contains("not started"), "{err}");
    assert_eq!(ctl(&["stop"]), (Some(0), String::new(), String::new()));
    assert_eq!(vm.process.wait().unwrap().code(), Some(12));
    let (status, _, err) = ctl(&["state"]);
    assert!(status == Some(1) && err.contains("No such file"), "{err}");
}
