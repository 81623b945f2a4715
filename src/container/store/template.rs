//! Templates: VMs that were saved when they had booted, for the next ones of their kind to go on from.
//!
//! ```text
//! templates/BOOT-KIND.state .memory     one that is ready: what the monitor wrote (docs/snapshot-format.md)
//! templates/BOOT-KIND.asked             a VM of this kind has booted since the host has
//! templates/BOOT-KIND.failed            as many bytes as templates of this kind were of no use
//! templates/making.state .memory lock   one that is being made, under the lock
//! ```
//!
//! A template is good as long as the host runs, and a day at most: what its kernel drew by lot when it booted, such as where its
//! code lies, all its VMs have in common. KIND stands for all else that a VM's state depends on. Any process may remove one: who
//! has it mapped keeps it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::sweep::remove;
use super::{ALL, Store, StoreError};
use crate::digest::Digest;
use crate::vm::Saved;

/// Its folder.
pub(super) const FOLDER: &str = "templates";
/// How the files end.
const STATE: &str = "state";
const MEMORY: &str = "memory";
const ASKED: &str = "asked";
const FAILED: &str = "failed";
/// The lock, and the name of one that is being made.
const LOCK: &str = "lock";
const MAKING: &str = "making";
/// Most of them that are kept: those that were used last. And how long.
const MOST: usize = 4;
const AGE: Duration = Duration::from_secs(24 * 3600);
/// After so many failures VMs of a kind boot.
const FAILURES: u64 = 2;
/// Digits of a kind's name.
const DIGITS: usize = 16;

/// What there is of a kind.
#[derive(Debug)]
pub enum Template {
    /// It is there.
    Ready(Saved),
    /// It is to be made: for the second time one of its kind is wanted.
    Due(Making),
    /// There is none, or another process makes it just now.
    None,
}

/// One that is being made.
#[derive(Debug)]
pub struct Making {
    store: Store,
    saved: Saved,
    target: Saved,
    is_made: bool,
    /// Locked.
    _lock: File,
}

impl Store {
    /// The template of VMs that `kind` describes, whose memory has `size` bytes. Whoever asks for the first time since the host
    /// has booted gets none, as most are wanted once.
    pub fn template(&self, kind: &str, size: u64) -> Result<Template, StoreError> {
        let folder = self.root.join(FOLDER);
        let fault = |error| StoreError::io("look for a template in", &folder, error);
        fs::create_dir_all(&folder).map_err(fault)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(fault)?;
        let boot: String = boot.chars().filter(char::is_ascii_hexdigit).take(DIGITS).collect();
        let kind: String = Digest::of(kind.as_bytes()).hex().chars().take(DIGITS).collect();
        let target = Saved::at(&folder.join(format!("{boot}-{kind}")));
        if is_young(&target.memory)
            && let Ok(state) = File::open(&target.state)
        {
            let _ = state.set_modified(SystemTime::now()); // when it was used last
            return Ok(Template::Ready(target));
        }
        let of_kind = |end: &str| target.state.with_extension(end);
        let has_failed = fs::metadata(of_kind(FAILED)).is_ok_and(|facts| facts.len() >= FAILURES);
        if has_failed || File::create_new(of_kind(ASKED)).is_ok() {
            return Ok(Template::None);
        }
        let Some(lock) = self.lock_templates()? else { return Ok(Template::None) };
        if is_young(&target.memory) && target.state.exists() {
            return Ok(Template::Ready(target)); // meanwhile
        }
        self.clear_templates(&boot)?;
        if self.room_beside(&ALL)? < size {
            return Ok(Template::None);
        }
        let saved = Saved::at(&folder.join(MAKING));
        Ok(Template::Due(Making { store: self.clone(), saved, target, is_made: false, _lock: lock }))
    }

