//! The host's orders: one connection each, one thread each.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use protocol::frame::Kind;
use protocol::message::{Answer, Done, Exec, Exit, Failure, Hello, Input as Said, Order, Report, Run, Setup};
use protocol::{RUNTIME, VERSION};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use vsock::VsockListener;

use crate::archive;
use crate::connection::{self, Connection, Incoming};
use crate::container::{self, Containers, Place};
use crate::launch::{Launched, Streams, launch};
use crate::layers;
use crate::network::Network;
use crate::reaper::Reaper;
use crate::spec::has_folder;
use crate::streams::{Input, pump};
use crate::system::{self, OWN};
use crate::terminal;
use crate::usage;
use crate::user::User;
use crate::users;
use crate::{Doing, Fault};

/// How long a container that ends may keep a disk or a directory. The host waits a little longer.
const RELEASE: Duration = Duration::from_secs(15);

/// Calls the host and does what it says about the VM.
pub fn greet(containers: &Containers) -> Result<(), Fault> {
    let (host, frame) = loop {
        let host = connection::call()?;
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        host.say(&Hello { version: VERSION, kernel })?;
        // A VM that was saved while it waits here goes on elsewhere, with a host that has not heard of it.
        if let Ok(frame) = host.incoming().next_frame() {
            break (host, frame.ok_or("the host hung up")?);
        }
    };
    let setup: Setup = frame.open().doing(|| "read what the host says".to_owned())?;
    let made = set_up(setup, containers);
    host.say(&done(made.clone()))?;
    made
}

fn set_up(setup: Setup, containers: &Containers) -> Result<(), Fault> {
    if setup.version != VERSION {
        return Err(format!("the host speaks version {} of the protocol, the agent {VERSION}", setup.version));
    }
    system::set_clock(setup.clock_ns)?;
    system::stir(&setup.seed)?;
    system::name(&setup.hostname)?;
    if let Some(network) = &setup.network {
        containers.are_in(Network::begin(network)?);
    }
    Ok(())
}

/// Takes connections, for ever.
pub fn serve(listening: &VsockListener, reaper: &Arc<Reaper>, containers: &Arc<Containers>) {
    for stream in listening.incoming() {
        let (reaper, containers) = (Arc::clone(reaper), Arc::clone(containers));
        let follow = move || {
            let done = stream.doing(|| "take a connection".to_owned()).and_then(Connection::new);
            if let Err(why) = done.and_then(|connection| follow(connection, &reaper, &containers)) {
                eprintln!("vmm-agent: {why}");
            }
        };
        if let Err(error) = thread::Builder::new().name("order".to_owned()).spawn(follow) {
            eprintln!("vmm-agent: start a thread: {error}");
        }
    }
}

/// Follows the order of one connection.
fn follow(connection: Connection, reaper: &Reaper, containers: &Containers) -> Result<(), Fault> {
    let mut incoming = connection.incoming();
    let Some(first) = incoming.next_frame()? else { return Ok(()) };
    match first.open().doing(|| "read an order".to_owned())? {
        Order::Run(order) => match run(reaper, containers, &order) {
            Ok((place, launched)) => attend(&connection, incoming, reaper, launched, Some(place)),
            Err(failure) => connection.say(&Report::Failed(failure)),
        },
        Order::Exec(order) => match exec(reaper, containers, &order) {
            Ok(launched) => attend(&connection, incoming, reaper, launched, None),
            Err(failure) => connection.say(&Report::Failed(failure)),
        },
        Order::Kill { id, signal } => connection.say(&done(containers.pid(&id).and_then(|pid| kill(pid, signal)))),
        Order::List => connection.say(&containers.list()),
        Order::Usage { id } => connection.say(&answer(containers.pid(&id).and_then(|pid| usage::of(&id, pid)))),
        Order::Processes { id } => connection.say(&answer(containers.pid(&id).and_then(|_| usage::processes(&id)))),
        Order::Get { id, path } => {
            let got = containers.pid(&id).and_then(|pid| archive::get(&connection, pid, &path));
            connection.say(&done(got))
        }
        Order::Put { id, path } => {
            let put = containers.pid(&id).and_then(|pid| archive::put(&mut incoming, pid, &path));
            connection.say(&done(put))
        }
        Order::Connect { id, port, udp } => match containers.call(&id, port, udp) {
            Ok(called) => {
                connection.say(&Done::Ok)?;
                let rest = incoming.into_rest();
                called.carry(connection.into_stream(), rest);
                Ok(())
            }
            Err(why) => connection.say(&done(Err(why))),
        },
        Order::Settle => {
            containers.settle();
            connection.say(&Done::Ok)
        }
        Order::Release(source) => connection.say(&done(containers.let_go(&source, RELEASE))),
        Order::PowerOff => {
            containers.part();
            connection.say(&Done::Ok)?;
            system::power_off()
        }
    }
}

