//! `vmm run` with kernels as Debian ships them, which have drivers as modules: those of 6.1 are plain, those of 6.12
//! compressed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::container_life::User;
use crate::user_net::uplink;
use crate::vm::{PATIENCE, guest, host};

/// A kernel of tools/guest, the folder of its modules, and how its version begins.
const DEBIAN_12: (&str, &str, &str) = ("debian12/bzImage", "modules/debian12", "Linux version 6.1.");
const DEBIAN_13: (&str, &str, &str) = ("debian13/bzImage", "modules/debian13", "Linux version 6.12.");

/// What `vmm run` prints with this kernel.
fn says(user: &User, (kernel, modules, _): (&str, &str, &str), options: &[&str], script: &str) -> String {
    let (kernel, modules) = (guest(kernel).display().to_string(), guest(modules).display().to_string());
    let image = crate::container::image();
    let words = [&["run", "--kernel", &kernel, "--modules", &modules], options, &[&image, "sh", "-c", script]].concat();
    user.says(&words)
}

/// What is in the store's folder for guests.
fn kept(user: &User) -> Vec<String> {
    let entries = user.path().join("guest").read_dir().expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
}

/// A container with a disk to write to, a named volume and a directory of the host: with each of the kernels.
fn volumes_and_shares_work(debian: (&str, &str, &str)) {
    let user = User::new();
    let shared = user.path().join("shared");
    std::fs::create_dir(&shared).expect("a folder");
    std::fs::write(shared.join("from"), "the host").expect("written");
    let share = format!("{}:/shared", shared.display());
    let options = ["-v", "data:/data", "-v", &share, "--storage-opt", "size=64m"];
    let script = "cat /proc/version; cat /shared/from > /shared/to; echo kept > /data/file; lsmod";
    let said = says(&user, debian, &options, script);
    assert!(said.starts_with(debian.2), "{said}");
    assert!(said.contains("overlay ") && said.contains("erofs ") && !said.contains("bridge "), "{said}");
    assert_eq!(std::fs::read_to_string(shared.join("to")).expect("a file"), "the host");
    let before = kept(&user);
    assert_eq!(says(&user, debian, &options, "cat /data/file"), "kept\n");
    assert_eq!(kept(&user), before, "the second start makes nothing");
}

#[test]
fn debian_12_has_volumes_and_shares() {
    volumes_and_shares_work(DEBIAN_12);
}

#[test]
fn debian_13_has_volumes_and_shares() {
    volumes_and_shares_work(DEBIAN_13);
}

/// What a web server answers; one that has just started may not answer yet.
pub fn answer(address: (Ipv4Addr, u16)) -> String {
    let since = Instant::now();
    loop {
        let mut said = String::new();
        let asked = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
            stream.read_to_string(&mut said)
        });
        if asked.is_ok() && !said.is_empty() {
            return said;
        }
        assert!(since.elapsed() < PATIENCE, "{asked:?}: {said:?}");
        sleep(Duration::from_millis(50));
    }
}

/// Where a distribution puts its kernels, nothing but the kernel need be said; the containers of a tenant's VM have a
/// network, among themselves and with the host.
#[test]
fn an_installed_kernel_serves_a_tenant() {
    uplink();
    let user = User::new();
    let (boot, modules) = (user.path().join("boot"), user.path().join("lib/modules"));
    for folder in [&boot, &modules] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    let kernel = boot.join("vmlinuz-6.12-installed");
    let link = |from: &str, to: &Path| symlink(guest(from), to).expect("a link");
    link(DEBIAN_13.0, &kernel);
    link(DEBIAN_13.1, &modules.join("6.12-installed"));
    let options = ["--vm", "t", "--network", "user", "--kernel", &kernel.display().to_string()];
    let serve = "echo answer > /index.html; exec httpd -f -p 80 -h /";
    user.start(&[&options[..], &["--name", "web", "-p", "127.0.0.1:7143:80"]].concat(), serve);
    let from_outside = answer((Ipv4Addr::LOCALHOST, 7143));
    assert!(from_outside.ends_with("answer\n"), "{from_outside}");
    let ask = "until wget -q -O - http://web/index.html; do sleep 0.2; done; cat /proc/version";
    let image = crate::container::image();
    let said = user.says(&[&["run"], &options[..], &[&image, "sh", "-c", ask]].concat());
    assert!(said.starts_with(&format!("answer\n{}", DEBIAN_13.2)), "{said}");
    // A volume and a directory come into a VM that runs.
    let shared = user.path().join("shared");
    std::fs::create_dir(&shared).expect("a folder");
    let share = format!("{}:/shared", shared.display());
    let script = "echo x > /late/x && cat /late/x > /shared/y && cat /shared/y";
    let words = ["-v", "late:/late", "-v", &share, &image, "sh", "-c", script];
    assert_eq!(user.says(&[&["run"], &options[..], &words].concat()), "x\n");
    assert_eq!(std::fs::read_to_string(shared.join("y")).expect("a file"), "x\n");
    user.says(&["rm", "-f", "web"]);
}

