//! Disks and partitions, as the guest's kernel knows them (sysfs). One that the host has just changed takes a moment to be
//! seen. Threads of orders.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::{Doing, Fault};

/// How long a disk that was given another image, or other partitions, may take to show them.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(2);
/// Sectors of a disk that waits for an image.
const WAITING: u64 = 1;

/// The device of a partition, by the name that the partition table gives it.
pub fn partition(name: &str) -> Result<PathBuf, Fault> {
    let is_it = |entry: &Path| {
        let facts = fs::read_to_string(entry.join("uevent")).unwrap_or_default();
        facts.lines().any(|line| line.strip_prefix("PARTNAME=") == Some(name))
    };
    found(is_it, read_tables)?.ok_or_else(|| format!("no disk has a partition called {name}"))
}

/// The disk with this serial number, once it has its image.
pub fn with_serial(serial: &str) -> Result<PathBuf, Fault> {
    let is_it = |entry: &Path| {
        let fact = |name: &str| fs::read_to_string(entry.join(name)).unwrap_or_default();
        let sectors: u64 = fact("size").trim().parse().unwrap_or(0);
        fact("serial").trim() == serial && sectors > WAITING
    };
    found(is_it, || Ok(()))?.ok_or_else(|| format!("no disk has the serial number {serial}"))
}

/// The same, once no file system is on it any more: a container that has just ended may still have it.
pub fn unused(serial: &str, patience: Duration) -> Result<PathBuf, Fault> {
    let disk = with_serial(serial)?;
    let until = Instant::now() + patience;
    loop {
        // The kernel lets nobody have a disk alone that is mounted (open(2), O_EXCL).
        match open(&disk, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
            Ok(_) => return Ok(disk),
            Err(Errno::BUSY) if Instant::now() < until => sleep(LOOK),
            Err(error) => return Err(error).doing(|| format!("have {} alone", disk.display())),
        }
    }
}

/// The device that is the one; before each look but the first, something is done that may bring it.
fn found(is_it: impl Fn(&Path) -> bool, bring: impl Fn() -> Result<(), Fault>) -> Result<Option<PathBuf>, Fault> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(entry) = all()?.into_iter().find(|entry| is_it(entry)) {
            return Ok(Some(device(&entry)));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        bring()?;
        sleep(LOOK);
    }
}

/// Has the kernel read the partition tables of disks again. One that is in use says so and stays as it is.
#[allow(unsafe_code)] // ioctl(2): the request has no safe wrapper
fn read_tables() -> Result<(), Fault> {
    /// _IO(0x12, 95), linux/fs.h
    const BLKRRPART: libc::c_ulong = 0x125f;
    for entry in all()?.into_iter().filter(|entry| !entry.join("partition").exists()) {
        if let Ok(disk) = fs::File::open(device(&entry)) {
            // SAFETY: the request takes no argument, and the descriptor is open.
            unsafe { libc::ioctl(disk.as_raw_fd(), BLKRRPART) };
        }
    }
    Ok(())
}

/// Has the kernel read more at once from the disk of this partition. A request costs an exit of the VM and an interrupt,
/// much more than the bytes, which the host has in its page cache. A kernel that does not want to is slower, no more.
pub fn read_ahead(partition: &Path) {
    const KIB: &str = "512";
    let name = partition.file_name().unwrap_or_default();
    let _ = fs::write(Path::new("/sys/class/block").join(name).join("../queue/read_ahead_kb"), KIB);
}

/// Disks and partitions, in sysfs.
fn all() -> Result<Vec<PathBuf>, Fault> {
    let all = fs::read_dir("/sys/class/block").doing(|| "look for disks".to_owned())?;
    Ok(all.flatten().map(|entry| entry.path()).collect())
}

fn device(entry: &Path) -> PathBuf {
    Path::new("/dev").join(entry.file_name().unwrap_or_default())
}
