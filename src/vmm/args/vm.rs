//! The flags that describe a VM: how they are written, and the configuration that they make (by `edits.rs`).

use std::fs;
use std::path::{Path, PathBuf};

use machine::config::{Draft, HostLimits, JsonPath, Origin, Source, VmConfig, load};
use serde_json::Value;

use super::Failure;
use super::balloon;
use super::disk::{self, Disk};
use super::net;
use super::pmem;
use super::share;

/// The flags that describe a VM.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct VmArgs {
    /// JSON file with the configuration (Firecracker's dialect); flags change what it says
    #[arg(long, value_name = "FILE", visible_alias = "config-file", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Set any key: `machine-config.smt=true`, `drives[0].drive_id=a`, `drives[+]={...}`. JSON, or a bare text. Repeatable
    #[arg(long, value_name = "PATH=VALUE", value_parser = setting, help_heading = "Configuration")]
    pub set: Vec<Setting>,

    /// Kernel image: an ELF vmlinux or a bzImage (a distribution's vmlinuz); the format is detected
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    pub kernel: Option<String>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    pub initrd: Option<String>,
    /// Kernel command line, instead of the default
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, help_heading = "Boot")]
    pub cmdline: Option<String>,
    /// Words to add to the kernel command line. Repeatable
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, help_heading = "Boot")]
    pub append: Vec<String>,
    /// What a reboot of the guest does
    #[arg(long, value_name = "ACTION", value_parser = ["exit", "restart"], help_heading = "Boot")]
    pub on_reboot: Option<String>,

    /// Number of CPUs [default: 1]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub cpus: Option<u64>,
    /// Memory: 512M, 2G, or a number of MiB [default: 128M]
    #[arg(long, value_name = "SIZE", value_parser = mebibytes, help_heading = "Machine")]
    pub memory: Option<u64>,

    /// File that says what the guest sees of its CPUs (docs/cpu-templates.md)
    #[arg(long, value_name = "FILE", conflicts_with = "cpu_template", help_heading = "Machine")]
    pub cpu_config: Option<String>,
    /// The guest's CPUs look like this: C3, T2, T2S, T2CL (Intel hosts), T2A (AMD hosts) or None
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub cpu_template: Option<String>,

    /// Root file system: a raw image or a block device; the guest's /dev/vda. Options as of --disk, and ,partuuid=ID
    #[arg(long, value_name = "PATH[,ro]", value_parser = disk::parse, help_heading = "Devices")]
    pub rootfs: Option<Disk>,
    /// Another disk. Options: ,ro ,id=NAME ,cache=unsafe ,engine=async ,queues=N ,direct (past the host's page cache). Repeatable
    #[arg(long, value_name = "PATH[,ro][,id=NAME]", value_parser = disk::parse, help_heading = "Devices")]
    pub disk: Vec<Disk>,
    /// A network interface over a TAP device (or fd=N), or `user`: networking without privileges, by passt; then
    /// ,publish=[IP:]HOSTPORT:GUESTPORT[/tcp|/udp] makes a port of the guest one of the host. Options: ,mac=ADDRESS ,mtu=N
    /// ,queue-pairs=N ,vhost ,id=NAME. Repeatable
    #[arg(long, value_name = "tap=NAME|user[,..]", value_parser = net::parse, help_heading = "Devices")]
    pub net: Vec<Value>,
    /// A directory of the host for the guest: `mount -t virtiofs TAG DIR`; TAG is the directory's name unless it is said.
    /// Options: ,ro ,virtiofsd=PROGRAM. Repeatable
    #[arg(long, value_name = "DIR[:TAG][,ro]", value_parser = share::parse, help_heading = "Devices")]
    pub share: Vec<Value>,
    /// A file as memory of the guest: its /dev/pmem0, /dev/pmem1, ... Options: ,ro ,private (writes stay in this VM) ,root (the
    /// root file system) ,id=NAME. Repeatable
    #[arg(long, value_name = "PATH[,ro]", value_parser = pmem::parse, help_heading = "Devices")]
    pub pmem: Vec<Value>,
    /// A memory balloon: the memory that the guest is asked to give back, maybe 0. Options: ,deflate_on_oom ,stats=SECONDS
    /// ,no_reporting (else the guest's free pages go back to the host) ,hinting (it can be asked for them)
    #[arg(long, value_name = "SIZE[,OPTION]", value_parser = balloon::parse, help_heading = "Devices")]
    pub balloon: Option<Value>,
    /// A random number generator; there is one anyway unless --config is given
    #[arg(long, overrides_with = "no_rng", help_heading = "Devices")]
    pub rng: bool,
    /// No random number generator
    #[arg(long, help_heading = "Devices")]
    pub no_rng: bool,
    /// Sockets between guest and host over the UNIX socket PATH; the guest's CID is 3 unless cid= says otherwise
    #[arg(long, value_name = "PATH[,cid=N]", value_parser = vsock, help_heading = "Devices")]
    pub vsock: Option<Vsock>,
    /// Where the serial port's output goes instead of standard output
    #[arg(long, value_name = "file:PATH", value_parser = serial, conflicts_with = "no_serial", help_heading = "Devices")]
    pub serial: Option<String>,
    /// No serial port
    #[arg(long, help_heading = "Devices")]
    pub no_serial: bool,
    /// A keyboard, for the API's SendCtrlAltDel
    #[arg(long, help_heading = "Devices")]
    pub keyboard: bool,
    /// The same where nobody says otherwise.
    #[arg(skip)]
    pub keyboard_by_default: bool,

    /// UNIX socket at which gdb finds the guest, which waits for it (docs/gdb.md): gdb's `target remote SOCKET`
    #[arg(long, value_name = "SOCKET", help_heading = "Debugging")]
    pub gdb: Option<String>,

    /// Lowest severity in the monitor's own log: off, error, warning, info, debug, trace; and by module, as
    /// `info,devices::virtio::block=debug`
    #[arg(long, value_name = "LEVEL[,MODULE=LEVEL]", alias = "level", help_heading = "Log")]
    pub log_level: Option<String>,
    /// What lines of the log look like: text or json
    #[arg(long, value_name = "FORMAT", help_heading = "Log")]
    pub log_format: Option<String>,
    /// Show the severity of each line of the log
    #[arg(long, help_heading = "Log", hide_short_help = true)]
    pub show_level: bool,
    /// Show file and line of each message of the log
    #[arg(long, help_heading = "Log", hide_short_help = true)]
    pub show_log_origin: bool,
    /// Log only what modules say whose name begins so
    #[arg(long, value_name = "MODULE", help_heading = "Log", hide_short_help = true)]
    pub module: Option<String>,
    /// File for the monitor's own log instead of standard error
    #[arg(long, value_name = "FILE", alias = "log-path", help_heading = "Log")]
    pub log_file: Option<String>,
    /// File for metrics, lines of JSON as Firecracker's: at the start, each 60 s, and at the end (docs/observability.md)
    #[arg(long, value_name = "FILE", help_heading = "Log")]
    pub metrics_path: Option<String>,
}

