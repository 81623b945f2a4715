//! What a VM with a guest answers and tells, against docs/api.yaml.

use serde_json::{Value, json};

use crate::api::Remote;
use crate::api::operations::operations;
use crate::api::schema::Documents;
use crate::disk::{disk, folder, full};
use crate::vm::Vm;

/// Every answer with JSON, while the guest runs, and while it is paused.
#[test]
fn answers_of_a_vm_that_runs_are_as_the_document_says() {
    let folder = folder();
    let (image, memory) = (full(folder.path(), "data", 1 << 20), full(folder.path(), "memory", 2 << 20));
    let socket = folder.path().join("v.sock");
    let balloon = json!({
        "amount_mib": 8,
        "stats_polling_interval_s": 1,
        "free_page_hinting": true,
        "free_page_reporting": true
    });
    let settings = [json!({ "guest_cid": 3, "uds_path": socket }), balloon];
    let settings = ["vsock", "balloon"].iter().zip(settings).map(|(key, value)| format!("{key}={value}"));
    let settings: Vec<_> = settings.collect();
    let pmem = format!("{},id=m", memory.display());
    let more =
        ["--rng", "--pmem", &pmem, "--memory", "256M", "--cpus", "2", "--set", &settings[0], "--set", &settings[1]];
    let vm = Vm::boot("debian12/vmlinux").args(disk(&image, "")).args(more).run("echo READY; read go").pipe();
    let mut remote = Remote::start(vm);
    remote.vm.expect("READY");
    remote.call("PUT", "/mmds", json!({ "a": 1 }));
    let documents = Documents::read();
    for state in ["Resumed", "Paused"] {
        remote.set_state(state);
        let mut answered = Vec::new();
        for operation in operations() {
            let schema = &operation.said["responses"]["200"]["content"]["application/json"]["schema"];
            if schema.is_null() {
                continue;
            }
            match remote.try_call(&operation.method, &operation.path, &Value::Null) {
                Ok(answer) => {
                    assert_eq!(documents.faults(schema, &answer, &operation.path), [""; 0], "{state}");
                    answered.push(operation.path);
                }
                Err(text) => panic!("{state}: {} {}: {text}", operation.method, operation.path),
            }
        }
        assert!(answered.iter().any(|path| path == "/balloon/statistics"), "{answered:?}");
        let config = remote.call("GET", "/vm/config", Value::Null);
        assert_eq!(documents.faults(&documents.config, &config, ""), [""; 0], "{state}: it is a configuration");
    }
    remote.set_state("Resumed");
    remote.vm.send("\n");
    remote.vm.ends(0);
}
