//! PID 1 of a container with `--init`: starts the command, hands signals on to it, reaps what nobody else does, and ends
//! as the command does.
//!
//! The same program as the runtime, found by its name; it lies in the container read-only.
#![allow(unsafe_code)] // sigprocmask(2), sigwaitinfo(2), a function between fork(2) and execve(2)

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};

use protocol::message::Exit;

/// The name by which this program is PID 1.
pub const NAME: &str = "vmm-init";

/// Runs the command to its end.
pub fn run(words: &[String]) -> ExitCode {
    let Some((program, arguments)) = words.split_first() else { return ExitCode::from(125) };
    let all = block_all();
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: the closure makes async-signal-safe system calls only, and takes no lock.
    unsafe { command.pre_exec(lead) };
    let child = match command.spawn() {
        Ok(child) => child.id(),
        Err(error) => {
            eprintln!("{program}: {error}");
            return ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    let Ok(child) = i32::try_from(child) else { return ExitCode::from(125) };
    loop {
        // SAFETY: the set is initialised; no information is asked for.
        let signal = unsafe { libc::sigwaitinfo(&raw const all, std::ptr::null_mut()) };
        if signal == libc::SIGCHLD {
            if let Some(status) = reap(child) {
                return ExitCode::from(Exit::code_of(status));
            }
        } else if signal > 0 {
            // SAFETY: kill(2) of this process's child, which has not been reaped yet.
            unsafe { libc::kill(child, signal) };
        }
    }
}

/// Blocks all signals, so that they can be waited for.
fn block_all() -> libc::sigset_t {
    let mut all = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the set before it is read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
        all.assume_init()
    }
}

/// In the child: a process group of its own, before the terminal where there is one, and no signal blocked. SIGTTOU is
/// blocked until then, so that tcsetpgrp(3) does not stop it.
fn lead() -> io::Result<()> {
    // SAFETY: system calls on this process and its standard input; the set is initialised before it is read. Without a
    // terminal tcsetpgrp fails, which is as well.
    unsafe {
        libc::setpgid(0, 0);
        libc::tcsetpgrp(0, libc::getpgrp());
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
    Ok(())
}

/// Takes all that have ended; how the child did, if it is among them.
fn reap(child: i32) -> Option<ExitStatus> {
    let mut found = None;
    loop {
        let mut status = 0;
        // SAFETY: the status is this function's own.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return found;
        }
        if pid == child {
            found = Some(ExitStatus::from_raw(status));
        }
    }
}
