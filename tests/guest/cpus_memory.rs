//! CPUs and memory: as many as asked for, as the guest's kernel counts them.

use crate::vm::{Ended, Vm};

const CPUS: &str = r"
echo online=$(cat /sys/devices/system/cpu/online)
echo present=$(cat /sys/devices/system/cpu/present)
for c in 0 1 2 3; do t=/sys/devices/system/cpu/cpu$c/topology; [ ! -e $t ] ||
  echo cpu$c=package $(cat $t/physical_package_id) core $(cat $t/core_id) threads $(cat $t/thread_siblings_list) package_cpus $(cat $t/core_siblings_list); done
echo apicids=$(sed -n 's/^apicid.*: //p' /proc/cpuinfo)
echo flags=$(grep -m1 ^flags /proc/cpuinfo)
dmesg | grep -i -e x2apic -e 'Firmware Bug' -e 'BIOS bug' -e 'APIC.*error' -e 'WARNING:' -e 'Call Trace'
echo checked=yes
";

fn counts(kernel: &str, cpus: usize) -> Ended {
    let ended = Vm::boot(kernel).args(["--cpus", &cpus.to_string(), "--memory", "256M"]).run(CPUS).start().ends(0);
    let all = if cpus == 1 { "0".to_owned() } else { format!("0-{}", cpus - 1) };
    assert_eq!((ended.value("online"), ended.value("present")), (&*all, &*all));
    for cpu in 0..cpus {
        let topology = format!("package 0 core {cpu} threads {cpu} package_cpus {all}");
        assert_eq!(ended.value(&format!("cpu{cpu}")), topology);
    }
    let apicids: Vec<String> = (0..cpus).map(|cpu| cpu.to_string()).collect();
    assert_eq!(ended.value("apicids"), apicids.join(" "));
    assert_eq!(ended.value("checked"), "yes");
    for complaint in ["Firmware Bug", "BIOS bug", "WARNING:", "Call Trace"] {
        assert!(!ended.console.contains(complaint), "{}", ended.console);
    }
    ended
}

#[test]
fn one_cpu() {
    counts("debian12/vmlinux", 1);
}

#[test]
fn two_cpus() {
    counts("debian13/vmlinux", 2);
}

/// With the local APICs in x2APIC mode, as every kernel does that may.
#[test]
fn four_cpus() {
    let ended = counts("debian12/vmlinux", 4);
    assert!(ended.value("flags").contains(" x2apic "), "{}", ended.value("flags"));
    assert!(ended.console.to_lowercase().contains("x2apic"), "{}", ended.console);
}

#[test]
fn four_cpus_as_pairs_of_threads() {
    let vm = Vm::boot("debian12/vmlinux").args(["--cpus", "4", "--set", "machine-config.smt=true"]);
    let ended = vm.run(CPUS).start().ends(0);
    for (cpu, threads) in ["0-1", "0-1", "2-3", "2-3"].iter().enumerate() {
        let expected = format!("package 0 core {} threads {threads} package_cpus 0-3", cpu / 2);
        assert_eq!(ended.value(&format!("cpu{cpu}")), expected);
    }
}

/// Fills memory with random bytes and copies of them, and says how much came from above 4 GiB: all of that is in the
/// zone Normal, and nothing else.
const MEMORY: &str = r#"
normal() { awk '/^Node/ { zone = $4 } /nr_free_pages/ && zone == "Normal" { free = $2 } END { print free + 0 }' /proc/zoneinfo; }
echo memory=$(sed -n 's/^MemTotal: *//p' /proc/meminfo | cut -d' ' -f1)
echo above=$(grep -c '^1[0-9a-f]\{8\}-.*System RAM' /proc/iomem)
mkdir /work; mount -t tmpfs -o size=90% work /work
before=$(normal)
head -c $((size << 20)) /dev/urandom > /work/0
for i in $(seq $copies); do cp /work/0 /work/$i; done
echo sums=$(md5sum /work/* | cut -d' ' -f1 | sort -u | wc -l)
echo mib=$(($(cat /work/* | wc -c) >> 20))
echo pages_above=$((before - $(normal)))
"#;

#[test]
fn memory_across_the_gap() {
    let script = format!("size=32 copies=7\n{MEMORY}");
    let vm = Vm::boot("debian12/vmlinux").args(["--memory", "5G", "--cpus", "2"]);
    // All but 192 MiB of what is below the gap is taken away, so that 256 MiB are not there without the memory above.
    let ended = vm.append("memmap=2880M$64M").run(&script).start().ends(0);
    let memory = ended.number("memory") >> 10;
    assert!((2000..=2240).contains(&memory), "the guest has {memory} of 2240 MiB");
    assert_eq!((ended.number("above"), ended.number("mib"), ended.number("sums")), (1, 256, 1));
    // 100 MiB, in pages.
    assert!(ended.number("pages_above") >= 100 << 8, "{} pages", ended.number("pages_above"));
}

#[test]
fn little_memory() {
    let script = format!("size=4 copies=3\n{MEMORY}");
    let ended = Vm::boot("debian12/vmlinux").args(["--memory", "128M"]).run(&script).start().ends(0);
    let memory = ended.number("memory") >> 10;
    assert!((70..=128).contains(&memory), "the guest has {memory} of 128 MiB");
    assert_eq!((ended.number("above"), ended.number("mib"), ended.number("sums")), (0, 16, 1));
}

#[test]
fn the_least_memory() {
    let ended = Vm::tuned().args(["--memory", "48M"]).run("echo up=yes").start().ends(0);
    assert_eq!(ended.value("up"), "yes");
}
