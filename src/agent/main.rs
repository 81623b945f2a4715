//! PID 1 of a guest that runs containers.
//!
//! It loads the drivers that the kernel has not built in (`modules.rs`), makes the VM a Linux system (`system.rs`), calls the host, and follows its orders (`orders.rs`), one thread per
//! connection; this thread reaps what ends (`reaper.rs`). It trusts the host and nothing in a container. What goes wrong
//! before the host can be told stands on the console, and the VM switches itself off.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod apart;
mod archive;
mod connection;
mod container;
mod disks;
mod launch;
mod layers;
mod limits;
mod modules;
mod network;
mod orders;
mod reaper;
mod spec;
mod streams;
mod system;
mod terminal;
mod usage;
mod user;
mod users;
mod volumes;

use std::sync::Arc;

use crate::container::Containers;
use crate::reaper::Reaper;

/// Why something could not be done: a sentence for the host's user.
type Fault = String;

/// What was tried, before what came of it.
trait Doing<T> {
    /// Puts `what` before the error.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| format!("{}: {error}", what()))
    }
}

fn main() {
    if std::process::id() != 1 {
        eprintln!("vmm-agent is the first process of a guest; `vmm run` starts it");
        std::process::exit(2);
    }
    if let Err(why) = begin() {
        fail(&why);
    }
}

fn begin() -> Result<(), Fault> {
    modules::load_all()?;
    system::mount_all()?;
    let reaper = Arc::new(Reaper::default());
    let listening = connection::listen()?;
    let containers = Arc::new(Containers::default());
    let (served, greeted) = (Arc::clone(&reaper), Arc::clone(&containers));
    start("orders", move || orders::serve(&listening, &served, &containers))?;
    start("host", move || {
        if let Err(why) = orders::greet(&greeted) {
            fail(&why);
        }
    })?;
    reaper.run()
}

/// Starts a thread.
fn start(name: &str, what: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(what);
    thread.map(drop).doing(|| "start a thread".to_owned())
}

/// Leaves its last words on the console, and switches the VM off.
fn fail(why: &str) -> ! {
    eprintln!("vmm-agent: {why}");
    system::power_off()
}
