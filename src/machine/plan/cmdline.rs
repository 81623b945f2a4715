//! The kernel command line: the user's, or a default that boots stock kernels quickly. Pure.
//!
//! Source: Linux, Documentation/admin-guide/kernel-parameters.txt.

use crate::config::VmConfig;

/// The default command line, word by word:
///
/// - `panic=-1`: a panic reboots at once, so that it ends the VM instead of leaving a vCPU that spins for ever. (Reboot
///   itself needs no word: the ACPI reset register and the reset vector both work.)
/// - `quiet`: only warnings on the console. Each character is an exit of the vCPU: hundreds of lines of messages take
///   longer than the rest of the boot. `--append loglevel=7` brings them back.
/// - `pci=off`: there is no PCI here; otherwise the kernel looks for it with many port accesses, each an exit. (Some
///   kernels still print "PCI: Fatal: No config space access function found", which is true and harmless.)
/// - `swiotlb=noforce`: no 64 MiB of bounce buffers in guests that reach above 4 GiB; virtio-mmio devices see all memory.
pub const DEFAULT_CMDLINE: &str = "panic=-1 quiet pci=off swiotlb=noforce";

/// Put before [`DEFAULT_CMDLINE`] where there is a serial port:
///
/// - `console=ttyS0`: it is the console.
/// - `8250.nr_uarts=1`: it is the only one; distributions' kernels otherwise look for four.
pub const SERIAL_CMDLINE: &str = "console=ttyS0 8250.nr_uarts=1";

/// The command line of `config`: `boot_args` or the default, the root device, `boot_args_append`.
pub fn compose(config: &VmConfig) -> String {
    let source = &config.boot_source;
    let mut words = match &source.boot_args {
        Some(args) => args.trim().to_owned(),
        None if config.serial.enabled => format!("{SERIAL_CMDLINE} {DEFAULT_CMDLINE}"),
        None => DEFAULT_CMDLINE.to_owned(),
    };
    let append = source.boot_args_append.as_deref().unwrap_or_default().trim();
    let has_root =
        [words.as_str(), append].iter().flat_map(|text| kernel_words(text)).any(|word| word.starts_with("root="));
    if let Some(root) = root(config).filter(|_| !has_root) {
        words = insert(&words, &root);
    }
    if !append.is_empty() {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(append);
    }
    words
}

/// The words that name the root device of `config`: a drive, or else a file as memory.
fn root(config: &VmConfig) -> Option<String> {
    let (device, read_only) = match config.root_drive().and_then(|place| config.drives.get(place)) {
        Some(drive) => {
            let partition = drive.partuuid.as_ref().map(|id| format!("PARTUUID={id}"));
            let whole = if drive.partitions.is_empty() { "/dev/vda" } else { "/dev/vda1" };
            (partition.unwrap_or_else(|| whole.to_owned()), drive.is_read_only)
        }
        None => {
            let (place, pmem) = config.pmem.iter().enumerate().find(|(_, pmem)| pmem.root_device)?;
            (format!("/dev/pmem{place}"), pmem.read_only)
        }
    };
    Some(format!("root={device} {}", if read_only { "ro" } else { "rw" }))
}

/// The words for the kernel: what follows `--` is for init.
fn kernel_words(text: &str) -> impl Iterator<Item = &str> {
    text.split_ascii_whitespace().take_while(|word| *word != "--")
}