fn done(what: Result<(), Fault>) -> Done {
    what.map_or_else(|why| Done::Failed(Failure::engine(why)), |()| Done::Ok)
}

fn answer<T>(what: Result<T, Fault>) -> Answer<T> {
    what.map_or_else(|why| Answer::Failed(Failure::engine(why)), Answer::Ok)
}

/// Makes a container and starts it.
fn run<'a>(reaper: &Reaper, containers: &'a Containers, order: &Run) -> Result<(Place<'a>, Launched), Failure> {
    let mut place = containers.place(&order.id)?;
    let mut command = runtime()?;
    let bundle = place.bundle(order, Path::new(command.get_program()))?;
    command.arg("run").arg(&bundle).arg(state()).arg(&order.id);
    let owner = if order.own_users { users::ROOT } else { 0 };
    let streams = Streams { terminal: order.terminal, stdin: order.stdin, folder: &bundle, owner };
    let launched = launch(reaper, command, &streams).inspect_err(|_| delete(reaper, &order.id))?;
    place.runs(launched.pid);
    Ok((place, launched))
}

/// Starts one more process in a container.
fn exec(reaper: &Reaper, containers: &Containers, order: &Exec) -> Result<Launched, Failure> {
    let pid = containers.pid(&order.id)?;
    let owner = users::root_of(pid);
    if let Some(cwd) = &order.cwd {
        has_folder(format!("/proc/{pid}/root").as_ref(), cwd)?;
    }
    let folder = container::folder(&order.id);
    let process = process(order, &folder)?;
    // Any number of processes may start at once: each has files of its own.
    let own = folder.join(format!("exec-{:?}", thread::current().id()).replace(['(', ')'], ""));
    let written = std::fs::create_dir_all(&own)
        .and_then(|()| std::fs::write(own.join("process.json"), process.to_string()))
        // The runtime becomes one of the container's users, and makes a socket among its notes.
        .and_then(|()| chown(state().join(&order.id), Some(owner), Some(owner)))
        .doing(|| "write the process's specification".to_owned());
    let launched = written.and_then(|()| runtime()).map_err(Failure::engine).and_then(|mut command| {
        command.arg("exec").arg(own.join("process.json")).arg(state()).arg(&order.id);
        let streams = Streams { terminal: order.terminal, stdin: order.stdin, folder: &own, owner };
        launch(reaper, command, &streams)
    });
    let _ = std::fs::remove_dir_all(&own);
    launched
}

/// The OCI process of `order`: the container's, with other words.
fn process(order: &Exec, folder: &Path) -> Result<Value, Fault> {
    let text = std::fs::read(folder.join("config.json")).doing(|| "read the container's specification".to_owned())?;
    let mut spec: Value = serde_json::from_slice(&text).doing(|| "read the container's specification".to_owned())?;
    let mut process = spec.get_mut("process").map(Value::take).unwrap_or_default();
    let words = process.as_object_mut().ok_or("the container's specification has no process")?;
    words.insert("args".to_owned(), json!(order.args));
    words.insert("terminal".to_owned(), order.terminal.is_some().into());
    if let Some(cwd) = &order.cwd {
        words.insert("cwd".to_owned(), json!(cwd));
    }
    if let Some(env) = words.get_mut("env").and_then(Value::as_array_mut) {
        env.extend(order.env.iter().map(|entry| json!(entry)));
    }
    if let Some(named) = &order.user {
        let user = User::find(&folder.join("root"), named)?;
        words.insert("user".to_owned(), json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups}));
    }
    Ok(process)
}

