//! `vmm run`: a container of an image in a microVM of its own.
//!
//! The image comes into the store where it is not there yet; a VM starts with the image's layers as partitions of one
//! disk; its agent makes the container; this process is the user's end of its streams. The VM ends with the container.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use ::container::parts::Parts;
use ::container::reference::Reference;
use ::container::seccomp::Confinement;
use ::container::session::Session;
use ::container::source::Options;
use ::container::spec::{Wishes, spec};
use ::container::store::{Image, Lease, Store};
use ::container::vm::{Vm, VmWishes};
use clap::Args;
use machine::signals::Signals;
use protocol::message::{File, Order, Run};

use super::attach::{self, attach};
use crate::args::mebibytes;
use crate::image::bring;
use crate::table::shown;

/// Exit status when the fault is not the container's, as Docker's.
const FAILED: u8 = 125;
/// Memory of a VM beside what a container may use, MiB: the kernel, the agent, the runtime.
const OWN_MIB: u64 = 96;
/// Memory of a VM whose container has no limit, MiB.
const USUAL_MIB: u64 = 512;

/// What `vmm run` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct ContainerArgs {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// Remove the container at its end: so it is always, as yet
    #[arg(long)]
    rm: bool,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Set a variable of the environment; without a value, to this process's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file, one NAME=VALUE on a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// User, and group, of the image or by number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Program instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Host name of the container [default: its name]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// The container cannot write to its root file system
    #[arg(long)]
    read_only: bool,
    /// A file system in memory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// A capability that the container has beside the usual ones
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// A capability that it has not
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// no-new-privileges: no program gets more rights than the first; seccomp=unconfined: every system call is allowed;
    /// seccomp=FILE: those that a profile in Docker's or OCI's format allows
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Most memory of the container: 512m, 2g, or a number of MiB
    #[arg(short, long, value_name = "SIZE", value_parser = mebibytes)]
    memory: Option<u64>,
    /// Most CPU time: 0.5 is half a CPU
    #[arg(long, value_name = "NUMBER", value_parser = milli_cpus)]
    cpus: Option<u64>,
    /// Most processes and threads
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<u64>,
    /// A limit of the container's processes
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Networks: none
    #[arg(long, value_name = "NETWORK", default_value = "none", value_parser = ["none"])]
    network: String,
    /// The VM's kernel [default: $VMM_KERNEL, or vmlinux beside this program]
    #[arg(long, value_name = "FILE", env = "VMM_KERNEL", help_heading = "Virtual machine")]
    kernel: Option<PathBuf>,
    /// The VM's memory: 512M, 2G, or a number of MiB [default: what the container may use and 96 MiB, or 512 MiB]
    #[arg(long, value_name = "SIZE", value_parser = mebibytes, help_heading = "Virtual machine")]
    vm_memory: Option<u64>,
    /// The VM's CPUs [default: as many as --cpus needs, at least 1]
    #[arg(long, value_name = "NUMBER", help_heading = "Virtual machine")]
    vm_cpus: Option<u64>,
    /// NAME[:TAG] or NAME@DIGEST, pulled where the store has it not; oci:DIR[:REF], oci-archive:FILE[:REF],
    /// docker-archive:FILE[:REF], or - for a tar of either kind on standard input
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Program and arguments, instead of the image's
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Thousandths of a CPU.
fn milli_cpus(text: &str) -> Result<u64, String> {
    let cpus: f64 = text.parse().map_err(|_| "a number of CPUs is expected, as 0.5 or 2".to_owned())?;
    if !(0.001..=1024.0).contains(&cpus) {
        return Err("from 0.001 to 1024 CPUs".to_owned());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 1 and 1,024,000
    Ok((cpus * 1000.0).round() as u64)
}

/// Runs a container to its end.
pub fn run(args: &ContainerArgs) -> ExitCode {
    match begin(args) {
        Err(why) => failed(&why),
        Ok((vm, session, _lease)) => {
            // Until now they end this process, and the VM with it.
            let signals = match Signals::block(&attach::SIGNALS) {
                Ok(signals) => signals,
                Err(error) => return failed(&format!("block signals: {error}")),
            };
            let ended = attach(session, signals, args.interactive, args.tty);
            let console = vm.console();
            let off = vm.power_off();
            match (ended, off) {
                (Ok(exit), Ok(())) => {
                    if exit.oom_killed {
                        eprintln!("vmm: a process of the container was killed: its memory was used up (--memory)");
                    }
                    ExitCode::from(exit.code)
                }
                (Ok(_), Err(error)) => failed(&format!("switch the VM off: {error}")),
                (Err(error), _) => {
                    let status = error.status();
                    let console =
                        if matches!(error, attach::AttachError::Session(_)) { console } else { String::new() };
                    complain(&format!("{error}{console}"));
                    status
                }
            }
        }
    }
}

fn failed(why: &str) -> ExitCode {
    complain(why);
    ExitCode::from(FAILED)
}

fn complain(why: &str) {
    eprintln!("vmm: {}", plain(why));
}

/// Some of it may be the guest's words, which are not for the terminal to obey.
fn plain(why: &str) -> String {
    why.lines().map(shown).collect::<Vec<_>>().join("\n")
}

/// The VM, and the conversation in which the container was ordered. The lease keeps the image.
fn begin(args: &ContainerArgs) -> Result<(Vm, Session, Lease), String> {
    if args.tty && !io::stdin().is_terminal() {
        return Err("--tty: standard input is not a terminal".to_owned());
    }
    let store = Store::of_this_user().map_err(|error| error.to_string())?;
    let kernel = kernel(args)?;
    let (image, lease) = image(&store, &args.image)?;
    let id = args.name.clone().unwrap_or_else(|| format!("c-{}", std::process::id()));
    let run_config = image.config.config.clone().unwrap_or_default();
    let wishes = wishes(args, &id)?;
    let spec = spec(&run_config, &wishes).map_err(|error| format!("{}: {error}", args.image))?;
    let parts = Parts::ready(&store.path().join("guest")).map_err(|error| error.to_string())?;
    let vm_wishes = VmWishes {
        program: std::env::current_exe().map_err(|error| format!("find this program: {error}"))?,
        kernel,
        mem_size_mib: args.vm_memory.unwrap_or(args.memory.map_or(USUAL_MIB, |limit| limit.saturating_add(OWN_MIB))),
        vcpu_count: args.vm_cpus.unwrap_or(args.cpus.map_or(1, |milli| milli.div_ceil(1000))),
        hostname: id.clone(),
        layers: image.config.rootfs.diff_ids.iter().map(|layer| store.layer_path(layer)).collect(),
    };
    let vm = Vm::start(&vm_wishes, &parts).map_err(|error| error.to_string())?;
    let mut session = Session::call(&vm.socket()).map_err(|error| format!("{error}{}", vm.console()))?;
    let order = Run {
        id,
        layers: vm.layers().to_vec(),
        writable_bytes: vm_wishes.mem_size_mib.saturating_mul(1 << 19), // half of the memory
        files: files(&wishes.hostname),
        spec,
        user: args.user.clone().or(run_config.user).unwrap_or_default(),
        terminal: args.tty.then(attach::window),
        stdin: args.interactive,
    };
    session.say(&Order::Run(Box::new(order))).map_err(|error| error.to_string())?;
    Ok((vm, session, lease))
}

/// The image, from wherever it is.
fn image(store: &Store, text: &str) -> Result<(Image, Lease), String> {
    let reference: Reference = text.parse().map_err(|error| format!("{error}"))?;
    if let Reference::Registry(name) = &reference
        && store.find(&name.to_string()).is_ok()
    {
        return store.hold(&name.to_string()).map_err(|error| error.to_string());
    }
    let added = bring(store, &reference, text, &[], &Options::default(), false)?;
    Ok((added.image, added.lease))
}

/// The kernel that is asked for, or the one that comes with this program.
fn kernel(args: &ContainerArgs) -> Result<PathBuf, String> {
    if let Some(kernel) = &args.kernel {
        return Ok(kernel.clone());
    }
    let own = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join("vmlinux")));
    own.filter(|path| path.is_file()).ok_or_else(|| {
        "which kernel? --kernel FILE or the variable VMM_KERNEL says it; tools/kernel builds one that fits".to_owned()
    })
}

