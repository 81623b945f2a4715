//! One instance of a world that runs: its streams, how long until it said something, and its end. Every wait has a limit.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::ground::Root;
use crate::memory::disk_bytes;
use crate::{Doing, Fault};

/// Most bytes of output that are kept.
const KEPT: usize = 1 << 20;

/// What takes a container of runc away.
pub struct Undo {
    pub program: PathBuf,
    pub state: PathBuf,
    pub id: String,
    /// Goes after the container.
    pub _root: Root,
}

/// The connections of a VM alone.
pub struct Streams {
    /// Tells the command's end.
    pub control: UnixStream,
    /// Its standard input and output.
    pub stream: UnixStream,
    /// Longest silence.
    pub limit: Duration,
}

enum Input {
    Pipe(Option<ChildStdin>),
    Socket(UnixStream),
}

/// It runs. Dropped, it is killed.
pub struct Instance {
    /// The process that was started: it ends with the instance.
    launcher: Child,
    input: Input,
    output: File,
    control: Option<UnixStream>,
    began: Instant,
    deadline: Instant,
    heard: Vec<u8>,
    /// Where it may leave things.
    folder: PathBuf,
    /// For runc.
    pub undo: Option<Undo>,
    /// What is written of it elsewhere.
    pub record: Option<PathBuf>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// From the beginning to the launcher's end.
    pub after: Duration,
    /// All that it said.
    pub output: String,
}

impl Instance {
    /// Of a command whose standard streams are the instance's. What it complains about is in the file `errors`.
    pub fn spawn(mut command: Command, began: Instant, folder: PathBuf, limit: Duration) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(folder.join("errors"))?);
        let mut launcher = command.spawn()?;
        let (stdin, stdout) = (launcher.stdin.take(), launcher.stdout.take());
        let output = OwnedFd::from(stdout.ok_or_else(|| io::Error::other("no pipe"))?);
        Ok(Self {
            launcher,
            input: Input::Pipe(stdin),
            output: output.into(),
            control: None,
            began,
            deadline: began + limit,
            heard: Vec::new(),
            folder,
            undo: None,
            record: None,
        })
    }

    /// Of a VM that has called twice.
    pub fn of_vm(monitor: Child, began: Instant, folder: PathBuf, streams: Streams) -> io::Result<Self> {
        let output = OwnedFd::from(streams.stream.try_clone()?);
        Ok(Self {
            launcher: monitor,
            input: Input::Socket(streams.stream),
            output: output.into(),
            control: Some(streams.control),
            began,
            deadline: began + streams.limit,
            heard: Vec::new(),
            folder,
            undo: None,
            record: None,
        })
    }

    /// Bytes on disk of the files of its own.
    pub fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.folder) + self.record.as_deref().map_or(0, disk_bytes)
    }

    /// From the beginning to the first output; none where it ended in silence.
    pub fn first_output(&mut self) -> Result<Option<Duration>, Fault> {
        if !self.heard.is_empty() {
            return Err(Fault::Said("the first output has been heard before".to_owned()));
        }
        Ok((self.hear()? > 0).then(|| self.began.elapsed()))
    }

    /// Its first line.
    pub fn line(&mut self) -> Result<String, Fault> {
        while !self.heard.contains(&b'\n') {
            if self.hear()? == 0 {
                return Err(self.complaint("ended before it said a line"));
            }
        }
        Ok(String::from_utf8_lossy(&self.heard).trim_end().to_owned())
    }

    /// Closes its input and waits for its end, which must be a good one.
    pub fn end(mut self) -> Result<Ended, Fault> {
        match &mut self.input {
            Input::Pipe(pipe) => drop(pipe.take()),
            Input::Socket(socket) => drop(socket.shutdown(Shutdown::Write)),
        }
        while self.hear()? > 0 {}
        let told = self.control.take().map(|control| told(control, self.deadline)).transpose()?;
        let pid = i32::try_from(self.launcher.id()).ok().and_then(Pid::from_raw);
        let ended = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(ended) = &ended {
            self.wait_for(ended)?;
        }
        let after = self.began.elapsed();
        let status = self.launcher.wait().doing(|| "wait for the end".to_owned())?;
        match told {
            Some(told) if told != "0" => return Err(self.complaint(&format!("ended in the VM: {told}"))),
            _ if !status.success() => {
                let signal = status.signal().map_or(String::new(), |signal| format!(" (signal {signal})"));
                let code = status.code().map_or(String::new(), |code| format!(" with status {code}"));
                return Err(self.complaint(&format!("ended{code}{signal}")));
            }
            _ => (),
        }
        let output = String::from_utf8_lossy(&self.heard).into_owned();
        Ok(Ended { after, output })
    }

    /// The next piece of output; its length.
    fn hear(&mut self) -> Result<usize, Fault> {
        self.wait_for(&self.output)?;
        let mut piece = [0; 16 << 10];
        let count = self.output.read(&mut piece).doing(|| "read the output".to_owned())?;
        if self.heard.len() < KEPT {
            self.heard.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
        Ok(count)
    }

    fn wait_for(&self, what: &impl AsFd) -> Result<(), Fault> {
        if ready(what, self.deadline).doing(|| "wait".to_owned())? {
            return Ok(());
        }
        Err(self.complaint("did not end in time (--timeout)"))
    }

    fn complaint(&self, what: &str) -> Fault {
        let errors = fs::read(self.folder.join("errors")).unwrap_or_default();
        // In a VM alone, complaints come with the output.
        let output = if matches!(self.input, Input::Socket(_)) { self.heard.as_slice() } else { &[] };
        let errors = format!("{}\n{}", String::from_utf8_lossy(output).trim(), String::from_utf8_lossy(&errors).trim());
        let errors = errors.trim();
        Fault::Said(if errors.is_empty() { format!("it {what}") } else { format!("it {what}: {errors}") })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
        if let Some(undo) = self.undo.take() {
            undo.now();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether something comes before the deadline.
fn ready(what: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(what, PollFlags::IN)], Some(&time)) {
            Err(rustix::io::Errno::INTR) => (),
            done => return Ok(done? > 0),
        }
    }
}

