//! The default verb: build a VM from a configuration, or from what the API says, run it to its end, say why it ended.
//!
//! Everything here is on the main thread, which becomes the machine's control thread.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::legacy::console_out::ConsoleOut;
use machine::config::{Draft, LoggerConfig, OnReboot, VmConfig};
use machine::control::{self, Answer, Begin, End, Mailbox, Outcome, Refusal, Surroundings};
use machine::error::{Doing, HostError, chain};
use machine::events::Events;
use machine::input::Input;
use machine::journal::{Happening, Journal};
use machine::listener::Listener;
use machine::machine::Machine;
use machine::metadata::Store;
use machine::metrics::Metrics;
use machine::plan::Plan;
use machine::signals::Signals;
use machine::timeline::{Mark, Timeline};
use machine::vcpu;

use crate::listen::{self, ApiOptions, Listening};
use crate::log::{self, Logger};
use crate::personality::Personality;
use crate::receipt::Receipt;
use crate::reports;
use crate::runtime::{Place, PlaceError, Record, Runtime};
use crate::terminal::{self, RawTerminal};
use crate::timings::{self, TimingsFormat};

/// Exit status when the host refused something.
const HOST_ERROR: u8 = 1;
/// How long unread console output may hold up the end.
const FLUSH: Duration = Duration::from_secs(2);

/// What a run needs besides the VM's configuration.
pub struct RunOptions {
    /// The VM's name.
    pub id: Option<String>,
    /// As what the program was started.
    pub personality: Personality,
    /// Print when each phase of the boot was reached.
    pub timings: Option<TimingsFormat>,
    /// Print what the VM took.
    pub receipt: bool,
    /// When `main` was entered.
    pub started: Instant,
    /// How long the guest may take to power off when a signal asks for it.
    pub grace: Duration,
    /// What the metadata service has to tell, where there is one.
    pub metadata: Arc<Store>,
    /// Where the API is, if there is one.
    pub api: Option<ApiOptions>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The log, which the API may change.
    pub log: Logger,
}

/// What is to be run.
pub enum What {
    /// This VM, now.
    Vm(Box<VmConfig>),
    /// What the API makes of this.
    Draft(Box<Draft>),
}

/// Runs the VM in the foreground.
pub fn run(what: What, options: &RunOptions) -> ExitCode {
    terminal::restore_on_every_exit();
    let timeline = Arc::new(Timeline::new(options.started, timings::before_main(options.started)));
    timeline.mark(Mark::Configured);
    match run_to_end(what, options, &timeline) {
        Ok(end) => {
            if let Some(format) = options.timings {
                say(&timings::text(&timeline, format));
            }
            say(&report(options.id.as_deref(), &end));
            ExitCode::from(options.personality.exit_code(&end))
        }
        Err(error) => {
            say(&format!("vmm: {}\n", chain(&error)));
            ExitCode::from(HOST_ERROR)
        }
    }
}

fn run_to_end(what: What, options: &RunOptions, timeline: &Arc<Timeline>) -> Result<End, HostError> {
    let signals = Signals::block(&machine::signals::ENDING).doing(|| "block signals")?;
    let journal = Journal::new().doing(|| "create an event")?;
    let place = place(options)?; // outlives the API, whose socket is in it
    let api = listen(options, place.as_ref(), &journal)?;
    vcpu::install_kick()?;
    let mailbox = api.as_ref().map(|api| &api.mailbox);
    let stage = Stage { options, timeline, signals: &signals, mailbox, journal: &journal, place: place.as_ref() };
    let end = match what {
        What::Vm(config) => {
            let live = stage.boot(&config, console(&config)?)?;
            stage.run(*config, live)
        }
        What::Draft(draft) => stage.configure(*draft),
    }?;
    journal.note(&Happening::Exit(&end)); // the API is still there, and tells it
    Ok(end)
}

/// Takes the VM's name, so that it is found by it. Where this user has no directory for that the VM runs without.
fn place(options: &RunOptions) -> Result<Option<Place>, HostError> {
    let Some(id) = &options.id else { return Ok(None) };
    let taken = match Runtime::of_this_user() {
        Some(runtime) => runtime.take(id),
        None => Err(PlaceError::Unusable("neither VMM_RUNTIME_DIR nor XDG_RUNTIME_DIR is set".into())),
    };
    match taken {
        Err(PlaceError::Unusable(why)) => {
            say(&format!("vmm: {id}: it will not be found by its name: {why}\n"));
            Ok(None)
        }
        taken => taken.map(Some).doing(|| "start the VM"),
    }
}

/// Starts the API, if there is to be one, and makes it known in the VM's `place`.
fn listen(options: &RunOptions, place: Option<&Place>, journal: &Journal) -> Result<Option<Listening>, HostError> {
    let Some(api) = &options.api else { return Ok(None) };
    let Some(path) = api.socket.clone().or_else(|| place.map(Place::socket)) else { return Ok(None) };
    let (id, RunOptions { metadata, metrics, .. }) = (options.id.as_deref(), options);
    let listening = listen::listen(&path, api.body_max, id, metadata, metrics, journal)?;
    if let Some(place) = place {
        place.link(&path).doing(|| format!("make the link {} to the API's socket", place.socket().display()))?;
    }
    Ok(Some(listening))
}

/// What surrounds a VM for as long as the process lives.
struct Stage<'a> {
    options: &'a RunOptions,
    timeline: &'a Arc<Timeline>,
    signals: &'a Signals,
    mailbox: Option<&'a Mailbox>,
    journal: &'a Journal,
    /// Where the VM is found by its name.
    place: Option<&'a Place>,
}

