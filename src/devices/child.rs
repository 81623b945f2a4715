//! A program that serves a device in a process of its own: its log, its last words, its end. The control thread starts
//! it; the device's worker hears it.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, ChildStderr};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::log_limit::LogLimit;

/// Longest line of its log that is kept, bytes.
const LINE: usize = 512;
/// Most bytes of its log that are read in one go, and that last words are looked for in.
const MOST: usize = 64 << 10;

/// A running program. It ends when this is dropped.
#[derive(Debug)]
pub struct Helper {
    name: &'static str,
    child: Child,
    log: ChildStderr,
    /// What it said and no line end followed yet.
    line: Vec<u8>,
}

impl Helper {
    /// A child whose standard error is a pipe.
    pub fn of(name: &'static str, mut child: Child) -> io::Result<Self> {
        let log = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        fcntl_setfl(&log, OFlags::NONBLOCK)?;
        Ok(Self { name, child, log, line: Vec::new() })
    }

    /// Its log, to wait for.
    pub fn log(&self) -> RawFd {
        self.log.as_raw_fd()
    }

    /// Passes on what it has logged for device `id`. A guest may be able to make it say something without end: most of
    /// that is dropped. True when there may be more, and nobody tells of it.
    pub fn pass_on(&mut self, id: &str) -> bool {
        static LIMIT: LogLimit = LogLimit::new();
        let mut room = [0; LINE];
        for _ in 0..MOST / LINE {
            let Ok(len @ 1..) = self.log.read(&mut room) else { return false };
            for byte in room.get(..len).unwrap_or_default() {
                if *byte != b'\n' {
                    if self.line.len() < LINE {
                        self.line.push(*byte);
                    }
                    continue;
                }
                let line = String::from_utf8_lossy(&self.line).trim().to_owned();
                self.line.clear();
                if !line.is_empty()
                    && let Some(suppressed) = LIMIT.check()
                {
                    tracing::warn!(device = id, suppressed, "{}: {line}", self.name);
                }
            }
        }
        true
    }

    /// The last thing that it said. It is given a moment to end by itself, so that it is all there.
    pub fn last_words(&mut self) -> String {
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        let (mut text, mut room) = (Vec::new(), [0; LINE]);
        while text.len() < MOST
            && let Ok(len @ 1..) = self.log.read(&mut room)
        {
            text.extend_from_slice(room.get(..len).unwrap_or_default());
        }
        let text = String::from_utf8_lossy(&text);
        text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing").to_owned()
    }

    /// Ends it, and the process that it may have put into namespaces of its own.
    pub fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first program `name` on the PATH, or else the first of `places` that is there.
pub fn find(name: &str, places: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(name));
    on_path.chain(places.iter().map(PathBuf::from)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn who_never_stops_talking_is_listened_to_in_parts() {
        let (told, hears) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let child = Command::new("sh").args(["-c", "yes >&2"]).stderr(Stdio::piped()).spawn().unwrap();
            let mut helper = Helper::of("yes", child).unwrap();
            while !helper.pass_on("d") {} // it is slow to begin
            helper.kill();
            told.send(()).unwrap();
        });
        hears.recv_timeout(crate::testing::PATIENCE).unwrap();
    }

    #[test]
    fn its_last_words_are_its_last_line() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first >&2; echo last >&2; echo >&2"]).stderr(Stdio::piped());
        assert_eq!(Helper::of("sh", command.spawn().unwrap()).unwrap().last_words(), "last");
        command.args(["-c", "true"]);
        let silent = Command::new("true").stderr(Stdio::piped()).spawn().unwrap();
        assert_eq!(Helper::of("true", silent).unwrap().last_words(), "it said nothing");
    }
}
