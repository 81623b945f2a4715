//! PID 1 of a VM that has one process: it mounts the image's layers, starts the command, waits for its end and switches
//! the VM off. It has no other duty: no control groups, no orders, nothing that listens.
//!
//! Two connections go to the host: by one the order comes and the end is told; the other is the command's standard input
//! and output.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::sync;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};
use rustix::system::{RebootCommand, reboot, sethostname};
use subject::layers::seen;
use subject::{PORT, Start};
use vsock::{VMADDR_CID_HOST, VsockStream};

/// Longest order, bytes.
const MOST: usize = 1 << 20;

/// Does it. What goes wrong stands on the console, and the VM ends.
pub fn run() -> ! {
    if let Err(error) = live() {
        eprintln!("vmm-subject: {error}");
    }
    sync();
    let _ = reboot(RebootCommand::PowerOff);
    let _ = reboot(RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}

fn live() -> io::Result<()> {
    system(Path::new("/"))?;
    let mut control = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, PORT)?;
    let start = order(&mut control)?;
    enter(&start).map_err(|error| io::Error::other(format!("mount the image: {error}")))?;
    sethostname(start.hostname.as_bytes())?;
    let told = match spawn(&start) {
        Ok(status) => code(status).to_string(),
        Err(error) => format!("start {}: {error}", start.args.first().map_or("nothing", String::as_str)),
    };
    writeln!(control, "{told}")?;
    // The host closes when it has heard everything.
    control.read_to_end(&mut Vec::new()).map(|_| ())
}

/// The host's one line.
fn order(control: &mut VsockStream) -> io::Result<Start> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while control.read(&mut byte)? == 1 && byte != *b"\n" && line.len() < MOST {
        line.extend_from_slice(&byte);
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Makes the image the root file system.
fn enter(start: &Start) -> io::Result<()> {
    let mut lower = Vec::new();
    for (number, name) in start.layers.iter().enumerate() {
        let (device, at) = (partition(name)?, format!("/layers/{number}"));
        fs::create_dir_all(&at)?;
        mount(&device, &at, "erofs", MountFlags::RDONLY, None)?;
        lower.push(PathBuf::from(at));
    }
    let lower: Vec<String> = seen(&lower).iter().rev().map(|layer| layer.display().to_string()).collect();
    for folder in ["/writable", "/image"] {
        fs::create_dir_all(folder)?;
    }
    let size = CString::new(format!("size={},mode=755", start.writable_bytes))?;
    mount("tmpfs", "/writable", "tmpfs", MountFlags::empty(), Some(size.as_c_str()))?;
    fs::create_dir("/writable/upper")?;
    fs::create_dir("/writable/work")?;
    let options = format!("lowerdir={},upperdir=/writable/upper,workdir=/writable/work", lower.join(":"));
    let options = CString::new(options)?;
    mount("overlay", "/image", "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    system(Path::new("/image"))?;
    chdir("/image")?;
    mount_move(".", "/")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

/// What every program expects below `root`.
fn system(root: &Path) -> io::Result<()> {
    for (kind, at) in [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev")] {
        let at = root.join(at);
        fs::create_dir_all(&at)?;
        match mount(kind, &at, kind, MountFlags::NOSUID, None) {
            Ok(()) | Err(Errno::BUSY) => (), // the kernel has mounted devtmpfs itself
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The device of a partition, by the name that the partition table gives it.
fn partition(name: &str) -> io::Result<String> {
    for entry in fs::read_dir("/sys/class/block")?.flatten() {
        let facts = fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
        if facts.lines().any(|line| line.strip_prefix("PARTNAME=") == Some(name)) {
            return Ok(format!("/dev/{}", entry.file_name().display()));
        }
    }
    Err(io::Error::other(format!("no disk has a partition called {name}")))
}

/// Runs the command to its end.
fn spawn(start: &Start) -> io::Result<ExitStatus> {
    let stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, PORT)?;
    let end = || -> io::Result<Stdio> { Ok(stream.as_fd().try_clone_to_owned()?.into()) };
    let program = start.args.first().ok_or_else(|| io::Error::other("no program is named"))?;
    let mut command = Command::new(program);
    command.args(start.args.iter().skip(1)).env_clear();
    command.envs(start.env.iter().filter_map(|entry| entry.split_once('=')));
    command.stdin(end()?).stdout(end()?).stderr(end()?);
    let mut child = command.spawn()?;
    drop(command);
    child.wait()
}

/// A status as shells say it.
fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| signal.saturating_add(128))).unwrap_or(255)
}
