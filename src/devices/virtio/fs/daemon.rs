//! The virtiofsd that serves a shared directory: found and started, by the control thread.
//!
//! There are two kinds: virtiofsd of QEMU 5 to 7 (in C) and its successor (in Rust). Their options differ. Both end when
//! their socket closes, so that none is left behind however the monitor ends.
#![allow(unsafe_code)] // mount(2) and unshare(2) in the child

use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::config::ShareConfig;
use crate::child::{Helper, find};

/// Where distributions have it, beside the PATH.
const PLACES: [&str; 4] =
    ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd"];

/// Which virtiofsd it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// virtiofsd of QEMU.
    C,
    /// The virtiofsd project's.
    Rust,
}

/// Starts the virtiofsd that `config` names, or the one that is found, for this directory, and connects to it.
pub fn start(config: &ShareConfig, dir: &Path) -> io::Result<(Helper, UnixStream)> {
    let dir = fs::canonicalize(dir)?;
    if !dir.is_dir() {
        return Err(io::Error::other("it is not a directory"));
    }
    let program = config.virtiofsd.clone().or_else(|| find("virtiofsd", &PLACES)).ok_or_else(|| {
        io::Error::other("virtiofsd was not found on the PATH (Debian has it in the package virtiofsd)")
    })?;
    let doing = |error: io::Error| io::Error::new(error.kind(), format!("start {}: {error}", program.display()));
    let kind = kind(&program).map_err(doing)?;
    let (listener, stream) = socket().map_err(doing)?;
    let mut command = Command::new(&program);
    command.args(arguments(kind, &dir, config.is_read_only));
    // The listening socket is its standard input, as descriptors above 2 do not outlive an exec.
    command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::piped());
    // A group of its own: a terminal's Ctrl-C is not meant for it, and `Helper::kill` finds all of it.
    command.process_group(0);
    if kind == Kind::C && config.is_read_only {
        let dir = CString::new(dir.as_os_str().as_bytes()).map_err(io::Error::other)?;
        // SAFETY: the closure runs in the child between fork and exec; it makes system calls on a string made before.
        unsafe { command.pre_exec(move || read_only(&dir)) };
    }
    Ok((Helper::of("virtiofsd", command.spawn().map_err(doing)?)?, stream))
}

/// Which kind `program` is, by the options that it knows.
fn kind(program: &Path) -> io::Result<Kind> {
    let help = Command::new(program).arg("--help").stdin(Stdio::null()).output()?;
    let text = [help.stdout, help.stderr].concat();
    let knows = |option: &str| String::from_utf8_lossy(&text).contains(option);
    match (knows("--shared-dir"), knows("-o source=")) {
        (true, _) => Ok(Kind::Rust),
        (false, true) => Ok(Kind::C),
        (false, false) => {
            Err(io::Error::other("it is no virtiofsd (its --help names neither --shared-dir nor -o source)"))
        }
    }
}

fn arguments(kind: Kind, dir: &Path, read_only: bool) -> Vec<OsString> {
    let with = |head: &str, tail: &[u8]| OsString::from_vec([head.as_bytes(), tail].concat());
    let dir = dir.as_os_str().as_bytes();
    match kind {
        Kind::Rust => {
            let mut words = vec!["--fd=0".into(), with("--shared-dir=", dir), "--log-level=warn".into()];
            words.extend(read_only.then(|| "--readonly".into()));
            words
        }
        Kind::C => {
            // Its options are one list: commas and backslashes in a path need a backslash.
            let escape = |byte: &u8| if matches!(byte, b',' | b'\\') { vec![b'\\', *byte] } else { vec![*byte] };
            let escaped: Vec<u8> = dir.iter().flat_map(escape).collect();
            vec![
                "--fd=0".into(),
                "-f".into(),
                "-o".into(),
                with("source=", &escaped),
                "-o".into(),
                "log_level=warn".into(),
            ]
        }
    }
}

/// A socket that listens, and a connection to it. It has a name only for a moment, in a directory that nobody else can
/// enter: whoever connected first would be served.
fn socket() -> io::Result<(UnixListener, UnixStream)> {
    let dir = private_directory()?;
    let path = dir.join("socket");
    let both = UnixListener::bind(&path).and_then(|listener| Ok((listener, UnixStream::connect(&path)?)));
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir(&dir);
    both
}

fn private_directory() -> io::Result<PathBuf> {
    let base = std::env::temp_dir();
    for number in 0..1000 {
        let dir = base.join(format!("vmm-{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| dir),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Makes `dir` and all that is mounted below it read-only, in a mount namespace of this process (mount_setattr(2), Linux
/// 5.12). virtiofsd of the C kind has no option for it.
fn read_only(dir: &CString) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let recursive = libc::MS_BIND | libc::MS_REC;
    // SAFETY: strings end with NUL and, like the structure, live until the calls return; null stands where mount(2) ignores
    // an argument. Nothing is allocated.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let none = std::ptr::null::<libc::c_char>();
        check(libc::mount(none, c"/".as_ptr(), none, libc::MS_PRIVATE | libc::MS_REC, none.cast()))?;
        check(libc::mount(dir.as_ptr(), dir.as_ptr(), none, recursive, none.cast()))?;
        let size = size_of::<libc::mount_attr>();
        let flags = libc::AT_RECURSIVE;
        let done =
            libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, dir.as_ptr(), flags, &raw const attributes, size);
        check(if done == 0 { 0 } else { -1 })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_options() {
        let line = |kind, dir: &str, read_only| {
            let words = arguments(kind, Path::new(dir), read_only);
            words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line(Kind::Rust, "/a b", false), "--fd=0 --shared-dir=/a b --log-level=warn");
        assert_eq!(line(Kind::Rust, "/a,b", true), "--fd=0 --shared-dir=/a,b --log-level=warn --readonly");
        assert_eq!(line(Kind::C, "/a,b\\c", true), "--fd=0 -f -o source=/a\\,b\\\\c -o log_level=warn");
    }

    #[test]
    fn what_is_no_virtiofsd_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let start = |program: &str| {
            let config = ShareConfig { virtiofsd: Some(program.into()), ..ShareConfig::default() };
            super::start(&config, dir.path()).map(|_| ()).unwrap_err().to_string()
        };
        assert!(start("/bin/true").starts_with("start /bin/true: it is no virtiofsd"));
        assert!(start("/none/such").contains("start /none/such: No such file"));
    }

    #[test]
    fn the_sockets_name_is_gone_when_it_is_connected() {
        let (listener, mut stream) = socket().unwrap();
        let name = listener.local_addr().unwrap();
        assert!(!name.as_pathname().unwrap().exists() && !name.as_pathname().unwrap().parent().unwrap().exists());
        let (mut other, _) = listener.accept().unwrap();
        io::Write::write_all(&mut other, b"x").unwrap();
        io::Read::read_exact(&mut stream, &mut [0]).unwrap();
    }
}
