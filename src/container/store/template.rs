//! Templates: VMs that were saved when they had booted, for the next ones of their kind to go on from.
//!
//! ```text
//! templates/BOOT-KIND.state .memory     one that is ready: what the monitor wrote (docs/snapshot-format.md)
//! templates/BOOT-KIND.asked             a VM of this kind has booted since the host has
//! templates/BOOT-KIND.failed            as many bytes as templates of this kind were not finished or of no use, within a day
//! templates/making.state .memory lock   one that is being made, under the lock
//! ```
//!
//! A template is good as long as the host runs, and a day at most: what its kernel drew by lot when it booted, such as where its
//! code lies, all its VMs have in common. KIND stands for all else that a VM's state depends on. Any process may remove one: who
//! has it mapped keeps it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::part::is_at;
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
/// Room for one, bytes, where the VM has more memory: what a guest has touched that has booted is far less.
const ENOUGH: u64 = 256 << 20;
/// Digits of a kind's name.
const DIGITS: usize = 16;

/// What there is of a kind.
#[derive(Debug)]
pub enum Template {
    /// It is there.
    Ready(Ready),
    /// It is to be made: for the second time one of its kind is wanted.
    Due(Making),
    /// There is none, or another process makes it just now.
    None,
}

/// One that is there, or was.
#[derive(Debug)]
pub struct Ready {
    files: Saved,
    /// The file with its state, which tells it from one that was made after it.
    state: File,
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
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(fault)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(fault)?;
        let boot: String = boot.chars().filter(char::is_ascii_hexdigit).take(DIGITS).collect();
        let kind: String = Digest::of(kind.as_bytes()).hex().chars().take(DIGITS).collect();
        let target = Saved::at(&folder.join(format!("{boot}-{kind}")));
        if let Some(ready) = Ready::open(&target) {
            return Ok(Template::Ready(ready));
        }
        let failed = target.state.with_extension(FAILED);
        let has_failed = is_young(&failed) && fs::metadata(&failed).is_ok_and(|facts| facts.len() >= FAILURES);
        if has_failed || File::create_new(target.state.with_extension(ASKED)).is_ok() {
            return Ok(Template::None);
        }
        let Some(lock) = self.lock_templates()? else { return Ok(Template::None) };
        if let Some(ready) = Ready::open(&target) {
            return Ok(Template::Ready(ready)); // meanwhile
        }
        self.clear_templates(&boot)?;
        if self.room_beside(&ALL)? < size.min(ENOUGH) {
            return Ok(Template::None);
        }
        // It counts as failed until it is finished: who makes it may be ended.
        count(&failed).map_err(|error| StoreError::io("write", &failed, error))?;
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
            let is_over = name.ends_with(FAILED) && !is_young(&path);
            if name != LOCK && (is_half || is_over || !name.starts_with(boot)) {
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
    pub fn finish(mut self) -> Result<Ready, StoreError> {
        let fault = |error| StoreError::io("make the template", &self.target.state, error);
        let state = File::open(&self.saved.state).map_err(fault)?;
        fs::rename(&self.saved.memory, &self.target.memory).map_err(fault)?;
        fs::rename(&self.saved.state, &self.target.state).map_err(fault)?;
        let failed = File::options().write(true).open(self.target.state.with_extension(FAILED));
        let _ = failed.and_then(|file| file.set_len(file.metadata()?.len().saturating_sub(1)));
        self.is_made = true;
        let _ = self.store.remove_old_templates(); // the next one looks again
        Ok(Ready { files: self.target.clone(), state })
    }
}

impl Drop for Making {
    /// What was not finished goes.
    fn drop(&mut self) {
        if !self.is_made {
            let _ = fs::remove_file(&self.saved.state);
            let _ = fs::remove_file(&self.saved.memory);
        }
    }
}

impl Ready {
    /// The one with these files, if it is there and good. It is used now.
    fn open(files: &Saved) -> Option<Self> {
        let state = is_young(&files.memory).then(|| File::open(&files.state)).and_then(Result::ok)?;
        let _ = state.set_modified(SystemTime::now());
        Some(Self { files: files.clone(), state })
    }

    /// Its files.
    pub const fn files(&self) -> &Saved {
        &self.files
    }

    /// It was of no use: removes it, and counts that. Others may have found it so, too, and made another.
    pub fn failed(self) -> Result<(), StoreError> {
        let Saved { state, memory } = &self.files;
        let fault = |error| StoreError::io("remove the template", state, error);
        self.state.lock().map_err(fault)?;
        if !is_at(&self.state, state).map_err(fault)? {
            return Ok(());
        }
        count(&state.with_extension(FAILED)).map_err(fault)?;
        remove(memory)?;
        remove(state)
    }
}

/// Counts one more failure.
fn count(failed: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(failed)?.write_all(b"!")
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
mod tests;
