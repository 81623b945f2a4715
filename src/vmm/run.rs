//! The default verb: build a VM from a configuration, run it to its end, say why it ended.
//!
//! Everything here is on the main thread, which becomes the machine's control thread.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::legacy::console_out::ConsoleOut;
use machine::config::{OnReboot, VmConfig};
use machine::control::{self, End, Outcome, Surroundings};
use machine::error::{Doing, HostError, chain};
use machine::events::Events;
use machine::input::Input;
use machine::machine::Machine;
use machine::plan::Plan;
use machine::signals::Signals;
use machine::timeline::{Mark, Timeline};
use machine::vcpu;

use crate::log;
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
                say(&timings::text(&timeline, format));
            }
            say(&report(options.id.as_deref(), &end));
            ExitCode::from(end.exit_code())
        }
        Err(error) => {
            say(&format!("vmm: {}\n", chain(&error)));
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
    let console = console(config)?;
    loop {
        let outcome = run_once(config, plan, options, timeline, &signals, console.as_ref())?;
        if !restarts(config, &outcome) {
            return Ok(outcome.end);
        }
        say(&report(options.id.as_deref(), &outcome.end));
    }
}

fn run_once(
    config: &VmConfig,
    plan: &Plan,
    options: &RunOptions,
    timeline: &Arc<Timeline>,
    signals: &Signals,
    console: Option<&ConsoleOut>,
) -> Result<Outcome, HostError> {
    let events = Arc::new(Events::new(timeline.clone()).doing(|| "create an event")?);
    let machine = Machine::build(config, plan, console.cloned(), events)?;
    let raw = match (console, &config.serial.serial_out_path) {
        (Some(_), None) => RawTerminal::enter().doing(|| "make the terminal raw")?,
        _ => None,
    };
    let input = input(&machine, raw.is_some())?;
    machine.boot();
    let outcome = control::run(&machine, Surroundings { signals, input, grace: options.grace })?;
    timeline.mark(Mark::End);
    if restarts(config, &outcome) {
        drop(machine);
    } else {
        machine.leave();
    }
    if let Some(console) = console {
        flush(console, signals);
    }
    drop(raw);
    Ok(outcome)
}

fn restarts(config: &VmConfig, outcome: &Outcome) -> bool {
    outcome.end.is_reset() && !outcome.asked && config.on_reboot == OnReboot::Restart
}

/// Waits for the console's output as long as somebody reads it and no signal says not to.
fn flush(console: &ConsoleOut, signals: &Signals) {
    const SLICE: Duration = Duration::from_millis(100);
    let (mut waiting, mut since) = (console.waiting(), Instant::now());
    while !console.flush(SLICE) && signals.next().is_none() {
        let now = console.waiting();
        if now != waiting {
            (waiting, since) = (now, Instant::now());
        } else if since.elapsed() >= FLUSH {
            return;
        }
    }
}

/// Where the serial port's output goes; `None` without a serial port.
fn console(config: &VmConfig) -> Result<Option<ConsoleOut>, HostError> {
    if !config.serial.enabled {
        return Ok(None);
    }
    let file = match &config.serial.serial_out_path {
        Some(path) => {
            log::open_output(path).doing(|| format!("open {} for the serial port's output", path.display()))?
        }
        None => File::from(io::stdout().as_fd().try_clone_to_owned().doing(|| "use standard output")?),
    };
    ConsoleOut::new(file).doing(|| "start the console's thread").map(Some)
}

/// Standard input, if there is a serial port to read it.
fn input(machine: &Machine, raw: bool) -> Result<Option<Input>, HostError> {
    let Some(serial) = machine.serial() else { return Ok(None) };
    if io::stdin().is_terminal() && !raw {
        return Ok(None); // a terminal that is not this process's to read
    }
    // A closed standard input is no input.
    Ok(io::stdin().as_fd().try_clone_to_owned().ok().map(|stdin| Input::new(File::from(stdin), serial, raw)))
}

/// One line that says why the VM ended; after a fault, where it was.
fn report(id: Option<&str>, end: &End) -> String {
    let mut text = match id {
        Some(id) => format!("vmm: {id}: {end}\n"),
        None => format!("vmm: {end}\n"),
    };
    if let End::Vcpu(_, stop) = end
        && let Some(registers) = stop.registers()
    {
        text.push_str(&format!("{registers}\n"));
    }
    text
}

/// Writes to standard error, unless nobody reads it: the end of a VM must not wait for that.
fn say(text: &str) {
    if log::is_writable(&io::stderr(), FLUSH) {
        let _ = io::stderr().write_all(text.as_bytes());
    }
}
