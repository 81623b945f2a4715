//! What the monitor counts, in a file of lines: opened before the VM is built.

use machine::config::VmConfig;
use machine::metrics::Metrics;

use crate::log;

/// Opens the metrics that `config` asks for.
pub fn start(config: &VmConfig, id: Option<&str>, metrics: &Metrics) -> Result<(), String> {
    let Some(wanted) = &config.metrics else { return Ok(()) };
    let path = &wanted.metrics_path;
    let file = log::open_output(path);
    let file = file.map_err(|error| format!("metrics.metrics_path: open {}: {error}", path.display()))?;
    metrics.write_to(file, id.filter(|_| wanted.emit_id), &wanted.properties);
    Ok(())
}
