//! The tour of containers that `tools/demo containers` shows: each of its commands does what it should.

use std::path::Path;
use std::process::Command;

use crate::vm::{able, program};

#[test]
fn every_command_of_the_tour_does_what_it_should() {
    if let Err(why) = able() {
        panic!("{why}");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/lib/tour.sh");
    let mut command = Command::new("timeout");
    let output = command.arg("600").arg(script).env("VMM", program()).output().expect("the tour");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    assert!(said.contains("Welcome to nginx!"), "{said}");
}
