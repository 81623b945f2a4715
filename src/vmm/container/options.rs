//! What `vmm run` takes: Docker's flags with Docker's meaning, and what the VM shall be.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ::container::seccomp::Confinement;
use ::container::size::bytes;
use ::container::spec::Wishes;
use ::container::volume::{Source, Volume};
use clap::{Args, ValueEnum};
use protocol::cpus::CpuList;

use super::disk_limits::DiskArgs;
use super::health::HealthArgs;
use super::network::NetworkArgs;
use super::restart::Restart;
use super::signal::signal_number;
use super::template::Templates;
use crate::args::{instance_id, mebibytes};

/// Least and most bytes of a disk image for what a container writes: what mke2fs makes of fewer is full, and ext4 with
/// blocks of 4 KiB has no more.
const STORAGE_LEAST: u64 = 8 << 20;
const STORAGE_MOST: u64 = 16 << 40;
/// Least bytes of memory that a container may be limited to, as Docker's.
const MEMORY_LEAST: u64 = 6 << 20;

/// What `vmm run` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct ContainerArgs {
    /// Leave the container to itself and print its name
    #[arg(short, long)]
    pub detach: bool,
    /// This is the process that a detached container is left to
    #[arg(long, hide = true)]
    pub owner: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove what is known of the container, and its log, at its end
    #[arg(long)]
    pub rm: bool,
    /// Start it again when it ends: no, on-failure[:TIMES], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no", conflicts_with = "rm")]
    pub restart: Restart,
    /// Name of the container [default: one that is made up]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A note for people and programs
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Have a first process that hands signals on and reaps what nobody else does
    #[arg(long)]
    pub init: bool,
    /// Signal that asks it to end [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = signal_number)]
    pub stop_signal: Option<i32>,
    /// Set a variable of the environment; without a value, to this process's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read variables from a file, one NAME=VALUE on a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// User, and group, of the image or by number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// host: its users are the VM's; private: it has users of its own, and its root is nobody in the VM
    #[arg(long, value_name = "MODE", default_value = "host")]
    pub userns: UserNamespace,
    /// One more group of the user, of the image or by number
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Program instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Host name of the container [default: its name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// The container cannot write to its root file system
    #[arg(long)]
    pub read_only: bool,
    /// What the container writes to its root file system goes to a disk image that may grow so far [default: the VM's
    /// memory, half of it]
    #[arg(long, value_name = "size=SIZE", value_parser = storage)]
    pub storage_opt: Option<u64>,
    /// A file system in memory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// A directory of the host, a file of it (read-only), or a named volume, in the container
    #[arg(short, long, value_name = "HOST-DIR|NAME:PATH[:ro]")]
    pub volume: Vec<String>,
    /// Most memory of the container's /dev/shm: 256m, 1g, or a number of bytes [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub shm_size: Option<u64>,
    /// A capability that the container has beside the usual ones
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// A capability that it has not
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// no-new-privileges: no program gets more rights than the first; seccomp=unconfined: every system call is allowed;
    /// seccomp=FILE: those that a profile in Docker's or OCI's format allows
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Most memory of the container: 512m, 2g, or a number of bytes; 0: no limit
    #[arg(short, long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<u64>,
    /// Most CPU time: 0.5 is half a CPU; 0: no limit
    #[arg(long, value_name = "NUMBER", value_parser = milli_cpus)]
    pub cpus: Option<u64>,
    /// The VM's CPUs that the container may run on: 0-2,5
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<CpuList>,
    /// Most processes and threads; -1 or 0: no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// A limit of the container's processes
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    #[command(flatten)]
    pub disk_limits: DiskArgs,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[command(flatten)]
    pub health: HealthArgs,
    /// Run in this tenant's VM, with its other containers; it is started where it is not there, and ends with the last one
    #[arg(long, value_name = "NAME", value_parser = instance_id, help_heading = "Virtual machine")]
    pub vm: Option<String>,
    /// The VM's kernel [default: $VMM_KERNEL, or vmlinux beside this program, or the newest /boot/vmlinuz-VERSION]
    #[arg(long, value_name = "FILE", env = "VMM_KERNEL", help_heading = "Virtual machine")]
    pub kernel: Option<PathBuf>,
    /// The folder of that kernel's modules, where it has not all that is needed built in [default: $VMM_MODULES, or
    /// /lib/modules/VERSION for /boot/vmlinuz-VERSION]
    #[arg(long, value_name = "DIR", env = "VMM_MODULES", help_heading = "Virtual machine")]
    pub modules: Option<PathBuf>,
    /// The VM's memory: 512M, 2G, or a number of MiB [default: what the container may use and 96 MiB, or 512 MiB]
    #[arg(long, value_name = "SIZE", value_parser = mebibytes, help_heading = "Virtual machine")]
    pub vm_memory: Option<u64>,
    /// The VM's CPUs [default: as many as --cpus and --cpuset-cpus need, at least 1]
    #[arg(long, value_name = "NUMBER", help_heading = "Virtual machine")]
    pub vm_cpus: Option<u64>,
    /// auto: the VM goes on from a template where there is one of its kind, which the second such VM makes; never: it boots, as a
    /// tenant's VM always does
    #[arg(long, value_name = "WHEN", env = "VMM_TEMPLATES", default_value = "auto", help_heading = "Virtual machine")]
    pub templates: Templates,
    /// NAME[:TAG] or NAME@DIGEST, pulled where the store has it not; oci:DIR[:REF], oci-archive:FILE[:REF],
    /// docker-archive:FILE[:REF], or - for a tar of either kind on standard input
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Program and arguments, instead of the image's
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Whose users a container's are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UserNamespace {
    /// The VM's.
    Host,
    /// Its own.
    Private,
}

