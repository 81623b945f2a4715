//! `vmm compare`: a small comparison of all four worlds. What is looked at is that everything was measured, and that the
//! facts differ where there are walls; no time is.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::vm::{able, guest, program};

/// What every world has samples of.
const ALWAYS: [&str; 10] = [
    "start_ms",
    "exit_ms",
    "cpu_ms",
    "getpid_ms",
    "fork_exec_ms",
    "write_ms",
    "read_ms",
    "memory_kib",
    "second_kib",
    "files_kib",
];

fn fact<'a>(document: &'a Value, world: &str, name: &str) -> &'a Value {
    let worlds = document["worlds"].as_array().expect("worlds");
    let found = worlds.iter().find(|entry| entry["world"] == world && entry["again"] == false);
    &found.unwrap_or_else(|| panic!("no {world} in {document:#}"))["facts"][name]
}

#[test]
fn four_worlds_are_measured_and_differ_where_there_are_walls() {
    if let Err(why) = able() {
        panic!("{why}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (json, html, store) = (folder.path().join("c.json"), folder.path().join("c.html"), folder.path().join("store"));
    let mut command = Command::new(program());
    command.args(["compare", "-n", "2", "--work", "2", "--worlds", "process,container,vm,vm-container"]);
    command.arg("--json").arg(&json).arg("--html").arg(&html);
    command.arg(format!("oci:{}", guest("images/busybox").display()));
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).expect("a folder");
    command.env("VMM_STORE", &store).env("VMM_KERNEL", guest("tuned/vmlinux")).stdin(Stdio::null());
    let output = command.env("TMPDIR", &temporary).output().expect("vmm compare");
    assert_eq!(std::fs::read_dir(&temporary).expect("a folder").count(), 0, "something is left");
    let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}{complaint}");
    let document: Value = serde_json::from_slice(&std::fs::read(&json).expect("JSON")).expect("JSON");

    assert_eq!((&document["format"], &document["runs"]), (&1.into(), &2.into()));
    assert_eq!(document["missing"], serde_json::json!({}), "{said}");
    let worlds = document["worlds"].as_array().expect("worlds");
    let names: Vec<_> = worlds.iter().map(|world| (world["world"].as_str(), world["again"].as_bool())).collect();
    let wanted = [("process", false), ("process", true), ("container", false), ("vm", false), ("vm-container", false)];
    assert_eq!(names, wanted.map(|(name, again)| (Some(name), Some(again))));
    for world in worlds {
        for metric in ALWAYS {
            let samples = world["samples"][metric].as_array().unwrap_or_else(|| panic!("no {metric} in {world:#}"));
            assert_eq!(samples.len(), 2, "{metric} in {world:#}");
            assert!(samples.iter().all(|sample| sample.as_f64().is_some_and(|number| number >= 0.0)), "{world:#}");
        }
        assert!(world["shared_files"].as_array().is_some_and(|files| files.iter().all(|file| file["bytes"] != 0)));
    }

    let host = &document["host_facts"];
    let of = |world: &str, name: &str| fact(&document, world, name).clone();
    // Whose kernel it is.
    for name in ["kernel", "boot_id", "memory_kib"] {
        assert_eq!((&of("process", name), &of("container", name)), (&host[name], &host[name]));
    }
    for world in ["vm", "vm-container"] {
        assert_ne!(of(world, "kernel"), host["kernel"], "the tuned kernel is another one than the lab's");
        assert_ne!(of(world, "boot_id"), host["boot_id"]);
    }
    // What a container does not see.
    for world in ["container", "vm-container"] {
        assert_eq!((of(world, "pid"), of(world, "processes")), (1.into(), 1.into()));
        assert_eq!(of(world, "limits")["memory.max"], (256 << 20).to_string());
        assert_eq!(of(world, "root"), "overlay");
    }
    assert_ne!(of("process", "pid"), 1);
    assert!(of("process", "processes").as_u64() > Some(1), "it sees the host's");
    assert_eq!(of("vm", "processes"), 2, "its init and itself");
    for (world, hostname) in [("container", "vmm-compare"), ("vm", "vmm-compare"), ("vm-container", "vmm-compare")] {
        assert_eq!(of(world, "hostname"), hostname);
    }
    assert_eq!(of("process", "hostname"), host["hostname"]);
    // Namespaces: the process has the host's, but for the mounts that this program made for it.
    for kind in ["cgroup", "ipc", "net", "pid", "uts"] {
        assert_eq!(of("process", "namespaces")[kind], host["namespaces"][kind], "{kind}");
        assert_ne!(of("container", "namespaces")[kind], host["namespaces"][kind], "{kind}");
    }

    let page = std::fs::read_to_string(&html).expect("HTML");
    assert!(page.contains("<svg") && page.trim_end().ends_with("</html>"));
    assert!(said.contains("start to first output, p99") && said.contains("seen from inside"), "{said}");
    assert!(said.contains("Containers share the host's kernel"), "{said}");
    // The image with the subject has gone from the store.
    let listed = Command::new(program()).args(["image", "ls", "-q"]).env("VMM_STORE", &store).output().expect("ls");
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("vmm-compare"));
}

#[test]
fn what_a_host_lacks_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(program());
    command.args(["compare", "-n", "1", "--worlds", "container,vm"]);
    command.arg(format!("oci:{}", guest("images/busybox").display())).stdin(Stdio::null());
    command.env("VMM_STORE", folder.path().join("store")).env("VMM_KERNEL", "/no/kernel").env("PATH", "/no/path");
    let output = command.output().expect("vmm compare");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("was not measured: runc is not on the PATH (Debian's package runc)"), "{said}");
    assert!(said.contains("was not measured: there is no kernel at /no/kernel"), "{said}");
}
