//! Whether a container is well: a command in it, run again and again by its owner, as Docker's health checks are.
//!
//! What the last one found is in the container's folder, where `vmm ps` reads it. One thread.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ::container::document::Healthcheck;
use ::container::register::Health;
use ::container::session::Session;
use clap::Args;
use protocol::frame::Kind;
use protocol::message::{Exec, Input, Order, Report};

/// Docker's.
const INTERVAL: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;
/// Most of what a check prints that is kept, bytes.
const OUTPUT_MAX: usize = 4096;

/// How it is found out.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Health")]
pub struct HealthArgs {
    /// Command that says whether it is well, for its shell [default: the image's]
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Between two checks: 500ms, 30s, 1m30s [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    health_interval: Option<Duration>,
    /// Longest that a check may take [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    health_timeout: Option<Duration>,
    /// Failures do not count for so long after the start [default: the image's, or 0s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    health_start_period: Option<Duration>,
    /// Failures in a row after which it is unhealthy [default: the image's, or 3]
    #[arg(long, value_name = "NUMBER")]
    health_retries: Option<u32>,
    /// Do not find out
    #[arg(long, conflicts_with = "health_cmd")]
    no_healthcheck: bool,
}

/// The checks of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checks {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    retries: u32,
}

impl Checks {
    /// What is asked for, where anything is.
    pub fn of(args: &HealthArgs, image: Option<&Healthcheck>) -> Option<Self> {
        let image = image.cloned().unwrap_or_default();
        let shell = |command: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), command.to_owned()];
        let command = match (&args.health_cmd, image.test.as_deref().and_then(|test| test.split_first())) {
            _ if args.no_healthcheck => return None,
            (Some(command), _) => shell(command),
            (None, Some((kind, words))) if kind == "CMD" && !words.is_empty() => words.to_vec(),
            (None, Some((kind, [command, ..]))) if kind == "CMD-SHELL" => shell(command),
            _ => return None,
        };
        let time = |nanos: Option<i64>| {
            nanos.and_then(|nanos| u64::try_from(nanos).ok()).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
        };
        let retries = image.retries.and_then(|retries| u32::try_from(retries).ok()).filter(|retries| *retries > 0);
        Some(Self {
            command,
            interval: args.health_interval.or_else(|| time(image.interval)).unwrap_or(INTERVAL),
            timeout: args.health_timeout.or_else(|| time(image.timeout)).unwrap_or(INTERVAL),
            start_period: args.health_start_period.or_else(|| time(image.start_period)).unwrap_or_default(),
            retries: args.health_retries.or(retries).unwrap_or(RETRIES),
        })
    }

    /// Starts to look, until what is returned is dropped.
    pub fn watch(self, id: String, socket: PathBuf, note: PathBuf) -> std::io::Result<Sender<()>> {
        let (end, ended) = channel();
        let begun = Instant::now();
        let watch = move || {
            let mut health = Health { status: "starting".to_owned(), failing: 0, output: String::new() };
            write(&note, &health);
            while matches!(ended.recv_timeout(self.interval), Err(RecvTimeoutError::Timeout)) {
                let found = self.check(&id, &socket);
                self.judge(&mut health, found, begun.elapsed());
                write(&note, &health);
            }
        };
        thread::Builder::new().name("health".to_owned()).spawn(watch).map(|_| end)
    }

    /// What one check says of a container that has run so long.
    fn judge(&self, health: &mut Health, found: Result<String, String>, ran: Duration) {
        match found {
            Ok(output) => *health = Health { status: "healthy".to_owned(), failing: 0, output },
            Err(output) => {
                let counts = health.status != "starting" || ran >= self.start_period;
                health.failing = health.failing.saturating_add(u32::from(counts));
                health.output = output;
                if health.failing >= self.retries {
                    health.status = "unhealthy".to_owned();
                }
            }
        }
    }

    /// Runs the command once. What it printed; as an error, where it failed.
    fn check(&self, id: &str, socket: &Path) -> Result<String, String> {
        let order = Exec {
            id: id.to_owned(),
            args: self.command.clone(),
            env: Vec::new(),
            cwd: None,
            user: None,
            terminal: None,
            stdin: false,
        };
        let mut session = Session::call(socket).map_err(|error| error.to_string())?;
        session.say(&Order::Exec(Box::new(order))).map_err(|error| error.to_string())?;
        let mut killer = session.speaker().map_err(|error| error.to_string())?;
        let (told, heard) = channel();
        thread::scope(|scope| {
            scope.spawn(move || told.send(outcome(&mut session)));
            self.wait(&heard, || {
                let _ = killer.say(&Input::Signal(libc::SIGKILL));
            })
        })
    }

    fn wait(&self, heard: &Receiver<Result<String, String>>, kill: impl FnOnce()) -> Result<String, String> {
        match heard.recv_timeout(self.timeout) {
            Ok(outcome) => outcome,
            Err(_) => {
                kill();
                let _ = heard.recv();
                Err(format!("the check took longer than {:?}", self.timeout))
            }
        }
    }
}

