//! The rest of the host: memory and huge pages, devices for later networks, what confines and what speeds up.
#![allow(unsafe_code)] // landlock_create_ruleset(2), userfaultfd(2), io_uring_setup(2)

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use super::report::Check;

/// Looks at everything but KVM.
pub fn look() -> Vec<Check> {
    vec![
        memory(&read("/proc/meminfo")),
        transparent_pages(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        huge_pages(
            &read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
            &read("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"),
        ),
        device("/dev/net/tun", "networks", "modprobe tun; in a container, pass the device in"),
        device("/dev/vhost-net", "networks in the host's kernel (vhost)", "modprobe vhost_net"),
        device("/dev/vhost-vsock", "sockets to the guest through the kernel (not used yet)", "modprobe vhost_vsock"),
        cgroup(&read("/proc/self/cgroup"), &read("/sys/fs/cgroup/cgroup.controllers")),
        quick_start(&read("/proc/mounts"), &read("/sys/module/kvm/parameters/nx_huge_pages")),
        landlock(),
        userfaultfd(),
        io_uring(&read("/proc/sys/kernel/io_uring_disabled")),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn memory(meminfo: &str) -> Check {
    const NAME: &str = "memory";
    let mib = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib >> 10)
    };
    match (mib("MemAvailable"), mib("MemTotal")) {
        (Some(free), Some(total)) if free >= 256 => Check::good(NAME, format!("{free} of {total} MiB available")),
        (Some(free), Some(total)) => Check::limited(
            NAME,
            format!("only {free} of {total} MiB available"),
            "end something, or use small VMs (--memory)",
        ),
        _ => Check::limited(NAME, "unknown", "is /proc mounted?"),
    }
}

fn transparent_pages(enabled: &str) -> Check {
    const NAME: &str = "transparent huge pages";
    let chosen = enabled.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
    let cure = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
    match chosen {
        Some("never") => Check::limited(NAME, "never: guests run on small pages", cure),
        Some(word) => Check::good(NAME, word),
        None => Check::limited(NAME, "this kernel has none", "a kernel with CONFIG_TRANSPARENT_HUGEPAGE"),
    }
}

fn huge_pages(total: &str, free: &str) -> Check {
    const NAME: &str = "2 MiB page pool";
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (number(total), number(free)) {
        (Some(total), Some(free)) if free > 0 => Check::good(NAME, format!("{free} of {total} pages free")),
        (Some(total), _) => Check::limited(
            NAME,
            format!("0 of {total} pages free"),
            "only for \"huge_pages\": \"2M\": sysctl vm.nr_hugepages=N (N pages of 2 MiB)",
        ),
        _ => Check::limited(NAME, "this kernel has none", "only for \"huge_pages\": \"2M\""),
    }
}

fn device(path: &str, purpose: &str, cure: &str) -> Check {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::good(path, format!("can be opened; for {purpose}")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let cure = format!("root, or setfacl -m u:USER:rw {path}");
            Check::limited(path, format!("this user may not open it; for {purpose}"), cure)
        }
        Err(_) if Path::new(path).exists() => {
            Check::limited(path, format!("is there but does not answer; for {purpose}"), cure)
        }
        Err(_) => Check::missing(path, format!("does not exist; for {purpose}"), cure),
    }
}

fn cgroup(own: &str, controllers: &str) -> Check {
    const NAME: &str = "cgroup v2";
    let unified = own.lines().any(|line| line.starts_with("0::"));
    match (unified, controllers.trim()) {
        (true, "") => Check::limited(
            NAME,
            "mounted beside version 1, or not at /sys/fs/cgroup",
            "boot the host with systemd.unified_cgroup_hierarchy=1",
        ),
        (true, controllers) => Check::good(NAME, format!("controllers: {controllers}")),
        (false, _) => {
            Check::missing(NAME, "not there; for limits on a VM (not used yet)", "mount -t cgroup2 none /sys/fs/cgroup")
        }
    }
}

/// Since Linux 5.1 a new VM gets a worker thread that is moved into the caller's cgroups. That waits for an RCU grace
/// period, 10 ms or so, unless cgroups favour such moves (Linux, Documentation/admin-guide/cgroup-v2.rst,
/// favordynmods) or the worker's purpose, splitting huge pages that code runs on, is switched off.
fn quick_start(mounts: &str, nx_huge_pages: &str) -> Check {
    const NAME: &str = "start of a VM";
    let options = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(2);
        (words.next() == Some("cgroup2")).then(|| words.next()).flatten()
    });
    let favoured = options.flat_map(|options| options.split(',')).any(|option| option == "favordynmods");
    match (favoured, nx_huge_pages.trim()) {
        (true, _) => Check::good(NAME, "cgroup v2 is mounted with favordynmods"),
        (_, "never") => Check::good(NAME, "kvm.nx_huge_pages is never"),
        _ => Check::limited(
            NAME,
            "waits some 10 ms for the host's cgroups",
            "mount -o remount,favordynmods /sys/fs/cgroup (Linux 6.0 or newer)",
        ),
    }
}

