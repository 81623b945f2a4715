//! Round after round, each world in turn: A again B C D, A again B C D, … The first world is measured twice in each
//! round: what it differs by from itself is the noise.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use container::store::{Image, Store};
use serde::Serialize;
use serde_json::Value;
use subject::facts::facts;
use subject::{Facts, PLACE, Work};

use crate::host::{Asked, Host};
use crate::world::World;
use crate::{Fault, environment, memory, runc};

/// Most rounds in which memory is looked at: it does not scatter as times do.
const MEMORY_ROUNDS: usize = 5;

/// What is measured, in the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// From the launcher's start to the command's first output, ms.
    StartMs,
    /// From the launcher's start to its end, ms.
    ExitMs,
    /// Arithmetic, ms.
    CpuMs,
    /// A million getpid(2), or the percent of it that was asked for, ms.
    GetpidMs,
    /// A thousand children by fork(2) and execve(2), or the percent that was asked for, ms.
    ForkExecMs,
    /// 8 MiB to the root file system, ms.
    WriteMs,
    /// 8 MiB of the image, ms.
    ReadMs,
    /// Memory of the first instance, KiB.
    MemoryKib,
    /// Memory that a second one adds, KiB.
    SecondKib,
    /// Files that an instance has of its own, KiB on disk.
    FilesKib,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::StartMs,
        Self::ExitMs,
        Self::CpuMs,
        Self::GetpidMs,
        Self::ForkExecMs,
        Self::WriteMs,
        Self::ReadMs,
        Self::MemoryKib,
        Self::SecondKib,
        Self::FilesKib,
    ];
}

/// One world's samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// The world.
    pub world: World,
    /// Whether it is the first one, measured once more.
    pub again: bool,
    /// By what was measured, in the order in which they were taken.
    pub samples: BTreeMap<Metric, Vec<f64>>,
    /// As the subject saw it, the last time.
    pub facts: Facts,
    /// Files that it needs once, however many instances there are, with their bytes.
    pub files: Vec<(PathBuf, u64)>,
}

impl Column {
    /// The samples of this metric.
    pub fn of(&self, metric: Metric) -> &[f64] {
        self.samples.get(&metric).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, metric: Metric, sample: f64) {
        self.samples.entry(metric).or_default().push(sample);
    }
}

/// All that was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The image as the user called it.
    pub image: String,
    /// What was started and waited for.
    pub command: Vec<String>,
    /// Rounds.
    pub runs: usize,
    /// Percent of the work that was counted.
    pub percent: u64,
    /// The worlds that were measured: the first, the first again, the others.
    pub columns: Vec<Column>,
    /// Those that were not, and why.
    pub missing: BTreeMap<World, String>,
    /// As this program sees the host.
    pub host: Facts,
    /// Versions and other circumstances.
    pub environment: Value,
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Orders {
    /// The image as the user calls it.
    pub image: String,
    /// What is started and waited for; nothing: the subject, which says one line.
    pub command: Vec<String>,
    /// Rounds.
    pub runs: usize,
    /// Where.
    pub asked: Asked,
}

