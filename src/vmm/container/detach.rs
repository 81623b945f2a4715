//! Processes of this program that are left to themselves: the keeper of a tenant's VM, and the owner of a detached
//! container, which is the same `vmm run -d` once more. Such a one has a session of its own and no terminal. It prints a
//! word when it is ready; what goes wrong before, it says on the user's standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

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
    let mut command = Command::new(this_program()?);
    command.args(["run", "--owner"]);
    if args.name.is_none() {
        command.args(["--name", &made_up_name()?]);
    }
    command.args(std::env::args_os().skip(2)); // those of `vmm run`
    // An image may come by standard input.
    let stdin = if args.image == "-" { Stdio::inherit() } else { Stdio::null() };
    command.stdin(stdin);
    match word_of(command, "the container's owner")? {
        Ok(name) => Ok(Ok(name)),
        Err(status) => match status.code().and_then(|code| u8::try_from(code).ok()) {
            Some(code) => Ok(Err(code)),
            None => Err(format!("the container's owner ended ({status})")),
        },
    }
}

/// This program, to be started once more.
pub fn this_program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("find this program: {error}"))
}

/// Starts a process that will be left to itself: its word when it is ready, or how it ended before.
pub fn word_of(mut command: Command, who: &str) -> Result<Result<String, ExitStatus>, String> {
    let mut process = command.stdout(Stdio::piped()).spawn().map_err(|error| format!("start {who}: {error}"))?;
    let mut word = String::new();
    if let Some(mut said) = process.stdout.take() {
        said.read_to_string(&mut word).map_err(|error| format!("hear {who}: {error}"))?;
    }
    if !word.is_empty() {
        return Ok(Ok(word.trim_end().to_owned()));
    }
    process.wait().map(Err).map_err(|error| format!("wait for {who}: {error}"))
}

/// Its first act: what is sent to the user's terminal is not for it.
pub fn leave_terminal() -> Result<(), String> {
    rustix::process::setsid().map(drop).map_err(|error| format!("make a session: {error}"))
}

/// It is ready: it says the word and leaves the user's streams. What it has to say from now on is in `log`.
pub fn ready(word: &str, log: &Path) -> io::Result<()> {
    let _ = writeln!(io::stdout(), "{word}"); // a user who has gone already does not hear it
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = File::create(log)?;
    dup2_stdin(nothing.as_fd())?;
    dup2_stdout(nothing.as_fd())?;
    dup2_stderr(log.as_fd())?;
    Ok(())
}

/// The container runs: its user goes.
pub fn started(owned: &Owned) {
    if let Err(error) = ready(&owned.record().name, &owned.folder().join(OWN_LOG)) {
        eprintln!("vmm: leave the user's streams: {error}");
    }
}
