//! `vmm run -d`: the same command once more, in a session of its own and without a terminal, owns the container. It
//! prints the container's name when that runs; what goes wrong before, it says on the user's standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};

use ::container::register::Owned;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::options::ContainerArgs;
use super::run::{failed, made_up_name};

/// What an owner has to say after its user has gone.
const OWN_LOG: &str = "owner.log";

/// Starts the owner and waits until the container runs.
pub fn start(args: &ContainerArgs) -> ExitCode {
    match wait_for_owner(args) {
        Ok(Ok(name)) => match writeln!(io::stdout(), "{name}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Ok(Err(status)) => ExitCode::from(status),
        Err(why) => failed(&why),
    }
}

/// The container's name, or the exit status of an owner that has said why there is none.
fn wait_for_owner(args: &ContainerArgs) -> Result<Result<String, u8>, String> {
    let program = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let mut command = Command::new(program);
    command.args(["run", "--owner"]);
    if args.name.is_none() {
        command.args(["--name", &made_up_name()?]);
    }
    command.args(std::env::args_os().skip(2)); // those of `vmm run`
    // An image may come by standard input.
    let stdin = if args.image == "-" { Stdio::inherit() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped());
    let mut owner = command.spawn().map_err(|error| format!("start the container's owner: {error}"))?;
    let mut name = String::new();
    if let Some(mut said) = owner.stdout.take() {
        said.read_to_string(&mut name).map_err(|error| format!("hear the container's owner: {error}"))?;
    }
    if !name.is_empty() {
        return Ok(Ok(name.trim_end().to_owned()));
    }
    let status = owner.wait().map_err(|error| format!("wait for the container's owner: {error}"))?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => Ok(Err(code)),
        None => Err(format!("the container's owner ended ({status})")),
    }
}

/// The owner's first act: what is sent to the user's terminal is not for it.
pub fn leave_terminal() -> Result<(), String> {
    rustix::process::setsid().map(drop).map_err(|error| format!("make a session: {error}"))
}

/// The container runs: its user goes.
pub fn started(owned: &Owned) {
    // A user who has gone already does not hear it.
    let _ = writeln!(io::stdout(), "{}", owned.record().name);
    let go = || -> io::Result<()> {
        let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let errors = File::create(owned.folder().join(OWN_LOG))?;
        dup2_stdin(nothing.as_fd())?;
        dup2_stdout(nothing.as_fd())?;
        dup2_stderr(errors.as_fd())?;
        Ok(())
    };
    if let Err(error) = go() {
        eprintln!("vmm: leave the user's streams: {error}");
    }
}
