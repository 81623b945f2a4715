//! `vmm doctor`: whether this host can run VMs, or whether a kernel can boot in one; each line with its cure.
//!
//! Exit status: 0 when everything that is needed is there (limited or not), 1 when something needed is missing.

mod host;
mod image;
mod kvm;
mod report;

use std::process::ExitCode;

use crate::args::DoctorArgs;
use report::Report;

/// Looks and prints.
pub fn print(args: &DoctorArgs) -> ExitCode {
    match &args.kernel {
        Some(path) => image::look(path).print(args.json),
        None => Report { facts: Vec::new(), checks: [kvm::look(), host::look()].concat() }.print(args.json),
    }
}
