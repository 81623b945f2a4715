//! `vmm cpu`: what a guest would see of its CPUs. Makes a VM without memory, asks it and drops it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use machine::cpu;
use machine::error::chain;

use crate::args::{Failure, VmArgs};

/// Exit status when KVM refuses.
const HOST_ERROR: u8 = 1;

/// What `vmm cpu` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct CpuArgs {
    #[command(subcommand)]
    verb: CpuVerb,
}

#[derive(Debug, Clone, Subcommand)]
enum CpuVerb {
    /// Print CPUID and MSRs of the guest's first CPU, each bit, as a `cpu-config`
    Dump {
        /// The VM's configuration; without it a VM of one CPU
        #[arg(long, value_name = "FILE", visible_alias = "config-file")]
        config: Option<PathBuf>,
        /// File that says what the guest sees of its CPUs
        #[arg(long, value_name = "FILE", conflicts_with = "cpu_template")]
        cpu_config: Option<String>,
        /// Name of a CPU template
        #[arg(long, value_name = "NAME")]
        cpu_template: Option<String>,
    },
}

/// Carries it out.
pub fn run(args: &CpuArgs) -> Result<ExitCode, Failure> {
    let CpuVerb::Dump { config, cpu_config, cpu_template } = args.verb.clone();
    let vm = VmArgs { config, cpu_config, cpu_template, ..Default::default() };
    let config = match vm.config {
        Some(_) => vm.load(None)?,
        None => vm.draft()?.config().clone(),
    };
    let dumped = cpu::dump(&config).map_err(|error| chain(&error)).and_then(|cpu| {
        let text = serde_json::to_string_pretty(&cpu).map_err(|error| error.to_string())?;
        writeln!(io::stdout(), "{text}").map_err(|error| format!("write to standard output: {error}"))
    });
    Ok(match dumped {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("vmm: {text}");
            ExitCode::from(HOST_ERROR)
        }
    })
}
