//! The command line. Flags only edit the configuration's value; none has a meaning of its own.
//!
//! Running is the default verb. Everything here is on the main thread and before anything is opened but the
//! configuration file.

mod balloon;
mod deferred;
mod disk;
mod edits;
mod firecracker;
mod metadata;
mod net;
mod pmem;
mod share;
mod vm;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::compare::CompareArgs;
use crate::container::ContainerVerb;
use crate::cpu::CpuArgs;
use crate::ctl::CtlArgs;
use crate::image::ImageArgs;
use crate::listen::ApiOptions;
use crate::personality::Personality;
use crate::ps::PsArgs;
use crate::timings::TimingsFormat;
pub use deferred::Deferred;
pub use firecracker::FirecrackerArgs;
pub use vm::{VmArgs, mebibytes};

const EXAMPLES: &str = "\
Examples:
  A distribution's kernel; its console is this terminal (Ctrl-A x leaves):
    vmm --kernel vmlinuz --initrd initrd.img --rootfs debian.ext4
  A configuration file, with some things changed:
    vmm --config vm.json --cpus 4 --memory 2G
  A read-only disk, and a word more for the kernel:
    vmm --kernel vmlinux --disk data.img,ro,id=data --append debug
  Anything that a file can say:
    vmm --config vm.json --set drives[0].cache_type=Unsafe
  A VM that comes by Firecracker's API:
    vmm --api-sock /run/vmm.sock
  What would be built, without building it:
    vmm explain --config vm.json

Exit status: 0 the guest powered off; 152 the configuration is wrong;
153 the command line is wrong (of run and exec: 125). docs/exit-codes.md
has the others, docs/config.md the keys of the file.";

/// Runs Linux in a micro virtual machine on KVM.
#[derive(Debug, Parser)]
#[command(
    name = "vmm",
    version,
    after_help = EXAMPLES,
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    override_usage = "vmm --kernel FILE [--rootfs IMAGE] [OPTIONS]\n       vmm --config FILE [OPTIONS]\n       vmm --api-sock PATH [OPTIONS]\n       vmm <COMMAND>"
)]
struct Cli {
    #[command(flatten)]
    vm: VmArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// A command line whose first word is a verb: the options of `vmm` itself need not be defined for it.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, max_term_width = 110, disable_help_subcommand = true)]
struct ByVerb {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print what would be built: memory map, devices, interrupts, kernel command line, files. Touches no KVM
    Explain(Deferred<ExplainArgs>),
    /// Say whether this host can run VMs, or whether a kernel can boot in one
    Doctor(Deferred<DoctorArgs>),
    /// Speak to a VM that was started with --id or --api-sock
    Ctl(Deferred<CtlArgs>),
    /// List the containers, and the VMs that were started with --id
    Ps(Deferred<PsArgs>),
    /// Images of containers: add them to the store, look at them, remove them
    Image(Deferred<ImageArgs>),
    #[command(flatten)]
    Container(ContainerVerb),
    /// Measure an image as a process, a container, a microVM and a container in a microVM
    Compare(Deferred<CompareArgs>),
    /// Print what a guest would see of its CPUs
    Cpu(Deferred<CpuArgs>),
    /// Print the JSON Schema of the configuration
    Schema,
}

/// What running needs besides the VM's configuration.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Running")]
pub struct RunArgs {
    /// Name of the VM, by which `vmm ctl` and `vmm ps` find it: 1 to 64 letters, digits or `-`. No two VMs share one
    #[arg(long, value_name = "NAME", value_parser = instance_id)]
    pub id: Option<String>,
    /// Print when each phase of the boot was reached
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, default_missing_value = "table")]
    pub timings: Option<TimingsFormat>,
    /// Print what the VM took, one line at its end; the log has it at level info
    #[arg(long)]
    pub receipt: bool,
    /// Time for the guest to power off after SIGTERM, SIGINT or SIGHUP
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub grace: u64,
    /// Serve the API (Firecracker's, docs/api.md) at the UNIX socket PATH. Without --kernel and --config the VM comes by it.
    /// A VM with --id has one without this, too
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,
    /// No API, whatever --api-sock and --id say
    #[arg(long)]
    pub no_api: bool,
    /// Longest body of a request to the API
    #[arg(long, value_name = "BYTES", default_value_t = 51_200, hide_short_help = true)]
    pub http_api_max_payload_size: u32,
    /// JSON file with what the metadata service (mmds-config) tells the guest at first
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
    /// Most that the metadata service keeps [default: as --http-api-max-payload-size]
    #[arg(long, value_name = "BYTES", hide_short_help = true)]
    pub mmds_size_limit: Option<u32>,
    #[command(flatten)]
    pub firecracker: FirecrackerArgs,
}

