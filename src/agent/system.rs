//! The VM as a Linux system: file systems, control groups, the host name, the loopback interface, and the end.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::sync;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Resource, Rlimit, chdir, chroot, getrlimit, setrlimit};
use rustix::system::{RebootCommand, reboot, sethostname};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::{Doing, Fault};

/// Where the agent keeps what is its own: a tmpfs.
pub const OWN: &str = "/run/vmm";
/// Where control groups are.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// File system, where, and options.
const MOUNTS: [(&str, &str, MountFlags, &str); 7] = [
    ("proc", "/proc", QUIET, ""),
    ("sysfs", "/sys", QUIET, ""),
    ("devtmpfs", "/dev", MountFlags::NOSUID, "mode=755"),
    ("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), "ptmxmode=666,mode=620,gid=5"),
    ("tmpfs", "/dev/shm", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=1777"),
    ("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=755"),
    ("cgroup2", CGROUPS, QUIET, ""),
];
const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts what every Linux system has, and makes this process's own folders.
pub fn mount_all() -> Result<(), Fault> {
    leave_rootfs()?;
    for (kind, at, flags, options) in MOUNTS {
        fs::create_dir_all(at).doing(|| format!("make {at}"))?;
        let options = (!options.is_empty()).then(|| std::ffi::CString::new(options).unwrap_or_default());
        match mount(kind, at, kind, flags, options.as_deref()) {
            Ok(()) => (),
            Err(Errno::BUSY) => (), // the kernel has mounted devtmpfs itself
            Err(error) => return Err(format!("mount {kind} at {at}: {error}")),
        }
    }
    fs::create_dir_all(OWN).doing(|| format!("make {OWN}"))?;
    delegate()?;
    loopback()
}

/// Makes a tmpfs the root. The kernel's first root file system can not be exchanged by pivot_root(2), which is how the
/// runtime gives a container its own.
fn leave_rootfs() -> Result<(), Fault> {
    const NEW: &str = "/new";
    fs::create_dir_all(NEW).doing(|| format!("make {NEW}"))?;
    mount("tmpfs", NEW, "tmpfs", MountFlags::empty(), Some(c"mode=755")).doing(|| format!("mount a tmpfs at {NEW}"))?;
    chdir(NEW).doing(|| format!("go to {NEW}"))?;
    mount_move(".", "/").doing(|| "move the new root to its place".to_owned())?;
    chroot(".").doing(|| "enter the new root".to_owned())?;
    chdir("/").doing(|| "go to the new root".to_owned())
}

/// Lets groups below the root have all the controllers that there are.
fn delegate() -> Result<(), Fault> {
    let names = fs::read_to_string(Path::new(CGROUPS).join("cgroup.controllers"))
        .doing(|| "read the names of cgroup controllers".to_owned())?;
    for name in names.split_whitespace() {
        let file = Path::new(CGROUPS).join("cgroup.subtree_control");
        fs::write(&file, format!("+{name}")).doing(|| format!("give the controller {name} on"))?;
    }
    Ok(())
}

/// What this process could have at first, and what it starts can have.
static DESCRIPTORS: OnceLock<Rlimit> = OnceLock::new();

/// Lets this process, and no other, have as many descriptors as it may.
pub fn allow_many_descriptors() {
    let usual = usual_descriptors();
    let _ = setrlimit(Resource::Nofile, Rlimit { current: usual.maximum, ..usual });
}

/// The limit of descriptors for what this process starts: what its own was at first.
pub fn usual_descriptors() -> Rlimit {
    *DESCRIPTORS.get_or_init(|| getrlimit(Resource::Nofile))
}

/// Sets the clock.
pub fn set_clock(clock_ns: u64) -> Result<(), Fault> {
    const SECOND: u64 = 1_000_000_000;
    let parts = (i64::try_from(clock_ns / SECOND), i64::try_from(clock_ns % SECOND));
    let (Ok(tv_sec), Ok(tv_nsec)) = parts else { return Err("set the clock: no such time".to_owned()) };
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec }).doing(|| "set the clock".to_owned())
}

/// Stirs chance into the kernel's random numbers, and has what is taken of them from now on depend on it (random(4)).
#[allow(unsafe_code)] // ioctl(2): the requests have no safe wrappers
pub fn stir(seed: &[u8]) -> Result<(), Fault> {
    /// _IOW('R', 3, int[2]) and _IO('R', 7), linux/random.h
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let doing = || "stir the random numbers".to_owned();
    let device = fs::File::options().write(true).open("/dev/urandom").doing(doing)?;
    let len = i32::try_from(seed.len()).doing(doing)?;
    // struct rand_pool_info: bits of entropy, bytes, and those.
    let info = [&(len.saturating_mul(8)).to_ne_bytes()[..], &len.to_ne_bytes(), seed].concat();
    let told = |done: i32| if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: RNDADDENTROPY reads two numbers and as many bytes as the second says, which are there; the other request takes
    // no argument. The descriptor is open.
    unsafe {
        told(libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, info.as_ptr())).doing(doing)?;
        told(libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG)).doing(doing)
    }
}

/// Names the VM.
pub fn name(hostname: &str) -> Result<(), Fault> {
    sethostname(hostname.as_bytes()).doing(|| format!("call this VM {hostname}"))
}

/// Brings the loopback interface up; the kernel gives it its addresses.
#[allow(unsafe_code)] // ioctl(2): the request has no safe wrapper
fn loopback() -> Result<(), Fault> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).doing(|| "open a socket".to_owned())?;
    // SAFETY: all zeros is a valid ifreq: names, integers and addresses.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS (netdevice(7)) reads an ifreq, which lives across the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        .doing(|| "bring the loopback interface up".to_owned())
}

/// Writes everything to the disks and switches the VM off. What cannot be done is left: this is the end.
pub fn power_off() -> ! {
    let _ = std::io::stdout().flush();
    sync();
    let _ = reboot(RebootCommand::PowerOff);
    // A VM that cannot be switched off is reset; after that nothing is left but to stand still.
    let _ = reboot(RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}
