//! Each endpoint before the start: what is done, what is refused and with which words.

use serde_json::{Value, json};

use crate::{NOT_STARTED, Waiting, operations};

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
        ("PUT", "/snapshot/create", json!({ "snapshot_path": "s", "mem_file_path": "m" }), Err(NOT_STARTED)),
        ("PUT", "/snapshot/create", json!({ "snapshot_path": "s" }), Err("mem_file_path is missing")),
        (
            "PUT",
            "/snapshot/create",
            json!({ "snapshot_type": "Diff", "snapshot_path": "s", "mem_file_path": "m" }),
            Err("snapshot_type must be one of Full"),
        ),
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
        (
            "PUT",
            "/drives/parts",
            json!({ "drive_id": "parts", "partitions": [{ "path_on_host": "text", "name": "t" }] }),
            Err("PUT /drives/parts: is_read_only: must be true with `partitions`: their files are only read"),
        ),
        (
            "PUT",
            "/drives/parts",
            json!({ "drive_id": "parts", "partitions": [{ "path_on_host": "none" }], "is_read_only": true }),
            Err("PUT /drives/parts: partitions[0].path_on_host: none does not exist"),
        ),
        (
            "PUT",
            "/drives/parts",
            json!({ "drive_id": "parts", "partitions": [{ "path_on_host": "kernel", "name": "t" }], "is_read_only": true }),
            Ok(()),
        ),
        ("DELETE", "/drives/parts", null.clone(), Ok(())),
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
        ("PUT", "/shares/later", json!({ "tag": "later" }), Ok(())),
        ("PATCH", "/shares/later", json!({ "tag": "later", "path_on_host": "." }), Err(NOT_STARTED)),
        ("DELETE", "/shares/later", null.clone(), Ok(())),
        (
            "PATCH",
            "/shares/later",
            json!({ "tag": "later" }),
            Err("PATCH /shares/later: there is no `later` among shares"),
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
        ("PUT", "/snapshot/load", json!({}), Err("/snapshot/load (Firecracker's) is not in this version of vmm")),
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
