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
use crate::vm::{PATIENCE, guest};

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
