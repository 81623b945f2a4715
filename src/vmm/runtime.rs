//! Where VMs with a name (`--id`) are found: a directory for each in the runtime directory.
//!
//! `ID/vm.json` is what `vmm ps` reads, and the monitor holds a lock on it (flock(2)) for as long as it lives: the kernel
//! lets go of it however the monitor ends. `ID/api.sock` is the API's socket, or a link to it. Whoever takes an id, gives it
//! back or clears up after a monitor that was killed holds a lock on the runtime directory meanwhile, so these can not cross.
//! Main thread.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use machine::lock;
use serde::{Deserialize, Serialize};

use crate::args::instance_id;

/// Names another runtime directory.
const VARIABLE: &str = "VMM_RUNTIME_DIR";
/// The file that is locked, and the API's socket.
const RECORD: &str = "vm.json";
const SOCKET: &str = "api.sock";
/// Longest `vm.json`, bytes.
const RECORD_MAX: u64 = 4096;

/// What `vm.json` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The monitor's process.
    pub pid: u32,
    /// Number of vCPUs; absent until the VM is started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u64>,
    /// Memory of the guest, MiB; absent until the VM is started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
}

impl Record {
    /// A VM of this process that is not started yet.
    pub fn of_this_process() -> Self {
        Self { pid: std::process::id(), ..Self::default() }
    }
}

/// Why there is no place for a VM.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A VM of this name is there.
    #[error("a VM named `{id}` runs already{}; choose another --id, or end it (vmm ctl {id} stop)", process(*.pid))]
    Taken {
        /// Its name.
        id: String,
        /// Its monitor, where it says so.
        pid: Option<u32>,
    },
    /// The runtime directory can not be used.
    #[error("{0}")]
    Unusable(String),
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// The runtime directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime(PathBuf);