fn wishes(args: &ContainerArgs, id: &str) -> Result<Wishes, String> {
    let (no_new_privileges, confinement) = security(&args.security_opt)?;
    Ok(Wishes {
        args: args.command.clone(),
        entrypoint: args.entrypoint.clone(),
        env: env(args)?,
        workdir: args.workdir.clone(),
        hostname: args.hostname.clone().unwrap_or_else(|| id.to_owned()),
        read_only: args.read_only,
        tmpfs: args.tmpfs.clone(),
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        memory: args.memory.map(|mib| mib.saturating_mul(1 << 20)),
        milli_cpus: args.cpus,
        pids: args.pids_limit,
        ulimits: args.ulimit.clone(),
        terminal: args.tty,
        no_network: true,
        no_new_privileges,
        confinement,
    })
}

/// Whether programs may give more rights, and which system calls are allowed. The last word counts.
fn security(options: &[String]) -> Result<(bool, Confinement), String> {
    let mut found = (false, Confinement::Usual);
    for option in options {
        match option.split_once(['=', ':']).unwrap_or((option, "")) {
            ("no-new-privileges", "" | "true") => found.0 = true,
            ("no-new-privileges", "false") => found.0 = false,
            ("seccomp", "unconfined") => found.1 = Confinement::Unconfined,
            ("seccomp", file) if !file.is_empty() => {
                found.1 = Confinement::read(file.as_ref()).map_err(|error| error.to_string())?;
            }
            _ => {
                return Err(format!(
                    "--security-opt {option}: no-new-privileges, seccomp=unconfined and seccomp=FILE are known"
                ));
            }
        }
    }
    Ok(found)
}