/// Says that a process runs, carries its streams, and says how it ended.
fn attend(
    connection: &Connection,
    mut incoming: Incoming<'_>,
    reaper: &Reaper,
    launched: Launched,
    place: Option<Place<'_>>,
) -> Result<(), Fault> {
    let Launched { pid, input, output, errors, is_terminal } = launched;
    connection.say(&Report::Started { pid })?;
    let (bell, ring) = pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())?;
    let done = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let status = thread::scope(|pumps| {
                pumps.spawn(|| pump(connection, Kind::Stdout, output, &bell));
                if let Some(errors) = errors {
                    pumps.spawn(|| pump(connection, Kind::Stderr, errors, &bell));
                }
                let status = reaper.wait(pid);
                drop(ring);
                status
            });
            let exit = Exit { code: Exit::code_of(status), oom_killed: place.as_ref().is_some_and(Place::oom_killed) };
            if let Some(place) = &place {
                place.ends();
            }
            connection.say(&Report::Exited(exit))
        });
        let mut input = Input::new(input, is_terminal);
        let heard = hear(&mut incoming, &mut input, pid);
        drop(input);
        // A container whose owner is gone has nobody who knows it. Of one that has ended the number may be another's.
        if place.as_ref().is_some_and(|place| !place.has_ended()) {
            let _ = kill(pid, Signal::KILL.as_raw());
        }
        let told = waiting.join().unwrap_or_else(|_| Err("a thread ended in disorder".to_owned()));
        heard.and(told)
    });
    // Who waits for the container need not wait for this.
    if let Some(place) = place {
        delete(reaper, place.id());
    }
    done
}

/// Follows what the host says while a process runs, until it hangs up.
fn hear(incoming: &mut Incoming<'_>, input: &mut Input, pid: u32) -> Result<(), Fault> {
    while let Some(frame) = incoming.next_frame()? {
        if frame.kind != Kind::Message {
            input.give(&frame.body);
            continue;
        }
        // What comes too late is no error: the process may just have ended.
        let _ = match frame.open().doing(|| "read what the host says".to_owned())? {
            Said::Resize(size) => input.terminal().map_or(Ok(()), |terminal| terminal::resize(terminal, size)),
            Said::Signal(signal) => kill(pid, signal),
        };
    }
    Ok(())
}

fn kill(pid: u32, signal: i32) -> Result<(), Fault> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("no such process")?;
    let signal = Signal::from_named_raw(signal).ok_or_else(|| format!("there is no signal {signal}"))?;
    kill_process(number, signal).doing(|| "send a signal".to_owned())
}

/// The folder of the runtime's notes.
fn state() -> PathBuf {
    Path::new(OWN).join("state")
}

/// The runtime's program.
fn runtime() -> Result<Command, Fault> {
    static MOUNTED: OnceLock<Result<(), Fault>> = OnceLock::new();
    let at = Path::new(OWN).join("runtime");
    MOUNTED
        .get_or_init(|| {
            std::fs::create_dir_all(state()).doing(|| format!("make {}", state().display()))?;
            layers::mount_partition(RUNTIME, &at)
        })
        .clone()?;
    Ok(Command::new(at.join("vmm-runtime")))
}

/// Takes away what the runtime keeps of a container.
fn delete(reaper: &Reaper, id: &str) {
    let Ok(mut command) = runtime() else { return };
    command.arg("delete").arg(state()).arg(id);
    if let Ok(child) = reaper.spawn(&mut command) {
        reaper.wait(child);
    }
}
