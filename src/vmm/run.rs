//! The default verb: build a VM from a configuration, run it to its end, say why it ended.
//!
//! Everything here is on the main thread, which becomes the machine's control thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::legacy::console_out::ConsoleOut;
use machine::config::{OnReboot, VmConfig};
use machine::control::{self, End, Surroundings};
use machine::error::{Doing, HostError, chain};
use machine::events::Events;
use machine::input::Input;
use machine::machine::Machine;
use machine::plan::Plan;
use machine::signals::Signals;
use machine::timeline::{Mark, Timeline};
use machine::vcpu;

use crate::terminal::{self, RawTerminal};
use crate::timings::{self, TimingsFormat};

/// Exit status when the host refused something.
const HOST_ERROR: u8 = 1;
/// How long unread console output may hold up the end.
const FLUSH: Duration = Duration::from_secs(2);

/// What a run needs besides the VM's configuration.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The VM's name.
    pub id: Option<String>,
    /// Print when each phase of the boot was reached.
    pub timings: Option<TimingsFormat>,
    /// When `main` was entered.
    pub started: Instant,
    /// How long the guest may take to power off when a signal asks for it.
    pub grace: Duration,
}

/// Runs the VM in the foreground.
pub fn run(config: &VmConfig, plan: &Plan, options: &RunOptions) -> ExitCode {
    terminal::restore_on_every_exit();
    let timeline = Arc::new(Timeline::new(options.started, timings::before_main(options.started)));
    timeline.mark(Mark::Configured);
    match run_to_end(config, plan, options, &timeline) {
        Ok(end) => {
            if let Some(format) = options.timings {
                timings::print(&timeline, format);
            }
            report(options.id.as_deref(), &end);
            ExitCode::from(end.exit_code())
        }
        Err(error) => {
            eprintln!("vmm: {}", chain(&error));
            ExitCode::from(HOST_ERROR)
        }
    }
}

fn run_to_end(
    config: &VmConfig,
    plan: &Plan,
    options: &RunOptions,
    timeline: &Arc<Timeline>,
) -> Result<End, HostError> {
    let signals = Signals::block().doing(|| "block signals")?;
    vcpu::install_kick()?;
    loop {
        let end = run_once(config, plan, options, timeline, &signals)?;
        if !restarts(config, &end) {
            return Ok(end);
        }
        report(options.id.as_deref(), &end);
    }
}

fn run_once(
    config: &VmConfig,
    plan: &Plan,
    options: &RunOptions,
    timeline: &Arc<Timeline>,
    signals: &Signals,
) -> Result<End, HostError> {
    let events = Arc::new(Events::new(timeline.clone()).doing(|| "create an event")?);
    let console = console(config)?;
    let machine = Machine::build(config, plan, console.clone(), events)?;
    let raw = match (&console, &config.serial.serial_out_path) {
        (Some(_), None) => RawTerminal::enter().doing(|| "make the terminal raw")?,
        _ => None,
    };
    let input = input(&machine, raw.is_some())?;
    machine.boot();
    let end = control::run(&machine, Surroundings { signals, input, grace: options.grace })?;
    timeline.mark(Mark::End);
    if restarts(config, &end) {
        drop(machine);
    } else {
        machine.leave();
    }
    if let Some(console) = &console {
        console.flush(FLUSH);
    }
    drop(raw);
    Ok(end)
}

fn restarts(config: &VmConfig, end: &End) -> bool {
    end.is_reset() && config.on_reboot == OnReboot::Restart
}

/// Where the serial port's output goes; `None` without a serial port.
fn console(config: &VmConfig) -> Result<Option<ConsoleOut>, HostError> {
    if !config.serial.enabled {
        return Ok(None);
    }
    let file = match &config.serial.serial_out_path {
        Some(path) => {
            let opened = OpenOptions::new().append(true).create(true).open(path);
            opened.doing(|| format!("open {} for the serial port's output", path.display()))?
        }
        None => File::from(io::stdout().as_fd().try_clone_to_owned().doing(|| "use standard output")?),
    };
    ConsoleOut::new(file).doing(|| "start the console's thread").map(Some)
}

/// Standard input, if there is a serial port to read it.
fn input(machine: &Machine, raw: bool) -> Result<Option<Input>, HostError> {
    let Some(serial) = machine.serial() else { return Ok(None) };
    // A closed standard input is no input.
    Ok(io::stdin().as_fd().try_clone_to_owned().ok().map(|stdin| Input::new(File::from(stdin), serial, raw)))
}

/// One line that says why the VM ended; after a fault, where it was.
fn report(id: Option<&str>, end: &End) {
    match id {
        Some(id) => eprintln!("vmm: {id}: {end}"),
        None => eprintln!("vmm: {end}"),
    }
    if let End::Vcpu(_, stop) = end
        && let Some(registers) = stop.registers()
    {
        eprintln!("{registers}");
    }
}
