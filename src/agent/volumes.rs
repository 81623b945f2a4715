//! What containers see of the host: directories that it shares, and named volumes, which are disks. Each is mounted once
//! and stays so until the VM ends, or, of a directory, until the host takes it away. Threads of orders.
//!
//! A volume's files are in the directory `_data` of its disk: a program that wants an empty directory gets one. A new volume
//! gets what the image has at its place, as Docker's does.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use protocol::message::{Volume, VolumeSource};
use rustix::fs::{AtFlags, CWD, FileType, Mode, StatxFlags, mknodat, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::disks;
use crate::system::OWN;
use crate::{Doing, Fault};

/// Where a volume's files are on its disk.
const DATA: &str = "_data";
/// The same while it is being filled.
const NEW: &str = "_new";

/// Where the kernel lists the connections of FUSE (fuse.rst of its documentation): a folder for each, of the device number of
/// its file system, which is there as long as the file system is, whoever has it mounted or a file of it open.
const CONNECTIONS: &str = "connections";
/// How often it is looked whether a directory is still used.
const LOOK: Duration = Duration::from_millis(2);

/// What is mounted, by tag or serial number.
#[derive(Debug, Default)]
pub struct Volumes(Mutex<BTreeMap<String, PathBuf>>);

impl Volumes {
    /// Where the files of a volume are. `image` is the directory of the container's image at the place where it will be.
    pub fn mounted(&self, volume: &Volume, image: Option<&Path>) -> Result<PathBuf, Fault> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &volume.source {
            VolumeSource::Share { tag } => {
                // An order whose host has gone may have mounted it after the host had it let go of.
                if let Some(stale) = known.get(tag).filter(|at| answers(at).is_err()) {
                    let _ = unmount(stale, UnmountFlags::DETACH);
                    known.remove(tag);
                }
                once(&mut known, tag, |at| {
                    let mounting = || format!("mount the shared directory of {}", volume.path);
                    mount(tag, at, "virtiofs", MountFlags::NODEV | MountFlags::NOSUID, None).doing(mounting)?;
                    // The kernel mounts it even where nobody answers.
                    answers(at).doing(mounting).inspect_err(|_| _ = unmount(at, UnmountFlags::DETACH))
                })
            }
            VolumeSource::Disk { serial } => {
                let at = once(&mut known, serial, |at| {
                    let disk = disks::with_serial(serial)?;
                    mount(&disk, at, "ext4", MountFlags::NODEV | MountFlags::NOSUID, None)
                        .doing(|| format!("mount the volume of {} from {}", volume.path, disk.display()))
                })?;
                let data = at.join(DATA);
                if !data.exists() {
                    fill(&at, image).doing(|| format!("fill the new volume of {}", volume.path))?;
                }
                Ok(data)
            }
        }
    }

    /// Unmounts a shared directory, and waits until nothing of it is left in the guest: a container that has just ended may
    /// still have it.
    pub fn let_go(&self, tag: &str, patience: Duration) -> Result<(), Fault> {
        let until = Instant::now() + patience;
        let letting_go = || format!("let go of the shared directory {tag}");
        let connection = loop {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(at) = known.get(tag) else { return Ok(()) };
            let connection = connection(at)?;
            match unmount(at, UnmountFlags::empty()) {
                Ok(()) => {
                    known.remove(tag);
                    break connection;
                }
                Err(Errno::BUSY) if Instant::now() < until => {}
                Err(error) => return Err(error).doing(letting_go),
            }
            drop(known);
            sleep(LOOK);
        };
        while connection.exists() {
            if Instant::now() >= until {
                return Err("a process still uses it".to_owned()).doing(letting_go);
            }
            sleep(LOOK);
        }
        Ok(())
    }

    /// Unmounts all, for the end of the VM.
    pub fn part(&self) {
        for at in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = unmount(at, UnmountFlags::empty());
        }
    }
}

/// Whether whoever serves a shared directory knows this mount.
fn answers(at: &Path) -> rustix::io::Result<()> {
    statx(CWD, at, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS).map(|_| ())
}

/// The kernel's folder of the FUSE connection of what is mounted at `at`.
fn connection(at: &Path) -> Result<PathBuf, Fault> {
    static MOUNTED: OnceLock<Result<(), Fault>> = OnceLock::new();
    let all = Path::new(OWN).join(CONNECTIONS);
    let mounted = MOUNTED.get_or_init(|| {
        fs::create_dir_all(&all).doing(|| format!("make {}", all.display()))?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        mount("fusectl", &all, "fusectl", flags, None).doing(|| "see the connections of FUSE".to_owned())
    });
    mounted.clone()?;
    // Nobody is asked: who serves it may be dead.
    let facts = statx(CWD, at, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS)
        .doing(|| format!("look at {}", at.display()))?;
    Ok(all.join(facts.stx_dev_minor.to_string()))
}

/// Mounts by `how`, where that has not been done.
fn once(
    known: &mut BTreeMap<String, PathBuf>,
    name: &str,
    how: impl FnOnce(&Path) -> Result<(), Fault>,
) -> Result<PathBuf, Fault> {
    if let Some(at) = known.get(name) {
        return Ok(at.clone());
    }
    let at = Path::new(OWN).join("volumes").join(name);
    fs::create_dir_all(&at).doing(|| format!("make {}", at.display()))?;
    how(&at)?;
    known.insert(name.to_owned(), at.clone());
    Ok(at)
}

/// Makes the directory of a new volume, with what the image has.
fn fill(volume: &Path, image: Option<&Path>) -> std::io::Result<()> {
    let new = volume.join(NEW);
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir(&new)?,
    }
    if let Some(image) = image {
        copy_directory(image, &new)?;
    }
    fs::rename(new, volume.join(DATA))
}

/// Copies what is in a directory, and what it is, to one that is there.
fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let facts = entry.metadata()?;
        if facts.is_dir() {
            fs::create_dir(&to)?;
            copy_directory(&from, &to)?;
        } else if facts.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            lchown(&to, Some(facts.uid()), Some(facts.gid()))?;
        } else if facts.is_file() {
            fs::copy(&from, &to)?;
            like(&to, &facts)?;
        } else {
            let kind = if facts.file_type().is_fifo() { FileType::Fifo } else { continue };
            mknodat(CWD, &to, kind, Mode::from_raw_mode(facts.mode()), 0)?;
            like(&to, &facts)?;
        }
    }
    like(to, &fs::metadata(from)?)
}

/// Gives a file the owner and the rights of another one.
fn like(path: &Path, facts: &Metadata) -> std::io::Result<()> {
    chown(path, Some(facts.uid()), Some(facts.gid()))?;
    fs::set_permissions(path, facts.permissions())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_volume_has_what_the_image_has() {
        let (image, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(image.path().join("sub")).unwrap();
        fs::write(image.path().join("sub/file"), "x").unwrap();
        symlink("sub/file", image.path().join("link")).unwrap();
        fs::set_permissions(image.path().join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(image.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir(volume.path().join(NEW)).unwrap(); // of an agent that was stopped
        fs::write(volume.path().join(NEW).join("half"), "").unwrap();
        fill(volume.path(), Some(image.path())).unwrap();
        let data = volume.path().join(DATA);
        assert_eq!(fs::read_to_string(data.join("link")).unwrap(), "x");
        assert_eq!(fs::metadata(data.join("sub/file")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o711);
        assert!(!data.join("half").exists() && !volume.path().join(NEW).exists());
    }
}
