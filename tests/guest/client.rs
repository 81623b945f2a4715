//! A public client library of Firecracker's API, from PyPI and unchanged, boots and drives a guest: `client/drive.py`.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use crate::disk::{folder, full};
use crate::vm::{able, base64, guest, program};

#[test]
fn a_library_from_pypi_boots_and_drives_a_guest() {
    assert_eq!(able(), &Ok(()));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = root.join("target/client/packages");
    assert!(packages.is_dir(), "{} is missing: run `tools/test guest`", packages.display());
    let folder = folder();
    let [disk, larger] = [("disk", 1 << 20), ("larger", 2 << 20)].map(|(name, size)| full(folder.path(), name, size));
    let kernel = guest("tuned/vmlinux");
    let initrd = kernel.with_file_name("initrd");
    let script = "dmesg -n 1; echo cpus=$(nproc); echo READY; n=0
        while [ $(cat /sys/block/vda/size) = 2048 ]; do n=$((n + 1)); echo TICK $n; usleep 100000; done; echo BYE";
    let boot_args = format!("console=ttyS0 reboot=k panic=1 vmm.run={}", base64(script.as_bytes()));
    let vmm = std::path::absolute(program()).expect("a path");
    let drive = root.join("tests/guest/client/drive.py");
    let args: [&OsStr; 7] = [
        drive.as_os_str(),
        vmm.as_os_str(),
        kernel.as_os_str(),
        initrd.as_os_str(),
        boot_args.as_ref(),
        disk.as_os_str(),
        larger.as_os_str(),
    ];
    let mut python = Command::new("python3");
    python.arg("-B").args(args).env("PYTHONPATH", packages).env("VMM_RUNTIME_DIR", folder.path().join("vmm"));
    let output = python.output().expect("run python3");
    let [out, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{}\n{out}\n{errors}", output.status);
    assert!(out.contains("BYE"), "{out}");
}