/// What a check printed; as an error, where it failed.
fn outcome(session: &mut Session) -> Result<String, String> {
    let mut output = Vec::new();
    while let Some(frame) = session.hear().map_err(|error| error.to_string())? {
        match frame.kind {
            Kind::Message => match frame.open().map_err(|error| error.to_string())? {
                Report::Started { .. } => {}
                Report::Failed(failure) => return Err(failure.why),
                Report::Exited(exit) => {
                    let text = String::from_utf8_lossy(&output).into_owned();
                    return if exit.code == 0 { Ok(text) } else { Err(text) };
                }
            },
            _ => output.extend(frame.body.iter().take(OUTPUT_MAX.saturating_sub(output.len()))),
        }
    }
    Err("the agent in the VM hung up".to_owned())
}

fn write(note: &Path, health: &Health) {
    if let Err(error) = health.write(note) {
        eprintln!("vmm: note the container's health: {error}");
    }
}

/// `1m30s`, `500ms`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is no time; 500ms, 30s and 1m30s are");
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).filter(|at| *at > 0).ok_or_else(wrong)?;
        let (number, unit) = rest.split_at(digits);
        let letters = unit.find(|letter: char| letter.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, next) = unit.split_at(letters);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        sum = sum.saturating_add(Duration::from_millis(number.saturating_mul(millis)));
        rest = next;
    }
    if sum.is_zero() { Err(wrong()) } else { Ok(sum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_s_words_come_before_the_image_s() {
        let image = Healthcheck {
            test: Some(vec!["CMD-SHELL".to_owned(), "true".to_owned()]),
            interval: Some(2_000_000_000),
            retries: Some(7),
            ..Healthcheck::default()
        };
        assert_eq!(Checks::of(&HealthArgs::default(), None), None);
        let checks = Checks::of(&HealthArgs::default(), Some(&image)).unwrap();
        assert_eq!((checks.command.join(" ").as_str(), checks.retries), ("/bin/sh -c true", 7));
        assert_eq!((checks.interval, checks.timeout), (Duration::from_secs(2), INTERVAL));
        let own = HealthArgs { health_cmd: Some("false".to_owned()), health_retries: Some(1), ..HealthArgs::default() };
        let checks = Checks::of(&own, Some(&image)).unwrap();
        assert_eq!((checks.command[2].as_str(), checks.retries), ("false", 1));
        assert_eq!(Checks::of(&HealthArgs { no_healthcheck: true, ..HealthArgs::default() }, Some(&image)), None);
        let nothing = Healthcheck { test: Some(vec!["NONE".to_owned()]), ..Healthcheck::default() };
        assert_eq!(Checks::of(&HealthArgs::default(), Some(&nothing)), None);
    }

    #[test]
    fn failures_count_after_the_start() {
        let own = HealthArgs { health_cmd: Some("x".to_owned()), health_retries: Some(2), ..HealthArgs::default() };
        let checks = Checks { start_period: Duration::from_secs(5), ..Checks::of(&own, None).unwrap() };
        let mut health = Health { status: "starting".to_owned(), failing: 0, output: String::new() };
        let mut judge = |found: Result<&str, &str>, seconds| {
            checks.judge(&mut health, found.map(Into::into).map_err(Into::into), Duration::from_secs(seconds));
            (health.status.clone(), health.failing)
        };
        assert_eq!(judge(Err("a"), 1), ("starting".to_owned(), 0));
        assert_eq!(judge(Err("a"), 6), ("starting".to_owned(), 1));
        assert_eq!(judge(Ok("b"), 7), ("healthy".to_owned(), 0));
        assert_eq!(judge(Err("c"), 8), ("healthy".to_owned(), 1));
        assert_eq!(judge(Err("d"), 9), ("unhealthy".to_owned(), 2));
        assert_eq!(judge(Ok("e"), 10), ("healthy".to_owned(), 0));
    }

    #[test]
    fn times_are_written_as_docker_s() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "5", "s", "5x", "0s", "-1s", "1s2"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
