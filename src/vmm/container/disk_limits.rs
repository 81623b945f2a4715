//! `vmm run --device-read-bps` and its like: how fast a container may use the VM's disks.
//!
//! Docker names a device of the host, which a container in a VM does not have. So a disk is named by where the container sees
//! it: `/` for those of its root file system, or the path of a named volume.

use ::container::size;
use ::container::volume::{Source, Volume};
use clap::Args;
use protocol::disks::{Counts, DiskLimit};

/// Flags of disks' limits.
#[derive(Debug, Clone, Default, Args)]
pub struct DiskArgs {
    /// Most bytes per second that are read from the disks of / or of a named volume
    #[arg(long, value_name = "PATH:RATE", value_parser = bytes)]
    device_read_bps: Vec<Asked>,
    /// Most bytes per second that are written
    #[arg(long, value_name = "PATH:RATE", value_parser = bytes)]
    device_write_bps: Vec<Asked>,
    /// Most requests per second that read
    #[arg(long, value_name = "PATH:RATE", value_parser = requests)]
    device_read_iops: Vec<Asked>,
    /// Most requests per second that write
    #[arg(long, value_name = "PATH:RATE", value_parser = requests)]
    device_write_iops: Vec<Asked>,
}

/// A path and a rate.
type Asked = (String, u64);

impl DiskArgs {
    /// What they ask for, of a container with these volumes, whose writable layer is on a disk or not.
    pub fn plan(&self, volumes: &[Volume], writes_to_disk: bool) -> Result<Vec<DiskLimit>, String> {
        let flags = [
            ("--device-read-bps", Counts::ReadBytes, &self.device_read_bps),
            ("--device-write-bps", Counts::WrittenBytes, &self.device_write_bps),
            ("--device-read-iops", Counts::Reads, &self.device_read_iops),
            ("--device-write-iops", Counts::Writes, &self.device_write_iops),
        ];
        let mut limits = Vec::new();
        for (flag, counts, asked) in flags {
            for (path, rate) in asked {
                let nowhere = !writes_to_disk && matches!(counts, Counts::WrittenBytes | Counts::Writes);
                check(path, nowhere, volumes).map_err(|why| format!("{flag} {path}: {why}"))?;
                limits.push(DiskLimit { path: path.clone(), counts, rate: *rate });
            }
        }
        Ok(limits)
    }
}

/// Whether a path of the container is on disks that can be told apart. `nowhere`: what goes to `/` goes to none.
fn check(path: &str, nowhere: bool, volumes: &[Volume]) -> Result<(), &'static str> {
    let volume = volumes.iter().find(|volume| volume.path == path);
    match (path, volume.map(|volume| &volume.source)) {
        ("/", _) if nowhere => Err("what is written there stays in the VM's memory, without --storage-opt"),
        ("/", _) | (_, Some(Source::Named(_))) => Ok(()),
        (_, Some(_)) => Err("what is there comes from the host by a file system, not by a disk"),
        (_, None) => Err("a container sees no disks of the host; it is / or the path of a named volume (-v NAME:PATH)"),
    }
}

/// `PATH:10mb`
fn bytes(text: &str) -> Result<Asked, String> {
    asked(text, |rate| size::bytes(rate).ok())
        .ok_or_else(|| "it is written PATH:RATE, with a rate in bytes, as /:10mb or /data:512k".to_owned())
}

/// `PATH:100`
fn requests(text: &str) -> Result<Asked, String> {
    asked(text, |rate| rate.parse().ok())
        .ok_or_else(|| "it is written PATH:RATE, with a number of requests, as /:100 or /data:100".to_owned())
}

fn asked(text: &str, rate: impl FnOnce(&str) -> Option<u64>) -> Option<Asked> {
    let (path, text) = text.rsplit_once(':')?;
    let rate = rate(text).filter(|rate| *rate > 0)?;
    path.starts_with('/').then(|| (path.to_owned(), rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_as_dockers() {
        assert_eq!(bytes("/:10mb"), Ok(("/".to_owned(), 10 << 20)));
        assert_eq!(bytes("/d:512K"), Ok(("/d".to_owned(), 512 << 10)));
        assert_eq!((bytes("/:1"), bytes("/:1g")), (Ok(("/".to_owned(), 1)), Ok(("/".to_owned(), 1 << 30))));
        assert_eq!(requests("/d:100"), Ok(("/d".to_owned(), 100)));
        for wrong in ["", "/", "/:", "/:0", "/:x", "d:1", "/:1xb", "/:-1", "/:20000000000g"] {
            assert!(bytes(wrong).unwrap_err().contains("PATH:RATE"), "{wrong}");
            assert!(requests(wrong).unwrap_err().contains("PATH:RATE"), "{wrong}");
        }
    }

    #[test]
    fn limits_are_of_disks_that_the_container_has() {
        let volumes = ["data:/data", "/:/host:ro"].map(|text| Volume::parse(text).unwrap());
        let read = |path: &str| DiskArgs { device_read_bps: vec![(path.to_owned(), 7)], ..DiskArgs::default() };
        let written = |path: &str| DiskArgs { device_write_iops: vec![(path.to_owned(), 7)], ..DiskArgs::default() };
        let limit = |path: &str, counts| vec![DiskLimit { path: path.to_owned(), counts, rate: 7 }];
        assert_eq!(read("/").plan(&volumes, false), Ok(limit("/", Counts::ReadBytes)));
        assert_eq!(written("/data").plan(&volumes, false), Ok(limit("/data", Counts::Writes)));
        assert_eq!(written("/").plan(&volumes, true), Ok(limit("/", Counts::Writes)));
        let why = written("/").plan(&volumes, false).unwrap_err();
        assert!(why.starts_with("--device-write-iops /: what is written there"), "{why}");
        assert!(read("/host").plan(&volumes, false).unwrap_err().contains("not by a disk"));
        assert!(read("/dev/sda").plan(&volumes, false).unwrap_err().contains("no disks of the host"));
    }
}
