//! The containers of this user: a folder for each in the store's `containers/`, by its name.
//!
//! ```text
//! NAME/container.json    what it is: a Record, replaced whole
//! NAME/lock              held (flock(2)) by its owner for as long as that lives: the process that speaks for it with the agent
//! NAME/exit              how it ended: empty until then
//! NAME/stopping          somebody wants it to end: it is not started again
//! NAME/health            what the last health check found
//! NAME/log, NAME/log.1   what it wrote (output.rs)
//! NAME/writable.ext4     its writable layer while it lives, where that is on a disk
//! ```
//!
//! The kernel lets go of the lock however the owner ends, so what is said of a container is true without a daemon. Names are
//! taken and given back under a lock on the whole folder.

mod owned;
mod record;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::ext4::Ext4Error;

pub use record::{Ended, Health, Record, State, now_ms};

/// The files.
const RECORD: &str = "container.json";
const LOCK: &str = "lock";
const EXIT: &str = "exit";
const STOPPING: &str = "stopping";
const HEALTH: &str = "health";
const WRITABLE: &str = "writable.ext4";
/// Longest name of a container.
const NAME_MAX: usize = 64;
/// Longest of them that is read, bytes.
const MOST: u64 = 1 << 20;
/// How often somebody looks who waits with a limit.
const LOOK: Duration = Duration::from_millis(10);

/// Why a container cannot be had.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// The name is no name.
    #[error(
        "{0:?} is no container's name: letters, digits, `_`, `.` and `-` are, 64 at most, and the first is a letter or digit"
    )]
    Name(String),
    /// One of this name is there.
    #[error("there is a container {0} already, and it {1}; choose another --name, or remove it: vmm rm {2}{0}")]
    Taken(String, &'static str, &'static str),
    /// None of this name is there.
    #[error("there is no container {0}; `vmm ps -a` lists those that there are")]
    Unknown(String),
    /// It still runs.
    #[error("container {0} runs: `vmm stop {0}` ends it, `vmm rm -f {0}` ends and removes it")]
    Runs(String),
    /// It has ended.
    #[error("container {0} does not run")]
    NotRunning(String),
    /// Its writable layer's disk image cannot be made.
    #[error("make a disk image for what container {0} writes: {1}")]
    Writable(String, #[source] Ext4Error),
    /// The host refuses something.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

fn fault(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> RegisterError {
    let what = format!("{doing} {}", path.display());
    move |error| RegisterError::Io(what, error)
}

/// All of a user's containers.
#[derive(Debug, Clone)]
pub struct Containers(PathBuf);

/// A container as others see it.
#[derive(Debug)]
pub struct Container {
    folder: PathBuf,
    /// What it is.
    pub record: Record,
}

/// A container of this process. Dropped before [`Owned::ended`], nothing of it stays.
#[derive(Debug)]
pub struct Owned {
    all: Containers,
    folder: PathBuf,
    record: Record,
    /// Locked.
    _lock: File,
    exit: File,
    keep: bool,
}

impl Containers {
    /// Those of the store at `store`.
    pub fn of(store: &Path) -> Self {
        Self(store.join("containers"))
    }

    /// Where what is known of a container of this name is, if there is one.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Takes the record's name for a container of this process. What killed owners left that was to be removed, is.
    pub fn take(&self, record: Record) -> Result<Owned, RegisterError> {
        let name = &record.name;
        check_name(name)?;
        let mut make = DirBuilder::new();
        make.recursive(true).mode(0o700);
        make.create(&self.0).map_err(fault("make the directory", &self.0))?;
        let _ = self.list();
        let _all = self.lock().map_err(fault("lock", &self.0))?;
        if let Ok(there) = self.find(name) {
            match there.owner_lives() {
                true => return Err(RegisterError::Taken(name.clone(), "runs", "-f ")),
                false if !there.record.remove => {
                    return Err(RegisterError::Taken(name.clone(), "has ended", ""));
                }
                false => {}
            }
        }
        let folder = self.folder(name);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault("remove", &folder)(error)),
            _ => DirBuilder::new().mode(0o700).create(&folder).map_err(fault("make the directory", &folder))?,
        }
        let made = |name: &str| {
            let path = folder.join(name);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            options.open(&path).map_err(fault("make", &path))
        };
        let (lock, exit) = (made(LOCK)?, made(EXIT)?);
        lock.try_lock().map_err(|error| fault("lock", &folder.join(LOCK))(error.into()))?;
        let owned = Owned { all: self.clone(), folder, record, _lock: lock, exit, keep: false };
        owned.write()?;
        Ok(owned)
    }

    /// The container of this name.
    pub fn find(&self, name: &str) -> Result<Container, RegisterError> {
        let unknown = || RegisterError::Unknown(name.to_owned());
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(unknown());
        }
        let folder = self.folder(name);
        match read(&folder.join(RECORD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown()),
            bytes => {
                let bytes = bytes.map_err(fault("read", &folder.join(RECORD)))?;
                let record = serde_json::from_slice(&bytes)
                    .map_err(|error| fault("read", &folder.join(RECORD))(error.into()))?;
                Ok(Container { folder, record })
            }
        }
    }

    /// All of them, the oldest first. What killed owners left that was to be removed, is.
    pub fn list(&self) -> Result<Vec<Container>, RegisterError> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(fault("read", &self.0))?,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut found: Vec<_> = names.filter_map(|name| self.find(&name).ok()).collect();
        found.retain(|container| {
            if container.owner_lives() {
                return true;
            }
            let _ = fs::remove_file(container.folder.join(WRITABLE)); // of an owner that was killed
            !(container.record.remove && self.remove(container).is_ok())
        });
        found.sort_by_key(|one| one.record.created_ms);
        Ok(found)
    }

    /// Removes what is known of a container that has ended.
    pub fn remove(&self, container: &Container) -> Result<(), RegisterError> {
        let _all = self.lock().map_err(fault("lock", &self.0))?;
        if container.owner_lives() {
            return Err(RegisterError::Runs(container.record.name.clone()));
        }
        fs::remove_dir_all(&container.folder).map_err(fault("remove", &container.folder))
    }

    /// Holds the folder for as long as the file lives.
    fn lock(&self) -> io::Result<File> {
        let folder = File::open(&self.0)?;
        folder.lock()?;
        Ok(folder)
    }
}

