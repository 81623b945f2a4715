//! Shared directories, served by both kinds of virtiofsd: what the guest sees is what the host has, and the other way.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::api::Remote;
use crate::disk::{checksum, noise};
use crate::vm::{Vm, guest};

const MEBIBYTES: usize = 8;

/// virtiofsd of QEMU 5 to 7, and its successor (tools/guest).
fn daemons() -> [PathBuf; 2] {
    ["c", "rust"].map(|kind| guest(&format!("virtiofsd/{kind}/virtiofsd")))
}

fn share(dir: &Path, daemon: &Path, more: &str) -> [String; 2] {
    ["--share".into(), format!("{}:src,virtiofsd={}{more}", dir.display(), daemon.display())]
}

/// Reads and writes, names and attributes.
fn exchanges(kernel: &str, daemon: &Path) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    fs::write(path("to-guest"), noise(MEBIBYTES << 20)).expect("writing it");
    fs::create_dir(path("folder")).expect("a folder");
    let script = format!(
        r"mkdir /share; mount -t virtiofs src /share || echo NO; cd /share
        echo in=$(md5sum <to-guest | cut -d' ' -f1)
        dd if=/dev/urandom of=from-guest bs=1M count={MEBIBYTES} 2>/dev/null; sync
        echo out=$(md5sum <from-guest | cut -d' ' -f1)
        mkdir folder/sub; ln -s ../to-guest folder/link; mv from-guest folder/sub/moved; chmod 640 folder/sub/moved
        for i in $(seq 50); do echo $i >folder/file$i; done; rm folder/file7
        echo count=$(ls folder | wc -l); cd /; umount /share && echo UNMOUNTED"
    );
    let vm = Vm::boot(kernel).args(share(dir.path(), daemon, "")).args(["--memory", "256M"]);
    let ended = vm.run(&script).start().ends(0);
    assert_eq!(ended.value("in"), checksum(&path("to-guest")), "{}", ended.errors);
    assert_eq!(ended.value("out"), checksum(&path("folder/sub/moved")));
    assert_eq!(path("folder/sub/moved").metadata().expect("it").mode() & 0o777, 0o640);
    assert_eq!(fs::read_link(path("folder/link")).expect("it"), Path::new("../to-guest"));
    assert_eq!((ended.number("count"), path("folder").read_dir().expect("it").count()), (51, 51));
    assert!(ended.console.contains("UNMOUNTED"), "{}", ended.console);
}

#[test]
fn files_go_both_ways() {
    daemons().iter().for_each(|daemon| exchanges("tuned/vmlinux", daemon));
}

#[test]
fn debian_12_mounts_it() {
    exchanges("debian12/vmlinux", &daemons()[1]);
}

#[test]
fn debian_13_mounts_it() {
    exchanges("debian13/vmlinux", &daemons()[0]);
}

#[test]
fn read_only_really_is() {
    for daemon in daemons() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("file"), "content").expect("writing it");
        let script = "mkdir /share; mount -t virtiofs src /share; cd /share; echo content=$(cat file)
            for try in 'echo x >file' 'echo x >new' 'mkdir d' 'rm file' 'mv file other' 'chmod 777 file' 'ln file l'; do
                sh -c \"$try\" 2>/dev/null && echo \"CHANGED by $try\"; done; mount -o remount,rw /share; rm file 2>/dev/null && echo CHANGED
            echo DONE";
        let ended = Vm::tuned().args(share(dir.path(), &daemon, ",ro")).run(script).start().ends(0);
        assert_eq!(ended.value("content"), "content", "{}", ended.errors);
        assert!(ended.console.contains("DONE") && !ended.console.contains("CHANGED"), "{}", ended.console);
        assert_eq!(fs::read(dir.path().join("file")).expect("it"), b"content");
        assert_eq!(dir.path().read_dir().expect("it").count(), 1);
    }
}

#[test]
fn a_dead_virtiofsd_is_an_error_in_the_guest() {
    for daemon in daemons() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("file"), "content").expect("writing it");
        let script = "mkdir /share; mount -t virtiofs src /share; cat /share/file; echo READY; read go
            cat /share/other; stat /share/file; echo x >/share/new; umount /share; echo ALIVE";
        let mut vm = Vm::tuned().args(share(dir.path(), &daemon, "")).run(script).pipe().start();
        vm.expect("READY");
        for pid in vm.children() {
            let group = format!("-{pid}"); // it may have put itself into namespaces, as a child
            assert!(Command::new("kill").args(["-KILL", "--", &group]).status().expect("kill").success());
        }
        vm.expect_error("the shared directory is lost: virtiofsd has ended");
        vm.send("\n");
        let ended = vm.ends(0);
        assert!(ended.console.contains("Transport endpoint is not connected"), "{}", ended.console);
        assert!(ended.console.contains("ALIVE"), "{}", ended.console);
        assert_eq!(ended.errors.matches("is lost").count(), 1, "{}", ended.errors);
    }
}

