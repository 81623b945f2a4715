//! `vmm run`: a container of an image in a microVM.
//!
//! The image comes into the store where it is not there yet; a VM starts with the image's layers as partitions of one
//! disk; its agent makes the container. This process is the container's owner: the user's end of its streams, the keeper of
//! its log, the one who starts it again. Of a detached container that is a process of its own (detach.rs).

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ::container::kernel::Kernel;
use ::container::output::Log;
use ::container::ports::{Ports, Served};
use ::container::reference::Reference;
use ::container::register::{Containers, Ended, Owned, Record, now_ms};
use ::container::session::Session;
use ::container::source::Options;
use ::container::spec::spec;
use ::container::store::{Image, Lease, Store};
use ::container::vm::Sights;
use machine::signals::Signals;
use protocol::disks::Writable;
use protocol::message::{Exit, Order, Run};

use super::asked::Asked;
use super::attach::{self, AttachError, Ends};
use super::detach;
use super::health::Checks;
use super::home::{self, Home, Wanted};
use super::options::ContainerArgs;
use super::places::Places;
use super::restart::Pauses;
use super::signal::signal_number;
use crate::image::{bring, warn_of_latest};
use crate::table::shown;

/// Exit status when the fault is not the container's, as Docker's.
pub const FAILED: u8 = 125;
/// Keys that are not there cannot be a terminal's.
pub(super) const NO_TERMINAL: &str = "-i and -t together: standard input is not a terminal; leave one of them out";
/// How often an owner that waits looks whether it still should.
const LOOK: Duration = Duration::from_millis(20);

/// A container that is ordered.
struct Ordered {
    home: Home,
    order: Run,
    owned: Owned,
    /// Where what it is was written.
    places: Places,
    checks: Option<Checks>,
    /// Ports that the VM's network has not, until the container runs.
    ports: Option<Ports>,
    /// Keeps the image.
    _lease: Lease,
}

/// Runs a container to its end, or leaves it to a process of its own.
pub fn run(args: &ContainerArgs) -> ExitCode {
    if args.detach && !args.owner {
        return detach::start(args);
    }
    if args.owner
        && let Err(why) = detach::leave_terminal()
    {
        return failed(&why);
    }
    match begin(args) {
        Err(why) => failed(&why),
        Ok(ordered) => {
            // Until now they end this process, and the VM with it.
            let signals = match Signals::block(&attach::SIGNALS) {
                Ok(signals) => signals,
                Err(error) => return failed(&format!("block signals: {error}")),
            };
            follow(ordered, args, signals)
        }
    }
}

/// From its start to its end, and the VM's.
fn follow(mut ordered: Ordered, args: &ContainerArgs, signals: Signals) -> ExitCode {
    let ended = log(&ordered.owned).and_then(|log| {
        let mut ends = Ends {
            stdin: args.interactive && !args.detach,
            terminal: args.tty,
            hidden: args.detach,
            log: Some(log),
            signals: Some(signals),
            ..Ends::default()
        };
        again_and_again(&mut ordered, args, &mut ends)
    });
    let Ordered { home, owned, places, .. } = ordered;
    let console = home.console();
    let off = home.leave();
    let (code, why) = match (&ended, off) {
        (Ok(exit), Ok(())) => (exit.code, None),
        (Ok(_), Err(error)) => (FAILED, Some(format!("switch the VM off: {error}"))),
        (Err(error), _) => {
            let why = match error {
                AttachError::Failed(failure) => places.tell(failure),
                AttachError::Session(_) => format!("{error}{console}"),
                AttachError::Io(..) => error.to_string(),
            };
            (error.status(), Some(why))
        }
    };
    let oom_killed = ended.is_ok_and(|exit| exit.oom_killed);
    if oom_killed {
        complain("a process of the container was killed: its memory was used up (--memory)");
    }
    if let Some(why) = &why {
        complain(why);
    }
    if let Err(error) = owned.ended(&Ended { code, oom_killed, at_ms: now_ms(), why }) {
        complain(&error.to_string());
    }
    ExitCode::from(code)
}

