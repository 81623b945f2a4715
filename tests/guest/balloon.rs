//! The balloon: what the guest does not use is the host's again.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Remote;
use crate::vm::{PATIENCE, Running, Vm};

/// Uses 160 MiB, says so, and frees them when told to.
const USE_AND_FREE: &str = r"
    mkdir /work; mount -t tmpfs -o size=90% work /work
    dd if=/dev/zero of=/work/file bs=1M count=160 2>/dev/null; echo USED
    read go; rm /work/file; echo FREED
    read go; echo free=$(sed -n 's/^MemFree: *\([0-9]*\) kB/\1/p' /proc/meminfo)";

fn resident_mib(vm: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.id())).expect("the monitor's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") >> 10
}

fn wait_until_below(vm: &Running, mib: u64) {
    let until = Instant::now() + PATIENCE;
    while resident_mib(vm) >= mib {
        assert!(Instant::now() < until, "the monitor still has {} MiB", resident_mib(vm));
        sleep(Duration::from_millis(200));
    }
}

fn frees(kernel: &str, args: &[&str]) {
    let mut vm = Vm::boot(kernel).args(["--memory", "256M"]).args(args.to_vec()).run(USE_AND_FREE).pipe().start();
    vm.expect("USED");
    let used = resident_mib(&vm);
    assert!(used > 160, "the guest uses 160 MiB, the monitor has {used}");
    vm.send("\n");
    vm.expect("FREED");
    wait_until_below(&vm, used - 120);
    vm.send("\n");
    // For the guest, reported pages are free ones like all others.
    assert!(vm.ends(0).number("free") > 130 << 10);
}

#[test]
fn free_pages_return_to_the_host() {
    frees("tuned/vmlinux", &["--balloon", "0"]);
}

#[test]
fn debian_s_kernels_report_theirs() {
    frees("debian12/vmlinux", &["--balloon", "0"]);
    frees("debian13/vmlinux", &["--balloon", "0,stats=1"]);
}

/// What is reported meanwhile is taken afterwards. The bitmap of resident pages agrees with the host's account.
#[test]
fn reports_wait_while_they_are_paused() {
    let args = ["--memory", "256M", "--balloon", "0"];
    let mut remote = Remote::start(Vm::boot("debian12/vmlinux").args(args).run(USE_AND_FREE).pipe());
    let resident_pages = |remote: &Remote| -> u64 {
        let told = remote.call("GET", "/memory", Value::Null);
        let words = told["resident"].as_array().expect("a bitmap");
        assert_eq!(words.len(), (256 << 20) / 4096 / 64);
        words.iter().map(|word| u64::from(word.as_u64().expect("64 bits").count_ones())).sum()
    };
    remote.vm.expect("USED");
    remote.call("PATCH", "/balloon/reporting/pause", Value::Null);
    assert_eq!(remote.call("GET", "/balloon/reporting/status", Value::Null), json!({ "paused": true }));
    let (used, pages) = (resident_mib(&remote.vm), resident_pages(&remote));
    assert!((used.saturating_sub(30)..used).contains(&(pages / 256)), "{pages} pages are resident, of {used} MiB");
    remote.vm.send("\n");
    remote.vm.expect("FREED");
    sleep(Duration::from_secs(5)); // Linux reports two seconds after pages are free
    assert!(resident_mib(&remote.vm) > used - 20, "nothing is taken");
    remote.call("PATCH", "/balloon/reporting/resume", Value::Null);
    wait_until_below(&remote.vm, used - 120);
    assert!(resident_pages(&remote) < pages - 120 * 256);
    let mappings = remote.call("GET", "/memory/mappings", Value::Null);
    assert_eq!(mappings["mappings"][0]["size"], 256 << 20);
    remote.vm.send("\n");
    assert!(remote.vm.ends(0).number("free") > 130 << 10);
}

/// Without reports the monitor keeps what the guest has freed, until the guest is asked for it.
#[test]
fn a_guest_is_asked_for_its_free_pages() {
    for kernel in ["debian12/vmlinux", "debian13/vmlinux"] {
        let args = ["--memory", "256M", "--balloon", "0,no_reporting,hinting"];
        let mut remote = Remote::start(Vm::boot(kernel).args(args).run(USE_AND_FREE).pipe());
        remote.vm.expect("USED");
        let used = resident_mib(&remote.vm);
        remote.vm.send("\n");
        remote.vm.expect("FREED");
        assert!(resident_mib(&remote.vm) > used - 20, "nothing is given back unasked");
        remote.call("PATCH", "/balloon/hinting/start", Value::Null);
        wait_until_below(&remote.vm, used - 120);
        let until = Instant::now() + PATIENCE;
        while remote.call("GET", "/balloon/hinting/status", Value::Null)["host_cmd"] != 1 {
            assert!(Instant::now() < until, "the guest does not come to an end");
            sleep(Duration::from_millis(100));
        }
        remote.vm.send("\n");
        assert!(remote.vm.ends(0).number("free") > 130 << 10, "the guest has its pages again");
    }
}

/// The driver inflates by itself, and the guest's own sum agrees.
#[test]
fn a_balloon_takes_what_it_is_told_to() {
    let script = r"
        for i in $(seq 600); do
            free=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo); [ $free -lt 120000 ] && break; usleep 100000; done
        echo total=$free";
    let total = |amount: &str| {
        let vm = Vm::tuned().args(["--memory", "256M", "--balloon", amount]).run(script);
        vm.start().ends(0).number("total")
    };
    assert!(total("150M,no_reporting") < 120_000);
}

/// A guest that runs out of memory gets it back from its balloon, if that was agreed on.
#[test]
fn a_guest_out_of_memory_deflates() {
    let script = r"
        i=0; while [ $i -lt 100 ]; do grep -q '^MemFree: *[0-9]\{1,5\} kB' /proc/meminfo && break; usleep 100000; i=$((i + 1)); done
        mkdir /work; mount -t tmpfs -o size=100% work /work
        dd if=/dev/zero of=/work/file bs=1M count=120 2>/dev/null; echo size=$(stat -c %s /work/file)";
    let vm = Vm::tuned().args(["--memory", "256M", "--balloon", "180M,deflate_on_oom"]).run(script);
    assert_eq!(vm.start().ends(0).number("size"), 120 << 20);
}
