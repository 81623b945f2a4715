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

use super::duration::duration;

/// Docker's.
const INTERVAL: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Least time of a check, and between two: Docker's, too.
const LEAST: Duration = Duration::from_millis(1);
/// Most of what a check prints that is kept, bytes.
const OUTPUT_MAX: usize = 4096;

/// How it is found out.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Health")]
pub struct HealthArgs {
    /// Command that says whether it is well, for its shell [default: the image's]
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Between two checks: 500ms, 1.5s, 1m30s [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_interval: Option<Duration>,
    /// Longest that a check may take [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_timeout: Option<Duration>,
    /// Failures do not count for so long after the start [default: the image's, or 0s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_start_period: Option<Duration>,
    /// Between two checks before that time is over, until one went well [default: the image's, or 5s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_start_interval: Option<Duration>,
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
    start_interval: Duration,
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
        let time = |asked: Option<Duration>, image: Option<i64>| {
            let image = image.and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos);
            [asked, image].into_iter().flatten().find(|time| !time.is_zero())
        };
        let image_retries = image.retries.and_then(|retries| u32::try_from(retries).ok());
        let retries = [args.health_retries, image_retries].into_iter().flatten().find(|retries| *retries > 0);
        Some(Self {
            command,
            interval: time(args.health_interval, image.interval).unwrap_or(INTERVAL),
            timeout: time(args.health_timeout, image.timeout).unwrap_or(INTERVAL),
            start_period: time(args.health_start_period, image.start_period).unwrap_or_default(),
            start_interval: time(args.health_start_interval, image.start_interval).unwrap_or(START_INTERVAL),
            retries: retries.unwrap_or(RETRIES),
        })
    }

    /// Starts to look, until what is returned is dropped.
    pub fn watch(self, id: String, socket: PathBuf, note: PathBuf) -> std::io::Result<Sender<()>> {
        let (end, ended) = channel();
        let begun = Instant::now();
        let watch = move || {
            let mut health = Health { status: "starting".to_owned(), failing: 0, output: String::new() };
            write(&note, &health);
            while matches!(ended.recv_timeout(self.pause(&health, begun.elapsed())), Err(RecvTimeoutError::Timeout)) {
                let found = self.check(&id, &socket);
                self.judge(&mut health, found, begun.elapsed());
                write(&note, &health);
            }
        };
        thread::Builder::new().name("health".to_owned()).spawn(watch).map(|_| end)
    }

    /// How long until the next check of a container that has run so long.
    fn pause(&self, health: &Health, ran: Duration) -> Duration {
        match health.status == "starting" && ran < self.start_period {
            true => self.start_interval,
            false => self.interval,
        }
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

/// A time between checks, or for one; none is what is said otherwise.
fn time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        few if !few.is_zero() && few < LEAST => Err(format!("at least {LEAST:?}, or 0 for what is usual")),
        time => Ok(time),
    }
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
    fn nothing_is_what_is_usual() {
        let image = Healthcheck { timeout: Some(2_000_000_000), ..Healthcheck::default() };
        let none = Some(Duration::ZERO);
        let args = HealthArgs {
            health_cmd: Some("x".to_owned()),
            health_interval: none,
            health_timeout: none,
            health_start_interval: none,
            health_retries: Some(0),
            ..HealthArgs::default()
        };
        let checks = Checks::of(&args, Some(&image)).unwrap();
        assert_eq!((checks.interval, checks.timeout, checks.retries), (INTERVAL, Duration::from_secs(2), RETRIES));
        assert_eq!(checks.start_interval, START_INTERVAL);
        assert_eq!((time("1ms"), time("0s")), (Ok(LEAST), Ok(Duration::ZERO)));
        assert!(time("999us").unwrap_err().starts_with("at least 1ms"));
    }

    #[test]
    fn a_container_that_starts_is_looked_at_more_often() {
        let image = Healthcheck { start_interval: Some(1_000_000_000), ..Healthcheck::default() };
        let args = HealthArgs {
            health_cmd: Some("x".to_owned()),
            health_start_period: Some(Duration::from_secs(9)),
            ..HealthArgs::default()
        };
        let checks = Checks::of(&args, Some(&image)).unwrap();
        let pause = |status: &str, ran| {
            let health = Health { status: status.to_owned(), failing: 0, output: String::new() };
            checks.pause(&health, Duration::from_secs(ran))
        };
        assert_eq!((pause("starting", 0), pause("starting", 8)), (Duration::from_secs(1), Duration::from_secs(1)));
        assert_eq!((pause("starting", 9), pause("healthy", 1)), (INTERVAL, INTERVAL));
    }
}
