//! `vmm compare`: one image as a process, a container, a microVM and a container in a microVM, measured in turn.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ::compare::claims::claims;
use ::compare::host::Asked;
use ::compare::measure::{Measured, Orders, measure};
use ::compare::page::page;
use ::compare::report;
use ::compare::world::World;
use ::container::store::Store;
use clap::Args;

use crate::args::mebibytes;
use crate::container::{image, kernel};
use crate::table::{shown, table};

/// What `vmm compare` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct CompareArgs {
    /// Rounds: each world starts and works once in each
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// The worlds, of process, container, vm, vm-container [default: all]
    #[arg(long, value_name = "WORLD", value_delimiter = ',')]
    worlds: Vec<World>,
    /// Write every sample and the circumstances to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with tables and plots to this file: one HTML file that needs no other
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Kernel of the VMs [default: $VMM_KERNEL, or vmlinux beside this program]
    #[arg(long, value_name = "FILE", env = "VMM_KERNEL")]
    kernel: Option<PathBuf>,
    /// Most memory of a container, and all memory of the VM that has none
    #[arg(short, long, value_name = "SIZE", value_parser = mebibytes, default_value = "256M")]
    memory: u64,
    /// Percent of the work: 100 is a million getpid and a thousand children
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100))]
    work: u64,
    /// Longest life of one instance
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// The image, as `vmm run` takes it
    #[arg(value_name = "IMAGE")]
    image: String,
    /// What is started and waited for, instead of a program that says one line. As a plain process it is root on this
    /// host, with nothing to hold it
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Compares.
pub fn run(args: &CompareArgs) -> ExitCode {
    match compared(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            for line in why.lines() {
                eprintln!("vmm: {}", shown(line));
            }
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was asked for was measured.
fn compared(args: &CompareArgs) -> Result<bool, String> {
    let store = Store::of_this_user().map_err(|error| error.to_string())?;
    let (image, _lease) = image(&store, &args.image)?;
    let worlds = if args.worlds.is_empty() { World::ALL.to_vec() } else { args.worlds.clone() };
    let asked = Asked {
        worlds,
        kernel: kernel(args.kernel.as_ref()).ok(),
        memory_mib: args.memory,
        percent: args.work,
        limit: Duration::from_secs(args.timeout),
    };
    let orders = Orders { image: args.image.clone(), command: args.command.clone(), runs: args.runs.into(), asked };
    let loud = io::stderr().is_terminal();
    let mut say = |what: std::fmt::Arguments<'_>| {
        if loud {
            eprint!("\r\x1b[K{what}");
        } else {
            eprintln!("vmm: {what}");
        }
    };
    let measured = measure(&store, &image, orders, &mut say);
    if loud {
        eprint!("\r\x1b[K");
    }
    let measured = measured.map_err(|error| error.to_string())?;
    print!("{}", text(&measured));
    if let Some(file) = &args.json {
        write(file, &format!("{:#}\n", report::json(&measured)))?;
    }
    if let Some(file) = &args.html {
        write(file, &page(&measured))?;
    }
    let all = measured.missing.is_empty();
    Ok(if args.worlds.is_empty() { !measured.columns.is_empty() } else { all })
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("write {}: {error}", file.display()))
}

/// The report for a terminal.
fn text(measured: &Measured) -> String {
    let heads = report::heads(measured);
    let head = std::iter::once(String::new()).chain(heads.iter().flat_map(|head| [head.clone(), String::new()]));
    let mut rows = vec![head.chain(["A/A".to_owned()]).collect::<Vec<_>>()];
    for row in report::rows(measured) {
        let cells = row.cells.iter().flat_map(|cell| [cell.number.clone(), cell.ratio.clone()]);
        let noise = row.noise.map_or_else(String::new, |noise| format!("×{noise:.2}"));
        rows.push(std::iter::once(row.title.to_owned()).chain(cells).chain([noise]).collect());
    }
    let right: Vec<usize> = (1..=heads.len() * 2 + 1).filter(|column| column % 2 == 1).collect();
    let mut text = format!("{}: {}\n\n", shown(&measured.image), shown(&report::done(measured)));
    text += &table(&rows, &right);
    text += "\n× by the first column; ≈ no more than noise; ? too few rounds to know. A/A: the first column by itself, measured twice.\n\n";
    let worlds = measured.columns.iter().filter(|column| !column.again).map(|column| column.world.name().to_owned());
    let mut facts = vec![std::iter::once("seen from inside".to_owned()).chain(worlds).collect::<Vec<_>>()];
    facts.extend(report::facts(measured));
    let plain = |row: &Vec<String>| row.iter().map(|cell| shown(cell)).collect::<Vec<_>>();
    text += &table(&facts.iter().map(plain).collect::<Vec<_>>(), &[]);
    for claim in claims(measured) {
        text += &format!("\n\"{}\"\n", claim.said);
        let parts = [claim.measured, claim.verdict];
        text.extend(parts.iter().filter(|part| !part.is_empty()).map(|part| format!("    {}\n", shown(part))));
    }
    for line in report::missing(measured) {
        text += &format!("\n{}\n", shown(&line));
    }
    text
}