/// `--vsock PATH[,cid=N]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vsock {
    pub(super) path: String,
    pub(super) cid: Option<u32>,
}

/// `--set PATH=VALUE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    pub(super) path: JsonPath,
    pub(super) value: Value,
    /// PATH as it was written.
    pub(super) written: String,
}

impl VmArgs {
    /// Reads the file, if one is named, applies the flags and checks the result; with `host`, also against the host.
    pub fn load(&self, host: Option<&HostLimits>) -> Result<VmConfig, Failure> {
        let text = self.config.as_deref().map(|path| read("--config", path)).transpose().map_err(Failure::Config)?;
        let source = text.as_deref().map(|text| Source { text, file: self.config.as_deref() });
        load(source, &self.edits(), host).map_err(|faults| {
            let is_in_document = faults.is_in_document();
            let lines = faults.iter().map(|fault| match (&fault.origin, fault.path.to_string().as_str()) {
                (Origin::Nowhere | Origin::Flag(_), "boot-source" | "boot-source.kernel_image_path")
                    if self.kernel.is_none() && self.config.is_none() =>
                {
                    "no kernel to boot; give --kernel FILE or --config FILE".to_owned()
                }
                _ => fault.to_string(),
            });
            let text = lines.collect::<Vec<_>>().join("\n");
            if is_in_document { Failure::Config(text) } else { Failure::Args(text) }
        })
    }

    /// Whether there is something to boot; else it comes by the API.
    pub fn names_a_vm(&self) -> bool {
        self.config.is_some() || self.kernel.is_some()
    }

