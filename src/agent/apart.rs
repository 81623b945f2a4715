//! A thread of its own for what changes a thread: which files or which network it sees.

use std::thread;

use crate::{Doing, Fault};

/// Does something on a thread that may become different from the others, and waits for it.
pub fn apart<T: Send>(what: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    let ended = thread::scope(|scope| {
        let began = thread::Builder::new().name("apart".to_owned()).spawn_scoped(scope, what);
        began.doing(|| "start a thread".to_owned()).map(thread::ScopedJoinHandle::join)
    });
    ended?.unwrap_or_else(|_| Err("a thread ended in disorder".to_owned()))
}
