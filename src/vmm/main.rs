//! `vmm`: a micro-VM monitor. Reads the command line and the configuration, then hands over to one verb.

mod args;
mod compare;
mod console;
mod container;
mod cpu;
mod ctl;
mod doctor;
mod explain;
mod image;
mod listen;
mod log;
mod personality;
mod ps;
mod receipt;
mod reports;
mod run;
mod runtime;
mod schema;
mod table;
mod terminal;
mod timings;

use std::ffi::OsStr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::config::{HostLimits, VmConfig};
use machine::metrics::Metrics;
use machine::plan::Plan;

use args::{Failure, Order, RunArgs, VmArgs};
use log::Logger;
use personality::Personality;
use run::What;

/// Exit status for a configuration that is wrong (Firecracker's).
const BAD_CONFIG: u8 = 152;
/// Exit status for a command line that is wrong (Firecracker's).
const BAD_ARGS: u8 = 153;

/// The same of this verb: what runs a container's programs ends as Docker does, as all other statuses are the programs'.
fn bad_args(verb: Option<&OsStr>) -> u8 {
    match verb.and_then(OsStr::to_str) {
        Some("run" | "exec") => container::FAILED,
        _ => BAD_ARGS,
    }
}

fn main() -> ExitCode {
    let started = Instant::now();
    let personality = Personality::of(std::env::args_os().next().as_deref());
    let order = match args::read(std::env::args_os(), personality) {
        Ok(order) => order,
        Err(error) => return args::refuse(&error, personality, bad_args(std::env::args_os().nth(1).as_deref())),
    };
    let done = match order {
        Order::Run(vm, run) => run_verb(&vm, run, personality, started),
        Order::Explain(args) => planned(&args.vm, None).map(|(config, plan)| explain::print(&config, &plan, args.json)),
        Order::Schema => Ok(schema::print()),
        Order::Cpu(args) => cpu::run(&args),
        Order::Ctl(args) => Ok(ctl::run(&args)),
        Order::Ps(args) => Ok(ps::run(&args)),
        Order::Image(args) => Ok(image::run(&args)),
        Order::Container(verb) => Ok(container::act(&verb)),
        Order::Compare(args) => Ok(compare::run(&args)),
        Order::Doctor(args) => Ok(doctor::print(&args)),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("{failure}");
        ExitCode::from(match failure {
            Failure::Config(_) => BAD_CONFIG,
            Failure::Args(_) => BAD_ARGS,
        })
    })
}

fn run_verb(vm: &VmArgs, run: RunArgs, personality: Personality, started: Instant) -> Result<ExitCode, Failure> {
    run.firecracker.refuse()?;
    run.firecracker.warn();
    let (api, metadata, metrics) = (run.api(personality), run.metadata()?, Arc::new(Metrics::new()));
    metrics.watch("mmds", metadata.counts());
    run.firecracker.note(&metrics);
    let log = Logger::start(run.id.as_deref(), &metrics.reports).map_err(Failure::Config)?;
    let what = if api.as_ref().is_some_and(|api| api.socket.is_some()) && !vm.names_a_vm() {
        let draft = vm.draft()?;
        log.set(draft.config().logger.as_ref()).map_err(Failure::Config)?;
        What::Draft(Box::new(draft))
    } else {
        let (config, _) = planned(vm, Some(&HostLimits::of_this_host()))?;
        log.set(config.logger.as_ref()).map_err(Failure::Config)?;
        reports::start(&config, run.id.as_deref(), &metrics).map_err(Failure::Config)?;
        What::Vm(Box::new(config))
    };
    let grace = Duration::from_secs(run.grace);
    Ok(run::run(
        what,
        &run::RunOptions {
            id: run.id,
            personality,
            timings: run.timings,
            receipt: run.receipt,
            started,
            grace,
            metadata,
            api,
            metrics,
            log,
        },
    ))
}

/// The configuration and its plan.
fn planned(vm: &VmArgs, host: Option<&HostLimits>) -> Result<(VmConfig, Plan), Failure> {
    let config = vm.load(host)?;
    // Validation finds whatever has no plan, with its place; this is only a net below it.
    let plan = Plan::of(&config).map_err(|error| Failure::Config(error.to_string()))?;
    Ok((config, plan))
}