/// `size=64m`, in MiB.
fn storage(text: &str) -> Result<u64, String> {
    let size = text.strip_prefix("size=").ok_or("size=SIZE is the option that is known")?;
    match bytes(size)? {
        bytes @ STORAGE_LEAST..=STORAGE_MOST => Ok(bytes >> 20),
        _ => Err(format!("from {}m to {}t; a number without a unit is bytes", STORAGE_LEAST >> 20, STORAGE_MOST >> 40)),
    }
}

/// Bytes of memory; 0 is no limit.
fn memory(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        1..MEMORY_LEAST => {
            Err(format!("at least {}m, or 0 for no limit; a number without a unit is bytes", MEMORY_LEAST >> 20))
        }
        bytes => Ok(bytes),
    }
}

/// Thousandths of a CPU; 0 is no limit. The kernel knows no share below 1 ms in 100 ms.
fn milli_cpus(text: &str) -> Result<u64, String> {
    let cpus: f64 = text.parse().map_err(|_| "a number of CPUs is expected, as 0.5 or 2".to_owned())?;
    if cpus != 0.0 && !(0.01..=1024.0).contains(&cpus) {
        return Err("from 0.01 to 1024 CPUs, or 0 for no limit".to_owned());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most 1,024,000
    Ok((cpus * 1000.0).round() as u64)
}

/// A limit, unless it is none.
fn limit(number: Option<u64>) -> Option<u64> {
    number.filter(|number| *number > 0)
}

impl ContainerArgs {
    /// What the container shall be otherwise than its image says.
    pub fn wishes(&self, id: &str) -> Result<Wishes, String> {
        let (no_new_privileges, confinement) = security(&self.security_opt)?;
        Ok(Wishes {
            args: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            env: self.env()?,
            workdir: self.workdir.clone(),
            hostname: self.hostname.clone().unwrap_or_else(|| id.to_owned()),
            read_only: self.read_only,
            tmpfs: self.tmpfs.clone(),
            shm_bytes: limit(self.shm_size),
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            memory: self.memory_limit(),
            milli_cpus: limit(self.cpus),
            cpus: self.cpuset_cpus.clone(),
            pids: limit(self.pids_limit.and_then(|most| u64::try_from(most).ok())),
            ulimits: self.ulimit.clone(),
            terminal: self.tty,
            no_new_privileges,
            confinement,
        })
    }

    /// Most bytes of memory.
    pub fn memory_limit(&self) -> Option<u64> {
        limit(self.memory)
    }

    /// Variables of files, then of flags; a name alone takes this process's value, if it has one.
    fn env(&self) -> Result<Vec<String>, String> {
        let mut env = Vec::new();
        for path in &self.env_file {
            let text =
                std::fs::read_to_string(path).map_err(|error| format!("--env-file {}: {error}", path.display()))?;
            let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
            env.extend(lines.map(str::to_owned));
        }
        env.extend(self.env.iter().cloned());
        Ok(own_values(env))
    }

    /// CPUs of the VM, where this container starts it.
    pub fn vcpu_count(&self) -> Result<u64, String> {
        let listed = self.cpuset_cpus.as_ref().map_or(1, |list| u64::from(list.needs()));
        let needed = self.cpus.map_or(1, |milli| milli.div_ceil(1000)).max(listed);
        match (self.vm_cpus, &self.cpuset_cpus) {
            (Some(has), Some(list)) if has < listed && self.vm.is_none() => {
                Err(format!("--cpuset-cpus {list}: the VM has no more than {has} (--vm-cpus), numbered from 0"))
            }
            (has, _) => Ok(has.unwrap_or(needed)),
        }
    }

    /// Whether the container has users of its own. The files of volumes are not theirs.
    pub fn has_own_users(&self, volumes: &[Volume]) -> Result<bool, String> {
        let other = volumes.iter().find(|volume| !matches!(volume.source, Source::Text(_)));
        match (self.userns, other) {
            (UserNamespace::Host, _) => Ok(false),
            (UserNamespace::Private, None) => Ok(true),
            (UserNamespace::Private, Some(volume)) => Err(format!(
                "--userns private: what is in a volume ({}) belongs to the VM's users; such a container can have files \
                 (-v FILE:PATH:ro), --tmpfs and --storage-opt",
                volume.path
            )),
        }
    }

    /// The notes, by their names.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let pair = |text: &String| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (name.to_owned(), value.to_owned())
        };
        self.label.iter().map(pair).collect()
    }
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

