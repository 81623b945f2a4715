//! What is wrong with a command line or a configuration: one line each, all together, with the right exit status.

use crate::support::Room;

const BAD_CONFIG: i32 = 152;
const BAD_ARGS: i32 = 153;

/// A document with a good boot source and more.
fn with(more: &str) -> String {
    format!("{{\n\"boot-source\": {{\"kernel_image_path\": \"kernel\"}},\n{more}\n}}")
}

#[test]
fn metadata_that_can_not_be_had_is_refused() {
    let room = Room::new();
    room.write("bad", "{,}").write("long", "[1, 2, 3, 4]");
    for (line, wanted) in [
        ("none", "--metadata: none: does not exist"),
        ("bad", "--metadata: bad: not JSON: key must be a string at line 1 column 2"),
        ("long --mmds-size-limit 8", "--metadata: long: is longer than 8 bytes of JSON (--mmds-size-limit)"),
        ("long --http-api-max-payload-size 8", "--metadata: long: is longer than 8 bytes of JSON (--mmds-size-limit)"),
    ] {
        let outcome = room.line(&format!("--api-sock api.sock --metadata {line}"));
        assert_eq!((outcome.status, outcome.err.trim_end()), (BAD_ARGS, wanted));
    }
}

#[test]
fn each_fault_of_a_document_is_one_line() {
    let room = Room::new();
    room.write("file", "x");
    let later = |key: &str| format!("`{key}` (Firecracker's) is not in this version of vmm");
    let drive = |more: &str| with(&format!("\"drives\": [{{\"drive_id\": \"a\", \"path_on_host\": \"disk\"{more}}}]"));
    for (text, wanted) in [
        (String::new(), "vm.json:1: the document is empty; JSON is expected".to_owned()),
        ("{\n\"a\": }".into(), "vm.json:2: not JSON: expected value (column 6)".into()),
        ("[]".into(), "vm.json:1: must be an object in braces, not a list".into()),
        ("{}".into(), "vm.json:1: boot-source: is missing (What the guest boots)".into()),
        (
            "{\"boot-source\": {}}".into(),
            "vm.json:1: boot-source.kernel_image_path: is missing (Kernel image: an ELF vmlinux or a bzImage; the format \
             is detected)"
                .into(),
        ),
        (with("\"boot_source\": {}"), "vm.json:3: boot_source: unknown key; did you mean `boot-source`?".into()),
        (
            with("\"machine-config\": {\n\"vcpu\": 1}"),
            "vm.json:4: machine-config.vcpu: unknown key; did you mean `vcpu_count`?".into(),
        ),
        (
            with("\"machine-config\": {\"vcpu_count\": \"1\"}"),
            "vm.json:3: machine-config.vcpu_count: must be a whole number, not \"1\"".into(),
        ),
        (
            with("\"machine-config\": {\"vcpu_count\": 0}"),
            "vm.json:3: machine-config.vcpu_count: must be at least 1, not 0".into(),
        ),
        (
            with("\"machine-config\": {\"vcpu_count\": 4097}"),
            "vm.json:3: machine-config.vcpu_count: must be at most 4096, not 4097".into(),
        ),
        (
            with("\"machine-config\": {\"vcpu_count\": 3, \"smt\": true}"),
            "vm.json:3: machine-config.vcpu_count: must be 1 or even with smt, not 3".into(),
        ),
        (
            with("\"machine-config\": {\"mem_size_mib\": 0}"),
            "vm.json:3: machine-config.mem_size_mib: must be at least 32, not 0".into(),
        ),
        (
            with("\"machine-config\": {\"mem_size_mib\": 129, \"huge_pages\": \"2M\"}"),
            "vm.json:3: machine-config.mem_size_mib: must be even with huge_pages 2M, not 129".into(),
        ),
        (
            with("\"machine-config\": {\"huge_pages\": \"1G\"}"),
            "vm.json:3: machine-config.huge_pages: must be \"None\", \"Transparent\" or \"2M\", not \"1G\"".into(),
        ),
        (with("\"on-reboot\": \"stop\""), "vm.json:3: on-reboot: must be \"exit\" or \"restart\", not \"stop\"".into()),
        (with("\"on-reboot\": \"exit\",\n\"on-reboot\": \"exit\""), "vm.json:4: on-reboot: given twice; first on line 3".into()),
        (
            with("\"logger\": {\"level\": \"loud\"}"),
            "vm.json:3: logger.level: must be \"Off\", \"Error\", \"Warning\", \"Info\", \"Debug\" or \"Trace\", not \"loud\"".into(),
        ),
        (with("\"metrics\": {\"metrics_path\": \"\"}"), "vm.json:3: metrics.metrics_path: is empty; a file's path is expected".into()),
        (
            with("\"metrics\": {\"metrics_path\": \".\"}"),
            "vm.json:3: metrics.metrics_path: . is a directory, not a file".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"host_dev_name\": \"t\", \"queue_pairs\": 17}]"),
            "vm.json:3: network-interfaces[0].queue_pairs: must be 1 to 16, not 17".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"host_dev_name\": \"t\", \"vhost\": true, \"rx_rate_limiter\": {\"ops\": {\"size\": 1, \"refill_time\": 1}}}]"),
            "vm.json:3: network-interfaces[0].rx_rate_limiter: the host's kernel moves the frames (vhost), and it has no limits".into(),
        ),
        (
            with("\"machine-config\": {\"track_dirty_pages\": true},\n\"network-interfaces\": [{\"iface_id\": \"a\", \"host_dev_name\": \"t\", \"vhost\": true}]"),
            "vm.json:4: network-interfaces[0].vhost: does not note the pages that it writes; do without it or track_dirty_pages".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"host_fd\": 3, \"queue_pairs\": 2}]"),
            "vm.json:3: network-interfaces[0].queue_pairs: a descriptor is one pair; more take a TAP device by host_dev_name".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"host_dev_name\": \"t\", \"tx_rate_limiter\": {\"ops\": 5}}]"),
            "vm.json:3: network-interfaces[0].tx_rate_limiter.ops: must be an object in braces, not 5".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\"}]"),
            "vm.json:3: network-interfaces[0].host_dev_name: is missing (or host_fd, or user): the host's end of the interface".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"host_dev_name\": \"a/b\"}]"),
            "vm.json:3: network-interfaces[0].host_dev_name: `a/b` contains '/'".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"host_dev_name\": \"t\", \"guest_mac\": \"01:00:00:00:00:00\"}]"),
            "vm.json:3: network-interfaces[0].guest_mac: `01:00:00:00:00:00`: it is a group address: the lowest bit of its first byte is 1".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"host_fd\": 3, \"user\": {}}]"),
            "vm.json:3: network-interfaces[0].user: is given beside host_fd; one of them is enough".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"user\": {}, \"queue_pairs\": 2}]"),
            "vm.json:3: network-interfaces[0].queue_pairs: passt is one pair; more take a TAP device by host_dev_name".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"user\": {}, \"vhost\": true}]"),
            "vm.json:3: network-interfaces[0].vhost: takes a TAP device, and user has none".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"user\": {\"publish\": [\"80:80\",\n\"80\"]}}]"),
            "vm.json:4: network-interfaces[0].user.publish[1]: `80`: [IP:]HOSTPORT:GUESTPORT[/tcp|/udp] is expected, as in 8080:80 or 127.0.0.1:5353:53/udp".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"user\": {\"publish\": [\"80:80/tcp\"]}},\n{\"iface_id\": \"b\", \"user\": {\"publish\": [\"127.0.0.1:80:90\"]}}]"),
            "vm.json:4: network-interfaces[1].user.publish[0]: `127.0.0.1:80:90`: port 80 of the host is published already".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"user\": {\"address\": \"10.0.2.1/24\"}}]"),
            "vm.json:3: network-interfaces[0].user.address: `10.0.2.1/24`: the network's own address, its first two (the gateway, the name server) and its last are taken".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"user\": {\"publish\": \"80:80\"}}]"),
            "vm.json:3: network-interfaces[0].user.publish: must be a list in brackets, not \"80:80\"".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"user\": {\"passt\": \"none\"}}]"),
            "vm.json:3: network-interfaces[0].user.passt: none does not exist".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"host_fd\": 3, \"mtu\": 60}]"),
            "vm.json:3: network-interfaces[0].mtu: must be at least 68, not 60".into(),
        ),
        (
            with("\"network-interfaces\": [{\"iface_id\": \"a\", \"host_dev_name\": \"t\"},\n{\"iface_id\": \"b\", \"host_dev_name\": \"t\"}]"),
            "vm.json:4: network-interfaces[1].host_dev_name: `t` is network-interfaces[0]'s already".into(),
        ),
        (with("\"balloon\": {\"amount_mib\": 128}"), "vm.json:3: balloon.amount_mib: must be less than the VM's memory (128 MiB), not 128".into()),
        (
            with("\"serial\": {\"rate_limiter\": {\"bandwidth\": 1, \"size\": 1, \"refill_time\": 1}}"),
            "vm.json:3: serial.rate_limiter.bandwidth: unknown key; known here: one_time_burst, refill_time, size".into(),
        ),
        (
            with("\"pmem\": [{\"id\": \"a\", \"path_on_host\": \".\"}]"),
            "vm.json:3: pmem[0].path_on_host: . is a directory, not a file".into(),
        ),
        (
            with("\"cpu-config\": {\"msr_modifiers\": [{\"addr\": \"266\", \"bitmap\": \"1x\"}]}"),
            "vm.json:3: cpu-config.msr_modifiers[0].bitmap: `1x` is no bitmap; one is 0b and up to 64 of 0, 1 and x".into(),
        ),
        (with("\"cpu-config\": \"none.json\""), "vm.json:3: cpu-config: none.json does not exist".into()),
        (
            with("\"cpu-config\": {\"reg_modifiers\": [{}]}"),
            "vm.json:3: cpu-config.reg_modifiers: `reg_modifiers` is for Arm processors; this machine is x86-64".into(),
        ),
        (
            with("\"machine-config\": {\"cpu_template\": \"V1N1\"}"),
            "vm.json:3: machine-config.cpu_template: must be \"None\", \"C3\", \"T2\", \"T2S\", \"T2CL\" or \"T2A\", not \"V1N1\"".into(),
        ),
        (drive(", \"socket\": \"x\""), format!("vm.json:3: drives[0].socket: {}", later("socket"))),
        (drive(", \"socket\": \"s\""), format!("vm.json:3: drives[0].socket: {}", later("socket"))),
        (drive(", \"cache\": 1"), "vm.json:3: drives[0].cache: unknown key; did you mean `cache_type`?".into()),
        (
            with("\"drives\": [{\"drive_id\": \"a b\", \"path_on_host\": \"disk\"}]"),
            "vm.json:3: drives[0].drive_id: `a b` contains ' '; letters, digits, `-` and `_` are allowed".into(),
        ),
        (
            with("\"drives\": [{\"drive_id\": \"a\", \"path_on_host\": \"disk\"},\n{\"drive_id\": \"a\", \"path_on_host\": \"disk2\"}]"),
            "vm.json:4: drives[1].drive_id: `a` is drives[0]'s id already".into(),
        ),
        (
            with(
                "\"drives\": [{\"drive_id\": \"a\", \"path_on_host\": \"disk\", \"is_root_device\": true},\n\
                 {\"drive_id\": \"b\", \"path_on_host\": \"disk2\", \"is_root_device\": true}]",
            ),
            "vm.json:4: drives[1].is_root_device: drives[0] is the root device already".into(),
        ),
        (
            drive(", \"is_read_only\": true,\n\"partitions\": [{\"path_on_host\": \"disk\"}]"),
            "vm.json:3: drives[0].path_on_host: is in the way of `partitions`, whose files make up the disk; remove one of \
             the two"
                .into(),
        ),
        (
            with("\"drives\": [{\"drive_id\": \"a\", \"is_read_only\": true, \"partitions\": [\n{\"path_on_host\": \".\"}]}]"),
            "vm.json:4: drives[0].partitions[0].path_on_host: . is a directory, not a disk image or a block device".into(),
        ),
        (
            with("\"drives\": [{\"drive_id\": \"a\", \"path_on_host\": \".\"}]"),
            "vm.json:3: drives[0].path_on_host: . is a directory, not a disk image or a block device".into(),
        ),
        (
            with("\"drives\": [{\"drive_id\": \"a\", \"path_on_host\": \"none\"}]"),
            "vm.json:3: drives[0].path_on_host: none does not exist".into(),
        ),
        (
            with("\"serial\": {\"serial_out_path\": \"no/such\"}"),
            "vm.json:3: serial.serial_out_path: the directory no does not exist".into(),
        ),
        (
            "{\"boot-source\": {\"kernel_image_path\": \"disk\"}}".into(),
            "vm.json:1: boot-source.kernel_image_path: disk is no kernel: it looks like a text; expected is an x86-64 \
             Linux kernel: an ELF vmlinux or a bzImage (a distribution's /boot/vmlinuz-*)"
                .into(),
        ),
        (
            "{\"boot-source\": {\"kernel_image_path\": \"file/x\"}}".into(),
            "vm.json:1: boot-source.kernel_image_path: file/x does not exist: a part of its path is a file".into(),
        ),
        (
            "{\"boot-source\": {\"kernel_image_path\": \"kernel\",\n\"initrd_path\": \".\"}}".into(),
            "vm.json:2: boot-source.initrd_path: . is a directory, not a file".into(),
        ),
        (
            "{\"boot-source\": {\"kernel_image_path\": \"kernel\",\n\"boot_args\": \"a\\u0007\"}}".into(),
            "vm.json:2: boot-source.boot_args: contains the control character '\\u{7}'".into(),
        ),
        (
            format!("{{\"boot-source\": {{\"kernel_image_path\": \"kernel\",\n\"boot_args\": \"{}\"}}}}", "x".repeat(2048)),
            "vm.json:2: boot-source.boot_args: the kernel command line is 2048 bytes long; at most 2047 fit".into(),
        ),
    ] {
        let outcome = room.write("vm.json", &text).line("--config vm.json");
        assert_eq!(outcome.err, format!("{wanted}\n"), "{text}");
        assert_eq!((outcome.status, outcome.out.as_str()), (BAD_CONFIG, ""), "{text}");
    }
}

