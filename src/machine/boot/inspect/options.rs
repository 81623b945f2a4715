//! What a kernel must have been built with to run here, and what its configuration says about it. Pure.

use serde::Serialize;

/// How a kernel option matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// Without it the kernel does not come up here.
    Needed,
    /// Without it something is lost.
    Wanted,
}

/// How a kernel has an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Built in.
    BuiltIn,
    /// A module: it must be in the initrd, or on the root file system if it is not needed to get there.
    Module,
    /// Not there.
    Missing,
}

/// An option and its state in one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KernelOption {
    /// Its name, with `CONFIG_`.
    pub name: &'static str,
    /// How it matters.
    pub weight: Weight,
    /// What it is for.
    pub purpose: &'static str,
    /// How this kernel has it.
    pub state: State,
}

use Weight::{Needed, Wanted};

const OPTIONS: [(&str, Weight, &str); 24] = [
    ("CONFIG_64BIT", Needed, "the CPUs start in 64-bit mode"),
    ("CONFIG_ACPI", Needed, "every device is announced by ACPI"),
    ("CONFIG_BINFMT_ELF", Needed, "running programs"),
    ("CONFIG_VIRTIO_MMIO", Needed, "the transport of all virtio devices"),
    ("CONFIG_VIRTIO_BLK", Needed, "disks"),
    ("CONFIG_SERIAL_8250", Wanted, "the serial port"),
    ("CONFIG_SERIAL_8250_CONSOLE", Wanted, "kernel messages on the serial port (console=ttyS0)"),
    ("CONFIG_BLK_DEV_INITRD", Wanted, "an initrd (--initrd)"),
    ("CONFIG_RD_GZIP", Wanted, "an initrd packed with gzip"),
    ("CONFIG_DEVTMPFS", Wanted, "/dev filled by the kernel"),
    ("CONFIG_EXT4_FS", Wanted, "an ext4 root file system"),
    ("CONFIG_HW_RANDOM_VIRTIO", Wanted, "random numbers from the host"),
    ("CONFIG_SMP", Wanted, "more than one CPU"),
    ("CONFIG_X86_X2APIC", Wanted, "fast interrupts, and more than 255 CPUs"),
    ("CONFIG_HYPERVISOR_GUEST", Wanted, "knowing that it is a guest"),
    ("CONFIG_PARAVIRT", Wanted, "a clock that the host keeps right"),
    ("CONFIG_KVM_GUEST", Wanted, "a clock that the host keeps right"),
    ("CONFIG_PVH", Wanted, "starting an ELF vmlinux by its PVH entry"),
    ("CONFIG_ACPI_BUTTON", Wanted, "powering off when SIGTERM presses the power button"),
    ("CONFIG_INPUT_EVDEV", Wanted, "systemd hearing the power button"),
    ("CONFIG_PVPANIC", Wanted, "telling a panic from a reset"),
    ("CONFIG_PVPANIC_MMIO", Wanted, "telling a panic from a reset"),
    ("CONFIG_RTC_DRV_CMOS", Wanted, "the time of day without a network"),
    ("CONFIG_UNIX", Wanted, "udev and systemd"),
];

/// Looks up every option that matters in the text of a kernel configuration.
pub fn check(config: &str) -> Vec<KernelOption> {
    let state = |name: &str| {
        let value = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        match value.map(str::trim) {
            Some("m") => State::Module,
            None | Some("n") => State::Missing,
            Some(_) => State::BuiltIn,
        }
    };
    let option = |(name, weight, purpose)| KernelOption { name, weight, purpose, state: state(name) };
    OPTIONS.into_iter().map(option).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_told() {
        let config =
            "CONFIG_ACPI=y\n# CONFIG_64BIT is not set\nCONFIG_VIRTIO_MMIO=m\nCONFIG_ACPI_BUTTON=m\nCONFIG_SMP=n\n";
        let options = check(config);
        let state = |name| options.iter().find(|option| option.name == name).unwrap().state;
        assert_eq!(state("CONFIG_ACPI"), State::BuiltIn);
        assert_eq!(state("CONFIG_64BIT"), State::Missing);
        assert_eq!(state("CONFIG_VIRTIO_MMIO"), State::Module);
        assert_eq!(state("CONFIG_SMP"), State::Missing);
        assert_eq!(state("CONFIG_VIRTIO_BLK"), State::Missing);
    }
}
