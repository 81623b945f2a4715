//! A container's root file system: the layers of its image, each a read-only file system on a partition of the disk
//! that the host shows, under a writable layer in memory or on a disk of its own.
//!
//! A layer is mounted once, however many containers use it, and stays mounted. Threads of orders.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use protocol::disks::Writable;
use rustix::fs::getxattr;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::disks;
use crate::system::OWN;
use crate::users::Users;
use crate::{Doing, Fault};

/// How long the container that was there before may keep its disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// The layers that are mounted, by the names of their partitions.
#[derive(Debug, Default)]
pub struct Layers {
    mounted: Mutex<BTreeMap<String, PathBuf>>,
    /// The same, as files of containers that have users of their own.
    shown: Mutex<BTreeMap<String, PathBuf>>,
}

impl Layers {
    /// Where the layer of this partition is mounted.
    pub fn mounted(&self, name: &str) -> Result<PathBuf, Fault> {
        let mut known = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = known.get(name) {
            return Ok(at.clone());
        }
        let at = Path::new(OWN).join("layers").join(known.len().to_string()); // short: overlay's options are one page
        mount_partition(name, &at)?;
        known.insert(name.to_owned(), at.clone());
        Ok(at)
    }

    /// The same, where its files belong to a container's own users.
    pub fn shown(&self, name: &str, users: &Users) -> Result<PathBuf, Fault> {
        let from = self.mounted(name)?;
        let mut known = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = known.get(name) {
            return Ok(at.clone());
        }
        let at = Path::new(OWN).join("shown").join(known.len().to_string());
        users.show(&from, &at)?;
        known.insert(name.to_owned(), at.clone());
        Ok(at)
    }
}

/// Mounts the file system of a partition, which cannot be written to.
pub fn mount_partition(name: &str, at: &Path) -> Result<(), Fault> {
    let device = disks::partition(name)?;
    disks::read_ahead(&device);
    fs::create_dir_all(at).doing(|| format!("make {}", at.display()))?;
    mount(&device, at, "erofs", MountFlags::RDONLY, None)
        .map_err(known("CONFIG_EROFS_FS"))
        .doing(|| format!("mount {name} from {}", device.display()))
}

/// What may be wrong where a file system is not known (mount(2)): the kernel was made without this option.
fn known(option: &str) -> impl Fn(Errno) -> String {
    move |error| match error {
        Errno::NODEV => format!("{error} (has this kernel {option}?)"),
        _ => error.to_string(),
    }
}

/// Joins layers, the lowest first, under a writable one, whose root is this user's. `folder` is for the mount points. What is
/// on a disk stays when the container is started again.
pub fn join(layers: &[PathBuf], folder: &Path, on: &Writable, owner: u32) -> Result<PathBuf, Fault> {
    let (writable, root) = (self::writable(folder), folder.join("root"));
    for made in [&writable, &root] {
        fs::create_dir_all(made).doing(|| format!("make {}", made.display()))?;
    }
    mount_writable(&writable, on)?;
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    for made in [&upper, &work] {
        fs::create_dir_all(made).doing(|| format!("make {}", made.display()))?;
    }
    chown(&upper, Some(owner), Some(owner)).doing(|| format!("give {} its owner", upper.display()))?;
    let lower: Vec<String> = seen_through(layers, is_opaque).rev().map(|layer| layer.display().to_string()).collect();
    let (lower, upper, work) = (lower.join(":"), upper.display(), work.display());
    let options = CString::new(format!("lowerdir={lower},upperdir={upper},workdir={work}"))
        .doing(|| "name the layers".to_owned())?;
    mount("overlay", &root, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(known("CONFIG_OVERLAY_FS"))
        .doing(|| format!("join {} layers by overlayfs", layers.len()))?;
    Ok(root)
}

/// Where the writable layer of the container with this folder is.
pub fn writable(folder: &Path) -> PathBuf {
    folder.join("writable")
}

fn mount_writable(at: &Path, on: &Writable) -> Result<(), Fault> {
    let mounting = || "mount the writable layer".to_owned();
    match on {
        Writable::Memory { bytes } => {
            let size = CString::new(format!("size={bytes},mode=755")).doing(mounting)?;
            mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(size.as_c_str())).doing(mounting)
        }
        Writable::Disk { serial } => {
            let disk = disks::unused(serial, PATIENCE)?;
            // What is deleted gives its room back to the host.
            mount(&disk, at, "ext4", MountFlags::empty(), Some(c"discard"))
                .map_err(known("CONFIG_EXT4_FS"))
                .doing(|| format!("mount the writable layer from {}", disk.display()))
        }
    }
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
    for at in ["root", "writable"].into_iter().chain(Users::FILES) {
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