#[test]
fn too_much_memory_is_refused_before_anything_runs() {
    let room = Room::new();
    let outcome = room.line("--kernel kernel --memory 63T");
    assert!(outcome.err.starts_with("--memory: this host has "), "{}", outcome.err);
    assert!(outcome.err.ends_with(" MiB of memory and swap, not 66060288\n"), "{}", outcome.err);
    assert_eq!(outcome.status, BAD_ARGS);
}

#[test]
fn an_unreadable_file_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let room = Room::new();
    let kernel = room.path().join("kernel");
    std::fs::set_permissions(&kernel, std::fs::Permissions::from_mode(0o000)).expect("chmod");
    // Root may read anything.
    if std::fs::File::open(&kernel).is_err() {
        let outcome = room.line("--kernel kernel");
        assert_eq!((outcome.err.as_str(), outcome.status), ("--kernel: no permission to read kernel\n", BAD_ARGS));
    }
}

#[test]
fn all_faults_come_together_and_the_file_decides_the_status() {
    let room = Room::new();
    room.write(
        "vm.json",
        "{\n\"boot-source\": {\"kernel_image_path\": \"none\"},\n\"machine-config\": {\"vcpu_count\": 0,\n\"mem\": 1},\n\"metrics\": {}}",
    );
    let outcome = room.line("--config vm.json --memory 1 --disk . --set drives[0].x=1 --log-level loud");
    assert_eq!(
        outcome.err.lines().collect::<Vec<_>>(),
        [
            "vm.json:2: boot-source.kernel_image_path: none does not exist",
            "vm.json:3: machine-config.vcpu_count: must be at least 1, not 0",
            "vm.json:4: machine-config.mem: unknown key; did you mean `mem_size_mib`?",
            "vm.json:5: metrics.metrics_path: is missing (File or FIFO to write to)",
            "--set drives[0].x: unknown key; known here: cache_type, direct, drive_id, io_engine, is_read_only, \
             is_root_device, num_queues, partitions, partuuid, path_on_host, rate_limiter",
            "--log-level: must be \"Off\", \"Error\", \"Warning\", \"Info\", \"Debug\" or \"Trace\", not \"loud\"",
            "--memory: must be at least 32, not 1",
            "--disk .: path_on_host: . is a directory, not a disk image or a block device",
        ]
    );
    assert_eq!(outcome.status, BAD_CONFIG);
}