impl Container {
    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How it is.
    pub fn state(&self) -> State {
        if self.owner_lives() {
            return match self.record.started_ms {
                Some(since_ms) => State::Running { since_ms },
                None => State::Created,
            };
        }
        State::Ended(self.ended())
    }

    /// The socket that leads to its VM's agent, if it runs.
    pub fn socket(&self) -> Result<&Path, RegisterError> {
        let running = matches!(self.state(), State::Running { .. });
        let socket = self.record.socket.as_deref().filter(|_| running);
        socket.ok_or_else(|| RegisterError::NotRunning(self.record.name.clone()))
    }

    /// What the last health check found.
    pub fn health(&self) -> Option<Health> {
        serde_json::from_slice(&read(&self.folder.join(HEALTH)).ok()?).ok()
    }

    /// Says to its owner that it shall not be started again.
    pub fn ask_to_stop(&self) -> Result<(), RegisterError> {
        let path = self.folder.join(STOPPING);
        fs::write(&path, "").map_err(fault("write", &path))
    }

    /// Waits for its end, or so long; nothing when it still runs then. The folder may be gone by then.
    pub fn wait(&self, most: Option<Duration>) -> Result<Option<Ended>, RegisterError> {
        let path = self.folder.join(EXIT);
        let exit = File::open(&path).map_err(fault("open", &path))?;
        let path = self.folder.join(LOCK);
        let lock = File::open(&path).map_err(fault("open", &path))?;
        match most {
            None => lock.lock_shared().map_err(fault("lock", &path))?,
            Some(most) => {
                let until = Instant::now().checked_add(most);
                while lock.try_lock_shared().is_err() {
                    if until.is_some_and(|until| Instant::now() >= until) {
                        return Ok(None);
                    }
                    sleep(LOOK);
                }
            }
        }
        Ok(Some(how(exit)))
    }

    fn ended(&self) -> Ended {
        File::open(self.folder.join(EXIT)).map(how).unwrap_or_default()
    }

