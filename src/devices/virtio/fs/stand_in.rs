//! A share whose back end is not virtiofsd, for tests and fuzzing. Test threads.
#![allow(clippy::expect_used)] // it is for tests: failing is its job

use std::io;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::server::{FsChange, Server};
use super::{Fs, QUEUES};
use crate::child::Helper;
use crate::virtio::Change;
use crate::virtio::vhost_user::BackEnd;

/// A share, `src`, of the back end on the other side of `stream`, whose answers are waited for so long.
pub fn share(stream: UnixStream, patience: Duration) -> io::Result<Box<Fs>> {
    Ok(Box::new(Fs::new("src", Some(server(stream, patience)?))))
}

/// A share that has no directory yet.
pub fn spare() -> Box<Fs> {
    Box::new(Fs::new("src", None))
}

/// What gives a share this back end.
pub fn change(stream: UnixStream, patience: Duration) -> io::Result<Change> {
    Ok(Change::Fs(FsChange::Another(Some(Box::new(server(stream, patience)?)))))
}

/// A process stands for virtiofsd where only its life and death matter.
fn server(stream: UnixStream, patience: Duration) -> io::Result<Server> {
    let back_end = BackEnd::connect(stream, QUEUES, patience)?;
    let child = Command::new("sleep").arg("1000").stderr(Stdio::piped()).spawn().expect("start sleep");
    let daemon = Helper::of("sleep", child).expect("a child with a log");
    Ok(Server::new(daemon, back_end, patience))
}