/// Variables of files, then of flags; a name alone takes this process's value, if it has one.
fn env(args: &ContainerArgs) -> Result<Vec<String>, String> {
    let mut env = Vec::new();
    for path in &args.env_file {
        let text = std::fs::read_to_string(path).map_err(|error| format!("--env-file {}: {error}", path.display()))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
        env.extend(lines.map(str::to_owned));
    }
    env.extend(args.env.iter().cloned());
    let own = |entry: String| match entry.contains('=') {
        true => entry,
        false => std::env::var(&entry).map(|value| format!("{entry}={value}")).unwrap_or(entry),
    };
    Ok(env.into_iter().map(own).collect())
}

/// Files that every container has.
fn files(hostname: &str) -> Vec<File> {
    let file = |path: &str, content: String| File { path: path.to_owned(), content };
    vec![
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/hosts", format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t{hostname}\n")),
        file("/etc/resolv.conf", String::new()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_last_words_do_not_move_the_cursor() {
        assert_eq!(plain("its console:\nred \x1b[31m\r\nend"), "its console:\nred \\u{1b}[31m\nend");
    }

    #[test]
    fn security_options_are_those_of_docker() {
        let of = |options: &[&str]| security(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]), Ok((false, Confinement::Usual)));
        assert_eq!(of(&["no-new-privileges", "seccomp=unconfined"]), Ok((true, Confinement::Unconfined)));
        assert_eq!(of(&["no-new-privileges:false"]), Ok((false, Confinement::Usual)));
        for wrong in ["label=disable", "seccomp", "no-new-privileges=1"] {
            assert!(of(&[wrong]).unwrap_err().contains("are known"), "{wrong}");
        }
    }

    #[test]
    fn cpus_are_counted_in_thousandths() {
        assert_eq!((milli_cpus("0.5"), milli_cpus("2")), (Ok(500), Ok(2000)));
        for wrong in ["", "x", "0", "-1", "NaN", "2000"] {
            assert!(milli_cpus(wrong).is_err(), "{wrong}");
        }
    }
}