    /// Who has it makes templates and removes them; nothing where that is another process.
    fn lock_templates(&self) -> Result<Option<File>, StoreError> {
        let path = self.root.join(FOLDER).join(LOCK);
        let fault = |error| StoreError::io("lock", &path, error);
        let lock = File::create(&path).map_err(fault)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(fault(error)),
        }
    }

    /// Removes what is of no use: what is of an earlier boot of the host, what has grown old, and what those have left who were
    /// killed. The lock is held.
    fn clear_templates(&self, boot: &str) -> Result<(), StoreError> {
        for (path, _) in self.files(FOLDER)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let pair = Saved::at(&path);
            let is_whole = is_young(&pair.memory) && pair.state.exists();
            let is_half = [&pair.state, &pair.memory].contains(&&path) && !is_whole;
            if name != LOCK && (is_half || !name.starts_with(boot)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes those that were used longest ago, but for as many as are kept.
    fn remove_old_templates(&self) -> Result<(), StoreError> {
        let states = self.files(FOLDER)?.into_iter().map(|(path, _)| path);
        let states = states.filter(|path| path.extension().is_some_and(|end| end == STATE));
        let mut states: Vec<_> = states.map(|path| (used_last(&path), path)).collect();
        states.sort();
        let old = states.len().saturating_sub(MOST);
        states.iter().take(old).try_for_each(|(_, state)| discard(state))
    }

    /// Removes all of them: how many, and their bytes on disk. Nothing while one is being made.
    pub fn remove_templates(&self) -> Result<(u64, u64), StoreError> {
        let (mut count, mut bytes) = (0, 0);
        if !self.root.join(FOLDER).exists() {
            return Ok((0, 0));
        }
        let Some(_lock) = self.lock_templates()? else { return Ok((0, 0)) };
        for (path, size) in self.files(FOLDER)? {
            if path.file_name().is_some_and(|name| name != LOCK) {
                remove(&path)?;
                bytes += size;
                count += u64::from(path.extension().is_some_and(|end| end == STATE));
            }
        }
        Ok((count, bytes))
    }
}

impl Making {
    /// The files that are to be written.
    pub const fn files(&self) -> &Saved {
        &self.saved
    }

    /// They are written: others may use it.
    pub fn finish(mut self) -> Result<Saved, StoreError> {
        let moves = [(&self.saved.memory, &self.target.memory), (&self.saved.state, &self.target.state)];
        for (from, to) in moves {
            fs::rename(from, to).map_err(|error| StoreError::io("make the template", to, error))?;
        }
        self.is_made = true;
        let _ = self.store.remove_old_templates(); // the next one looks again
        Ok(self.target.clone())
    }
}

impl Drop for Making {
    /// What was not finished goes, and is counted.
    fn drop(&mut self) {
        if !self.is_made {
            let _ = failed(&self.target);
            let _ = fs::remove_file(&self.saved.state);
            let _ = fs::remove_file(&self.saved.memory);
        }
    }
}

/// Removes a template that was of no use, and counts that.
pub fn failed(template: &Saved) -> Result<(), StoreError> {
    let path = template.state.with_extension(FAILED);
    let counted = OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| file.write_all(b"!"));
    counted.map_err(|error| StoreError::io("write", &path, error))?;
    remove(&template.state)?;
    remove(&template.memory)
}

/// Removes a template, as if nobody had asked for one of its kind.
fn discard(state: &Path) -> Result<(), StoreError> {
    [STATE, MEMORY, ASKED].iter().try_for_each(|end| remove(&state.with_extension(end)))
}

/// Whether the file is there, and was written not too long ago.
fn is_young(memory: &Path) -> bool {
    let written = fs::metadata(memory).and_then(|facts| facts.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age < AGE))
}