    /// What the flags say of a VM whose kernel comes by the API.
    pub fn draft(&self) -> Result<Draft, Failure> {
        Draft::new(&self.edits()).map_err(|faults| Failure::Args(faults.to_string()))
    }
}

/// Reads the text that `flag` names.
pub(super) fn read(flag: &str, path: &Path) -> Result<String, String> {
    fs::read(path)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "does not exist".to_owned(),
            std::io::ErrorKind::PermissionDenied => "no permission to read it".to_owned(),
            std::io::ErrorKind::IsADirectory => "is a directory, not a file".to_owned(),
            _ => error.to_string(),
        })
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "is not text (UTF-8)".to_owned()))
        .map_err(|text| format!("{flag}: {}: {text}", path.display()))
}

fn setting(text: &str) -> Result<Setting, String> {
    // `[key=text]` may stand in the path: the sign that counts is outside of brackets.
    let mut depth = 0;
    let sign = text.char_indices().find(|(_, char)| {
        depth += i32::from(*char == '[') - i32::from(*char == ']');
        *char == '=' && depth <= 0
    });
    let Some((at, _)) = sign else { return Err("PATH=VALUE is expected, as in machine-config.smt=true".into()) };
    let (written, value) = (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default());
    let path = written.parse::<JsonPath>().map_err(|error| error.to_string())?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok(Setting { path, value, written: written.to_owned() })
}

fn vsock(text: &str) -> Result<Vsock, String> {
    let (path, option) = text.split_once(',').map_or((text, None), |(path, option)| (path, Some(option)));
    if path.is_empty() {
        return Err("a path is expected before the options".into());
    }
    let cid = option.map(|option| {
        let number = option.strip_prefix("cid=").and_then(|number| number.parse().ok());
        number.ok_or_else(|| format!("unknown option `{option}`; cid=NUMBER is known"))
    });
    Ok(Vsock { path: path.to_owned(), cid: cid.transpose()? })
}

fn serial(text: &str) -> Result<String, String> {
    match text.strip_prefix("file:") {
        Some(path) if !path.is_empty() => Ok(path.to_owned()),
        _ => Err("file:PATH is expected".into()),
    }
}

pub fn mebibytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1 << 10,
        "t" | "tb" | "tib" => 1 << 20,
        _ => return Err("512M, 2G or a number of MiB is expected".into()),
    };
    let number: u64 = number.parse().map_err(|_| "512M, 2G or a number of MiB is expected".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "is more than addresses can name".to_owned())
}

#[cfg(test)]
mod tests {
    use machine::config::{LogFormat, LogLevel};
    use serde_json::json;

    use super::*;

    fn loaded(args: VmArgs) -> VmConfig {
        args.load(None).unwrap()
    }

    fn kernel() -> VmArgs {
        VmArgs { kernel: Some("k".into()), ..Default::default() }
    }

