//! A tenant's VM that many want at once, and one whose keeper is killed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::claims::control_groups;
use crate::container::image;
use crate::container_life::User;
use crate::vm::until;

/// Processes of this user's commands, by the store in their environment: their numbers and command lines.
fn processes(user: &User) -> Vec<(i32, String)> {
    let mark = format!("VMM_STORE={}", user.path().display());
    let all = fs::read_dir("/proc").expect("processes").flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found = numbers.filter_map(|pid: i32| {
        let text =
            |name: &str| Some(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{name}")).ok()?).into_owned());
        let is_one = text("environ")?.split('\0').any(|entry| entry == mark);
        is_one.then(|| Some((pid, text("cmdline")?.replace('\0', " "))))?
    });
    found.collect()
}

/// The process that keeps the VM of a tenant.
fn keepers(user: &User, tenant: &str) -> Vec<i32> {
    let is_one = |words: &str| words.contains(" keep ") && words.contains(&format!(" --name {tenant} "));
    processes(user).into_iter().filter(|(_, words)| is_one(words)).map(|(pid, _)| pid).collect()
}

/// Control groups of VMs that have their folders in this user's runtime directory.
fn groups(user: &User) -> Vec<String> {
    let room = std::os::unix::fs::MetadataExt::ino(&user.path().join("r").metadata().expect("the runtime directory"));
    let mut names = Vec::new();
    below("/sys/fs/cgroup".as_ref(), &mut names);
    names.retain(|name| name.starts_with(&format!("vmm-{room:x}-")));
    names
}

/// The names of all groups below this one. Those of others come and go.
fn below(group: &Path, names: &mut Vec<String>) {
    let all = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in all.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        names.extend(entry.file_name().into_string());
        below(&entry.path(), names);
    }
}

#[test]
fn containers_that_come_at_once_make_one_vm() {
    let user = User::new();
    let (image, names) = (image(), ["a", "b", "c", "d"]);
    let starting = names.map(|name| {
        let words = ["run", "-d", "--vm", "t", "--name", name, &image, "sleep", "1000"];
        user.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vmm run")
    });
    for (name, process) in names.iter().zip(starting) {
        let output = process.wait_with_output().expect("its end");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{name}\n"));
    }
    let boots = names.map(|name| user.says(&["exec", name, "cat", "/proc/sys/kernel/random/boot_id"]));
    assert_eq!(boots.iter().collect::<BTreeSet<_>>().len(), 1, "one kernel: {boots:?}");
    let listed: Value = serde_json::from_str(&user.says(&["ps", "--json"])).expect("JSON");
    let of_kind = |kind: &str| listed.as_array().expect("a list").iter().filter(|line| line["kind"] == kind).count();
    assert_eq!((of_kind("vm"), of_kind("container")), (1, 4), "{listed}");
    assert_eq!(keepers(&user, "t").len(), 1, "{:?}", processes(&user));
    user.says(&[&["rm", "-f"], &names[..]].concat());
    until("all have gone", || processes(&user).is_empty(), || format!("{:?}", processes(&user)));
}

#[test]
fn a_keeper_that_is_killed_takes_its_tenant_along() {
    control_groups();
    let user = User::new();
    let mounts = || {
        let all = fs::read_to_string("/proc/self/mounts").expect("mounts");
        all.lines().filter(|line| line.contains(&*user.path().to_string_lossy())).count()
    };
    let shared = user.path().join("shared");
    fs::create_dir(&shared).expect("a directory");
    let volume = format!("{}:/s", shared.display());
    user.start(&["--vm", "good", "--name", "good"], "exec sleep 1000");
    let options = ["--vm", "bad", "--name", "one", "--storage-opt", "size=16m", "-v", &volume];
    user.start(&options, "echo written > /s/f; echo up; exec sleep 1000");
    user.until_logged("one", "up");
    user.start(&["--vm", "bad", "--name", "two", "--rm"], "exec sleep 1000");
    assert_eq!(groups(&user).len(), 2);
    let keeper = keepers(&user, "bad").first().copied().and_then(Pid::from_raw).expect("a keeper");
    kill_process(keeper, Signal::KILL).expect("killed");

    // Its containers end, and nothing of them goes on.
    assert_eq!(user.says(&["wait", "one"]), "125\n", "its VM is gone");
    let alive = || processes(&user).iter().filter(|(_, words)| !words.contains("good")).count();
    until("what is left belongs to the other tenant", || alive() == 0, || format!("{:?}", processes(&user)));
    assert_eq!(user.line("one").expect("it is known")["state"], "Exited");
    assert!(user.line("two").is_none(), "it was to be removed");
    assert!(user.says(&["logs", "one"]).contains("up"));
    assert_eq!(user.says(&["exec", "good", "echo", "alive"]), "alive\n");
    assert_eq!(fs::read_to_string(shared.join("f")).expect("written"), "written\n");

    // The tenant comes again; what the killed one left goes with that.
    assert_eq!(user.says(&["run", "--rm", "--vm", "bad", &image(), "echo", "back"]), "back\n");
    user.says(&["rm", "one"]);
    user.says(&["rm", "-f", "good"]);
    until("all have gone", || processes(&user).is_empty(), || format!("{:?}", processes(&user)));
    until("no group is left", || groups(&user).is_empty(), || format!("{:?}", groups(&user)));
    let left = |folder: &str| -> Vec<String> {
        let entries = Path::new(user.path()).join(folder).read_dir().expect("a folder").flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    assert_eq!(left("containers"), [""; 0]);
    assert_eq!(left("r"), [""; 0]);
    assert_eq!(mounts(), 0);
}
