//! CPU templates: the guest sees what is asked for, on each of its CPUs.

use std::fs;
use std::process::Command;

use crate::vm::{Vm, program};

const LOOK: &str = r"
for flag in aes sse4_2 popcnt; do echo $flag=$(grep -c -w $flag /proc/cpuinfo); done
echo stepping=$(grep -m 1 stepping /proc/cpuinfo | cut -d : -f 2 | tr -d ' ')
echo flags=$(grep -m 1 ^flags /proc/cpuinfo | cut -d : -f 2)
echo vendor=$(grep -m 1 vendor_id /proc/cpuinfo | cut -d : -f 2 | tr -d ' ')
echo family=$(grep -m 1 'cpu family' /proc/cpuinfo | cut -d : -f 2 | tr -d ' ')
";

/// AES and SSE4.2 of leaf 1 are hidden, its stepping becomes 5.
const TEMPLATE: &str = r#"{ "cpuid_modifiers": [{ "leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [
    { "register": "ecx", "bitmap": "0b0xxxx0xxxxxxxxxxxxxxxxxxxx" },
    { "register": "eax", "bitmap": "0b0101" }] }] }"#;

#[test]
fn hidden_features_are_hidden_on_each_cpu() {
    let plain = Vm::tuned().args(["--cpus", "2"]).run(LOOK).start().ends(0);
    assert_eq!(["aes", "sse4_2", "popcnt"].map(|flag| plain.number(flag)), [2, 2, 2]);

    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("cpu.json");
    fs::write(&file, TEMPLATE).expect("a file");
    let args = ["--cpus".into(), "2".into(), "--cpu-config".into(), file];
    let hidden = Vm::tuned().args(args).run(LOOK).start().ends(0);
    assert_eq!(["aes", "sse4_2", "popcnt"].map(|flag| hidden.number(flag)), [0, 0, 2]);
    assert_eq!((hidden.number("stepping"), hidden.value("family")), (5, plain.value("family")));
}

#[test]
fn a_guest_boots_with_what_the_dump_says() {
    let dump = Command::new(program()).args(["cpu", "dump"]).output().expect("a program that runs");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("cpu.json");
    fs::write(&file, &dump.stdout).expect("a file");
    let ended = Vm::tuned().args(["--cpus".into(), "2".into(), "--cpu-config".into(), file]).run(LOOK).start().ends(0);
    assert_eq!(ended.number("popcnt"), 2);
    let plain = Vm::tuned().args(["--cpus", "2"]).run(LOOK).start().ends(0);
    for what in ["vendor", "family", "stepping", "flags"] {
        assert_eq!(ended.value(what), plain.value(what));
    }
}

#[test]
fn templates_of_another_maker_and_leaves_that_are_not_there_are_refused() {
    let vendor = fs::read_to_string("/proc/cpuinfo").expect("a file");
    let (name, maker) = if vendor.contains("AuthenticAMD") { ("T2", "Intel") } else { ("T2A", "AMD") };
    let ended = Vm::tuned().args(["--cpu-template", name]).start().ends(153);
    let text = format!("--cpu-template: {name} is for {maker} processors; this host has one of ");
    assert!(ended.errors.contains(&text), "{}", ended.errors);

    let leaf = r#"cpu-config.cpuid_modifiers[+]={"leaf":"0x3fffffff","subleaf":"0","flags":0,"modifiers":[]}"#;
    let ended = Vm::tuned().args(["--set", leaf]).start().ends(153);
    assert!(ended.errors.contains("this host's KVM has no leaf 0x3fffffff"), "{}", ended.errors);
}
