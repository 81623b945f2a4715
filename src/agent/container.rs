//! The containers of this VM: their names, their folders, their root file systems, and what the runtime is told.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use protocol::message::{self, Run};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, open, openat2};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::layers::{self, Layers};
use crate::limits;
use crate::network::{Joined, Network};
use crate::system::{CGROUPS, OWN};
use crate::user::User;
use crate::users::{self, Users};
use crate::volumes::Volumes;
use crate::{Doing, Fault};

/// All of them.
#[derive(Debug, Default)]
pub struct Containers {
    known: Mutex<BTreeMap<String, State>>,
    /// A name has become free.
    freed: Condvar,
    layers: Layers,
    volumes: Volumes,
    network: Option<Network>,
}

/// What a container does.
#[derive(Debug, Clone, Copy)]
enum State {
    /// It is being made.
    Begins,
    /// It runs; this is its first process.
    Runs(u32),
    /// It has ended, and what was made for it is being taken away.
    Ends,
}

/// A container's place: what was made for it goes with it.
#[derive(Debug)]
pub struct Place<'a> {
    containers: &'a Containers,
    id: String,
    joined: Option<Joined<'a>>,
}

impl Containers {
    /// None yet, in a VM with this network.
    pub fn new(network: Option<Network>) -> Self {
        Self { network, ..Self::default() }
    }

    /// A place for a container of this name. Waits for one of this name that has ended, which the host may know already.
    pub fn place(&self, id: &str) -> Result<Place<'_>, Fault> {
        let place = self.take(id)?;
        fs::create_dir_all(folder(id)).doing(|| format!("make a folder for container {id}"))?;
        Ok(place)
    }

    fn take(&self, id: &str) -> Result<Place<'_>, Fault> {
        let plain = |letter: char| letter.is_ascii_alphanumeric();
        if !id.starts_with(plain) || !id.chars().all(|letter| plain(letter) || "_.-".contains(letter)) {
            return Err(format!(
                "{id:?} is no container's name: letters, digits, '_', '.' and '-' are, after the first"
            ));
        }
        let mut known = self.lock();
        while matches!(known.get(id), Some(State::Ends)) {
            known = self.freed.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
        if known.contains_key(id) {
            return Err(format!("there is a container {id} already"));
        }
        known.insert(id.to_owned(), State::Begins);
        drop(known);
        Ok(Place { containers: self, id: id.to_owned(), joined: None })
    }

    /// The first process of a container.
    pub fn pid(&self, id: &str) -> Result<u32, Fault> {
        match self.lock().get(id) {
            Some(State::Runs(pid)) => Ok(*pid),
            Some(State::Begins) => Err(format!("container {id} is being made")),
            Some(State::Ends) | None => Err(format!("there is no container {id}")),
        }
    }

    /// Unmounts what is the host's, for the end of the VM.
    pub fn part(&self) {
        self.volumes.part();
    }

    /// Those that run.
    pub fn list(&self) -> message::Containers {
        let known = self.lock();
        let running = known.iter().filter_map(|(id, state)| match state {
            State::Runs(pid) => Some(message::Container { id: id.clone(), pid: *pid }),
            State::Begins | State::Ends => None,
        });
        message::Containers { containers: running.collect() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container's own folder in the VM.
pub fn folder(id: &str) -> PathBuf {
    Path::new(OWN).join("containers").join(id)
}

impl Place<'_> {
    /// The bundle that the runtime makes the container of.
    pub fn bundle(&mut self, order: &Run, runtime: &Path) -> Result<PathBuf, Fault> {
        let bundle = folder(&self.id);
        let users = order.own_users.then(|| Users::make(&bundle)).transpose()?;
        let layer = |name: &String| match &users {
            Some(users) => self.containers.layers.shown(name, users),
            None => self.containers.layers.mounted(name),
        };
        let mut mounted = order.layers.iter().map(layer).collect::<Result<Vec<PathBuf>, Fault>>()?;
        let owner = users.as_ref().map_or(0, |_| users::ROOT);
        let root = layers::join(&mounted, &bundle, &order.writable, owner)?;
        let mut spec = order.spec.clone();
        settle(&mut spec, order, &root, owner)?;
        let sources = place_files(&mut spec, order, &bundle, owner)?;
        self.place_volumes(&mut spec, order, &root)?;
        mounted.push(layers::writable(&bundle));
        limits::settle(&mut spec, order, &mounted)?;
        if let Some(endpoint) = &order.network {
            let network = self.containers.network.as_ref().ok_or("this VM has no network (--network none)")?;
            let made = users.as_ref().map(Users::network);
            let joined = self.joined.insert(network.join(&order.id, endpoint, made)?);
            order.files.iter().zip(&sources).try_for_each(|(file, source)| joined.tell(file, source))?;
            enter(&mut spec, "network", joined.path())?;
        }
        if let Some(users) = &users {
            enter(&mut spec, "user", users.path())?;
        }
        if order.init {
            place_init(&mut spec, runtime)?;
        }
        let text = serde_json::to_vec(&spec).doing(|| "write the container's specification".to_owned())?;
        fs::write(bundle.join("config.json"), text).doing(|| "write the container's specification".to_owned())?;
        Ok(bundle)
    }

    /// Has the volumes mounted.
    fn place_volumes(&self, spec: &mut Value, order: &Run, root: &Path) -> Result<(), Fault> {
        let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut).ok_or("the specification has no mounts")?;
        for volume in &order.volumes {
            let image = inside(root, &volume.path);
            let image = image.as_ref().map(|dir| PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())));
            let source = self.containers.volumes.mounted(volume, image.as_deref())?;
            let right = if volume.read_only { "ro" } else { "rw" };
            mounts.push(json!({
                "destination": volume.path, "source": source, "type": "bind", "options": ["rbind", "rprivate", right]
            }));
        }
        Ok(())
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The container runs; this is its first process.
    pub fn runs(&self, pid: u32) {
        self.containers.lock().insert(self.id.clone(), State::Runs(pid));
    }

    /// Its first process has ended. Its name is free when the place is gone.
    pub fn ends(&self) {
        self.containers.lock().insert(self.id.clone(), State::Ends);
    }

    /// Whether its first process has ended.
    pub fn has_ended(&self) -> bool {
        matches!(self.containers.lock().get(&self.id), Some(State::Ends))
    }

    /// Whether the kernel killed a process of the container because its memory was used up.
    pub fn oom_killed(&self) -> bool {
        let events = Path::new(CGROUPS).join(group(&self.id)).join("memory.events");
        let events = fs::read_to_string(events).unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.is_some_and(|count| count.trim() != "0")
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        drop(self.joined.take()); // its namespace bears the container's name, which is free for another in a moment
        layers::part(&folder(&self.id));
        self.containers.lock().remove(&self.id);
        self.containers.freed.notify_all();
    }
}

