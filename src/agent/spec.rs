//! What only the guest knows of a container's specification: where its root is, which numbers its user has, where its files
//! lie. Threads of orders.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use protocol::message::{Failure, FailureKind, Run};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, open, openat2};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::container::group;
use crate::user::User;
use crate::{Doing, Fault};

/// What only the guest knows: where the root is, which numbers the user has.
pub fn settle(spec: &mut Value, order: &Run, root: &Path, owner: u32) -> Result<(), Failure> {
    let about = |kind| move |why| Failure { kind, why };
    let user = User::find(root, &order.user).map_err(about(FailureKind::User))?.with_groups(root, &order.groups)?;
    let spec = spec.as_object_mut().ok_or("the container's specification is not an object")?;
    let read_only = spec.get("root").and_then(|root| root.get("readonly")).cloned().unwrap_or(Value::Bool(false));
    spec.insert("root".to_owned(), json!({"path": root, "readonly": read_only}));
    let process = spec.get_mut("process").and_then(Value::as_object_mut).ok_or("the specification has no process")?;
    process.insert("terminal".to_owned(), order.terminal.is_some().into());
    process.insert("user".to_owned(), json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups}));
    if let Some(env) = process.get_mut("env").and_then(Value::as_array_mut) {
        let has_home = env.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("HOME=")));
        if !has_home {
            env.push(format!("HOME={}", user.home).into());
        }
    }
    if let Some(cwd) = process.get("cwd").and_then(Value::as_str) {
        make_folder(root, cwd, owner).map_err(about(FailureKind::WorkingDirectory))?;
    }
    let linux = spec.entry("linux").or_insert_with(|| json!({}));
    if let Some(linux) = linux.as_object_mut() {
        linux.insert("cgroupsPath".to_owned(), format!("/{}", group(&order.id)).into());
    }
    Ok(())
}

/// The container's namespace of this kind is the one of this file.
pub fn enter(spec: &mut Value, kind: &str, file: &Path) -> Result<(), Fault> {
    let namespaces = spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
    let namespaces = namespaces.ok_or("the specification has no namespaces")?;
    namespaces.retain(|namespace| namespace.get("type").is_none_or(|known| known != kind));
    namespaces.push(json!({"type": kind, "path": file}));
    Ok(())
}

/// Writes the files that the container shall see, as this user's, and has them mounted. Where they lie, in their order.
pub fn place_files(spec: &mut Value, order: &Run, bundle: &Path, owner: u32) -> Result<Vec<PathBuf>, Fault> {
    let folder = bundle.join("files");
    fs::create_dir_all(&folder).doing(|| format!("make {}", folder.display()))?;
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut).ok_or("the specification has no mounts")?;
    let mut sources = Vec::new();
    for (number, file) in order.files.iter().enumerate() {
        let source = folder.join(number.to_string());
        let written = fs::write(&source, &file.content).and_then(|()| chown(&source, Some(owner), Some(owner)));
        written.doing(|| format!("write {}", source.display()))?;
        mounts.push(json!({
            "destination": file.path, "source": source, "type": "bind", "options": ["bind", "rw", "nosuid", "nodev"]
        }));
        sources.push(source);
    }
    Ok(sources)
}

/// Has the runtime's program, by the name at which it is one that hands signals on and reaps, start the command.
pub fn place_init(spec: &mut Value, runtime: &Path) -> Result<(), Fault> {
    const AT: &str = "/dev/vmm-init";
    let args = spec.pointer_mut("/process/args").and_then(Value::as_array_mut);
    args.ok_or("the specification has no command")?.insert(0, AT.into());
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut).ok_or("the specification has no mounts")?;
    mounts.push(json!({
        "destination": AT, "source": runtime, "type": "bind", "options": ["bind", "ro", "nosuid", "nodev"]
    }));
    Ok(())
}