/// Variables; a name alone takes this process's value, if it has one.
pub fn own_values(env: Vec<String>) -> Vec<String> {
    let own = |entry: String| match entry.contains('=') {
        true => entry,
        false => std::env::var(&entry).map(|value| format!("{entry}={value}")).unwrap_or(entry),
    };
    env.into_iter().map(own).collect()
}

/// What a command line with an image says.
#[cfg(test)]
pub fn args(line: &str) -> ContainerArgs {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: ContainerArgs,
    }
    let words = std::iter::once("run").chain(line.split_whitespace());
    <Line as clap::Parser>::try_parse_from(words).expect("a command line").args
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_writable_layer_has_a_size() {
        assert_eq!((storage("size=64m"), storage("size=2G"), storage("size=16t")), (Ok(64), Ok(2048), Ok(16 << 20)));
        assert_eq!(storage("size=67108864"), Ok(64));
        assert!(storage("dm.basesize=1g").unwrap_err().contains("size=SIZE"));
        for wrong in ["size=64", "size=7m", "size=17t", "size=", "size=x", "64m"] {
            assert!(storage(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cpus_are_counted_in_thousandths() {
        assert_eq!((milli_cpus("0.5"), milli_cpus("2"), milli_cpus("0.01")), (Ok(500), Ok(2000), Ok(10)));
        for wrong in ["", "x", "0.001", "-1", "NaN", "2000"] {
            assert!(milli_cpus(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_of_a_container_are_in_bytes() {
        let wishes = args("--memory 67108864 --shm-size 4194304 image").wishes("c").unwrap();
        assert_eq!((wishes.memory, wishes.shm_bytes), (Some(64 << 20), Some(4 << 20)));
        let wishes = args("-m 6M --shm-size 1.5k image").wishes("c").unwrap();
        assert_eq!((wishes.memory, wishes.shm_bytes), (Some(6 << 20), Some(1536)));
        for few in ["64", "5m", "6291455"] {
            assert!(memory(few).unwrap_err().starts_with("at least 6m"), "{few}");
        }
    }

    #[test]
    fn nothing_and_less_are_no_limits() {
        for line in
            ["image", "--memory 0 --cpus 0 --pids-limit 0 --shm-size 0 image", "-m 0g --cpus 0.0 --pids-limit -1 image"]
        {
            let wishes = args(line).wishes("c").unwrap();
            assert_eq!(
                (wishes.memory, wishes.milli_cpus, wishes.pids, wishes.shm_bytes),
                (None, None, None, None),
                "{line}"
            );
            assert_eq!(args(line).vcpu_count(), Ok(1), "{line}");
        }
        assert_eq!(args("--pids-limit 9 image").wishes("c").unwrap().pids, Some(9));
    }
}
