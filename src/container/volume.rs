//! What of the host a container sees: directories, files and named volumes, as `-v` says it. Named volumes are disk images
//! in the store's `volumes/`.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::ext4::{self, Ext4Error};
use crate::register::is_name;

/// How large a named volume may become, bytes. Its image takes what is in it.
const VOLUME_SIZE: &str = "10G";
/// Names another size.
const VARIABLE: &str = "VMM_VOLUME_SIZE";
/// Largest file that is shown by itself, bytes.
const FILE_MAX: u64 = 1 << 20;

/// Why a volume cannot be.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// It is written otherwise.
    #[error("-v {0}: {1}; it is written HOST-DIRECTORY:PATH[:ro] or NAME:PATH[:ro]")]
    Syntax(String, &'static str),
    /// The host's path.
    #[error("-v {0}: {1}: {2}")]
    Host(String, PathBuf, #[source] io::Error),
    /// A file that the container may write to.
    #[error("-v {0}: a file is copied into the VM, so it is read-only: add `:ro`, or share its directory")]
    WritableFile(String),
    /// A file that cannot be copied.
    #[error("-v {0}: a file that is shown by itself is text of at most {FILE_MAX} bytes; share its directory")]
    File(String),
    /// The image cannot be made.
    #[error("make volume {0}: {1}")]
    Make(String, #[source] Ext4Error),
}

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory of the host.
    Directory(PathBuf),
    /// What a file of the host says.
    Text(String),
    /// A volume of this name.
    Named(String),
}

/// Something of the host at a path of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What is shown.
    pub source: Source,
    /// Where: an absolute path.
    pub path: String,
    /// It cannot be written to.
    pub read_only: bool,
}

impl Volume {
    /// From what the user wrote. Looks at the host's files.
    pub fn parse(text: &str) -> Result<Self, VolumeError> {
        let syntax = |why| VolumeError::Syntax(text.to_owned(), why);
        let mut words = text.split(':');
        let (Some(source), Some(path), options, None) = (words.next(), words.next(), words.next(), words.next()) else {
            return Err(syntax("a source and a path are expected, and perhaps options"));
        };
        if !path.starts_with('/') || path == "/" {
            return Err(syntax("the container's path is one from / on, and not / itself"));
        }
        let mut read_only = false;
        for option in options.into_iter().flat_map(|options| options.split(',')) {
            match option {
                "ro" => read_only = true,
                "rw" | "z" | "Z" => (), // labels are SELinux's, which the guest has not
                _ => return Err(syntax("options are ro and rw")),
            }
        }
        let source = match source.starts_with(['/', '.']) {
            true => on_host(text, Path::new(source), read_only)?,
            false if is_name(source) => Source::Named(source.to_owned()),
            false => return Err(syntax("a name has letters, digits, `_`, `.` and `-`; a path begins with / or .")),
        };
        Ok(Self { source, path: path.to_owned(), read_only })
    }
}

fn on_host(text: &str, path: &Path, read_only: bool) -> Result<Source, VolumeError> {
    let fault = |error| VolumeError::Host(text.to_owned(), path.to_owned(), error);
    let path = path.canonicalize().map_err(fault)?;
    let facts = fs::metadata(&path).map_err(fault)?;
    if facts.is_dir() {
        return Ok(Source::Directory(path));
    }
    if !read_only {
        return Err(VolumeError::WritableFile(text.to_owned()));
    }
    if !facts.is_file() || facts.len() > FILE_MAX {
        return Err(VolumeError::File(text.to_owned()));
    }
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(VolumeError::File(text.to_owned())),
        said => said.map(Source::Text).map_err(fault),
    }
}

/// The image of a named volume, made where it is not there yet: ext4, sparse.
pub fn image(store: &Path, name: &str) -> Result<PathBuf, VolumeError> {
    let fault = |error: io::Error| VolumeError::Make(name.to_owned(), error.into());
    let folder = store.join("volumes");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(fault)?;
    let all = File::open(&folder).map_err(fault)?;
    all.lock().map_err(fault)?;
    let path = folder.join(format!("{name}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    // A name that is none: what a killed command leaves is replaced.
    let new = folder.join(".new");
    let _ = fs::remove_file(&new);
    let size = std::env::var(VARIABLE).unwrap_or_else(|_| VOLUME_SIZE.to_owned());
    ext4::make(&new, &size, &[]).map_err(|error| VolumeError::Make(name.to_owned(), error))?;
    fs::rename(&new, &path).map_err(fault)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_understood() {
        let room = tempfile::tempdir().unwrap();
        let dir = room.path().canonicalize().unwrap();
        let text = |rest: &str| format!("{}{rest}", dir.display());
        let volume = Volume::parse(&text(":/data:ro")).unwrap();
        assert_eq!(
            volume,
            Volume { source: Source::Directory(dir.clone()), path: "/data".to_owned(), read_only: true }
        );
        let volume = Volume::parse("data_1:/var/lib/db").unwrap();
        assert_eq!(volume.source, Source::Named("data_1".to_owned()));
        assert!(!volume.read_only);
        fs::write(dir.join("conf"), "x = 1\n").unwrap();
        assert_eq!(Volume::parse(&text("/conf:/etc/conf:ro")).unwrap().source, Source::Text("x = 1\n".to_owned()));
        fs::write(dir.join("binary"), [0xff]).unwrap();
        for (wrong, why) in [
            (text("/conf:/etc/conf"), "add `:ro`"),
            (text("/binary:/b:ro"), "share its directory"),
            (text("/none:/b"), "No such file"),
            ("data".to_owned(), "a source and a path"),
            ("a:/b:ro:x".to_owned(), "a source and a path"),
            ("a:b".to_owned(), "from / on"),
            ("a:/".to_owned(), "from / on"),
            ("a:/b:exec".to_owned(), "options are"),
            ("-a:/b".to_owned(), "a name has"),
        ] {
            let said = Volume::parse(&wrong).unwrap_err().to_string();
            assert!(said.contains(why), "{wrong}: {said}");
        }
    }

    #[test]
    fn a_named_volume_is_made_once_and_takes_little() {
        use std::os::unix::fs::MetadataExt;
        let room = tempfile::tempdir().unwrap();
        let path = image(room.path(), "db").unwrap();
        let facts = fs::metadata(&path).unwrap();
        assert_eq!(facts.len(), 10 << 30);
        assert!(facts.blocks() * 512 < 128 << 20);
        fs::write(path.with_extension("mark"), "").unwrap();
        assert_eq!(image(room.path(), "db").unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().ino(), facts.ino());
    }
}