/// Version of Landlock's ABI: landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION).
fn landlock() -> Check {
    const NAME: &str = "Landlock";
    // SAFETY: with these arguments the call only returns a number.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, 1u32) };
    match abi {
        1.. => Check::good(NAME, format!("ABI {abi}")),
        _ => Check::limited(
            NAME,
            format!("{}; for confining the monitor (not used yet)", io::Error::last_os_error()),
            "a kernel with CONFIG_SECURITY_LANDLOCK and landlock in its lsm= list",
        ),
    }
}

fn userfaultfd() -> Check {
    const NAME: &str = "userfaultfd";
    const USER_MODE_ONLY: libc::c_int = 1;
    let full = owned(|| {
        // SAFETY: takes flags, returns a new file descriptor or an error.
        unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) }
    });
    let full = full.map(drop).or_else(|_| OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").map(drop));
    let restricted = || {
        owned(|| {
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) }
        })
    };
    let cure = "setfacl -m u:USER:rw /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1";
    match full {
        Ok(()) => Check::good(NAME, "faults of guests can be served"),
        Err(_) if restricted().is_ok() => {
            Check::limited(NAME, "only faults of this process's own code; for fast restores (not used yet)", cure)
        }
        Err(error) => Check::missing(NAME, format!("{error}; for fast restores (not used yet)"), cure),
    }
}

fn io_uring(disabled: &str) -> Check {
    const NAME: &str = "io_uring";
    let probed = owned(|| {
        let mut params = [0u32; 30]; // struct io_uring_params: 120 bytes of zeros ask for nothing special
        // SAFETY: the pointer is to 120 writable bytes, what the kernel reads and writes here.
        unsafe { libc::syscall(libc::SYS_io_uring_setup, 1u32, params.as_mut_ptr()) }
    });
    match (probed, disabled.trim()) {
        (Ok(_), _) => Check::good(NAME, "works"),
        (Err(_), setting @ ("1" | "2")) => Check::limited(
            NAME,
            format!("kernel.io_uring_disabled is {setting}; for disks with io_engine Async"),
            "sysctl kernel.io_uring_disabled=0",
        ),
        (Err(error), _) => Check::limited(
            NAME,
            format!("{error}; for disks with io_engine Async"),
            "a kernel with CONFIG_IO_URING; in a container, a seccomp profile that allows it",
        ),
    }
}

/// Runs a system call that returns a file descriptor, and owns what it returned.
fn owned(call: impl FnOnce() -> libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(call()) {
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::Status::{Good, Limited, Missing};

    #[test]
    fn what_the_kernel_says_is_understood() {
        assert_eq!(memory("MemTotal:  2097152 kB\nMemAvailable: 1048576 kB\n").found, "1024 of 2048 MiB available");
        assert_eq!(memory("MemTotal:  2097152 kB\nMemAvailable: 1024 kB\n").status, Limited);
        assert_eq!(memory("").status, Limited);
        assert_eq!(transparent_pages("always [madvise] never\n"), Check::good("transparent huge pages", "madvise"));
        assert_eq!(transparent_pages("always madvise [never]\n").status, Limited);
        assert_eq!(huge_pages("8\n", "4\n").found, "4 of 8 pages free");
        assert_eq!(huge_pages("0\n", "0\n").status, Limited);
        assert_eq!(cgroup("0::/user\n", "cpu memory\n").found, "controllers: cpu memory");
        assert_eq!(cgroup("12:cpu:/\n", "").status, Missing);
        let cgroup2 = |options: &str| format!("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 {options} 0 0\n");
        assert_eq!(quick_start(&cgroup2("rw,relatime,favordynmods"), "Y\n").status, Good);
        assert_eq!(quick_start(&cgroup2("rw,relatime"), "never\n").status, Good);
        assert_eq!(quick_start(&cgroup2("rw,relatime"), "N\n").status, Limited);
        assert_eq!(quick_start("", "").status, Limited);
        assert_eq!(device("/dev/null", "nothing", "").status, Good);
        assert_eq!(device("/dev/no-such-device", "nothing", "x").status, Missing);
    }

    #[test]
    fn looking_changes_nothing_and_ends() {
        let checks = look();
        assert_eq!(checks.len(), 11);
        assert!(checks.iter().all(|check| !check.needed && (check.status == Good) == check.cure.is_none()));
    }
}