#[test]
fn faults_of_flags_name_the_flag() {
    let room = Room::new();
    for (line, wanted) in [
        ("--cpus 2", "no kernel to boot; give --kernel FILE or --config FILE"),
        ("--kernel none", "--kernel: none does not exist"),
        ("--kernel .", "--kernel: . is a directory, not a file"),
        ("--kernel kernel --initrd none", "--initrd: none does not exist"),
        ("--kernel kernel --cpus 0", "--cpus: must be at least 1, not 0"),
        ("--kernel kernel --cpus 5000000000", "--cpus: must be at most 4096, not 5000000000"),
        ("--kernel kernel --memory 16M", "--memory: must be at least 32, not 16"),
        ("--kernel kernel --rootfs none", "--rootfs: none does not exist"),
        (
            "--kernel kernel --rootfs /dev/null",
            "--rootfs: /dev/null is a character device, not a disk image or a block device",
        ),
        ("--kernel kernel --disk disk,id=a --disk disk2,id=a", "--disk disk2: drive_id: `a` is drives[0]'s id already"),
        (
            "--kernel kernel --rootfs disk --set drives[+]={\"drive_id\":\"b\",\"path_on_host\":\"disk2\",\"is_root_device\":true}",
            "--set drives[+]: is_root_device: drives[0] is the root device already",
        ),
        (
            "--kernel kernel --disk disk --disk disk",
            "--disk disk: path_on_host: disk is drive disk1's file too; both must be read-only",
        ),
        ("--kernel kernel --serial file:no/such", "--serial: the directory no does not exist"),
        ("--kernel kernel --metrics-path no/m", "--metrics-path: the directory no does not exist"),
        ("--kernel kernel --log-file .", "--log-file: . is a directory, not a file"),
        ("--kernel kernel --log-format xml", "--log-format: must be \"text\" or \"json\", not \"xml\""),
        (
            "--kernel kernel --log-level info,devices::virtio=loud",
            "--log-level: must be \"Off\", \"Error\", \"Warning\", \"Info\", \"Debug\" or \"Trace\", not \"loud\"",
        ),
        (
            "--kernel kernel --log-level device::virtio=debug",
            "--log-level: there is no module `device::virtio`; the names begin with api, devices, machine, vmm",
        ),
        (
            "--kernel kernel --set machine-config.cpus=2",
            "--set machine-config.cpus: unknown key; did you mean `vcpu_count`?",
        ),
        (
            "--kernel kernel --set memory-hotplug={\"x\":1}",
            "--set memory-hotplug: `memory-hotplug` (Firecracker's) is not in this version of vmm",
        ),
        (
            "--kernel kernel --set drives[1].drive_id=a",
            "--set drives[1].drive_id: drives: has 0 elements; [0] would be the next, [1] is too far",
        ),
    ] {
        let outcome = room.line(line);
        assert_eq!(outcome.err, format!("{wanted}\n"), "{line}");
        assert_eq!((outcome.status, outcome.out.as_str()), (BAD_ARGS, ""), "{line}");
    }
}

