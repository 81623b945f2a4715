//! The worlds, from the thinnest walls to the thickest.

use std::str::FromStr;

/// Where the workload runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum World {
    /// A process of this host: the image is its root directory (chroot(2)), nothing else keeps it in.
    Process,
    /// A container of this host, by runc: the namespaces and limits of `vmm run`.
    Container,
    /// A microVM that has nothing else to do.
    Vm,
    /// `vmm run`: a container in a microVM.
    VmContainer,
}

impl World {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Process, Self::Container, Self::Vm, Self::VmContainer];

    /// As options and JSON call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Container => "container",
            Self::Vm => "vm",
            Self::VmContainer => "vm-container",
        }
    }

    /// What it is, for people.
    pub fn means(self) -> &'static str {
        match self {
            Self::Process => "a process of this host, with the image as its root directory (chroot)",
            Self::Container => "a container of this host, by runc, with the namespaces and limits of vmm run",
            Self::Vm => "a microVM with the command and an init that starts it",
            Self::VmContainer => "a container in a microVM, by vmm run",
        }
    }
}

impl FromStr for World {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|world| world.name() == text);
        known.ok_or_else(|| format!("{text} is none of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for world in World::ALL {
            assert_eq!(world.name().parse(), Ok(world));
        }
        let wrong = "jail".parse::<World>().unwrap_err();
        assert_eq!(wrong, "jail is none of process, container, vm, vm-container");
    }
}