    #[test]
    fn sizes_have_units() {
        for (text, mib) in [("512", 512), ("512M", 512), ("2G", 2048), ("2GiB", 2048), ("1t", 1 << 20), ("0", 0)] {
            assert_eq!(mebibytes(text), Ok(mib), "{text}");
        }
        for text in ["", "M", "1.5G", "-1", "1K", "1X", "99999999999999999999", "18446744073709551615T"] {
            assert!(mebibytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn settings_are_json_or_text() {
        for (text, path, value) in [
            ("a.b=true", "a.b", json!(true)),
            ("a=1", "a", json!(1)),
            ("a=x=y", "a", json!("x=y")),
            ("a=", "a", json!("")),
            ("a[id=b].c=\"1\"", "a[id=b].c", json!("1")),
            ("a[0]={\"b\":2}", "a[0]", json!({ "b": 2 })),
        ] {
            let set = setting(text).unwrap();
            assert_eq!((set.path.to_string().as_str(), set.value), (path, value));
        }
        assert!(setting("a").is_err() && setting("=1").is_err() && setting("a..b=1").is_err());
    }

    #[test]
    fn a_vsock_has_a_path_and_perhaps_a_cid() {
        for (text, path, cid) in [("a", "a", 3), ("/x/y.sock,cid=77", "/x/y.sock", 77)] {
            let config = loaded(VmArgs { vsock: Some(vsock(text).unwrap()), ..kernel() }).vsock.unwrap();
            assert_eq!((config.uds_path.to_str(), config.guest_cid), (Some(path), cid), "{text}");
        }
        for text in ["", ",cid=3", "a,cid=", "a,cid=x", "a,cid=-1", "a,cid=4294967296", "a,port=1", "a,cid=3,cid=4"] {
            assert!(vsock(text).is_err(), "{text}");
        }
        for bad in ["a,cid=0", "a,cid=2", "a,cid=4294967295"] {
            let failure = VmArgs { vsock: Some(vsock(bad).unwrap()), ..kernel() }.load(None).unwrap_err();
            assert!(failure.to_string().contains("must be from 3 to 4294967294"), "{failure}");
        }
        let long = "x".repeat(97);
        let failure = VmArgs { vsock: Some(vsock(&long).unwrap()), ..kernel() }.load(None).unwrap_err();
        assert!(failure.to_string().contains("97 bytes long; at most 96"), "{failure}");
    }

    #[test]
    fn flags_make_a_configuration() {
        let config = loaded(VmArgs {
            initrd: Some("i".into()),
            append: vec!["a".into(), "b".into()],
            cpus: Some(2),
            memory: Some(512),
            rootfs: Some(disk::parse("r.img,ro").unwrap()),
            disk: vec![disk::parse("x").unwrap(), disk::parse("y,id=why,direct").unwrap()],
            pmem: vec![pmem::parse("m,id=mem").unwrap(), pmem::parse("n,private").unwrap()],
            set: vec![setting("machine-config.smt=true").unwrap()],
            log_level: Some("debug,devices::virtio=trace,api=off".into()),
            log_format: Some("json".into()),
            module: Some("dev".into()),
            show_level: true,
            ..kernel()
        });
        assert_eq!(config.boot_source.boot_args_append.as_deref(), Some("a b"));
        assert_eq!((config.machine_config.vcpu_count, config.machine_config.mem_size_mib), (2, 512));
        let drives: Vec<_> =
            config.drives.iter().map(|d| (d.drive_id.as_str(), d.is_root_device, d.is_read_only)).collect();
        assert_eq!(drives, [("rootfs", true, true), ("disk1", false, false), ("why", false, false)]);
        assert_eq!(config.drives.iter().map(|drive| drive.direct).collect::<Vec<_>>(), [false, false, true]);
        let pmem: Vec<_> = config.pmem.iter().map(|it| (it.id.as_str(), it.private)).collect();
        assert_eq!(pmem, [("mem", false), ("pmem1", true)]);
        assert!(config.machine_config.smt && config.entropy.is_some());
        let logger = config.logger.unwrap();
        let levels = ["devices::virtio", "devices", "machine"].map(|module| logger.level_of(module));
        assert_eq!(levels, [LogLevel::Trace, LogLevel::Debug, LogLevel::Off], "the last is another module");
        assert_eq!((logger.levels["api"], logger.format), (LogLevel::Off, LogFormat::Json));
        assert!(logger.show_level && !logger.show_log_origin);
        assert!(loaded(VmArgs { no_rng: true, ..kernel() }).entropy.is_none());
    }

    #[test]
    fn flags_change_what_the_file_says() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"boot-source": {"kernel_image_path": "k", "boot_args_append": "x"}, "drives": [
            {"drive_id": "a", "path_on_host": "a"},
            {"drive_id": "b", "path_on_host": "b", "is_root_device": true, "is_read_only": true}]}"#;
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        let config = loaded(VmArgs {
            config: Some(file.path().to_owned()),
            rootfs: Some(disk::parse("new").unwrap()),
            append: vec!["y".into()],
            ..Default::default()
        });
        assert_eq!(config.boot_source.boot_args_append.as_deref(), Some("x y"));
        assert_eq!(config.drives.len(), 2);
        let root = &config.drives[1];
        let path = root.path_on_host.as_deref().and_then(|path| path.to_str());
        assert_eq!((root.drive_id.as_str(), path, root.is_read_only), ("b", Some("new"), false));
        assert!(config.entropy.is_none(), "a file says what there is");
    }

    #[test]
    fn without_a_kernel_the_flag_is_named() {
        let failure = VmArgs { cpus: Some(1), ..Default::default() }.load(None).unwrap_err();
        assert!(matches!(failure, Failure::Args(_)));
        assert_eq!(failure.to_string(), "no kernel to boot; give --kernel FILE or --config FILE");
    }
}
