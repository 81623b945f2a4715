//! What succeeds: help, explain, schema, doctor, and the documents that must be accepted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::Room;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn json_files(directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root(directory)).expect("a directory");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    assert!(!files.is_empty(), "{directory} has no documents");
    files
}

fn explained(room: &Room, args: &[&str]) -> Value {
    let outcome = room.vmm(&[&["explain", "--json"], args].concat());
    assert_eq!((outcome.err.as_str(), outcome.status), ("", 0), "{args:?}");
    serde_json::from_str(&outcome.out).expect("JSON")
}

#[test]
fn help_and_version_exit_with_0() {
    let room = Room::new();
    for line in ["--help", "-h", "explain --help", "doctor --help", "schema --help"] {
        let outcome = room.line(line);
        assert_eq!((outcome.status, outcome.err.as_str()), (0, ""), "{line}");
        assert!(outcome.out.lines().all(|line| line.chars().count() <= 110), "{line}");
    }
    let help = room.line("--help").out;
    for part in
        ["Examples:", "Boot:", "Machine:", "Devices:", "Log:", "Running:", "Configuration:", "doctor", "--rootfs"]
    {
        assert!(help.contains(part), "{part}");
    }
    assert_eq!(room.line("--version").out, concat!("vmm ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn as_firecracker_it_tells_that_version_first() {
    let room = Room::new();
    let outcome = room.firecracker(&["--version"]);
    assert_eq!((outcome.status, outcome.err.as_str()), (0, ""));
    let lines: Vec<_> = outcome.out.lines().collect();
    assert_eq!(lines, ["Firecracker v1.17.0", concat!("vmm ", env!("CARGO_PKG_VERSION"))]);
    // Its own verbs are there, and a command line that is wrong is as wrong.
    assert_eq!(room.firecracker(&["schema"]).status, 0);
    assert_eq!(room.firecracker(&["--nonsense"]).status, 153);
    // Without an API there must be a VM.
    let outcome = room.firecracker(&["--no-api"]);
    assert_eq!((outcome.status, outcome.err.starts_with("no kernel to boot")), (153, true), "{outcome:?}");
}

#[test]
fn firecrackers_documents_and_the_examples_are_accepted() {
    let room = Room::new();
    for file in json_files("tests/data/firecracker").into_iter().chain(json_files("resources/examples")) {
        let plan = explained(&room, &["--config", file.to_str().expect("UTF-8")]);
        assert!(plan["cmdline"].as_str().is_some_and(|text| text.contains(" root=")), "{}", file.display());
    }
    let sample = root("tests/data/firecracker/sample.json");
    let plan = explained(&room, &["--config-file", sample.to_str().expect("UTF-8")]);
    assert_eq!(plan["cmdline"], "console=ttyS0 reboot=k panic=1 pci=off root=/dev/vda rw");
    assert_eq!((plan["cpus"].as_u64(), plan["devices"].as_array().map(Vec::len)), (Some(2), Some(1)));
    assert_eq!(plan["devices"][0]["config"]["cache_type"], "Unsafe");
    let older = root("tests/data/firecracker/older.json");
    assert_eq!(explained(&room, &["--config", older.to_str().expect("UTF-8")])["config"]["logger"]["level"], "Warning");
}

#[test]
fn explain_shows_what_flags_and_file_make_together() {
    let room = Room::new();
    room.write("vm.json", r#"{"boot-source": {"kernel_image_path": "k"}, "machine-config": {"vcpu_count": 1}}"#);
    let plan = explained(
        &room,
        &[
            "--config",
            "vm.json",
            "--cpus",
            "2",
            "--memory",
            "5G",
            "--rootfs",
            "r,ro",
            "--disk",
            "d,id=data",
            "--rng",
            "--append",
            "x y",
        ],
    );
    assert_eq!(plan["cpus"], 2);
    assert_eq!(
        plan["ram"],
        serde_json::json!([{ "start": 0, "len": 3_u64 << 30 }, { "start": 4_u64 << 30, "len": 2_u64 << 30 }])
    );
    let ids: Vec<_> = plan["devices"].as_array().expect("a list").iter().map(|slot| &slot["id"]).collect();
    assert_eq!(ids, ["rootfs", "data", "rng"]);
    assert_eq!(plan["devices"][1]["gpa"], 0xd000_1000_u64);
    assert!(plan["cmdline"].as_str().is_some_and(|text| text.ends_with("root=/dev/vda ro x y")));
    assert_eq!(plan["config"]["drives"][0]["is_read_only"], true);
    let files: Vec<_> =
        plan["files"].as_array().expect("a list").iter().map(|file| (&file["path"], &file["mode"])).collect();
    assert_eq!(format!("{files:?}").matches("read-write").count(), 2, "{files:?}");
}

#[test]
fn explain_prints_a_page_and_opens_nothing() {
    let room = Room::new();
    let outcome = room.vmm(&[
        "explain",
        "--kernel=no-such-kernel",
        "--disk=no-such-disk",
        "--no-serial",
        "--net=tap=tap0",
        "--set=mmds-config={\"network_interfaces\": [\"eth0\"]}",
    ]);
    assert_eq!((outcome.status, outcome.err.as_str()), (0, ""));
    for part in [
        "Kernel command line",
        "Memory map",
        "virtio devices",
        "Register devices",
        "Interrupts",
        "no-such-disk",
        "TAP tap0, metadata at 169.254.169.254",
        "GSI 16",
    ] {
        assert!(outcome.out.contains(part), "{part}");
    }
    assert!(!outcome.out.contains("ttyS0"));
}

#[test]
fn what_explain_calls_the_config_loads_again_and_means_the_same() {
    let room = Room::new();
    let everything = root("resources/examples/everything.json");
    let first = explained(&room, &["--config", everything.to_str().expect("UTF-8")]);
    room.write("again.json", &first["config"].to_string());
    assert_eq!(explained(&room, &["--config", "again.json"]), first);
}

/// The keys of each definition in the schema that are somewhere in `value`, as `definition.key`.
fn used(schema: &Value, definition: &str, value: &Value, found: &mut BTreeSet<String>) {
    let properties =
        if definition.is_empty() { &schema["properties"] } else { &schema["$defs"][definition]["properties"] };
    for (key, part) in value.as_object().into_iter().flatten() {
        let Some(property) = properties.get(key) else { continue };
        found.insert(format!("{definition}.{key}"));
        let text = property.to_string();
        let inner = text.split("#/$defs/").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("none");
        let parts = part.as_array().map_or(std::slice::from_ref(part), Vec::as_slice);
        for part in parts {
            used(schema, inner, part, found);
        }
    }
}

#[test]
fn the_example_of_everything_has_every_key() {
    let schema: Value = serde_json::from_str(&Room::new().line("schema").out).expect("JSON");
    let text = std::fs::read_to_string(root("resources/examples/everything.json")).expect("the example");
    let mut found = BTreeSet::new();
    used(&schema, "", &serde_json::from_str(&text).expect("JSON"), &mut found);
    let definitions = schema["$defs"].as_object().expect("definitions");
    let all = definitions.iter().map(|(name, definition)| (name.as_str(), &definition["properties"]));
    let all = all.chain([("", &schema["properties"])]);
    let all = all
        .flat_map(|(name, keys)| keys.as_object().into_iter().flatten().map(move |(key, _)| format!("{name}.{key}")));
    let missing: Vec<_> = all.filter(|key| !found.contains(key)).collect();
    // Excluded by others that are there, or without a meaning.
    assert_eq!(
        missing,
        [
            "MachineConfig.cpu_template",
            "PmemConfig.root_device",
            "SnapshotConfig.mem_file_path",
            "SnapshotConfig.other_images",
            "SnapshotConfig.snapshot_path",
            "VsockConfig.vsock_id",
            ".snapshot"
        ]
    );
}

#[test]
fn the_schema_in_resources_is_the_programs() {
    let outcome = Room::new().line("schema");
    assert_eq!(outcome.status, 0);
    let kept = std::fs::read_to_string(root("resources/schema/vm.schema.json")).unwrap_or_default();
    assert!(
        kept == outcome.out,
        "resources/schema/vm.schema.json is out of date; run: cargo run -- schema > resources/schema/vm.schema.json"
    );
    let schema: Value = serde_json::from_str(&kept).expect("JSON");
    assert_eq!(schema["additionalProperties"], false);
    for key in ["boot-source", "machine-config", "drives", "entropy", "serial", "logger", "on-reboot"] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
}

#[test]
fn the_documentation_names_every_key_and_flag() {
    let docs = std::fs::read_to_string(root("docs/config.md")).expect("docs/config.md");
    let schema: Value = serde_json::from_str(&Room::new().line("schema").out).expect("JSON");
    let definitions = schema["$defs"].as_object().into_iter().flatten().map(|(_, definition)| definition);
    for definition in std::iter::once(&schema).chain(definitions) {
        for key in definition["properties"].as_object().into_iter().flatten().map(|(key, _)| key) {
            assert!(
                docs.contains(&format!("`{key}`")) || docs.contains(&format!(".{key}`")),
                "docs/config.md: no {key}"
            );
        }
    }
    let help = Room::new().line("-h").out;
    for flag in help.split_whitespace().filter(|word| word.starts_with("--")) {
        let flag = flag.trim_end_matches([',', ']', ';']);
        assert!(docs.contains(flag), "docs/config.md: no {flag}");
    }
}

#[test]
fn doctor_speaks_to_people_and_programs() {
    let room = Room::new();
    let page = room.line("doctor");
    let report = room.line("doctor --json");
    assert_eq!(page.status, report.status);
    let report: Value = serde_json::from_str(&report.out).expect("JSON");
    assert_eq!(report["ok"] == true, page.status == 0);
    let checks = report["checks"].as_array().expect("a list");
    for check in checks {
        let status = check["status"].as_str().expect("a status");
        assert!(["good", "limited", "missing"].contains(&status));
        assert_eq!(check["cure"].is_string(), status != "good", "{check}");
        assert!(page.out.contains(check["name"].as_str().expect("a name")));
    }
    for name in
        ["/dev/kvm", "CPU virtualization", "memory", "Landlock", "userfaultfd", "io_uring", "cgroup v2", "/dev/net/tun"]
    {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}");
    }
}

#[test]
fn doctor_says_what_a_file_is() {
    let room = Room::new();
    std::fs::write(room.path().join("gz"), [0x1f, 0x8b, 8, 0, 0]).expect("write");
    room.write("empty", "").write("text", "hello\n");
    for (file, wanted) in [
        ("text", "it looks like a text"),
        ("gz", "it looks like gzip data"),
        ("empty", "it looks like an empty file"),
        (".", "is a directory"),
        ("none", "No such file"),
    ] {
        let outcome = room.vmm(&["doctor", "--kernel", file]);
        assert!(outcome.out.contains(wanted), "{file}: {}", outcome.out);
        assert!(outcome.out.contains("an ELF vmlinux or a bzImage"), "{file}");
        assert_eq!(outcome.status, 1, "{file}");
    }
}
