//! Runs the program in a directory of its own.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// What a run of the program left.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// A directory with files `kernel`, `disk` and `disk2` in it.
pub struct Room(TempDir);

impl Room {
    pub fn new() -> Self {
        let room = Self(TempDir::new().expect("a temporary directory"));
        room.write("kernel", &format!("{:514}HdrS", "not a kernel"))
            .write("disk", "not a disk")
            .write("disk2", "another");
        room
    }

    pub fn write(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.0.path().join(name), text).expect("write a file");
        self
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs `vmm` with these arguments, in this directory.
    pub fn vmm(&self, args: &[&str]) -> Outcome {
        self.run(Command::new(env!("CARGO_BIN_EXE_vmm")), args)
    }

    /// The same by a link of the name `firecracker`.
    pub fn firecracker(&self, args: &[&str]) -> Outcome {
        let link = self.path().join("firecracker");
        if !link.exists() {
            symlink(env!("CARGO_BIN_EXE_vmm"), &link).expect("make a link");
        }
        self.run(Command::new(link), args)
    }

    fn run(&self, mut command: Command, args: &[&str]) -> Outcome {
        command.args(args).current_dir(self.path()).stdin(Stdio::null()).env_clear();
        let output = command.output().expect("run vmm");
        Outcome {
            status: output.status.code().expect("it exits"),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// Runs `vmm` with one line of arguments.
    pub fn line(&self, line: &str) -> Outcome {
        self.vmm(&line.split_whitespace().collect::<Vec<_>>())
    }
}
