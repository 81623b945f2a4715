//! Starting a process in a container: the runtime's program is run, its report read, and what becomes of the streams
//! settled. Threads of orders.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use protocol::message::{Failure, Report, Window};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, setrlimit};

use crate::reaper::Reaper;
use crate::system::usual_descriptors;
use crate::terminal::{self, Awaited};
use crate::{Doing, Fault};

/// Most bytes of a report.
const MOST: usize = 64 << 10;

/// How the standard streams of a process shall be.
pub struct Streams<'a> {
    /// A terminal of this size.
    pub terminal: Option<Window>,
    /// Somebody writes to it.
    pub stdin: bool,
    /// A folder for the terminal's socket.
    pub folder: &'a Path,
    /// Whose the pipes are, so that the process can open them again (/dev/stdout).
    pub owner: u32,
}

/// A process that runs, and our ends of its streams.
#[derive(Debug)]
pub struct Launched {
    /// Its number.
    pub pid: u32,
    /// Where its input goes.
    pub input: Option<OwnedFd>,
    /// Where its output comes from.
    pub output: OwnedFd,
    /// Where its errors come from; a terminal has one stream for both.
    pub errors: Option<OwnedFd>,
    /// Whether the two are a terminal.
    pub is_terminal: bool,
}

/// Runs `command`, which is the runtime's, with the streams of the process that it shall start.
pub fn launch(reaper: &Reaper, mut command: Command, streams: &Streams<'_>) -> Result<Launched, Failure> {
    let awaited = streams.terminal.map(|_| Awaited::at(streams.folder.join("console"), streams.owner)).transpose()?;
    if let Some(awaited) = &awaited {
        command.arg(awaited.path());
    }
    let ends = connect(&mut command, streams, awaited.is_some())?;
    let (report, to) = pipe(0)?;
    begin_with(&mut command, to);

    let starting = reaper.starting();
    let runtime = reaper.spawn(&mut command)?;
    drop(command); // and with it our copies of the process's ends
    let said = first_line(File::from(report));
    let ended = reaper.wait(runtime);
    let pid = match serde_json::from_slice(&said?) {
        Ok(Report::Started { pid }) => pid,
        Ok(Report::Failed(failure)) => return Err(failure),
        Ok(Report::Exited(_)) | Err(_) => {
            return Err(Failure::engine(format!("the container runtime ended ({ended}) and did not say why")));
        }
    };
    starting.is(pid);
    let Some(awaited) = awaited else {
        let Ends { input, output: Some(output), errors } = ends else {
            return Err(Failure::engine("a process without output"));
        };
        return Ok(Launched { pid, input, output, errors, is_terminal: false });
    };
    let master = awaited.receive()?;
    if let Some(size) = streams.terminal {
        terminal::resize(&master, size)?;
    }
    let input = master.try_clone().doing(|| "duplicate a terminal".to_owned())?;
    Ok(Launched { pid, input: Some(input), output: master, errors: None, is_terminal: true })
}

/// Our ends of pipes.
#[derive(Default)]
struct Ends {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
}

/// Makes the pipes and gives `command` the other ends.
fn connect(command: &mut Command, streams: &Streams<'_>, terminal: bool) -> Result<Ends, Fault> {
    command.stdin(Stdio::null());
    if terminal {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        return Ok(Ends::default());
    }
    let mut ends = Ends::default();
    if streams.stdin {
        let (from, to) = pipe(streams.owner)?;
        command.stdin(from);
        ends.input = Some(to);
    }
    let (output, to) = pipe(streams.owner)?;
    command.stdout(to);
    let (errors, to) = pipe(streams.owner)?;
    command.stderr(to);
    (ends.output, ends.errors) = (Some(output), Some(errors));
    Ok(ends)
}

/// A pipe of this user.
fn pipe(owner: u32) -> Result<(OwnedFd, OwnedFd), Fault> {
    let making = || "make a pipe".to_owned();
    let (from, to) = pipe_with(PipeFlags::CLOEXEC).doing(making)?;
    fchown(&to, Some(owner), Some(owner)).doing(making)?;
    Ok((from, to))
}

/// Lets `command` find `to` as its file descriptor 3, and have no more descriptors than this process had at first.
#[allow(unsafe_code)] // a function between fork(2) and execve(2)
fn begin_with(command: &mut Command, to: OwnedFd) {
    let limit = usual_descriptors();
    let begin = move || {
        setrlimit(Resource::Nofile, limit)?;
        // SAFETY: dup2(2) is async-signal-safe; `to` is open, as this closure owns it. Where it is 3 already, it only
        // has to survive execve(2).
        let done = unsafe {
            match to.as_raw_fd() {
                3 => libc::fcntl(3, libc::F_SETFD, 0),
                other => libc::dup2(other, 3),
            }
        };
        if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes two async-signal-safe system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(begin) };
}

/// The bytes up to the end of the first line, or to the end.
fn first_line(mut from: File) -> Result<Vec<u8>, Fault> {
    let mut line = Vec::new();
    loop {
        let mut part = [0; 1024];
        let count = from.read(&mut part).doing(|| "read the container runtime's report".to_owned())?;
        line.extend_from_slice(part.get(..count).unwrap_or_default());
        if count == 0 || line.ends_with(b"\n") || line.len() > MOST {
            return Ok(line);
        }
    }
}
