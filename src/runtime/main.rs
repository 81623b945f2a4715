//! Makes containers in a guest, by an established OCI runtime library. The agent calls it; nobody else does.
//!
//!     vmm-runtime run BUNDLE STATE ID [CONSOLE]      makes the container of BUNDLE/config.json and starts it
//!     vmm-runtime exec PROCESS STATE ID [CONSOLE]    starts the process of the file PROCESS in it
//!     vmm-runtime delete STATE ID                    takes away what a container left, after its end
//!     vmm-init COMMAND...                            is PID 1 of a container (init.rs)
//!
//! STATE is a folder for the library's notes. CONSOLE is a socket that is given the terminal, where there is one.
//! Standard input, output and error become the new process's; what this program has to say, it says in one line on file
//! descriptor 3: a `Report`. The new process is a child of the caller. One thread.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod filter;
mod init;
mod users;
mod workload;

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use protocol::message::{Failure, FailureKind, Report};

use crate::workload::Workload;

/// What the caller asks for.
struct Task {
    id: String,
    state: PathBuf,
    console: Option<PathBuf>,
}

fn main() -> ExitCode {
    let is_init = std::env::args_os().next().is_some_and(|name| Path::new(&name).ends_with(init::NAME));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if is_init {
        return init::run(&arguments);
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report = match words.as_slice() {
        ["run", bundle, state, id, console @ ..] => started(run(&task(state, id, console), Path::new(bundle))),
        ["exec", process, state, id, console @ ..] => started(exec(&task(state, id, console), Path::new(process))),
        ["delete", state, id] => match delete(Path::new(state), id) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => Report::Failed(failure(&error)),
        },
        _ => Report::Failed(Failure::engine("the runtime does not know this order")),
    };
    match (say(&report), report) {
        (Ok(()), Report::Started { .. }) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn task(state: &str, id: &str, console: &[&str]) -> Task {
    Task { id: id.to_owned(), state: state.into(), console: console.first().map(PathBuf::from) }
}

impl Task {
    /// A container or a process of the container that is specified in `bundle`.
    fn builder(&self, bundle: &Path) -> Result<ContainerBuilder, LibcontainerError> {
        let spec = Spec::load(bundle.join("config.json"))?;
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let filters = seccomp.map(filter::programs).transpose().map_err(LibcontainerError::Other)?;
        ContainerBuilder::new(self.id.clone(), SyscallType::default())
            .with_executor(Workload { filters: filters.unwrap_or_default() })
            .with_root_path(&self.state)?
            .with_console_socket(self.console.clone())
            .validate_id()
    }
}

fn run(task: &Task, bundle: &Path) -> Result<i32, LibcontainerError> {
    let init = task.builder(bundle)?.as_init(bundle).with_systemd(false).with_detach(true).as_sibling(true);
    let mut container = init.build()?;
    container.start()?;
    Ok(container.pid().map_or(0, |pid| pid.as_raw()))
}

fn exec(task: &Task, process: &Path) -> Result<i32, LibcontainerError> {
    // The library forgets the container's filter for its further processes; so it is looked up where it is written.
    let container = Container::load(task.state.join(&task.id))?;
    users::enter(&container)?;
    let tenant =
        task.builder(container.bundle())?.as_tenant().with_process(Some(process)).with_detach(true).as_sibling(true);
    Ok(tenant.build()?.as_raw())
}

fn delete(state: &Path, id: &str) -> Result<(), LibcontainerError> {
    Container::load(state.join(id))?.delete(true)
}

fn started(done: Result<i32, LibcontainerError>) -> Report {
    match done.map(u32::try_from) {
        Ok(Ok(pid)) => Report::Started { pid },
        Ok(Err(_)) => Report::Failed(Failure::engine("the process has no number")),
        Err(error) => Report::Failed(failure(&error)),
    }
}

/// The error and its causes as one sentence, and what kind they are.
fn failure(error: &LibcontainerError) -> Failure {
    let mut parts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(inner) = cause {
        parts.push(inner.to_string());
        cause = inner.source();
    }
    parts.dedup();
    let why = parts.join(": ");
    for (mark, kind) in
        [(workload::NOT_FOUND, FailureKind::NotFound), (workload::NOT_EXECUTABLE, FailureKind::NotExecutable)]
    {
        if let Some((_, why)) = why.rsplit_once(mark) {
            return Failure { kind, why: why.trim().to_owned() };
        }
    }
    Failure::engine(why)
}

#[allow(unsafe_code)] // a file descriptor by its number
fn say(report: &Report) -> std::io::Result<()> {
    // SAFETY: descriptor 3 is the caller's pipe, by this program's contract, and nothing else here owns it.
    let mut to = File::from(unsafe { OwnedFd::from_raw_fd(3) });
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    to.write_all(&line)
}