fn log(owned: &Owned) -> Result<Log, AttachError> {
    Log::create(owned.folder()).map_err(|error| AttachError::Io("make the container's log", error))
}

/// Runs the container, as often as it shall be started again.
fn again_and_again(ordered: &mut Ordered, args: &ContainerArgs, ends: &mut Ends) -> Result<Exit, AttachError> {
    let mut pauses = Pauses::default();
    let (mut watched, mut served) = (None, None);
    loop {
        let mut session = Session::call(&ordered.home.socket())?;
        session.say(&Order::Run(Box::new(ordered.order.clone())))?;
        let begun = Instant::now();
        let owned = &mut ordered.owned;
        let mut noted = Ok(());
        let exit = ends.attach(session, || {
            noted = owned.note(|record| record.started_ms = Some(now_ms()));
            if let Some(ports) = ordered.ports.take() {
                let (id, socket) = (owned.record().name.clone(), ordered.home.socket());
                served = ports.serve(socket, id).map_err(|error| complain(&error.to_string())).ok();
            }
            if let Some(checks) = ordered.checks.clone() {
                let (id, socket) = (owned.record().name.clone(), ordered.home.socket());
                watched = checks.watch(id, socket, owned.health()).map_err(|error| complain(&error.to_string())).ok();
            }
            if args.owner && owned.record().restarts == 0 {
                detach::started(owned);
            }
        })?;
        noted.map_err(|error| AttachError::Io("note the container's start", io::Error::other(error)))?;
        drop(watched.take());
        if !args.restart.again(exit.code, owned.record().restarts) || owned.is_stopping() {
            return Ok(exit);
        }
        served.iter().for_each(Served::restarts);
        let until = Instant::now() + pauses.next(begun.elapsed());
        while Instant::now() < until {
            if owned.is_stopping() {
                return Ok(exit);
            }
            sleep(LOOK);
        }
        let counted = owned.note(|record| record.restarts = record.restarts.saturating_add(1));
        counted.map_err(|error| AttachError::Io("note the container's start", io::Error::other(error)))?;
    }
}

pub(super) fn failed(why: &str) -> ExitCode {
    complain(why);
    ExitCode::from(FAILED)
}

pub(super) fn complain(why: &str) {
    eprintln!("vmm: {}", plain(why));
}

/// Some of it may be the guest's words, which are not for the terminal to obey.
fn plain(why: &str) -> String {
    why.lines().map(shown).collect::<Vec<_>>().join("\n")
}