/// `cmdline` with `words` behind its words for the kernel.
fn insert(cmdline: &str, words: &str) -> String {
    let (kernel, init) = match cmdline {
        "--" => ("", "--"),
        _ if cmdline.starts_with("-- ") => ("", cmdline),
        _ => match cmdline.find(" -- ").or_else(|| cmdline.ends_with(" --").then(|| cmdline.len() - 3)) {
            Some(at) => (&cmdline[..at], &cmdline[at + 1..]),
            None => (cmdline, ""),
        },
    };
    let parts: Vec<_> = [kernel, words, init].into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmdline(boot_args: Option<&str>, append: Option<&str>, root: Option<bool>, serial: bool) -> String {
        let mut config: VmConfig =
            serde_json::from_value(serde_json::json!({ "boot-source": { "kernel_image_path": "k" } })).unwrap();
        config.boot_source.boot_args = boot_args.map(str::to_owned);
        config.boot_source.boot_args_append = append.map(str::to_owned);
        config.serial.enabled = serial;
        if let Some(read_only) = root {
            let drive = serde_json::json!({
                "drive_id": "r", "path_on_host": "r", "is_root_device": true, "is_read_only": read_only
            });
            config.drives.push(serde_json::from_value(drive).unwrap());
        }
        compose(&config)
    }

    #[test]
    fn the_default_names_console_and_root() {
        let default = format!("{SERIAL_CMDLINE} {DEFAULT_CMDLINE}");
        assert_eq!(cmdline(None, None, None, true), default);
        assert_eq!(cmdline(None, None, Some(false), true), format!("{default} root=/dev/vda rw"));
        assert_eq!(cmdline(None, None, Some(true), true), format!("{default} root=/dev/vda ro"));
        assert_eq!(cmdline(None, Some(" debug "), None, true), format!("{default} debug"));
        assert!(!cmdline(None, None, Some(true), false).contains("console="));
    }

    #[test]
    fn the_root_may_be_a_partition() {
        let drive = serde_json::json!({
            "drive_id": "r", "path_on_host": "r", "is_root_device": true, "partuuid": "0eaa91a0-01"
        });
        let boot = serde_json::json!({ "kernel_image_path": "k", "boot_args": "a" });
        let config = serde_json::from_value(serde_json::json!({ "boot-source": boot, "drives": [drive] })).unwrap();
        assert_eq!(compose(&config), "a root=PARTUUID=0eaa91a0-01 rw");
        let drive = serde_json::json!({
            "drive_id": "r", "partitions": [{ "path_on_host": "r" }], "is_root_device": true, "is_read_only": true
        });
        let config = serde_json::from_value(serde_json::json!({ "boot-source": boot, "drives": [drive] })).unwrap();
        assert_eq!(compose(&config), "a root=/dev/vda1 ro");
    }

    #[test]
    fn the_root_may_be_memory() {
        for (mode, words) in [("read_only", "ro"), ("private", "rw")] {
            let mut root = serde_json::json!({ "id": "r", "path_on_host": "r", "root_device": true });
            root[mode] = true.into();
            let config = serde_json::from_value(serde_json::json!({
                "boot-source": { "kernel_image_path": "k", "boot_args": "a" },
                "drives": [{ "drive_id": "d", "path_on_host": "d" }],
                "pmem": [{ "id": "p", "path_on_host": "p" }, root]
            }));
            assert_eq!(compose(&config.unwrap()), format!("a root=/dev/pmem1 {words}"));
        }
    }

    #[test]
    fn the_users_words_are_kept() {
        for (args, append, wanted) in [
            ("a b", None, "a b root=/dev/vda rw"),
            ("", None, "root=/dev/vda rw"),
            ("root=LABEL=x", None, "root=LABEL=x"),
            ("a", Some("root=/dev/vdb"), "a root=/dev/vdb"),
            ("a nfsroot=x", None, "a nfsroot=x root=/dev/vda rw"),
            ("a -- init root=1", None, "a root=/dev/vda rw -- init root=1"),
            ("-- init", None, "root=/dev/vda rw -- init"),
            ("a --", None, "a root=/dev/vda rw --"),
            ("--", None, "root=/dev/vda rw --"),
            ("a", Some("-- 1"), "a root=/dev/vda rw -- 1"),
        ] {
            assert_eq!(cmdline(Some(args), append, Some(false), true), wanted);
        }
        assert_eq!(cmdline(Some(""), Some("x"), None, true), "x");
    }
}
