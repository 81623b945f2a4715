//! A pseudo-terminal with a user at it: the VM's standard input and output.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Both sides of it.
pub struct Terminal {
    user: File,
    program: File,
}

impl Terminal {
    /// A new one, with the kernel's usual settings.
    pub fn open() -> Self {
        let user: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&user).expect("grantpt");
        unlockpt(&user).expect("unlockpt");
        let path = ptsname(&user, Vec::new()).expect("the terminal's name").into_string().expect("its name in UTF-8");
        // The flag does not matter: this process has no terminal to win, `setsid --ctty` gives it to the VM.
        let program = OpenOptions::new().read(true).write(true).open(path).expect("the terminal");
        Self { user: File::from(user), program }
    }

    /// The side that a program has as standard input or output.
    pub fn stdio(&self) -> Stdio {
        Stdio::from(self.program.try_clone().expect("a descriptor"))
    }

    /// The side at which the user types and reads.
    pub fn user(&self) -> File {
        self.user.try_clone().expect("a descriptor")
    }

    /// All settings, to be compared.
    pub fn settings(&self) -> String {
        format!("{:?}", tcgetattr(&self.program).expect("tcgetattr"))
    }

    /// Whether lines are edited, echoed, and Ctrl-C is a signal: the opposite of raw.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.program).expect("tcgetattr").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}
