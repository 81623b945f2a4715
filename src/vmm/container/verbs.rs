//! What ends containers and asks how they ended: `vmm kill`, `vmm stop`, `vmm wait`, `vmm rm`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use ::container::register::{Container, Containers, State};
use ::container::session::Session;
use ::container::store::Store;
use clap::Args;
use protocol::message::Order;
use rustix::process::{Pid, Signal, kill_process};

use super::run::complain;
use super::signal::signal_number;

/// How long agents and owners may take.
#[derive(Clone, Copy)]
struct Patience {
    /// The agent, to answer.
    answer: Duration,
    /// A container that was killed, to be gone.
    gone: Duration,
    /// One whose agent hung up: it may be ending.
    hung_up: Duration,
}

const PATIENCE: Patience =
    Patience { answer: Duration::from_secs(10), gone: Duration::from_secs(20), hung_up: Duration::from_secs(2) };

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
        signal(container, args.signal, PATIENCE.answer)?;
        Ok(container.record.name.clone())
    })
}

/// Ends containers.
pub fn stop(args: &StopArgs) -> ExitCode {
    each(&args.containers, |container| {
        end(container, container.record.stop_signal, Duration::from_secs(args.time), PATIENCE)?;
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
            end(container, libc::SIGKILL, PATIENCE.gone, PATIENCE)?;
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

/// The conversation with the agent of a container that runs, in which this is ordered.
pub fn order(container: &Container, order: &Order) -> Result<Session, String> {
    let socket = container.socket().map_err(|error| error.to_string())?;
    let mut session = Session::call(socket).map_err(|error| error.to_string())?;
    session.say(order).map_err(|error| error.to_string())?;
    Ok(session)
}

/// Sends a signal to the first process of a container.
fn signal(container: &Container, signal: i32, answer: Duration) -> Result<(), String> {
    let socket = container.socket().map_err(|error| error.to_string())?;
    let order = Order::Kill { id: container.record.name.clone(), signal };
    Session::have_done(socket, &order, answer).map_err(|error| error.to_string())
}

/// Ends a container: first it is asked, then it is killed, and where its VM does not hear, its owner is, and the VM with it.
fn end(container: &Container, asking: i32, first: Duration, patience: Patience) -> Result<(), String> {
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
    for (asking, most) in [(asking, first), (libc::SIGKILL, patience.gone)] {
        // One that ends as it is asked hangs up: an end that has begun is waited for, too.
        let most = signal(container, asking, patience.answer).map_or(patience.hung_up, |()| most);
        if waited(most)? {
            return Ok(());
        }
    }
    // Its lock is held, so the number is still its owner's.
    let owner = i32::try_from(container.record.pid).ok().and_then(Pid::from_raw).ok_or("its owner has no number")?;
    kill_process(owner, Signal::KILL)
        .map_err(|error| format!("kill the owner of {}: {error}", container.record.name))?;
    match waited(patience.gone)? {
        true => Ok(()),
        false => Err(format!("container {} does not end", container.record.name)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Child, Command};
    use std::thread;

    use ::container::register::{Ended, Owned, Record, now_ms};

    use super::*;

    /// Containers with one of this agent; its owner, for the register, is the process.
    fn one(folder: &Path, owner: &Child) -> (UnixListener, Owned, Container) {
        let socket = folder.join("vsock");
        let listening = UnixListener::bind(&socket).unwrap();
        let record = Record {
            name: "one".to_owned(),
            pid: owner.id(),
            started_ms: Some(now_ms()),
            socket: Some(socket),
            ..Record::default()
        };
        let all = Containers::of(folder);
        let owned = all.take(record).unwrap();
        (listening, owned, all.find("one").unwrap())
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    /// An agent whose VM goes while it is asked. The owner has something to clear up then, and is not killed at that.
    #[test]
    fn an_owner_that_clears_up_is_let() {
        let folder = tempfile::tempdir().unwrap();
        let mut owner = sleeper();
        let (listening, owned, container) = one(folder.path(), &owner);
        let clearing = thread::spawn(move || {
            drop(listening.accept().unwrap());
            drop(listening);
            thread::sleep(Duration::from_millis(100));
            owned.ended(&Ended::default()).unwrap();
        });
        end(&container, libc::SIGKILL, PATIENCE.gone, PATIENCE).unwrap();
        clearing.join().unwrap();
        assert!(owner.try_wait().unwrap().is_none(), "it was killed");
        owner.kill().unwrap();
        owner.wait().unwrap();
    }

    /// A VM that is paused accepts nothing.
    #[test]
    fn an_owner_whose_vm_does_not_hear_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut owner = sleeper();
        let (_listening, owned, container) = one(folder.path(), &owner);
        let short = Duration::from_millis(20);
        let ending = thread::spawn(move || {
            let patience = Patience { answer: short, hung_up: short, ..PATIENCE };
            end(&container, libc::SIGTERM, PATIENCE.gone, patience)
        });
        assert_eq!(owner.wait().unwrap().signal(), Some(libc::SIGKILL));
        drop(owned);
        ending.join().unwrap().unwrap();
    }
}