/// How a directory is opened that is only walked through.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory of the container. Links of the container lead nowhere outside of it.
fn folder_in(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    openat2(root, path, FOLDER, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Makes a directory of the container with its parents, as Docker does for a working directory. What is made is this user's.
fn make_folder(root: &Path, path: &str, owner: u32) -> Result<(), Fault> {
    let making = || format!("make the working directory {path}");
    let root = open(root, FOLDER, Mode::empty()).doing(making)?;
    let mut walked = String::new();
    let mut parent = root.try_clone().doing(making)?;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        walked = format!("{walked}/{part}");
        parent = match folder_in(&root, &walked) {
            Err(Errno::NOENT) => {
                mkdirat(&parent, part, Mode::from_raw_mode(0o755)).doing(making)?;
                let made = folder_in(&root, &walked).doing(making)?;
                let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
                chownat(&made, "", Some(user), Some(group), AtFlags::EMPTY_PATH).doing(making)?;
                made
            }
            found => found.doing(making)?,
        };
    }
    Ok(())
}

/// Whether a further process can begin in this directory, which is not made for it. What else may be wrong with it, its user
/// finds out.
pub fn has_folder(root: &Path, path: &str) -> Result<(), Failure> {
    let wrong = |what: &str| {
        let why = format!("working directory {path}: {what}");
        Err(Failure { kind: FailureKind::WorkingDirectory, why })
    };
    if !path.starts_with('/') {
        return wrong("it is a path from / on");
    }
    match open(root, FOLDER, Mode::empty()).and_then(|root| folder_in(&root, path)) {
        Err(Errno::NOENT | Errno::NOTDIR) => wrong("the container has no such directory"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use protocol::disks::Writable;
    use protocol::message;

    use super::*;

    fn order() -> Run {
        Run {
            id: "c".to_owned(),
            layers: vec![],
            writable: Writable::Memory { bytes: 0 },
            spec: json!({"process": {"args": ["sh"], "env": ["PATH=/bin"], "cwd": "/a/b"}, "mounts": []}),
            user: "1000:50".to_owned(),
            own_users: false,
            groups: vec!["7".to_owned()],
            files: vec![message::File { path: "/etc/hosts".to_owned(), content: "x".to_owned() }],
            volumes: vec![],
            disk_limits: vec![],
            network: None,
            terminal: None,
            init: false,
            stdin: false,
        }
    }

    #[test]
    fn the_guest_completes_the_specification() {
        let (root, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (order, mut spec) = (order(), order().spec);
        let owner = rustix::process::getuid().as_raw();
        settle(&mut spec, &order, root.path(), owner).unwrap();
        place_files(&mut spec, &order, bundle.path(), owner).unwrap();
        assert_eq!(spec["process"]["user"], json!({"uid": 1000, "gid": 50, "additionalGids": [7]}));
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "HOME=/"]));
        assert_eq!(spec["linux"]["cgroupsPath"], "/containers/c");
        assert_eq!(spec["root"]["path"], json!(root.path()));
        assert!(root.path().join("a/b").is_dir());
        assert_eq!(fs::read_to_string(spec["mounts"][0]["source"].as_str().unwrap()).unwrap(), "x");
    }

    #[test]
    fn a_fault_says_what_it_is_about() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let kind = |user: &str, cwd: &str| {
            let order = Run { user: user.to_owned(), ..order() };
            let mut spec = json!({"process": {"cwd": cwd}});
            settle(&mut spec, &order, root.path(), rustix::process::getuid().as_raw()).unwrap_err().kind
        };
        assert_eq!(kind("nobody-here", "/"), FailureKind::User);
        assert_eq!(kind("0:no-group", "/"), FailureKind::User);
        assert_eq!(kind("0", "/file/x"), FailureKind::WorkingDirectory);
        assert_eq!(kind("0", "/file"), FailureKind::WorkingDirectory);
    }

    #[test]
    fn namespaces_are_entered_by_their_files() {
        let mut spec = json!({"linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]}});
        enter(&mut spec, "network", Path::new("/run/vmm/net/c")).unwrap();
        enter(&mut spec, "user", Path::new("/u")).unwrap();
        let [network, user] =
            [json!({"type": "network", "path": "/run/vmm/net/c"}), json!({"type": "user", "path": "/u"})];
        assert_eq!(spec["linux"]["namespaces"], json!([{"type": "pid"}, network, user]));
        assert!(enter(&mut json!({"linux": {}}), "user", Path::new("/x")).is_err());
    }

    #[test]
    fn a_first_process_stands_before_the_command() {
        let mut spec = order().spec;
        place_init(&mut spec, Path::new("/r/vmm-runtime")).unwrap();
        assert_eq!(spec["process"]["args"], json!(["/dev/vmm-init", "sh"]));
        assert_eq!(
            (&spec["mounts"][0]["source"], &spec["mounts"][0]["options"][1]),
            (&json!("/r/vmm-runtime"), &json!("ro"))
        );
        assert!(place_init(&mut json!({}), Path::new("/r")).is_err());
    }

    #[test]
    fn a_working_directory_stays_in_the_container() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), root.path().join("out")).unwrap();
        let owner = rustix::process::getuid().as_raw();
        assert!(make_folder(root.path(), "/out/made", owner).is_err());
        make_folder(root.path(), "/../../up", owner).unwrap();
        assert!(root.path().join("up").is_dir());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
