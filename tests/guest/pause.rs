//! Pauses, many and long, while the guest works, talks and keeps time: nothing is lost, and the guest does not notice.
//! (Disks: `api::`.)

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Remote;
use crate::disk::{empty, folder, noise};
use crate::net::{guest_side, ip, md5, receiver};
use crate::user_net::{DHCP, uplink};
use crate::vm::{Ended, PATIENCE, Vm, guest};
use crate::vsock::{dial, pattern, vsock};

/// Forgets what the kernel said while it booted.
const FRESH: &str = "dmesg -c >/dev/null";
/// Shows, and counts, what it says of time that went wrong.
const LATE: &str = "dmesg | grep -i -e 'lockup' -e 'stall' -e 'unstable' -e 'backward' >/tmp/late; cat /tmp/late; echo late=$(wc -l </tmp/late)";

/// On one CPU, which the mask `$1` names, looks at CLOCK_MONOTONIC (nanoseconds) and CLOCK_REALTIME (seconds) until the end:
/// neither ever goes back.
const KEEP: &str = r"keep() {
    read pid rest </proc/self/stat; taskset -p $1 $pid >/dev/null || echo no CPU $1 >>/tmp/bad
    was=0; then=0; looks=0
    while [ ! -e /tmp/stop ]; do
        { read line; read line; read now at up rest; } </proc/timer_list; now=$(date +%s); looks=$((looks + 1))
        [ $up -gt $was ] && [ $now -ge $then ] || echo back on $1: $was $up $then $now >>/tmp/bad
        was=$up; then=$now
    done; echo looks$1=$looks
}";

/// Fails where the guest found something wrong.
fn nothing_was_wrong(ended: &Ended) {
    let [bad, late] = ["bad", "late"].map(|name| ended.number(name));
    assert_eq!((bad, late), (0, 0), "{}", ended.console);
}

/// A round of work on each CPU must come to the same as the first one; the clocks of every look are at least those of the
/// look before.
#[test]
fn a_thousand_pauses_leave_no_trace() {
    let script = format!(
        r"{FRESH}
        dd if=/dev/urandom of=/tmp/noise bs=64k count=1 2>/dev/null; sum=$(md5sum </tmp/noise)
        {KEEP}
        work() {{ while [ ! -e /tmp/stop ]; do [ $(md5sum </tmp/noise | cut -c1-32) = $1 ] || echo wrong >>/tmp/bad; done; }}
        >/tmp/bad; work ${{sum%% *}} & work ${{sum%% *}} & keep 1 & keep 2 &
        echo READY; read go; touch /tmp/stop; wait; cat /tmp/bad; echo bad=$(wc -l </tmp/bad); {LATE}"
    );
    let mut remote = Remote::start(Vm::boot("debian12/vmlinux").args(["--cpus", "2"]).run(&script).pipe());
    remote.vm.expect("READY");
    for _ in 0..1000 {
        remote.set_state("Paused");
        remote.set_state("Resumed");
    }
    remote.vm.send("\n");
    let ended = remote.vm.ends(0);
    nothing_was_wrong(&ended);
    assert!(ended.number("looks1") > 10 && ended.number("looks2") > 10, "{}", ended.console);
}

/// Pauses that are longer than the watchdog's patience: the guest is told that it was stopped (KVM_KVMCLOCK_CTRL), or both of
/// its CPUs would be stuck for it.
#[test]
fn a_long_pause_is_no_lockup() {
    const THRESHOLD: u64 = 3; // seconds; the watchdog barks after twice that
    let script = format!(
        r"{FRESH}
        echo {THRESHOLD} > /proc/sys/kernel/watchdog_thresh; echo watched=$(cat /proc/sys/kernel/soft_watchdog)
        {KEEP}
        >/tmp/bad; keep 1 & keep 2 &
        echo READY; read go; sleep 1; touch /tmp/stop; wait; cat /tmp/bad; echo bad=$(wc -l </tmp/bad); {LATE}"
    );
    let mut remote = Remote::start(Vm::boot("debian12/vmlinux").args(["--cpus", "2"]).run(&script).pipe());
    remote.vm.expect("READY");
    for _ in 0..2 {
        remote.set_state("Paused");
        sleep(Duration::from_secs(3 * THRESHOLD));
        remote.set_state("Resumed");
        sleep(Duration::from_secs(1));
    }
    remote.vm.send("\n");
    let ended = remote.vm.ends(0);
    assert_eq!(ended.number("watched"), 1);
    assert!(ended.number("looks1") > 1 && ended.number("looks2") > 1, "{}", ended.console);
    nothing_was_wrong(&ended);
}