/// The VM, and what is to be ordered in it.
fn begin(args: &ContainerArgs) -> Result<Ordered, String> {
    if args.interactive && args.tty && !args.detach && !io::stdin().is_terminal() {
        return Err(NO_TERMINAL.to_owned());
    }
    let Asked { name, wishes, volumes, own_users, disk_limits, mut network, vcpu_count } = Asked::of(args)?;
    let kernel = with_modules(args)?;
    let store = Store::of_this_user().map_err(|error| error.to_string())?;
    let (image, lease) = image(&store, &args.image)?;
    let wanted = Wanted::of(args, vcpu_count)?;
    let run_config = image.config.config.clone().unwrap_or_default();
    let spec = spec(&run_config, &wishes).map_err(|error| format!("{}: {error}", args.image))?;
    let stop_signal = match (args.stop_signal, &run_config.stop_signal) {
        (Some(asked), _) => asked,
        (None, Some(images)) => signal_number(images)
            .map_err(|why| format!("{}: the StopSignal of its configuration, {images}: {why}", args.image))?,
        (None, None) => libc::SIGTERM,
    };
    let command: Option<Vec<String>> =
        spec.pointer("/process/args").and_then(|args| serde_json::from_value(args.clone()).ok());
    let record = Record {
        name: name.clone(),
        image: args.image.clone(),
        command: command.unwrap_or_default(),
        created_ms: now_ms(),
        pid: std::process::id(),
        vm: args.vm.clone(),
        ports: args.network.publish.clone(),
        labels: args.labels(),
        stop_signal,
        remove: args.rm,
        ..Record::default()
    };
    let mut owned = Containers::of(store.path()).take(record).map_err(|error| error.to_string())?;
    let layers = home::named(&store, &image.config.rootfs.diff_ids);
    let names = layers.iter().map(|(name, _)| name.clone()).collect();
    let mut files = args.network.files(&wishes.hostname, &network);
    let writable =
        args.storage_opt.map(|mib| owned.make_writable(mib)).transpose().map_err(|error| error.to_string())?;
    let sights =
        Sights { network: network.vm.clone(), writable, ..home::sights(&store, layers, &volumes, &mut files)? };
    let (home, place) = home::home(args, wanted, &store, kernel, &name, sights)?;
    owned.note(|record| record.socket = Some(home.socket())).map_err(|error| error.to_string())?;
    let ports = Ports::take(network.without(&place.lacking)).map_err(|error| error.to_string())?;
    let places = Places::of(args, &run_config);
    let checks = Checks::of(&args.health, run_config.healthcheck.as_ref());
    let order = Run {
        id: name,
        layers: names,
        writable: match &place.writable {
            Some(serial) => Writable::Disk { serial: serial.clone() },
            None => Writable::Memory { bytes: place.mem_size_mib.saturating_mul(1 << 19) }, // half of it
        },
        files,
        volumes: home::in_vm(&volumes, &place),
        disk_limits,
        network: network.endpoint,
        spec,
        user: args.user.clone().or(run_config.user).unwrap_or_default(),
        own_users,
        groups: args.group_add.clone(),
        init: args.init,
        terminal: args.tty.then(attach::window),
        stdin: args.interactive,
    };
    Ok(Ordered { home, order, owned, places, checks, ports, _lease: lease })
}

/// A name for a container whose user has none for it.
pub(super) fn made_up_name() -> Result<String, String> {
    let mut bytes = [0; 5];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| format!("make a name up: {error}"))?;
    Ok(bytes.iter().fold("c-".to_owned(), |name, byte| format!("{name}{byte:02x}")))
}

/// The image, from wherever it is.
pub fn image(store: &Store, text: &str) -> Result<(Image, Lease), String> {
    let reference: Reference = text.parse().map_err(|error| format!("{error}"))?;
    if let Reference::Registry(name) = &reference
        && store.find(&name.to_string()).is_ok()
    {
        return store.hold(&name.to_string()).map_err(|error| error.to_string());
    }
    if let Reference::Registry(name) = &reference {
        warn_of_latest(name);
    }
    let added = bring(store, &reference, text, &[], &Options::default(), false)?;
    Ok((added.image, added.lease))
}

/// The kernel that is asked for, or the one that comes with this program.
pub fn kernel(asked: Option<&PathBuf>) -> Result<PathBuf, String> {
    if let Some(kernel) = asked {
        return Ok(kernel.clone());
    }
    let own = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join("vmlinux")));
    own.filter(|path| path.is_file()).ok_or_else(|| {
        "which kernel? --kernel FILE or the variable VMM_KERNEL says it; tools/kernel builds one that fits".to_owned()
    })
}

/// That kernel, or a distribution's, with its modules.
fn with_modules(args: &ContainerArgs) -> Result<Kernel, String> {
    let modules = args.modules.clone().filter(|folder| !folder.as_os_str().is_empty());
    match kernel(args.kernel.as_ref()) {
        Ok(path) => match File::open(&path) {
            Ok(_) => Ok(Kernel::at(path, modules)),
            Err(error) => Err(format!("the kernel {} (--kernel, VMM_KERNEL): {error}", path.display())),
        },
        Err(why) if modules.is_some() => Err(why),
        Err(why) => Kernel::newest("/".as_ref())
            .ok_or_else(|| format!("{why}; /boot has none with its modules that this user may read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_last_words_do_not_move_the_cursor() {
        assert_eq!(plain("its console:\nred \x1b[31m\r\nend"), "its console:\nred \\u{1b}[31m\nend");
    }
}
