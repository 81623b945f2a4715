//! `vmm schema`: the JSON Schema of the configuration, generated from its types.

use std::io::{self, Write};
use std::process::ExitCode;

use machine::config::VmConfig;

/// The schema as it is kept in resources/schema/vm.schema.json.
pub fn text() -> String {
    let mut schema = VmConfig::schema();
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("title".into(), "vmm: a virtual machine".into());
    }
    format!("{schema:#}\n")
}

/// Prints it.
pub fn print() -> ExitCode {
    match io::stdout().write_all(text().as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
