//! Containers in microVMs: `vmm run`, and what speaks to those that run.

mod asked;
mod attach;
mod copy;
mod detach;
mod disk_limits;
mod duration;
mod exec;
mod health;
mod home;
mod interface;
mod keeper;
mod list;
mod logs;
mod network;
mod options;
mod places;
mod restart;
mod run;
mod signal;
mod stats;
mod template;
mod tenant;
mod verbs;

use std::process::ExitCode;

use clap::Subcommand;

use crate::args::Deferred;

pub use list::{Line, lines, table};
pub use run::{FAILED, image, kernel};

/// What is done with containers.
#[derive(Debug, Subcommand)]
pub enum ContainerVerb {
    /// Run a container of an image in a microVM of its own
    Run(Deferred<options::ContainerArgs>),
    /// Run one more process in a container
    Exec(Deferred<exec::ExecArgs>),
    /// Print what a container has written
    Logs(Deferred<logs::LogsArgs>),
    /// End containers: ask first, then kill
    Stop(Deferred<verbs::StopArgs>),
    /// Send a signal to containers
    Kill(Deferred<verbs::KillArgs>),
    /// Wait for the end of containers and print their exit statuses
    Wait(Deferred<verbs::WaitArgs>),
    /// Copy files out of a container or into it
    Cp(Deferred<copy::CopyArgs>),
    /// Print what containers use, every second
    Stats(Deferred<stats::StatsArgs>),
    /// List the processes of a container
    Top(Deferred<stats::TopArgs>),
    /// Remove containers that have ended
    Rm(Deferred<verbs::RmArgs>),
    /// Have the VM of a tenant
    #[command(hide = true)]
    Keep(Deferred<tenant::TenantArgs>),
}

/// Does it.
pub fn act(verb: &ContainerVerb) -> ExitCode {
    match verb {
        ContainerVerb::Run(args) => run::run(args),
        ContainerVerb::Exec(args) => exec::exec(args),
        ContainerVerb::Logs(args) => logs::logs(args),
        ContainerVerb::Stop(args) => verbs::stop(args),
        ContainerVerb::Kill(args) => verbs::kill(args),
        ContainerVerb::Wait(args) => verbs::wait(args),
        ContainerVerb::Cp(args) => copy::copy(args),
        ContainerVerb::Stats(args) => stats::stats(args),
        ContainerVerb::Top(args) => stats::top(args),
        ContainerVerb::Rm(args) => verbs::remove(args),
        ContainerVerb::Keep(args) => keeper::keep(args),
    }
}