/// A directory of the image, if it is there. Links of the image lead nowhere outside of it.
fn inside(root: &Path, path: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(root, flags, Mode::empty()).ok()?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(&root, path, flags, Mode::empty(), resolve).ok()
}

/// A container's control group, below their root.
pub fn group(id: &str) -> String {
    format!("containers/{id}")
}

/// What only the guest knows: where the root is, which numbers the user has.
fn settle(spec: &mut Value, order: &Run, root: &Path, owner: u32) -> Result<(), Fault> {
    let user = User::find(root, &order.user)?.with_groups(root, &order.groups)?;
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
        make_folder(root, cwd, owner)?;
    }
    let linux = spec.entry("linux").or_insert_with(|| json!({}));
    if let Some(linux) = linux.as_object_mut() {
        linux.insert("cgroupsPath".to_owned(), format!("/{}", group(&order.id)).into());
    }
    Ok(())
}

/// The container's namespace of this kind is the one of this file.
fn enter(spec: &mut Value, kind: &str, file: &Path) -> Result<(), Fault> {
    let namespaces = spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
    let namespaces = namespaces.ok_or("the specification has no namespaces")?;
    namespaces.retain(|namespace| namespace.get("type").is_none_or(|known| known != kind));
    namespaces.push(json!({"type": kind, "path": file}));
    Ok(())
}

/// Writes the files that the container shall see, as this user's, and has them mounted. Where they lie, in their order.
fn place_files(spec: &mut Value, order: &Run, bundle: &Path, owner: u32) -> Result<Vec<PathBuf>, Fault> {
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
fn place_init(spec: &mut Value, runtime: &Path) -> Result<(), Fault> {
    const AT: &str = "/dev/vmm-init";
    let args = spec.pointer_mut("/process/args").and_then(Value::as_array_mut);
    args.ok_or("the specification has no command")?.insert(0, AT.into());
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut).ok_or("the specification has no mounts")?;
    mounts.push(json!({
        "destination": AT, "source": runtime, "type": "bind", "options": ["bind", "ro", "nosuid", "nodev"]
    }));
    Ok(())
}

/// Makes a directory of the container with its parents, as Docker does for a working directory. Links of the container
/// lead nowhere outside of it. What is made is this user's.
fn make_folder(root: &Path, path: &str, owner: u32) -> Result<(), Fault> {
    let making = || format!("make the working directory {path}");
    let at = |dir: &OwnedFd, name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(dir, name, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    };
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing(making)?;
    let mut walked = String::new();
    let mut parent = root.try_clone().doing(making)?;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        walked = format!("{walked}/{part}");
        parent = match at(&root, &walked) {
            Err(Errno::NOENT) => {
                mkdirat(&parent, part, Mode::from_raw_mode(0o755)).doing(making)?;
                let made = at(&root, &walked).doing(making)?;
                let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
                chownat(&made, "", Some(user), Some(group), AtFlags::EMPTY_PATH).doing(making)?;
                made
            }
            found => found.doing(making)?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use protocol::disks::Writable;

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

    #[test]
    fn a_name_is_free_when_its_container_is_gone() {
        let containers = Containers::default();
        containers.lock().insert("c".to_owned(), State::Runs(7));
        assert_eq!(containers.pid("c"), Ok(7));
        assert_eq!(containers.take("c").unwrap_err(), "there is a container c already");
        let place = Place { containers: &containers, id: "c".to_owned(), joined: None };
        assert!(!place.has_ended());
        place.ends();
        assert!(place.has_ended());
        assert_eq!(containers.pid("c").unwrap_err(), "there is no container c");
        assert!(containers.list().containers.is_empty());
        std::thread::scope(|scope| {
            let next = scope.spawn(|| containers.take("c").map(|next| next.runs(8)));
            drop(place);
            assert_eq!(next.join().unwrap(), Ok(()));
        });
        assert_eq!(containers.pid("c").unwrap_err(), "there is no container c"); // that one is gone, too
    }

    #[test]
    fn names_are_taken_once() {
        let containers = Containers::new(None);
        for bad in ["", "a/b", "..", "-a", "a\u{e9}"] {
            assert!(containers.place(bad).unwrap_err().contains("is no container's name"));
        }
        assert_eq!(containers.pid("none").unwrap_err(), "there is no container none");
    }
}
