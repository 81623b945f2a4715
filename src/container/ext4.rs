//! Disk images with an empty ext4 file system: sparse files, made by mke2fs (Debian's package e2fsprogs).

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use thiserror::Error;

/// Why there is no image.
#[derive(Debug, Error)]
pub enum Ext4Error {
    /// The program is not there.
    #[error("mke2fs is missing: install the package e2fsprogs")]
    Missing,
    /// What it said.
    #[error("{0}")]
    Refused(String),
    /// The host refuses something.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Makes one at `path`, of this size (`10G`), with more options of mke2fs. What cannot be made whole is removed.
pub fn make(path: &Path, size: &str, options: &[&str]) -> Result<(), Ext4Error> {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "nodiscard,root_owner=0:0"]).args(options);
    command.arg(path).arg(size).stdin(Stdio::null()).env("PATH", search_path());
    let made = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Ext4Error::Missing,
        _ => error.into(),
    })?;
    if !made.status.success() {
        let _ = std::fs::remove_file(path);
        return Err(Ext4Error::Refused(String::from_utf8_lossy(&made.stderr).trim().to_owned()));
    }
    Ok(())
}

/// Where programs are. Those of administrators are not on everybody's path.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