/// What the VM says of the command's end: one line, then it waits for the connection to close.
fn told(control: UnixStream, deadline: Instant) -> Result<String, Fault> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut line = String::new();
    let heard =
        control.set_read_timeout(Some(left)).and_then(|()| BufReader::new(control.take(4096)).read_line(&mut line));
    heard.doing(|| "hear of the command's end in the VM".to_owned())?;
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shell(script: &str, limit: Duration) -> (tempfile::TempDir, Instance) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let own = folder.path().join("own");
        fs::create_dir(&own).unwrap();
        let instance = Instance::spawn(command, Instant::now(), own, limit).unwrap();
        (folder, instance)
    }

    #[test]
    fn an_instance_is_heard_to_its_end() {
        let long = Duration::from_secs(60);
        let (folder, mut instance) = shell("echo one; cat; echo two", long);
        assert_eq!(instance.line().unwrap(), "one");
        let ended = instance.end().unwrap();
        assert_eq!(ended.output, "one\ntwo\n");
        assert!(!folder.path().join("own").exists());

        let (_folder, mut instance) = shell("true", long);
        assert_eq!(instance.first_output().unwrap(), None);
        let (_folder, instance) = shell("echo why >&2; exit 3", long);
        assert_eq!(instance.end().unwrap_err().to_string(), "it ended with status 3: why");
        let (_folder, instance) = shell("kill -9 $$", long);
        assert_eq!(instance.end().unwrap_err().to_string(), "it ended (signal 9)");
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        let (_folder, instance) = shell("exec sleep 1000", Duration::from_millis(50));
        let pid = instance.launcher.id();
        assert_eq!(instance.end().unwrap_err().to_string(), "it did not end in time (--timeout)");
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