impl RunArgs {
    /// The API that is asked for, by its socket, by the VM's name or by that of the program.
    pub fn api(&self, personality: Personality) -> Option<ApiOptions> {
        let socket = self.api_sock.clone().or_else(|| personality.socket());
        let wanted = !self.no_api && (socket.is_some() || self.id.is_some());
        let body_max = usize::try_from(self.http_api_max_payload_size).unwrap_or(usize::MAX);
        wanted.then_some(ApiOptions { socket, body_max })
    }
}

/// What `vmm explain` takes.
#[derive(Debug, Clone, clap::Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub vm: VmArgs,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// What `vmm doctor` takes.
#[derive(Debug, Clone, clap::Args)]
#[command(max_term_width = 110)]
pub struct DoctorArgs {
    /// Look at this kernel image instead of the host
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Order {
    /// Run a VM.
    Run(Box<VmArgs>, RunArgs),
    /// `vmm explain`.
    Explain(Deferred<ExplainArgs>),
    /// `vmm doctor`.
    Doctor(Deferred<DoctorArgs>),
    /// `vmm ctl`.
    Ctl(Deferred<CtlArgs>),
    /// `vmm ps`.
    Ps(Deferred<PsArgs>),
    /// `vmm image`.
    Image(Deferred<ImageArgs>),
    /// What is done with containers: `vmm run` and others.
    Container(ContainerVerb),
    /// `vmm compare`.
    Compare(Deferred<CompareArgs>),
    /// `vmm cpu`.
    Cpu(Deferred<CpuArgs>),
    /// `vmm schema`.
    Schema,
}

/// Why an order was not carried out.
#[derive(Debug)]
pub enum Failure {
    /// The configuration is wrong: a line per fault.
    Config(String),
    /// The command line is wrong.
    Args(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) | Self::Args(text) => f.write_str(text),
        }
    }
}

/// Reads the command line.
pub fn read(args: impl IntoIterator<Item = OsString>, personality: Personality) -> Result<Order, clap::Error> {
    let args: Vec<_> = args.into_iter().collect();
    if args.get(1).and_then(|word| word.to_str()).is_some_and(Verb::has_subcommand) {
        return ByVerb::try_parse_from(args).map(|line| line.verb.into());
    }
    // Where the API's socket goes without saying, a command line without arguments is a whole one.
    let command = Cli::command().arg_required_else_help(personality.socket().is_none());
    let mut matches = command.try_get_matches_from(args)?;
    let cli = Cli::from_arg_matches_mut(&mut matches)?;
    Ok(cli.verb.map_or_else(
        || {
            let vm = VmArgs { keyboard_by_default: personality.has_keyboard(), ..cli.vm };
            Order::Run(Box::new(vm), cli.run)
        },
        Order::from,
    ))
}

impl From<Verb> for Order {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Explain(args) => Self::Explain(args),
            Verb::Doctor(args) => Self::Doctor(args),
            Verb::Ctl(args) => Self::Ctl(args),
            Verb::Ps(args) => Self::Ps(args),
            Verb::Image(args) => Self::Image(args),
            Verb::Container(verb) => Self::Container(verb),
            Verb::Compare(args) => Self::Compare(args),
            Verb::Cpu(args) => Self::Cpu(args),
            Verb::Schema => Self::Schema,
        }
    }
}

/// Prints help, version or what is wrong, and returns the exit status for it.
pub fn refuse(error: &clap::Error, personality: Personality, status: u8) -> ExitCode {
    if let Some(version) = personality.version().filter(|_| error.kind() == ErrorKind::DisplayVersion) {
        let _ = writeln!(io::stdout(), "{version}");
    }
    let _ = error.print();
    if error.exit_code() == 0 { ExitCode::SUCCESS } else { ExitCode::from(status) }
}