/// Two shares, and virtiofsd is gone with the VM, however that ended.
#[test]
fn two_shares_and_nothing_is_left_behind() {
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    dirs.iter().zip(["one", "two"]).for_each(|(dir, text)| fs::write(dir.path().join("f"), text).expect("writing"));
    let [old, new] = daemons();
    let args = [
        format!("{}:a,virtiofsd={}", dirs[0].path().display(), old.display()),
        format!("{}:b,virtiofsd={}", dirs[1].path().display(), new.display()),
    ];
    let script = "mkdir /a /b; mount -t virtiofs a /a; mount -t virtiofs b /b; echo both=$(cat /a/f /b/f); read go";
    let mut vm = Vm::tuned().args(["--share", &args[0], "--share", &args[1]]).run(script).pipe().start();
    vm.expect("both=onetwo");
    let before = vm.children();
    assert!(before.len() >= 2, "{before:?}");
    vm.signal(rustix::process::Signal::KILL);
    let gone = |pid: &String| !Path::new(&format!("/proc/{pid}")).exists();
    for _ in 0..1000 {
        if before.iter().all(gone) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("virtiofsd outlived the monitor: {before:?}");
}

/// A share is there from the start, and its directory comes, goes and becomes another one by the API. What the guest still
/// has mounted of one that went is an error, and reaches nothing of the next.
#[test]
fn directories_come_and_go_while_the_guest_runs() {
    for daemon in daemons() {
        let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
        dirs.iter().zip(["one", "two"]).for_each(|(dir, text)| fs::write(dir.path().join("f"), text).expect("writing"));
        let large = dirs[0].path().join("large");
        fs::write(&large, noise(MEBIBYTES << 20)).expect("writing it");
        let script = r"mkdir /s; try() { mount -t virtiofs later /s && cat /s/f >/dev/null || echo NO; umount /s 2>/dev/null; }
            try; echo BEFORE; read go
            mount -t virtiofs later /s; echo first=$(cat /s/f); cp /s/large /s/from-guest; sync
            echo 3 >/proc/sys/vm/drop_caches; echo in=$(md5sum </s/large | cut -d' ' -f1); exec 3</s/f; echo FIRST; read go
            cat /s/f; cat <&3; echo x >/s/stale; echo STALE; read go
            exec 3<&-; umount /s && mount -t virtiofs later /s; echo second=$(cat /s/f); echo x >/s/new && echo CHANGED
            umount /s; echo SECOND; read go; try; echo AFTER";
        let vm = Vm::tuned().args(["--set", "shares[+]={\"tag\": \"later\"}"]).run(script).pipe();
        let mut remote = Remote::start(vm);
        let change = |remote: &Remote, more: serde_json::Value| {
            let mut body = json!({ "tag": "later", "virtiofsd": daemon });
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            remote.try_call("PATCH", "/shares/later", &body)
        };
        remote.vm.expect("NO");
        remote.vm.expect("BEFORE");
        let refused = change(&remote, json!({ "path_on_host": "/no/such" })).expect_err("there is none");
        assert!(refused.contains("share /no/such as 'later': No such file"), "{refused}");
        change(&remote, json!({ "path_on_host": dirs[0].path() })).expect("done");
        remote.vm.send("\n");
        remote.vm.expect("FIRST");
        change(&remote, json!({ "path_on_host": dirs[1].path(), "is_read_only": true })).expect("done");
        remote.vm.send("\n");
        remote.vm.expect("STALE");
        remote.vm.send("\n");
        remote.vm.expect("SECOND");
        assert_eq!(remote.call("GET", "/vm/config", serde_json::Value::Null)["shares"][0]["is_read_only"], true);
        change(&remote, json!({ "path_on_host": "" })).expect("done");
        assert!(remote.vm.children().is_empty(), "nobody serves it");
        remote.vm.send("\n");
        remote.vm.expect("NO");
        let ended = remote.vm.ends(0);
        assert_eq!((ended.value("first"), ended.value("second")), ("one", "two"), "{}", ended.errors);
        assert!(ended.console.contains("Transport endpoint is not connected"), "{}", ended.console);
        assert!(!ended.console.contains("CHANGED"), "{}", ended.console);
        let names = |dir: &Path| {
            let entries = dir.read_dir().expect("it").map(|entry| entry.expect("an entry").file_name());
            let mut names: Vec<_> = entries.collect();
            names.sort();
            names
        };
        let sum = checksum(&large);
        assert_eq!((ended.value("in"), checksum(&dirs[0].path().join("from-guest"))), (sum.as_str(), sum.clone()));
        assert_eq!(names(dirs[0].path()), ["f", "from-guest", "large"]);
        assert_eq!(names(dirs[1].path()), ["f"]);
    }
}