    fn owner_lives(&self) -> bool {
        let lock = File::open(self.folder.join(LOCK));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// Whether this is a name as containers and volumes have: letters, digits, `_`, `.` and `-`, and not one of the signs first.
pub(crate) fn is_name(text: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    text.starts_with(|first: char| first.is_ascii_alphanumeric()) && text.chars().all(plain)
}

/// Whether a container may have this name.
pub fn check_name(name: &str) -> Result<(), RegisterError> {
    match is_name(name) && name.len() <= NAME_MAX {
        true => Ok(()),
        false => Err(RegisterError::Name(name.to_owned())),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How it ended; one whose owner could not say so any more was lost.
fn how(mut exit: File) -> Ended {
    let mut bytes = Vec::new();
    let read = exit.rewind().and_then(|()| exit.take(MOST).read_to_end(&mut bytes));
    read.ok().and_then(|_| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        Record { name: name.to_owned(), created_ms: now_ms(), ..Record::default() }
    }

    #[test]
    fn a_container_from_its_name_to_its_removal() {
        let room = tempfile::tempdir().unwrap();
        let all = Containers::of(room.path());
        assert!(all.list().unwrap().is_empty());
        let mut owned = all.take(record("db")).unwrap();
        let seen = all.find("db").unwrap();
        assert!(matches!(seen.state(), State::Created));
        assert!(seen.socket().unwrap_err().to_string().contains("does not run"));
        owned.note(|record| (record.started_ms, record.socket) = (Some(5), Some("/s".into()))).unwrap();
        let seen = all.find("db").unwrap();
        assert!(matches!(seen.state(), State::Running { since_ms: 5 }));
        assert_eq!(seen.socket().unwrap(), Path::new("/s"));
        assert!(all.take(record("db")).unwrap_err().to_string().contains("already, and it runs"));
        assert!(matches!(all.remove(&seen), Err(RegisterError::Runs(_))));
        assert_eq!(seen.wait(Some(Duration::ZERO)).unwrap(), None);
        assert!(!owned.is_stopping());
        seen.ask_to_stop().unwrap();
        assert!(owned.is_stopping());
        let end = Ended { code: 3, ..Ended::default() };
        owned.ended(&end).unwrap();
        assert_eq!(seen.wait(None).unwrap(), Some(end.clone()));
        assert_eq!(all.find("db").unwrap().state(), State::Ended(end));
        assert!(all.take(record("db")).unwrap_err().to_string().contains("vmm rm db"));
        all.remove(&seen).unwrap();
        assert!(matches!(all.find("db"), Err(RegisterError::Unknown(_))));
    }

    #[test]
    fn what_is_to_be_removed_is_and_its_end_is_told() {
        let room = tempfile::tempdir().unwrap();
        let all = Containers::of(room.path());
        let owned = all.take(Record { remove: true, ..record("once") }).unwrap();
        let seen = all.find("once").unwrap();
        let exit = File::open(seen.folder().join(EXIT)).unwrap(); // as one who waits has it open
        let end = Ended { code: 9, ..Ended::default() };
        owned.ended(&end).unwrap();
        assert!(!seen.folder().exists());
        assert_eq!(how(exit), end);
        assert!(all.list().unwrap().is_empty());
    }

    #[test]
    fn what_killed_owners_left_goes_with_the_next_command() {
        let room = tempfile::tempdir().unwrap();
        let all = Containers::of(room.path());
        let (kept, left) = (room.path().join("kept"), room.path().join("containers/killed"));
        let leave = || {
            let owned = all.take(Record { remove: true, ..record("killed") }).unwrap();
            fs::rename(owned.folder(), &kept).unwrap();
            drop(owned);
            fs::rename(&kept, &left).unwrap();
        };
        leave();
        assert!(all.list().unwrap().is_empty());
        assert!(!left.exists());
        leave();
        let _other = all.take(record("other")).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn names_are_names() {
        let room = tempfile::tempdir().unwrap();
        let all = Containers::of(room.path());
        for bad in ["", ".", "..", "a/b", "-a", "\u{e9}", &"x".repeat(65)] {
            assert!(matches!(all.take(record(bad)), Err(RegisterError::Name(_))), "{bad}");
            assert!(matches!(all.find(bad), Err(RegisterError::Unknown(_))), "{bad}");
        }
        drop(all.take(record("gone")).unwrap());
        assert!(matches!(all.find("gone"), Err(RegisterError::Unknown(_))));
    }
}
