//! TAP devices in other hands: what tests do with them by `tap.py`, and one that was opened by whoever starts the monitor.

use std::path::{Path, PathBuf};

use crate::net::exchange;
use crate::vm::{Vm, host};

/// The program that does with TAP devices what busybox can not.
pub fn tap_py() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/tap.py")
}

/// Runs it to its end.
pub fn tap(words: &[&str]) {
    let program = tap_py();
    let args: Vec<_> = std::iter::once(program.as_os_str()).chain(words.iter().map(AsRef::as_ref)).collect();
    host("python3", &args);
}

/// The monitor has no right to make a device, and finds an open one.
#[test]
fn a_tap_that_the_launcher_opened() {
    let launcher = ["python3".into(), tap_py().into_os_string(), "pass".into(), "vmmtest54".into(), "9".into()];
    exchange(Vm::tuned().through(launcher).args(["--net", "fd=9,mac=02:00:00:00:09:36"]), 54, "1500");
}
