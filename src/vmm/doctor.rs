//! `vmm doctor`: stub.
use std::process::ExitCode;

use crate::args::DoctorArgs;

/// Prints.
pub fn print(_args: &DoctorArgs) -> ExitCode {
    ExitCode::SUCCESS
}
