//! What the monitor tells of itself while a VM runs, its log and its metrics: opened before the VM is built.

use machine::config::VmConfig;
use machine::metrics::Metrics;

use crate::log;

/// Opens the log and the metrics that `config` asks for.
pub fn start(config: &VmConfig, id: Option<&str>, metrics: &Metrics) -> Result<(), String> {
    log::start(config.logger.as_ref(), id, &metrics.reports)?;
    let Some(wanted) = &config.metrics else { return Ok(()) };
    let path = &wanted.metrics_path;
    let file = log::open_output(path);
    let file = file.map_err(|error| format!("metrics.metrics_path: open {}: {error}", path.display()))?;
    metrics.write_to(file, id.filter(|_| wanted.emit_id), &wanted.properties);
    Ok(())
}