fn used_last(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|facts| facts.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), None).unwrap();
        (folder, store)
    }

    fn due(store: &Store, kind: &str) -> Making {
        match store.template(kind, 4096).unwrap() {
            Template::Due(making) => making,
            other => panic!("{kind}: {other:?}"),
        }
    }

    fn make(store: &Store, kind: &str) -> Saved {
        assert!(matches!(store.template(kind, 4096).unwrap(), Template::None), "the first one boots");
        let making = due(store, kind);
        fs::write(&making.files().state, kind).unwrap();
        fs::write(&making.files().memory, [1; 5000]).unwrap();
        making.finish().unwrap()
    }

    fn is_ready(store: &Store, kind: &str) -> bool {
        matches!(store.template(kind, 4096).unwrap(), Template::Ready(_))
    }

    #[test]
    fn the_second_makes_it_and_the_third_uses_it() {
        let (_folder, store) = store();
        let made = make(&store, "a");
        let Template::Ready(found) = store.template("a", 4096).unwrap() else { panic!("it was made") };
        assert_eq!((&found, fs::read_to_string(&found.state).unwrap().as_str()), (&made, "a"));
        assert!(!is_ready(&store, "b"), "that is another kind");
    }

    #[test]
    fn what_fails_twice_is_not_made_again() {
        let (_folder, store) = store();
        let made = make(&store, "a");
        failed(&made).unwrap();
        assert!(!made.memory.exists() && !made.state.exists());
        let making = due(&store, "a");
        fs::write(&making.files().memory, "half").unwrap();
        let half = making.files().memory.clone();
        drop(making);
        assert!(!half.exists());
        assert!(matches!(store.template("a", 4096).unwrap(), Template::None), "it failed twice");
        store.remove_templates().unwrap();
        make(&store, "a");
    }

    #[test]
    fn one_process_makes_it_where_there_is_room() {
        let (_folder, store) = store();
        assert!(matches!(store.template("a", 4096).unwrap(), Template::None));
        assert!(matches!(store.template("a", u64::MAX).unwrap(), Template::None), "so much has nobody");
        let making = due(&store, "a");
        assert!(matches!(store.template("a", 4096).unwrap(), Template::None));
        assert_eq!(store.remove_templates().unwrap(), (0, 0));
        let half = making.files().memory.clone();
        fs::write(&half, "half").unwrap();
        std::mem::forget(making.finish()); // without its state
        fs::write(&half, "of one that was killed").unwrap();
        drop(due(&store, "a"));
        assert_eq!(store.files(FOLDER).unwrap().len(), 3, "the lock, and that one was asked for, and failed");
    }

    #[test]
    fn what_is_old_is_not_used() {
        let (_folder, store) = store();
        let made = make(&store, "a");
        let yesterday = SystemTime::now() - AGE;
        File::options().write(true).open(&made.memory).unwrap().set_modified(yesterday).unwrap();
        drop(due(&store, "a"));
        assert!(!made.memory.exists() && !made.state.exists());
    }

    #[test]
    fn templates_make_room_for_images() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Some(20_000)).unwrap();
        let made = make(&store, "a");
        assert!(store.check_room(4000).is_ok() && made.state.exists());
        assert!(store.check_room(18_000).is_ok() && !made.state.exists());
        assert!(store.check_room(21_000).is_err());
    }

    #[test]
    fn those_that_were_used_last_are_kept_and_none_of_an_earlier_boot() {
        let (_folder, store) = store();
        let old = store.root.join(FOLDER).join("0123-4567.state");
        fs::create_dir(old.parent().unwrap()).unwrap();
        fs::write(&old, "").unwrap();
        for kind in ["a", "b", "c", "d"] {
            let made = make(&store, kind);
            let since = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(kind.as_bytes()[0]));
            File::open(made.state).unwrap().set_modified(since).unwrap();
        }
        assert!(!old.exists() && is_ready(&store, "a")); // by which it was used again
        make(&store, "e");
        let ready = ["a", "c", "d", "e"].map(|kind| is_ready(&store, kind));
        assert_eq!((ready, is_ready(&store, "b")), ([true; 4], false));
        assert!(store.used().unwrap() > 0);
        let (count, bytes) = store.remove_templates().unwrap();
        assert_eq!((count, bytes >= 4 * 5000), (4, true));
        assert_eq!(store.files(FOLDER).unwrap().len(), 1, "the lock");
    }
}
