//! What ends containers and asks how they ended: `vmm kill`, `vmm stop`, `vmm wait`, `vmm rm`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use ::container::register::{Container, Containers, State};
use ::container::session::Session;
use ::container::store::Store;
use clap::Args;
use protocol::message::{Done, Order};
use rustix::process::{Pid, Signal, kill_process};

use super::run::complain;
use super::signal::signal_number;

/// How long a container that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(20);

/// What `vmm kill` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct KillArgs {
    /// The signal, by its name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal_number)]
    signal: i32,
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// What `vmm stop` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct StopArgs {
    /// How long it may take, before it is killed
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", default_value_t = 10)]
    time: u64,
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// What `vmm wait` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct WaitArgs {
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// What `vmm rm` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct RmArgs {
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// Sends signals. One that kills ends a container for good.
pub fn kill(args: &KillArgs) -> ExitCode {
    each(&args.containers, |container| {
        if args.signal == libc::SIGKILL {
            container.ask_to_stop().map_err(|error| error.to_string())?;
        }
        signal(container, args.signal)?;
        Ok(container.record.name.clone())
    })
}

/// Ends containers.
pub fn stop(args: &StopArgs) -> ExitCode {
    each(&args.containers, |container| {
        end(container, container.record.stop_signal, Duration::from_secs(args.time))?;
        Ok(container.record.name.clone())
    })
}

/// Waits for the end of containers and prints their exit statuses.
pub fn wait(args: &WaitArgs) -> ExitCode {
    each(&args.containers, |container| match container.wait(None) {
        Ok(ended) => Ok(ended.unwrap_or_default().code.to_string()),
        Err(error) => Err(error.to_string()),
    })
}

/// Removes containers.
pub fn remove(args: &RmArgs) -> ExitCode {
    let all = match containers() {
        Ok(all) => all,
        Err(why) => return super::run::failed(&why),
    };
    each(&args.containers, |container| {
        if args.force {
            end(container, libc::SIGKILL, GONE)?;
        }
        match all.remove(container) {
            // One that goes with its end has gone.
            Err(_) if !container.folder().exists() => Ok(container.record.name.clone()),
            done => done.map(|()| container.record.name.clone()).map_err(|error| error.to_string()),
        }
    })
}

/// This user's containers.
pub fn containers() -> Result<Containers, String> {
    let store = Store::of_this_user().map_err(|error| error.to_string())?;
    Ok(Containers::of(store.path()))
}

/// The container of this name.
pub fn find(name: &str) -> Result<Container, String> {
    containers()?.find(name).map_err(|error| error.to_string())
}

/// Does something with each; prints what came of it.
fn each(names: &[String], act: impl Fn(&Container) -> Result<String, String>) -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for name in names {
        match find(name).and_then(|container| act(&container)) {
            Ok(said) => {
                let _ = writeln!(io::stdout(), "{said}");
            }
            Err(why) => {
                complain(&why);
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

/// Sends a signal to the first process of a container.
fn signal(container: &Container, signal: i32) -> Result<(), String> {
    let socket = container.socket().map_err(|error| error.to_string())?;
    let id = container.record.name.clone();
    let say = || {
        let mut session = Session::call(socket)?;
        session.say(&Order::Kill { id, signal })?;
        session.message()
    };
    match say().map_err(|error| error.to_string())? {
        Done::Ok => Ok(()),
        Done::Failed(failure) => Err(failure.why),
    }
}

/// Ends a container: first it is asked, then it is killed, and where its VM does not hear, its owner is, and the VM with it.
fn end(container: &Container, asking: i32, patience: Duration) -> Result<(), String> {
    if matches!(container.state(), State::Ended(_)) {
        return Ok(());
    }
    let waited = |most| match container.wait(Some(most)) {
        Ok(ended) => Ok(ended.is_some()),
        Err(_) if !container.folder().exists() => Ok(true),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = container.ask_to_stop()
        && container.folder().exists()
    {
        return Err(error.to_string());
    }
    let asked = signal(container, asking);
    if asked.is_ok() && waited(patience)? {
        return Ok(());
    }
    if asked.is_ok() && asking != libc::SIGKILL && signal(container, libc::SIGKILL).is_ok() && waited(GONE)? {
        return Ok(());
    }
    if waited(Duration::ZERO)? {
        return Ok(());
    }
    // Its lock is held, so the number is still its owner's.
    let owner = i32::try_from(container.record.pid).ok().and_then(Pid::from_raw).ok_or("its owner has no number")?;
    kill_process(owner, Signal::KILL)
        .map_err(|error| format!("kill the owner of {}: {error}", container.record.name))?;
    match waited(GONE)? {
        true => Ok(()),
        false => Err(format!("container {} does not end", container.record.name)),
    }
}
