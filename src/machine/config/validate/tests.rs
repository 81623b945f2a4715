//! Each fault, with its place and its words.

use serde_json::{Value, json};

use super::*;

fn problems(document: Value) -> Vec<String> {
    let mut whole = json!({ "boot-source": { "kernel_image_path": "k" } });
    for (key, value) in document.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let config: VmConfig = serde_json::from_value(whole).unwrap();
    config.validate().into_iter().map(|p| format!("{}: {}", p.path, p.text)).collect()
}

#[test]
fn a_good_configuration_has_no_problems() {
    let drives = json!([{ "drive_id": "rootfs", "path_on_host": "r", "is_root_device": true },
        { "drive_id": "a-2", "path_on_host": "x" }]);
    assert!(
        problems(json!({ "drives": drives, "entropy": {}, "machine-config": { "vcpu_count": 4, "smt": true } }))
            .is_empty()
    );
}

#[test]
fn each_fault_has_its_place_and_words() {
    let drive = |id: &str, root: bool| json!({ "drive_id": id, "path_on_host": "x", "is_root_device": root });
    let many: Vec<_> = (0..65).map(|n| drive(&format!("d{n}"), false)).collect();
    for (document, wanted) in [
        (json!({ "machine-config": { "vcpu_count": 0 } }), "machine-config.vcpu_count: must be at least 1, not 0"),
        (
            json!({ "machine-config": { "vcpu_count": 5000 } }),
            "machine-config.vcpu_count: must be at most 4096, not 5000",
        ),
        (
            json!({ "machine-config": { "vcpu_count": 3, "smt": true } }),
            "machine-config.vcpu_count: must be 1 or even with smt, not 3",
        ),
        (json!({ "machine-config": { "mem_size_mib": 0 } }), "machine-config.mem_size_mib: must be at least 32, not 0"),
        (
            json!({ "machine-config": { "mem_size_mib": 67_108_865 } }),
            "machine-config.mem_size_mib: must be at most 67108864, not 67108865",
        ),
        (
            json!({ "machine-config": { "mem_size_mib": 129, "huge_pages": "2M" } }),
            "machine-config.mem_size_mib: must be even with huge_pages 2M, not 129",
        ),
        (
            json!({ "boot-source": { "kernel_image_path": "k", "boot_args": "a\nb" } }),
            "boot-source.boot_args: contains the control character '\\n'",
        ),
        (
            json!({ "boot-source": { "kernel_image_path": "k", "boot_args": "x".repeat(2048) } }),
            "boot-source.boot_args: the kernel command line is 2048 bytes long; at most 2047 fit",
        ),
        (
            json!({ "boot-source": { "kernel_image_path": "" } }),
            "boot-source.kernel_image_path: is empty; a file's path is expected",
        ),
        (
            json!({ "drives": [drive("a", false), drive("a", false)] }),
            "drives[1].drive_id: `a` is drives[0]'s id already",
        ),
        (
            json!({ "drives": [drive("a", true), drive("b", true)] }),
            "drives[1].is_root_device: drives[0] is the root device already",
        ),
        (
            json!({ "drives": [drive("", false)] }),
            "drives[0].drive_id: is empty; 1 to 64 letters, digits, `-` or `_` are expected",
        ),
        (
            json!({ "drives": [drive("a b", false)] }),
            "drives[0].drive_id: `a b` contains ' '; letters, digits, `-` and `_` are allowed",
        ),
        (
            json!({ "drives": [drive(&"a".repeat(65), false)] }),
            "drives[0].drive_id: is 65 characters long; at most 64 are allowed",
        ),
        (
            json!({ "drives": [{ "drive_id": "a", "path_on_host": "a", "partuuid": "x init=y" }] }),
            "drives[0].partuuid: `x init=y` contains ' '; the partition's PARTUUID (as blkid prints it) is expected",
        ),
        (
            json!({ "drives": [{ "drive_id": "a", "path_on_host": "a", "num_queues": 17 }] }),
            "drives[0].num_queues: must be 1 to 16, not 17",
        ),
        (
            json!({ "drives": [drive("rng", false)], "entropy": {} }),
            "drives[0].drive_id: `rng` is the random number generator's id; choose another",
        ),
        (
            json!({ "network-interfaces": [{ "iface_id": "rng", "host_dev_name": "t" }], "entropy": {} }),
            "network-interfaces[0].iface_id: `rng` is the random number generator's id; choose another",
        ),
        (
            json!({ "drives": [drive("vsock", false)], "vsock": { "guest_cid": 3, "uds_path": "v" } }),
            "drives[0].drive_id: `vsock` is the vsock's id; choose another",
        ),
        (
            json!({ "drives": [drive("balloon", false)], "balloon": {} }),
            "drives[0].drive_id: `balloon` is the memory balloon's id; choose another",
        ),
        (
            json!({ "shares": [{ "tag": "a", "path_on_host": "x" }, { "tag": "a", "path_on_host": "y" }] }),
            "shares[1].tag: `a` is shares[0]'s tag already",
        ),
        (
            json!({ "shares": [{ "tag": "d", "path_on_host": "x" }], "drives": [drive("d", false)] }),
            "shares[0].tag: `d` is a drive's id already",
        ),
        (
            json!({ "shares": [{ "tag": "x".repeat(37), "path_on_host": "x" }] }),
            "shares[0].tag: is 37 characters long; at most 36 fit",
        ),
        (
            json!({ "shares": [{ "tag": "a b", "path_on_host": "x" }] }),
            "shares[0].tag: `a b` contains ' '; letters, digits, `-` and `_` are allowed",
        ),
        (
            json!({ "shares": [{ "tag": "a", "path_on_host": "a\u{0}b" }] }),
            "shares[0].path_on_host: contains a NUL character",
        ),
        (
            json!({ "balloon": { "amount_mib": 128 } }),
            "balloon.amount_mib: must be less than the VM's memory (128 MiB), not 128",
        ),
        (json!({ "drives": many }), "drives: 65 devices are too many: there is room for 64"),
    ] {
        assert_eq!(problems(document), [wanted]);
    }
}

#[test]
fn all_faults_come_together() {
    let machine = json!({ "vcpu_count": 0, "mem_size_mib": 1 });
    assert_eq!(problems(json!({ "machine-config": machine, "serial": { "serial_out_path": "" } })).len(), 3);
}
