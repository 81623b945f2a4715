//! Under which name the program was started: as `firecracker` it does what the launchers of Firecracker rely on. Pure; main
//! thread. Source: Firecracker, src/firecracker/src/main.rs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use api::routes::FIRECRACKER_VERSION;
use machine::control::End;
use machine::stop::VcpuStop;

/// Firecracker's own socket.
const SOCKET: &str = "/run/firecracker.socket";

/// As what the program was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Personality {
    /// As itself.
    Own,
    /// In Firecracker's place.
    Firecracker,
}

impl Personality {
    /// By the last part of the program's name as its starter gave it (`argv[0]`).
    pub fn of(program: Option<&OsStr>) -> Self {
        match program.and_then(|program| Path::new(program).file_name()) {
            Some(name) if name == "firecracker" => Self::Firecracker,
            _ => Self::Own,
        }
    }

    /// The API's socket where the command line names none.
    pub fn socket(self) -> Option<PathBuf> {
        (self == Self::Firecracker).then(|| SOCKET.into())
    }

    /// What `--version` prints before our own line.
    pub fn version(self) -> Option<String> {
        (self == Self::Firecracker).then(|| format!("Firecracker v{FIRECRACKER_VERSION}"))
    }

    /// Whether a VM has a keyboard unless its configuration says otherwise: SendCtrlAltDel shall reboot the guest.
    pub fn has_keyboard(self) -> bool {
        self == Self::Firecracker
    }

    /// The process's exit status: a guest of Firecracker's ends by a reset, and that is no error. Nor is a triple fault, by
    /// which a kernel resets that is told `reboot=t` (Firecracker, src/vmm/src/vstate/vcpu.rs: KVM_EXIT_SHUTDOWN).
    pub fn exit_code(self, end: &End) -> u8 {
        match (self, end) {
            (Self::Firecracker, End::Vcpu(_, VcpuStop::TripleFault(_))) => 0,
            (Self::Firecracker, end) if end.is_reset() => 0,
            (_, end) => end.exit_code(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_the_name_counts() {
        for (name, personality) in [
            ("firecracker", Personality::Firecracker),
            ("/usr/bin/firecracker", Personality::Firecracker),
            ("./firecracker", Personality::Firecracker),
            ("/opt/firecracker/vmm", Personality::Own),
            ("firecracker-2", Personality::Own),
            ("", Personality::Own),
        ] {
            assert_eq!(Personality::of(Some(name.as_ref())), personality, "{name}");
        }
        assert_eq!(Personality::of(None), Personality::Own);
    }

    #[test]
    fn a_guest_s_reset_is_firecracker_s_regular_end() {
        let by_triple_fault = End::Vcpu(0, VcpuStop::TripleFault(Box::default()));
        for (end, own) in [(End::Reset, 3), (End::Vcpu(0, VcpuStop::SystemReset), 3), (by_triple_fault, 5)] {
            assert_eq!(Personality::Firecracker.exit_code(&end), 0, "{end}");
            assert_eq!(Personality::Own.exit_code(&end), own, "{end}");
        }
        for end in [End::PowerOff, End::Panicked, End::Halted, End::Left, End::Stopped] {
            assert_eq!(Personality::Firecracker.exit_code(&end), Personality::Own.exit_code(&end), "{end}");
        }
    }
}