/// One line each, and nothing half-done stays.
#[test]
fn what_is_missing_is_named() {
    let user = User::new();
    let image = crate::container::image();
    let refuses = |kernel: &str, modules: &[&str]| {
        let kernel = guest(kernel).display().to_string();
        let (code, why) = user.refuses(&[&["run", "--rm", "--kernel", &kernel], modules, &[&image, "true"]].concat());
        assert_eq!(code, 125, "{why}");
        why
    };
    let nowhere = user.path().display().to_string();
    let why = refuses(DEBIAN_12.0, &["--modules", &nowhere]);
    assert!(why.contains("modules.dep: No such file") && why.contains("as /lib/modules/VERSION (--modules)"), "{why}");
    assert_eq!(why.lines().count(), 1, "{why}");
    let other = guest(DEBIAN_13.1).display().to_string();
    let why = refuses(DEBIAN_12.0, &["--modules", &other]);
    assert!(why.contains("it is of the kernel 6.12.") && why.contains("and this one is 6.1."), "{why}");
    assert_eq!(why.lines().count(), 1, "{why}");
    // The version of an ELF kernel is known when it runs.
    let why = refuses("debian12/vmlinux", &["--modules", &other]);
    assert!(why.contains("into kernel 6.1.") && why.contains("it is of another kernel"), "{why}");
    let why = refuses(DEBIAN_12.0, &[]);
    assert!(why.contains("a kernel with drivers as modules takes --modules"), "{why}");
    assert!(!kept(&user).iter().any(|name| name.starts_with('.')), "{:?}", kept(&user));
}

/// A copy of Debian 12's modules in which some are others: the kernel then lacks what these were for, and nobody knows
/// before it runs.
fn with_others(folder: &Path, instead: &[&str]) -> String {
    let copy = folder.join("modules");
    let words = ["-rL".into(), guest(DEBIAN_12.1).into_os_string(), copy.clone().into_os_string()];
    host("cp", &words.iter().map(AsRef::as_ref).collect::<Vec<_>>());
    let other = copy.join("kernel/drivers/net/veth.ko");
    for module in instead {
        let path = copy.join("kernel").join(module);
        assert!(path.is_file(), "{module}");
        std::fs::copy(&other, &path).expect("copied");
    }
    copy.display().to_string()
}

/// A kernel that cannot do what a container needs: one line, which says what to look for, and exit status 125.
#[test]
fn what_a_kernel_cannot_do_is_said_in_one_line() {
    uplink();
    let (user, image) = (User::new(), crate::container::image());
    let refuses = |network: &str, modules: &str| {
        let kernel = guest(DEBIAN_12.0).display().to_string();
        let (code, why) = user.refuses(&[
            "run",
            "--rm",
            "--network",
            network,
            "--kernel",
            &kernel,
            "--modules",
            modules,
            &image,
            "true",
        ]);
        assert_eq!((code, why.lines().count()), (125, 1), "{why}");
        why
    };
    // A distribution has no such module, which is known before there is a VM.
    let folder = tempfile::tempdir().expect("a folder");
    let modules = with_others(folder.path(), &[]);
    let list = folder.path().join("modules/modules.dep");
    let text = std::fs::read_to_string(&list).expect("a list");
    for (name, file) in [("bridge", "/bridge.ko:"), ("virtio_net", "/virtio_net.ko:"), ("nft_masq", "/nft_masq.ko:")] {
        let kept: Vec<&str> = text.lines().filter(|line| !line.contains(file)).collect();
        std::fs::write(&list, kept.join("\n") + "\n").expect("written");
        let why = refuses("user", &modules);
        let wanted = format!("has no {name} (CONFIG_{}), which a network needs (--network none", name.to_uppercase());
        assert!(why.contains(&wanted), "{why}");
    }
    // The kernel does not do it, which is known when it runs.
    for (network, module, words) in [
        ("user", "drivers/net/virtio_net.ko", "find the interface eth0"),
        ("user", "net/bridge/bridge.ko", "CONFIG_BRIDGE"),
        ("user", "net/netfilter/nft_masq.ko", "CONFIG_NFT_MASQ"),
        ("none", "fs/overlayfs/overlay.ko", "CONFIG_OVERLAY_FS"),
        ("none", "fs/erofs/erofs.ko", "CONFIG_EROFS_FS"),
        ("none", "net/vmw_vsock/vmw_vsock_virtio_transport.ko", "CONFIG_VIRTIO_VSOCKETS"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let why = refuses(network, &with_others(folder.path(), &[module]));
        assert!(why.contains(words), "{module}: {why}");
    }
}