/// Measures. `say` hears what goes on.
pub fn measure(
    store: &Store,
    image: &Image,
    orders: Orders,
    say: &mut dyn FnMut(fmt::Arguments<'_>),
) -> Result<Measured, Fault> {
    memory::keep_in_sight();
    let own = facts();
    let mut host = Host::prepare(store, image, orders.asked)?;
    let command = if orders.command.is_empty() { subject("hello") } else { orders.command };
    let mut rounds = Rounds { host: &mut host, command: &command, number: 0 };
    let mut columns = rounds.warm_up(say);
    for round in 1..=orders.runs {
        for column in &mut columns {
            let again = if column.again { " again" } else { "" };
            say(format_args!("round {round} of {}: {}{again}", orders.runs, column.world.name()));
            rounds.sample(column, round <= MEMORY_ROUNDS).map_err(|why| within(column.world, &why))?;
        }
    }
    let (environment, percent) = (environment::environment(&host), host.asked.percent);
    let missing = std::mem::take(&mut host.missing);
    drop(host);
    runc::forget_own();
    let image = orders.image;
    Ok(Measured { image, command, runs: orders.runs, percent, columns, missing, host: own, environment })
}

fn within(world: World, why: &Fault) -> Fault {
    Fault::Said(format!("{}: {why}", world.name()))
}

fn subject(order: &str) -> Vec<String> {
    std::iter::once(PLACE).chain(order.split(' ')).map(str::to_owned).collect()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

struct Rounds<'a, 'b> {
    host: &'a mut Host<'b>,
    command: &'a [String],
    number: usize,
}

impl Rounds<'_, '_> {
    /// Starts each world once, unmeasured: what is read for the first time is then in memory. One that cannot start is
    /// missing.
    fn warm_up(&mut self, say: &mut dyn FnMut(fmt::Arguments<'_>)) -> Vec<Column> {
        let mut columns: Vec<Column> = Vec::new();
        for world in self.host.asked.worlds.clone() {
            if self.host.missing.contains_key(&world) {
                continue;
            }
            say(format_args!("warming up: {}", world.name()));
            if let Err(why) = self.begin(world).and_then(|_| self.work(world)) {
                self.host.missing.insert(world, why.to_string());
                continue;
            }
            let files = self.host.files.get(&world).cloned().unwrap_or_default();
            let column = Column { world, again: false, samples: BTreeMap::new(), facts: Facts::default(), files };
            if columns.is_empty() {
                columns.push(column.clone());
                columns.push(Column { again: true, ..column });
            } else {
                columns.push(column);
            }
        }
        columns
    }

    /// One of each metric.
    fn sample(&mut self, column: &mut Column, with_memory: bool) -> Result<(), Fault> {
        let (start, exit) = self.begin(column.world)?;
        if let Some(start) = start {
            column.add(Metric::StartMs, ms(start));
        }
        column.add(Metric::ExitMs, ms(exit));
        let work = self.work(column.world)?;
        for (metric, ns) in [
            (Metric::CpuMs, work.cpu_ns),
            (Metric::GetpidMs, work.getpid_ns),
            (Metric::ForkExecMs, work.forkexec_ns),
            (Metric::WriteMs, work.write_ns),
            (Metric::ReadMs, work.read_ns),
        ] {
            column.add(metric, ns as f64 / 1e6);
        }
        column.facts = work.facts;
        if with_memory {
            let (first, second, files) = self.memory(column.world)?;
            column.add(Metric::MemoryKib, first);
            column.add(Metric::SecondKib, second);
            column.add(Metric::FilesKib, files);
        }
        Ok(())
    }

    fn next(&mut self) -> usize {
        self.number += 1;
        self.number
    }

    /// The command: its first output, if it has any, and its end.
    fn begin(&mut self, world: World) -> Result<(Option<Duration>, Duration), Fault> {
        let number = self.next();
        let mut instance = self.host.start(world, self.command, number)?;
        let first = instance.first_output()?;
        Ok((first, instance.end()?.after))
    }

    fn work(&mut self, world: World) -> Result<Work, Fault> {
        let number = self.next();
        let order = format!("work {}", self.host.asked.percent);
        let ended = self.host.start(world, &subject(&order), number)?.end()?;
        serde_json::from_str(&ended.output).map_err(|error| Fault::Said(format!("the subject said nonsense: {error}")))
    }

    /// KiB of memory that a first and a second instance add, and of the first one's own files.
    fn memory(&mut self, world: World) -> Result<(f64, f64, f64), Fault> {
        let before = memory::descendants_kib();
        let waiting = subject("wait");
        let (one, other) = (self.next(), self.next());
        let mut first = self.host.start(world, &waiting, one)?;
        first.line()?;
        let with_one = memory::descendants_kib();
        let files = first.disk_bytes() / 1024;
        let mut second = self.host.start(world, &waiting, other)?;
        second.line()?;
        let with_two = memory::descendants_kib();
        second.end()?;
        first.end()?;
        let added = |more: u64, than: u64| more.saturating_sub(than) as f64;
        Ok((added(with_one, before), added(with_two, with_one), files as f64))
    }
}