#[test]
fn a_config_file_that_cannot_be_read_is_named() {
    let room = Room::new();
    std::fs::write(room.path().join("binary"), [0xff, 0xfe]).expect("write");
    for (name, wanted) in [
        ("none.json", "--config: none.json: does not exist"),
        (".", "--config: .: is a directory, not a file"),
        ("binary", "--config: binary: is not text (UTF-8)"),
    ] {
        let outcome = room.vmm(&["--config", name]);
        assert_eq!((outcome.err, outcome.status), (format!("{wanted}\n"), BAD_CONFIG));
    }
}

#[test]
fn wrong_command_lines_exit_with_153() {
    let room = Room::new();
    for (line, wanted) in [
        ("--bogus", "unexpected argument '--bogus'"),
        ("--kernal k", "a similar argument exists: '--kernel'"),
        ("kernel", "unrecognized subcommand 'kernel'"),
        ("--kernel", "a value is required for '--kernel <FILE>'"),
        ("--kernel k --cpus many", "invalid value 'many' for '--cpus <N>': invalid digit found in string"),
        (
            "--kernel k --memory 1.5G",
            "invalid value '1.5G' for '--memory <SIZE>': 512M, 2G or a number of MiB is expected",
        ),
        ("--kernel k --memory 99999999999999T", "is more than addresses can name"),
        ("--kernel k --disk ,ro", "a path is expected before the options"),
        (
            "--kernel k --disk d,readonly",
            "unknown option `readonly`; known are ro, rw, id=NAME, cache=unsafe|writeback, engine=sync|async, queues=N, direct and \
             partuuid=ID",
        ),
        ("--kernel k --set smt", "PATH=VALUE is expected, as in machine-config.smt=true"),
        ("--kernel k --set a..b=1", "`a..b` is no place in a configuration"),
        ("--kernel k --serial stdout", "file:PATH is expected"),
        ("--kernel k --no-serial --serial file:x", "cannot be used with"),
        ("--kernel k --on-reboot stop", "invalid value 'stop' for '--on-reboot <ACTION>'"),
        ("--kernel k --id a_b", "1 to 64 letters, digits or `-` are expected"),
        ("--kernel k --id ../a", "1 to 64 letters, digits or `-` are expected"),
        ("--api-sock a --seccomp-filter f", "--seccomp-filter: Firecracker's filters do not fit"),
        ("--kernel k --timings xml", "invalid value 'xml' for '--timings [<FORMAT>]'"),
        ("--kernel k --grace soon", "invalid value 'soon' for '--grace <SECONDS>'"),
        ("--kernel k --kernel l", "cannot be used multiple times"),
        ("--kernel k doctor", "cannot be used with"),
    ] {
        let outcome = room.line(line);
        assert!(outcome.err.contains(wanted), "{line}: {}", outcome.err);
        assert_eq!(outcome.status, BAD_ARGS, "{line}");
    }
    let nothing = room.vmm(&[]);
    assert_eq!(nothing.status, BAD_ARGS);
    assert!(nothing.err.contains("Usage: vmm --kernel FILE"), "{}", nothing.err);
}
