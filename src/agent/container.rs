//! The containers of this VM: their names, their folders, their root file systems, and what the runtime is told.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use protocol::message::{self, Failure, Run, VolumeSource};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use serde_json::{Value, json};

use crate::disks;
use crate::layers::{self, Layers};
use crate::limits;
use crate::network::{Called, Joined, Network};
use crate::spec::{enter, place_files, place_init, settle};
use crate::system::{CGROUPS, OWN};
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
    network: OnceLock<Network>,
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
    /// The VM has this network.
    pub fn are_in(&self, network: Network) {
        let _ = self.network.set(network); // it is said once
    }

    /// Waits until the places of all that have ended are free.
    pub fn settle(&self) {
        let mut known = self.lock();
        while known.values().any(|state| matches!(state, State::Ends)) {
            known = self.freed.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
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

    /// Waits until nothing uses this any more, and unmounts it.
    pub fn let_go(&self, source: &VolumeSource, patience: Duration) -> Result<(), Fault> {
        match source {
            VolumeSource::Disk { serial } => disks::unused(serial, patience).map(|_| ()),
            VolumeSource::Share { tag } => self.volumes.let_go(tag, patience),
        }
    }

    /// Connects to a port of a container that runs.
    pub fn call(&self, id: &str, port: u16, udp: bool) -> Result<Called<'_>, Fault> {
        self.pid(id)?;
        self.network.get().ok_or("this VM has no network (--network none)")?.call(id, port, udp)
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
    pub fn bundle(&mut self, order: &Run, runtime: &Path) -> Result<PathBuf, Failure> {
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
            let network = self.containers.network.get().ok_or("this VM has no network (--network none)")?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let containers = Containers::default();
        for bad in ["", "a/b", "..", "-a", "a\u{e9}"] {
            assert!(containers.place(bad).unwrap_err().contains("is no container's name"));
        }
        assert_eq!(containers.pid("none").unwrap_err(), "there is no container none");
    }
}