/// Both directions at once, with a pause in the midst of every piece that the host sends.
fn pauses_under_network_load(net: u8, more: &str) {
    const PIECES: usize = 32;
    const PIECE: usize = 256 << 10;
    let tap = format!("vmmtest{net}");
    let script = guest_side(net)
        + &format!(
            r"{FRESH}; echo READY; read go
            dd if=/dev/urandom of=/tmp/out bs=1M count=8 2>/dev/null
            nc 10.9.{net}.1 7001 </tmp/out >/dev/null & nc 10.9.{net}.1 7002 </dev/null >/tmp/in; wait
            echo out=$(md5sum </tmp/out | cut -d' ' -f1); echo in=$(md5sum </tmp/in | cut -d' ' -f1)
            echo bad=0; {LATE}"
        );
    let options = format!("tap={tap},mac=02:00:00:00:09:{net:02x}{more}");
    let mut remote = Remote::start(Vm::tuned().args(["--net", &options, "--memory", "256M"]).run(&script).pipe());
    remote.vm.expect("READY");
    ip(&format!("addr add 10.9.{net}.1/24 dev {tap}"));
    ip(&format!("link set {tap} up"));
    let listen = |port| TcpListener::bind((format!("10.9.{net}.1"), port)).expect("listening");
    let to_us = receiver(listen(7001), 8 << 20);
    let to_guest = listen(7002);
    remote.vm.send("\n");
    let (mut guest, _) = to_guest.accept().expect("the guest calls");
    let bytes = noise(PIECES * PIECE);
    for piece in bytes.chunks(PIECE) {
        let (before, after) = piece.split_at(PIECE / 2);
        guest.write_all(before).expect("sending");
        remote.set_state("Paused");
        sleep(Duration::from_millis(20));
        remote.set_state("Resumed");
        guest.write_all(after).expect("sending");
    }
    drop(guest);
    let received = to_us.join().expect("all was received");
    let ended = remote.vm.ends(0);
    assert_eq!((ended.value("out"), ended.value("in")), (md5(&received).as_str(), md5(&bytes).as_str()));
    nothing_was_wrong(&ended);
}

#[test]
fn a_pause_under_network_load_loses_nothing() {
    pauses_under_network_load(21, "");
}

#[test]
fn a_pause_with_frames_in_the_host_s_kernel_loses_nothing() {
    pauses_under_network_load(22, ",vhost");
}

/// A connection outlives pauses; what is sent meanwhile arrives afterwards.
#[test]
fn a_connection_to_the_guest_outlives_pauses() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("v.sock");
    let mut remote = Remote::start(Vm::tuned().args(vsock(&path)).run("vsock echo 5000 1").pipe());
    remote.vm.expect("LISTENING");
    let mut host = dial(&path, 5000);
    for round in 0..50 {
        let sent = pattern(round, 40_000);
        let (before, meanwhile) = sent.split_at(10_000);
        host.write_all(before).expect("sending");
        remote.set_state("Paused");
        host.write_all(meanwhile).expect("sending in a pause");
        remote.set_state("Resumed");
        let mut got = vec![0; sent.len()];
        host.read_exact(&mut got).expect("reading");
        assert!(got == sent, "round {round}");
    }
    host.shutdown(std::net::Shutdown::Write).expect("a half-close");
    assert_eq!(host.read_to_end(&mut Vec::new()).expect("the end"), 0);
    remote.vm.expect(&format!("echoed={}", 50 * 40_000));
    remote.vm.ends(0);
}

/// How much of the balloon the guest has given.
fn balloon(remote: &Remote) -> u64 {
    let told = remote.call("GET", "/balloon/statistics", Value::Null);
    told["actual_mib"].as_u64().unwrap_or_else(|| panic!("{told}"))
}

