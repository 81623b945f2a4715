//! What becomes of children. PID 1's own thread waits for all of them, also for orphans that the kernel hands it; others
//! ask here how theirs ended.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use crate::{Doing, Fault};

/// The children, and how those ended that somebody asks for.
#[derive(Debug, Default)]
pub struct Reaper {
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    /// Processes that somebody will ask for; with a status once they ended.
    expected: HashMap<u32, Option<ExitStatus>>,
    /// How many are being started whose number nobody knows yet. Meanwhile every end is kept.
    starting: usize,
    /// Ends of processes that nobody expects, kept while something is being started.
    others: HashMap<u32, ExitStatus>,
}

/// While it lives, ends of unknown processes are kept.
pub struct Starting<'a>(&'a Reaper);

impl Reaper {
    /// Waits for children, for ever. The main thread.
    pub fn run(&self) -> Result<(), Fault> {
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => self.ended(pid, status),
                Ok(None) | Err(Errno::INTR) => (),
                // Nothing to wait for: until somebody starts something.
                Err(Errno::CHILD) => self.idle(),
                Err(error) => return Err(error).doing(|| "wait for children".to_owned()),
            }
        }
    }

    /// Starts a child, whose end can be asked for by this number.
    #[allow(clippy::zombie_processes)] // the main thread waits for it
    pub fn spawn(&self, command: &mut Command) -> Result<u32, Fault> {
        let mut known = self.lock(); // no end is noted before the number is
        let pid = command.spawn().doing(|| format!("start {}", command.get_program().display()))?.id();
        known.expected.insert(pid, None);
        self.changed.notify_all();
        Ok(pid)
    }

    /// From now on ends of processes are kept whose numbers will be known only later.
    pub fn starting(&self) -> Starting<'_> {
        let mut known = self.lock();
        known.starting = known.starting.saturating_add(1);
        self.changed.notify_all(); // children may come that this program does not start itself
        Starting(self)
    }

    /// How this process ended, when it has.
    pub fn wait(&self, pid: u32) -> ExitStatus {
        let mut known = self.lock();
        loop {
            if let Some(Some(status)) = known.expected.get(&pid) {
                let status = *status;
                known.expected.remove(&pid);
                return status;
            }
            known = self.changed.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until there may be a child.
    fn idle(&self) {
        let known = self.lock();
        // A child may have ended, and been missed, only where none was expected: then there is nothing to hurry for.
        if known.expected.values().all(Option::is_some) && known.starting == 0 {
            drop(self.changed.wait(known));
        } else {
            drop(known);
            std::thread::yield_now();
        }
    }

    fn ended(&self, pid: Pid, status: WaitStatus) {
        let (pid, status) = (pid.as_raw_nonzero().get().unsigned_abs(), ExitStatus::from_raw(status.as_raw()));
        let mut known = self.lock();
        if let Some(expected) = known.expected.get_mut(&pid) {
            *expected = Some(status);
            self.changed.notify_all();
        } else if known.starting > 0 {
            known.others.insert(pid, status);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Starting<'_> {
    /// The number is known: its end can be asked for.
    pub fn is(&self, pid: u32) {
        let mut known = self.0.lock();
        let status = known.others.remove(&pid);
        known.expected.insert(pid, status);
        self.0.changed.notify_all();
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let mut known = self.0.lock();
        known.starting = known.starting.saturating_sub(1);
        if known.starting == 0 {
            known.others.clear();
        }
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    #[allow(clippy::zombie_processes)] // the other thread waits for them
    fn an_end_is_known_to_who_asks_early_or_late() {
        let reaper = Arc::new(Reaper::default());
        let waiting = Arc::clone(&reaper);
        std::thread::spawn(move || waiting.run());
        let child = reaper.spawn(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        assert_eq!(reaper.wait(child).code(), Some(7));

        // One that another program starts, and that ends before its number is told.
        let starting = reaper.starting();
        let child = Command::new("sh").args(["-c", "exit 9"]).spawn().unwrap();
        while !reaper.lock().others.contains_key(&child.id()) {
            std::thread::yield_now();
        }
        starting.is(child.id());
        drop(starting);
        assert_eq!(reaper.wait(child.id()).code(), Some(9));
        assert!(reaper.lock().others.is_empty() && reaper.lock().expected.is_empty());
    }
}
