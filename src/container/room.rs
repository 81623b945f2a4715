//! The folder of a VM for containers, with its sockets: in the user's runtime directory, locked by the process that has
//! the VM. Folders of processes that were killed are removed when the next one is made.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How the folders' names begin. A name of a VM (`--id`) has no dot, so these are none.
const PREFIX: &str = "vm.";
/// The file that is locked.
const LOCK: &str = "lock";

/// A folder. It goes when this is dropped.
#[derive(Debug)]
pub struct Room {
    folder: tempfile::TempDir,
    /// Locked.
    _lock: File,
}

impl Room {
    /// One in `parent`, which is made if it is not there.
    pub fn make(parent: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let all = File::open(parent)?;
        all.lock()?; // until the new one is locked
        sweep(parent)?;
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::create_new(folder.path().join(LOCK))?;
        lock.try_lock()?;
        Ok(Self { folder, _lock: lock })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes what killed processes have left. The lock on `parent` is held.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in parent.read_dir()?.flatten() {
        let path: PathBuf = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let dead = match File::open(path.join(LOCK)) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if dead {
            let _ = fs::remove_dir_all(&path); // another user's, perhaps
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_dead_left_goes_and_what_lives_stays() {
        let parent = tempfile::tempdir().unwrap();
        let runtime = parent.path().join("run/vmm");
        let lives = Room::make(&runtime).unwrap();
        for left in ["vm.dead", "vm.half"] {
            fs::create_dir(runtime.join(left)).unwrap();
        }
        fs::write(runtime.join("vm.dead/lock"), "").unwrap();
        fs::create_dir(runtime.join("named")).unwrap();
        let next = Room::make(&runtime).unwrap();
        let mut names: Vec<_> = runtime.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let mut wanted = vec![lives.path().to_owned(), next.path().to_owned(), runtime.join("named")];
        wanted.sort();
        assert_eq!(names, wanted);
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }
}
