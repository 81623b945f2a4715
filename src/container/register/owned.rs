//! A container of this process: what its owner notes about it, and what goes with it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::record::{self, Ended, Record};
use super::{EXIT, HEALTH, Owned, RECORD, RegisterError, STOPPING, WRITABLE, fault};
use crate::ext4;

impl Owned {
    /// What it is.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Notes something about it.
    pub fn note(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), RegisterError> {
        change(&mut self.record);
        self.write()
    }

    /// Whether somebody wants it to end.
    pub fn is_stopping(&self) -> bool {
        self.folder.join(STOPPING).exists()
    }

    /// Where the health checks are noted.
    pub fn health(&self) -> PathBuf {
        self.folder.join(HEALTH)
    }

    /// Makes a disk image for its writable layer, of so many MiB. It goes with the container's end, so it needs no journal.
    pub fn make_writable(&self, mib: u64) -> Result<PathBuf, RegisterError> {
        let path = self.folder.join(WRITABLE);
        ext4::make(&path, &format!("{mib}M"), &["-b", "4096", "-O", "^has_journal"])
            .map_err(|error| RegisterError::Writable(self.record.name.clone(), error))?;
        Ok(path)
    }

    /// It has ended. What is known of it stays, unless it is to be removed.
    pub fn ended(mut self, how: &Ended) -> Result<(), RegisterError> {
        let _ = fs::remove_file(self.folder.join(WRITABLE)); // which most have not
        let path = self.folder.join(EXIT);
        let bytes = serde_json::to_vec(how).map_err(|error| fault("write", &path)(error.into()))?;
        self.exit.write_all(&bytes).map_err(fault("write", &path))?;
        self.keep = !self.record.remove;
        Ok(())
    }

    pub(super) fn write(&self) -> Result<(), RegisterError> {
        let path = self.folder.join(RECORD);
        record::replace(&path, &self.record).map_err(fault("write", &path))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.keep {
            let _all = self.all.lock();
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::Containers;
    use super::*;

    #[test]
    fn a_writable_layer_goes_with_its_container() {
        let room = tempfile::tempdir().unwrap();
        let all = Containers::of(room.path());
        let take = |name: &str| all.take(Record { name: name.to_owned(), ..Record::default() }).unwrap();
        let owned = take("one");
        let path = owned.make_writable(64).unwrap();
        let facts = fs::metadata(&path).unwrap();
        assert_eq!(facts.len(), 64 << 20);
        assert!(facts.blocks() * 512 < 4 << 20, "{} blocks", facts.blocks());
        all.list().unwrap();
        assert!(path.exists(), "its owner lives");
        owned.ended(&Ended::default()).unwrap();
        assert!(!path.exists() && all.find("one").is_ok());
        // That of a killed owner goes with the next command that looks, or makes one.
        fs::write(&path, "").unwrap();
        all.list().unwrap();
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        let other = take("two").make_writable(8).unwrap();
        assert!(!path.exists() && !other.exists(), "the second was dropped with its container");
    }
}