/// A VM that runs, with its console.
struct Live {
    machine: Machine,
    console: Option<ConsoleOut>,
    input: Option<Input>,
    raw: Option<RawTerminal>,
    gdb: Option<Listener>,
}

impl Stage<'_> {
    /// Takes the VM's configuration from the API and runs it.
    fn configure(&self, mut draft: Draft) -> Result<End, HostError> {
        let mailbox = self.mailbox.ok_or("there is no API").doing(|| "configure the VM")?;
        loop {
            let (config, letter) = match control::configure(&mut draft, mailbox, self.signals, &self.set_log())? {
                Begin::Start(config, letter) => (config, letter),
                Begin::End(end) => return Ok(end),
            };
            let live = reports::start(&config, self.options.id.as_deref(), &self.options.metrics)
                .doing(|| "start the metrics")
                .and_then(|()| self.boot(&config, console(&config)?));
            match live {
                Ok(live) => {
                    letter.answer(Ok(Answer::Done));
                    return self.run(*config, live);
                }
                Err(error) => letter.answer(Err(Refusal::Refused(chain(&error)))),
            }
        }
    }

    /// What changes the log when the API asks for it.
    fn set_log(&self) -> impl Fn(Option<&LoggerConfig>) -> Result<(), String> {
        |config| self.options.log.set(config)
    }

    /// Builds a VM and lets it run.
    fn boot(&self, config: &VmConfig, console: Option<ConsoleOut>) -> Result<Live, HostError> {
        let plan = Plan::of(config).doing(|| "lay out the VM")?;
        let gdb = config
            .gdb
            .as_ref()
            .map(|path| Listener::bind(path).doing(|| format!("make the socket {} for gdb", path.display())));
        let gdb = gdb.transpose()?;
        let events = Arc::new(Events::new(self.timeline.clone()).doing(|| "create an event")?);
        let machine = Machine::build(config, &plan, console.clone(), events, &self.options.metadata)?;
        let raw = match (&console, &config.serial.serial_out_path) {
            (Some(_), None) => RawTerminal::enter().doing(|| "make the terminal raw")?,
            _ => None,
        };
        let input = input(&machine, raw.is_some())?;
        let metrics = &self.options.metrics;
        metrics.set_vm(machine.sources());
        metrics.flush();
        self.journal.note(&Happening::Started);
        self.tell_place(config);
        match gdb {
            // Before the guest's first instruction gdb may set its breakpoints.
            Some(_) => {
                machine.can_be_debugged()?;
                machine.start_devices();
            }
            None => machine.boot(),
        }
        Ok(Live { machine, console, input, raw, gdb })
    }

    /// Attends to a VM, and where a reboot starts it again the next one, to the end.
    fn run(&self, mut config: VmConfig, mut live: Live) -> Result<End, HostError> {
        let mut client = None;
        loop {
            let Live { machine, console, input, raw, gdb } = live;
            let outcome = control::run(
                &machine,
                Surroundings {
                    signals: self.signals,
                    input,
                    grace: self.options.grace,
                    mailbox: self.mailbox,
                    gdb,
                    config: &mut config,
                    metrics: &self.options.metrics,
                    journal: self.journal,
                    console: console.as_ref(),
                    set_log: &self.set_log(),
                    client: &mut client,
                },
            )?;
            self.timeline.mark(Mark::End);
            self.options.metrics.flush();
            self.tell_receipt(&machine, &outcome.end);
            let restarts = restarts(&config, &outcome);
            match restarts {
                true => drop(machine),
                false => machine.leave(),
            }
            if let Some(console) = &console {
                flush(console, self.signals);
            }
            drop(raw);
            if !restarts {
                if let Some(follower) = console.and_then(|console| console.unfollow()) {
                    flush(&follower, self.signals);
                }
                return Ok(outcome.end);
            }
            self.journal.note(&Happening::Restart(&outcome.end));
            say(&report(self.options.id.as_deref(), &outcome.end));
            config.snapshot = None; // a reboot boots
            live = self.boot(&config, console)?;
            if let Some(letter) = outcome.reset {
                letter.answer(Ok(Answer::Done));
            }
        }
    }

    /// Writes down for `vmm ps` what was started. It can do without.
    fn tell_place(&self, config: &VmConfig) {
        let Some(place) = self.place else { return };
        let (cpus, memory) = (config.machine_config.vcpu_count, config.machine_config.mem_size_mib);
        let record = Record { vcpu_count: Some(cpus.into()), mem_size_mib: Some(memory), ..Record::of_this_process() };
        if let Err(error) = place.note(&record) {
            tracing::warn!(%error, "what the VM is could not be written down for `vmm ps`");
        }
    }

    /// Says what a VM took, where somebody wants to know.
    fn tell_receipt(&self, machine: &Machine, end: &End) {
        let RunOptions { receipt, metrics, id, .. } = self.options;
        if !receipt && !tracing::enabled!(tracing::Level::INFO) {
            return;
        }
        let text = Receipt::of(machine, metrics, self.timeline, end).to_string();
        tracing::info!("{text}");
        if *receipt {
            say(&id.as_ref().map_or_else(|| format!("vmm: {text}\n"), |id| format!("vmm: {id}: {text}\n")));
        }
    }
}

fn restarts(config: &VmConfig, outcome: &Outcome) -> bool {
    let by_guest = outcome.end.is_reset() && !outcome.asked && config.on_reboot == OnReboot::Restart;
    by_guest || outcome.reset.is_some()
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
    ConsoleOut::new(file, config.serial.rate_limiter.as_ref()).doing(|| "start the console's thread").map(Some)
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