/// A file as memory, a shared directory, the random source, the console, the balloon, and passt, all at work in one guest,
/// which counts what is not as it was; the balloon is told to grow and to shrink in the pauses, too.
#[test]
fn a_pause_with_every_other_device_at_work_loses_nothing() {
    const PIECES: usize = 12;
    const PIECE: usize = 64 << 10;
    const OUT: usize = 2 << 20;
    let folder = folder();
    let image = empty(folder.path(), "memory", 4 << 20);
    let shared = tempfile::tempdir().expect("a directory");
    let script = DHCP.to_owned()
        + &format!(
            r#"{FRESH}; mkdir /work; mount -t tmpfs work /work; cd /work; dd if=/dev/urandom of=noise bs=64k count=32 2>/dev/null; sum=$(md5sum <noise)
            same() {{ [ "$(md5sum)" = "$sum" ] || echo $1 $2 >>bad; }}
            memory() {{ dd if=noise of=/dev/pmem0 bs=64k seek=$1 conv=fsync 2>/dev/null
                dd if=/dev/pmem0 bs=64k skip=$1 count=32 iflag=direct 2>/dev/null | same memory $1; }}
            share() {{ cp noise /share/$1; sync; echo 3 >/proc/sys/vm/drop_caches; same share $1 </share/$1; }}
            random() {{ [ $(head -c 500 /dev/hwrng | wc -c) = 500 ] || echo random >>bad; }}
            work() {{ i=0; while [ ! -e stop ]; do $1 $((i % 2 * 32)); i=$((i + 1)); done; echo $1=$i; }}
            >bad; work memory & work share & work random &
            mkfifo open; exec 3<>open; dd if=/dev/urandom of=out bs=1M count=2 2>/dev/null
            {{ cat out; until [ -e sent ]; do usleep 100000; done; }} | {{ nc $router 7122 >/dev/null; touch sent; }} &
            nc $router 7121 <&3 >in & network=$!
            echo READY; n=0; while read word && [ $word != end ]; do n=$((n + 1)); echo heard $word; done
            wait $network; touch stop; wait; echo heard=$n; cat bad; echo bad=$(wc -l <bad); {LATE}
            echo sum=$sum; echo out=$(md5sum <out | cut -d' ' -f1); echo in=$(md5sum <in | cut -d' ' -f1)"#
        );
    uplink();
    let listen = |port| TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).expect("listening");
    let (to_us, to_guest) = (receiver(listen(7122), OUT), listen(7121));
    let share = format!("{}:src,virtiofsd={}", shared.path().display(), guest("virtiofsd/rust/virtiofsd").display());
    let pmem = image.display().to_string();
    let devices = ["--pmem", &pmem, "--share", &share, "--balloon", "0,stats=1", "--net", "user"];
    let vm = Vm::boot("debian12/vmlinux").args(devices).args(["--cpus", "2", "--memory", "384M"]);
    // It is longer than a kernel's command line can be.
    std::fs::write(shared.path().join("script"), script).expect("a shared script");
    let script = "mkdir /share; mount -t virtiofs src /share && . /share/script";
    let mut remote = Remote::start(vm.run(script).pipe());
    remote.vm.expect("READY");
    let (mut guest, _) = to_guest.accept().expect("the guest calls");
    let bytes = noise(PIECES * PIECE);
    for (round, piece) in bytes.chunks(PIECE).enumerate() {
        let (before, after) = piece.split_at(PIECE / 2);
        let target = |mib: usize| remote.call("PATCH", "/balloon", json!({ "amount_mib": mib }));
        target(round % 3 * 16);
        guest.write_all(before).expect("sending");
        remote.set_state("Paused");
        target(64 - round % 4 * 16);
        let before = balloon(&remote);
        remote.vm.send(&format!("word{round}\n"));
        sleep(Duration::from_millis(20));
        assert_eq!(balloon(&remote), before, "nothing happens in a pause");
        remote.set_state("Resumed");
        guest.write_all(after).expect("sending");
        remote.vm.expect(&format!("heard word{round}\n"));
    }
    drop(guest);
    for mib in [64, 0] {
        remote.call("PATCH", "/balloon", json!({ "amount_mib": mib }));
        let until = Instant::now() + PATIENCE;
        while balloon(&remote) != mib {
            assert!(Instant::now() < until, "the balloon has {} MiB, not {mib}", balloon(&remote));
            sleep(Duration::from_millis(100));
        }
    }
    remote.vm.send("end\n");
    let ended = remote.vm.ends(0);
    nothing_was_wrong(&ended);
    let received = to_us.join().unwrap_or_else(|_| panic!("{}\n{}", ended.console, ended.errors));
    assert_eq!((ended.value("out"), ended.value("in")), (md5(&received).as_str(), md5(&bytes).as_str()));
    assert_eq!(ended.number("heard"), PIECES as u64);
    for name in ["memory", "share", "random"] {
        assert!(ended.number(name) > 1, "{}", ended.console);
    }
    let image = std::fs::read(&image).expect("the file as memory");
    let files = ["0", "32"].map(|name| std::fs::read(shared.path().join(name)).expect("a shared file"));
    let halves = image.chunks(2 << 20).chain(files.iter().map(Vec::as_slice));
    let sum = ended.value("sum").split(' ').next().unwrap_or_default();
    assert_eq!(halves.map(md5).collect::<Vec<_>>(), [sum; 4]);
}