/// Firecracker's rule for the names of VMs.
pub fn instance_id(text: &str) -> Result<String, String> {
    let good =
        !text.is_empty() && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if good { Ok(text.to_owned()) } else { Err("1 to 64 letters, digits or `-` are expected".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(line: &str) -> Result<Order, clap::Error> {
        read(std::iter::once("vmm").chain(line.split(' ')).map(OsString::from), Personality::Own)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
        ByVerb::command().debug_assert();
    }

    /// Each start would take as long as all verbs' options take to define.
    #[test]
    fn a_verb_has_no_options_until_it_is_asked_for() {
        let mut command = ByVerb::command();
        for verb in command.get_subcommands() {
            assert_eq!(verb.get_arguments().count() + verb.get_subcommands().count(), 0, "{}", verb.get_name());
        }
        command.build();
        let run = command.find_subcommand("run").unwrap();
        assert!(run.get_arguments().count() > 30);
        assert!(run.get_about().unwrap().to_string().contains("of its own"), "not that of its options");
    }

    #[test]
    fn running_is_the_default_verb() {
        assert!(matches!(order("--kernel k"), Ok(Order::Run(..))));
        assert!(matches!(order("explain --kernel k"), Ok(Order::Explain(_))));
        assert!(matches!(order("doctor --json"), Ok(Order::Doctor(_))));
        assert!(matches!(order("schema"), Ok(Order::Schema)));
        assert!(matches!(order("cpu dump --config f"), Ok(Order::Cpu(_))));
        assert!(matches!(order("ctl a.sock pause"), Ok(Order::Ctl(_))));
        assert!(matches!(order("ps --json"), Ok(Order::Ps(_))));
        assert!(matches!(order("image ls"), Ok(Order::Image(_))));
        assert!(order("ctl a.sock").is_err() && order("ctl a.sock fly").is_err());
    }

    #[test]
    fn timings_may_stand_alone_or_name_a_format() {
        for (line, format) in [
            ("--kernel k --timings", Some(TimingsFormat::Table)),
            ("--timings json --kernel k", Some(TimingsFormat::Json)),
            ("--timings=json --kernel k", Some(TimingsFormat::Json)),
            ("--timings --kernel k", Some(TimingsFormat::Table)),
            ("--kernel k", None),
        ] {
            let Ok(Order::Run(_, run)) = order(line) else { panic!("{line}") };
            assert_eq!(run.timings, format, "{line}");
        }
    }

    /// Without --no-api Firecracker always has its API.
    #[test]
    fn as_firecracker_its_socket_is_the_api_s() {
        let (own, firecracker) = (Personality::Own, Personality::Firecracker);
        let standard = Some(Some("/run/firecracker.socket"));
        for (personality, line, socket) in [
            (firecracker, "", standard),
            (firecracker, "--id a", standard),
            (firecracker, "--config-file f", standard),
            (firecracker, "--id a --api-sock s", Some(Some("s"))),
            (firecracker, "--no-api --config-file f --id a", None),
            (own, "--id a", Some(None)),
            (own, "--id a --api-sock s", Some(Some("s"))),
            (own, "--config-file f", None),
        ] {
            let words = std::iter::once("x").chain(line.split_whitespace()).map(OsString::from);
            let Ok(Order::Run(_, run)) = read(words, personality) else { panic!("{line}") };
            let api = run.api(personality).map(|api| api.socket);
            assert_eq!(api, socket.map(|path| path.map(PathBuf::from)), "{personality:?} {line}");
        }
        assert!(read(["vmm".into()], own).is_err());
    }

    /// SendCtrlAltDel needs one; a configuration, and --set, may do without.
    #[test]
    fn as_firecracker_a_vm_has_a_keyboard() {
        let (own, firecracker) = (Personality::Own, Personality::Firecracker);
        for (personality, line, keyboard) in [
            (firecracker, "--kernel k", true),
            (firecracker, "--kernel k --set keyboard=false", false),
            (own, "--kernel k", false),
            (own, "--kernel k --keyboard", true),
        ] {
            let words = std::iter::once("x").chain(line.split_whitespace()).map(OsString::from);
            let Ok(Order::Run(vm, _)) = read(words, personality) else { panic!("{line}") };
            assert_eq!(vm.load(None).unwrap().keyboard, keyboard, "{personality:?} {line}");
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(br#"{"boot-source": {"kernel_image_path": "k"}, "keyboard": false}"#).unwrap();
        let words = ["x".into(), "--config-file".into(), file.path().into()];
        let Ok(Order::Run(vm, _)) = read(words, firecracker) else { panic!("a command line") };
        assert!(!vm.load(None).unwrap().keyboard, "the file says otherwise");
        let Ok(Order::Run(vm, _)) = read(["x".into()], firecracker) else { panic!("a command line") };
        assert!(vm.draft().unwrap().config().keyboard, "a VM that comes by the API");
    }

    #[test]
    fn ids_are_as_in_firecracker() {
        assert!(instance_id("a-1").is_ok());
        for bad in ["", "a_b", "a b", &"a".repeat(65)] {
            assert!(instance_id(bad).is_err(), "{bad}");
        }
    }
}
