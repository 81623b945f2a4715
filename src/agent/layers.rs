//! A container's root file system: the layers of its image, each a read-only file system on a partition of the disk
//! that the host shows, under a writable layer in memory.
//!
//! A layer is mounted once, however many containers use it, and stays mounted. Threads of orders.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::getxattr;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::system::OWN;
use crate::{Doing, Fault};

/// How long a disk that was given other partitions may take to show them.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(2);

/// The layers that are mounted, by the names of their partitions.
#[derive(Debug, Default)]
pub struct Layers(Mutex<BTreeMap<String, PathBuf>>);

impl Layers {
    /// Where the layer of this partition is mounted.
    pub fn mounted(&self, name: &str) -> Result<PathBuf, Fault> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = known.get(name) {
            return Ok(at.clone());
        }
        let at = Path::new(OWN).join("layers").join(known.len().to_string()); // short: overlay's options are one page
        mount_partition(name, &at)?;
        known.insert(name.to_owned(), at.clone());
        Ok(at)
    }
}

/// Mounts the file system of a partition, which cannot be written to.
pub fn mount_partition(name: &str, at: &Path) -> Result<(), Fault> {
    let device = partition(name)?;
    read_ahead(&device);
    fs::create_dir_all(at).doing(|| format!("make {}", at.display()))?;
    mount(&device, at, "erofs", MountFlags::RDONLY, None).doing(|| format!("mount {name} from {}", device.display()))
}

/// Has the kernel read more at once from the disk of this partition. A request costs an exit of the VM and an interrupt,
/// much more than the bytes, which the host has in its page cache. A kernel that does not want to is slower, no more.
fn read_ahead(partition: &Path) {
    const KIB: &str = "512";
    let name = partition.file_name().unwrap_or_default();
    let _ = fs::write(Path::new("/sys/class/block").join(name).join("../queue/read_ahead_kb"), KIB);
}

/// The device of a partition, by the name that the partition table gives it. It may be on a disk that has just come.
fn partition(name: &str) -> Result<PathBuf, Fault> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = seen(name)? {
            return Ok(found);
        }
        if Instant::now() >= until {
            return Err(format!("no disk has a partition called {name}"));
        }
        read_tables()?;
        sleep(LOOK);
    }
}

/// The partition of this name, among those that the kernel knows.
fn seen(name: &str) -> Result<Option<PathBuf>, Fault> {
    for entry in disks()? {
        let facts = fs::read_to_string(entry.join("uevent")).unwrap_or_default();
        if facts.lines().any(|line| line.strip_prefix("PARTNAME=") == Some(name)) {
            return Ok(Some(Path::new("/dev").join(entry.file_name().unwrap_or_default())));
        }
    }
    Ok(None)
}

/// Has the kernel read the partition tables of disks again. One that is in use says so and stays as it is.
#[allow(unsafe_code)] // ioctl(2): the request has no safe wrapper
fn read_tables() -> Result<(), Fault> {
    /// _IO(0x12, 95), linux/fs.h
    const BLKRRPART: libc::c_ulong = 0x125f;
    for entry in disks()?.into_iter().filter(|entry| !entry.join("partition").exists()) {
        if let Ok(disk) = fs::File::open(Path::new("/dev").join(entry.file_name().unwrap_or_default())) {
            // SAFETY: the request takes no argument, and the descriptor is open.
            unsafe { libc::ioctl(disk.as_raw_fd(), BLKRRPART) };
        }
    }
    Ok(())
}

/// Disks and partitions, in sysfs.
fn disks() -> Result<Vec<PathBuf>, Fault> {
    let all = fs::read_dir("/sys/class/block").doing(|| "look for disks".to_owned())?;
    Ok(all.flatten().map(|entry| entry.path()).collect())
}

/// Joins layers, the lowest first, under a writable one of at most `bytes` bytes. `folder` is for the mount points.
pub fn join(layers: &[PathBuf], folder: &Path, bytes: u64) -> Result<PathBuf, Fault> {
    let (writable, root) = (folder.join("writable"), folder.join("root"));
    for made in [&writable, &root] {
        fs::create_dir_all(made).doing(|| format!("make {}", made.display()))?;
    }
    let size = CString::new(format!("size={bytes},mode=755")).doing(|| "name a size".to_owned())?;
    mount("tmpfs", &writable, "tmpfs", MountFlags::empty(), Some(size.as_c_str()))
        .doing(|| "mount the writable layer".to_owned())?;
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    for made in [&upper, &work] {
        fs::create_dir(made).doing(|| format!("make {}", made.display()))?;
    }
    let lower: Vec<String> = seen_through(layers, is_opaque).rev().map(|layer| layer.display().to_string()).collect();
    let (lower, upper, work) = (lower.join(":"), upper.display(), work.display());
    let options = CString::new(format!("lowerdir={lower},upperdir={upper},workdir={work}"))
        .doing(|| "name the layers".to_owned())?;
    mount("overlay", &root, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .doing(|| format!("join {} layers by overlayfs", layers.len()))?;
    Ok(root)
}

/// Layers without those that a higher one hides as a whole.
fn seen_through(layers: &[PathBuf], opaque: impl Fn(&Path) -> bool) -> std::slice::Iter<'_, PathBuf> {
    let lowest = layers.iter().rposition(|layer| opaque(layer)).unwrap_or(0);
    layers.get(lowest..).unwrap_or_default().iter()
}

/// Whether a layer hides all lower ones: the mark of opaque directories, at the root. overlayfs does not look there
/// (Documentation/filesystems/overlayfs.rst).
fn is_opaque(layer: &Path) -> bool {
    let mut value = [0; 2];
    getxattr(layer, "trusted.overlay.opaque", &mut value[..]).is_ok_and(|len| value.get(..len) == Some(b"y"))
}

/// Takes what [`join`] made away.
pub fn part(folder: &Path) {
    for at in ["root", "writable"] {
        let _ = unmount(folder.join(at), UnmountFlags::DETACH);
    }
    let _ = fs::remove_dir_all(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_under_an_opaque_one_are_left_out() {
        let layers = ["0", "1", "2", "3"].map(PathBuf::from);
        let seen = |opaque: &[&str]| {
            let seen = seen_through(&layers, |layer| opaque.iter().any(|one| Path::new(one) == layer));
            seen.map(|layer| layer.display().to_string()).collect::<String>()
        };
        assert_eq!(seen(&[]), "0123");
        assert_eq!(seen(&["0"]), "0123");
        assert_eq!(seen(&["1", "2"]), "23");
        assert_eq!(seen(&["3"]), "3");
    }
}