impl Runtime {
    /// That of this user: `$VMM_RUNTIME_DIR`, else /run/vmm for root and `$XDG_RUNTIME_DIR/vmm` for others.
    pub fn of_this_user() -> Option<Self> {
        let variable = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let standard = match rustix::process::geteuid().is_root() {
            true => Some(PathBuf::from("/run/vmm")),
            false => variable("XDG_RUNTIME_DIR").map(|path| path.join("vmm")),
        };
        variable(VARIABLE).or(standard).map(Self)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the API's socket of a VM belongs.
    pub fn socket(&self, id: &str) -> PathBuf {
        self.0.join(id).join(SOCKET)
    }

    /// Whether a VM of this name lives.
    pub fn has(&self, id: &str) -> io::Result<bool> {
        let Some(_lock) = self.lock_existing()? else { return Ok(false) };
        Ok(look(&self.0.join(id)).is_some())
    }

    /// Takes `id` for a VM of this process. What a monitor of this name that was killed has left is removed.
    pub fn take(&self, id: &str) -> Result<Place, PlaceError> {
        let unusable = |doing: &str, path: &Path, error: io::Error| {
            PlaceError::Unusable(format!("{doing} {}: {error}", path.display()))
        };
        make(&self.0).map_err(|error| unusable("make the directory", &self.0, error))?;
        let _lock = self.lock().map_err(|error| unusable("lock", &self.0, error))?;
        let place = self.0.join(id);
        make(&place).map_err(|error| unusable("make the directory", &place, error))?;
        let path = place.join(RECORD);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&path).map_err(|error| unusable("open", &path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = read(&mut file).map(|record| record.pid);
                return Err(PlaceError::Taken { id: id.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(unusable("lock", &path, error)),
        }
        remove(&place.join(SOCKET)).map_err(|error| unusable("remove", &place.join(SOCKET), error))?;
        let taken = Place { runtime: self.clone(), path: place, record: file };
        taken.note(&Record::of_this_process()).map_err(|error| unusable("write", &path, error))?;
        Ok(taken)
    }

    /// The VMs that live, by name. What killed monitors have left is removed.
    pub fn list(&self) -> io::Result<Vec<(String, Record)>> {
        let Some(_lock) = self.lock_existing()? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in self.0.read_dir()? {
            let entry = entry?;
            // What has no VM's name is somebody else's.
            let Some(id) = entry.file_name().to_str().and_then(|name| instance_id(name).ok()) else { continue };
            if let Some(record) = look(&entry.path()) {
                found.push((id, record));
            }
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(found)
    }

    /// As [`Self::lock`]; nothing where there is no directory yet.
    fn lock_existing(&self) -> io::Result<Option<File>> {
        match self.lock() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            lock => lock.map(Some),
        }
    }

    /// Holds the whole directory for as long as the file lives.
    fn lock(&self) -> io::Result<File> {
        let directory = File::open(&self.0)?;
        match lock::lock(&directory)? {
            true => Ok(directory),
            false => Err(io::Error::other(format!("another process has it locked for {:?}", lock::PATIENCE))),
        }
    }
}

/// An id that is this process's, until it is dropped.
#[derive(Debug)]
pub struct Place {
    runtime: Runtime,
    path: PathBuf,
    /// Locked.
    record: File,
}

impl Place {
    /// Where the API's socket belongs.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// The API's socket is elsewhere, at `path`: a link leads to it.
    pub fn link(&self, path: &Path) -> io::Result<()> {
        match symlink(std::path::absolute(path)?, self.socket()) {
            // It is here, after all.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// Writes down what the VM is.
    pub fn note(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        self.record.write_all_at(&text, 0)?;
        self.record.set_len(text.len() as u64)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Without the lock another might just be about to take the id; it, or `vmm ps`, clears up then.
        if let Ok(_lock) = self.runtime.lock() {
            clear(&self.path);
        }
    }
}

/// Makes a directory that only its owner enters. One that is there must be this user's, and not writable for others.
fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(false).mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = path.symlink_metadata()?;
    let is_mine = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    let why = "is not a directory of this user's that others can not write to";
    if is_mine { Ok(()) } else { Err(io::Error::new(io::ErrorKind::PermissionDenied, why)) }
}

/// What a directory in the runtime directory says, if its monitor lives; else it is removed. The runtime directory is locked.
fn look(place: &Path) -> Option<Record> {
    let mut options = OpenOptions::new();
    let mut file = match options.read(true).custom_flags(libc::O_NOFOLLOW).open(place.join(RECORD)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            clear(place);
            return None;
        }
        file => file.ok()?,
    };
    match file.try_lock() {
        Ok(()) => {
            clear(place);
            None
        }
        Err(_) => Some(read(&mut file).unwrap_or_default()),
    }
}

fn read(file: &mut File) -> Option<Record> {
    let mut text = Vec::new();
    file.take(RECORD_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Removes a VM's directory, and of what is in it what belongs there.
fn clear(place: &Path) {
    for name in [SOCKET, RECORD] {
        let _ = remove(&place.join(name));
    }
    let _ = std::fs::remove_dir(place);
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    fn runtime() -> (TempDir, Runtime) {
        let room = TempDir::new().unwrap();
        let runtime = Runtime(room.path().join("vmm"));
        (room, runtime)
    }

    #[test]
    fn an_id_has_one_holder_and_leaves_nothing() {
        let (_room, runtime) = runtime();
        assert_eq!(runtime.list().unwrap(), []);
        let place = runtime.take("a").unwrap();
        assert_eq!(runtime.0.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(place.path.metadata().unwrap().mode() & 0o777, 0o700);
        let refused = runtime.take("a").unwrap_err();
        let pid = std::process::id();
        assert!(matches!(refused, PlaceError::Taken { pid: Some(seen), .. } if seen == pid), "{refused}");
        let other = runtime.take("b").unwrap();
        let record = Record { pid, vcpu_count: Some(2), mem_size_mib: Some(128) };
        place.note(&record).unwrap();
        let plain = Record { pid, ..Record::default() };
        assert_eq!(runtime.list().unwrap(), [("a".to_owned(), record), ("b".to_owned(), plain)]);
        assert_eq!(runtime.socket("a"), place.socket());
        assert!(runtime.has("a").unwrap() && !runtime.has("c").unwrap());
        drop(place);
        assert_eq!(runtime.list().unwrap().len(), 1);
        drop(other);
        assert_eq!(runtime.0.read_dir().unwrap().count(), 0);
    }

    /// As kill -9 leaves it: the files are there, the lock is not.
    #[test]
    fn what_a_killed_monitor_left_is_taken_over_or_removed() {
        let (_room, runtime) = runtime();
        for id in ["a", "b"] {
            let place = runtime.take(id).unwrap();
            drop(UnixListener::bind(place.socket()).unwrap());
            place.record.unlock().unwrap();
            std::mem::forget(place);
        }
        let place = runtime.take("a").unwrap();
        assert!(!place.socket().exists());
        place.link(Path::new("elsewhere")).unwrap();
        assert_eq!(runtime.list().unwrap().len(), 1);
        assert!(!runtime.0.join("b").exists());
        drop(place);
        assert_eq!(runtime.0.read_dir().unwrap().count(), 0);
    }

    /// Takers, leavers and those who clear up, all at once: never two holders, and no start is refused for nothing.
    #[test]
    fn takers_and_sweepers_do_not_cross() {
        let (_room, runtime) = runtime();
        drop(runtime.take("a").unwrap());
        let holders = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        match runtime.take("a") {
                            Ok(place) => {
                                assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                                assert!(runtime.list().unwrap().iter().any(|(id, _)| id == "a"));
                                holders.fetch_sub(1, Ordering::SeqCst);
                                drop(place);
                            }
                            Err(PlaceError::Taken { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            scope.spawn(|| {
                for n in 0..50 {
                    runtime.list().unwrap();
                    drop(runtime.take(&format!("own{n}")).unwrap());
                }
            });
        });
        assert_eq!(runtime.0.read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_others_write_to_is_not_used() {
        let room = TempDir::new().unwrap();
        let open = room.path().join("open");
        DirBuilder::new().mode(0o700).create(&open).unwrap();
        std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(Runtime(open).take("a"), Err(PlaceError::Unusable(_))));
        let link = room.path().join("link");
        symlink(room.path(), &link).unwrap();
        assert!(matches!(Runtime(link).take("a"), Err(PlaceError::Unusable(_))));
        assert!(matches!(Runtime("/proc/nothing/vmm".into()).take("a"), Err(PlaceError::Unusable(_))));
    }

    #[test]
    fn a_damaged_record_is_no_record() {
        let (_room, runtime) = runtime();
        let place = runtime.take("a").unwrap();
        place.record.set_len(0).unwrap();
        assert_eq!(runtime.list().unwrap(), [("a".to_owned(), Record::default())]);
        place.note(&Record { pid: 7, ..Record::default() }).unwrap();
        place.note(&Record { pid: 123_456, ..Record::default() }).unwrap();
        assert_eq!(runtime.list().unwrap()[0].1.pid, 123_456);
    }
}
