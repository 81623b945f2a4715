//! A file in the making. Its name in `work/` says what it will be, its lock that somebody makes it: others wait for it
//! instead of doing the same. Without a lock it is a leftover, from which the next one goes on, or which `prune` removes.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::StoreError;

/// How long somebody else may hold a lock without making progress.
pub const PATIENCE: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_millis(5);

/// What a claim comes to.
#[derive(Debug)]
pub enum Claim {
    /// The file is there.
    Present,
    /// This process makes it.
    Part(Part),
}

/// A file in the making, which nobody else writes to. Dropped, it stays for the next one, who goes on with it.
#[derive(Debug)]
pub struct Part {
    /// Locked.
    file: File,
    path: PathBuf,
    target: PathBuf,
}

/// What a try of [`wait_for`] comes to.
pub(super) enum Step<T> {
    Done(T),
    /// Not yet; the number changes with the other's progress.
    Again(u64),
}

/// Tries until it is done; nothing if there was no progress for too long.
pub(super) fn wait_for<T>(mut step: impl FnMut() -> Result<Step<T>, StoreError>) -> Result<Option<T>, StoreError> {
    let mut progress = None;
    let mut until = Instant::now() + PATIENCE;
    loop {
        match step()? {
            Step::Done(done) => return Ok(Some(done)),
            Step::Again(now) if progress != Some(now) => {
                progress = Some(now);
                until = Instant::now() + PATIENCE;
            }
            Step::Again(_) if Instant::now() >= until => return Ok(None),
            Step::Again(_) => {}
        }
        sleep(RETRY);
    }
}

impl Part {
    /// Waits until `target` is there or nobody else makes it at `path`.
    pub(super) fn claim(path: &Path, target: &Path, waiting: &dyn Fn()) -> Result<Claim, StoreError> {
        let mut told = false;
        let step = || {
            if target.exists() {
                return Ok(Step::Done(Claim::Present));
            }
            let fault = |error| StoreError::io("open", path, error);
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
            let file = file.map_err(fault)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        waiting();
                    }
                    return Ok(Step::Again(file.metadata().map_err(fault)?.len()));
                }
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path, error)),
            }
            // Whoever had it may have given it its name, or swept it away, while this one opened it.
            if !is_at(&file, path).map_err(fault)? || target.exists() {
                let _ = (is_at(&file, path).map_err(fault)?).then(|| std::fs::remove_file(path));
                return Ok(Step::Again(u64::MAX));
            }
            Ok(Step::Done(Claim::Part(Self { file, path: path.to_owned(), target: target.to_owned() })))
        };
        wait_for(step)?.ok_or_else(|| StoreError::Stuck(path.to_owned()))
    }

    /// What is written to. It stands at the beginning.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is made.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are there.
    pub fn size(&self) -> Result<u64, StoreError> {
        self.file.metadata().map(|found| found.len()).map_err(|error| StoreError::io("look at", &self.path, error))
    }

    /// Forgets what is there.
    pub fn reset(&self) -> Result<(), StoreError> {
        let reset = self.file.set_len(0).and_then(|()| (&self.file).seek(SeekFrom::Start(0)));
        reset.map(drop).map_err(|error| StoreError::io("empty", &self.path, error))
    }

    /// Gives it its name. It must be whole and verified.
    pub fn finish(self) -> Result<(), StoreError> {
        let done = self.file.set_permissions(Permissions::from_mode(0o444)).and_then(|()| {
            self.file.sync_all()?;
            std::fs::rename(&self.path, &self.target)?;
            self.target.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        });
        done.map_err(|error| StoreError::io("finish", &self.target, error))
    }

    /// Removes it, as it is of no use.
    pub fn discard(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether `path` still leads to this file.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let mine = file.metadata()?;
    match path.symlink_metadata() {
        Ok(found) => Ok((found.dev(), found.ino()) == (mine.dev(), mine.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
