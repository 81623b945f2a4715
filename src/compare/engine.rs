//! `vmm run`: a container in a microVM of its own, as a user starts it.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::host::{HOSTNAME, Host};
use crate::instance::Instance;
use crate::{Doing, Fault};

/// Starts it.
pub fn start(host: &Host, args: &[String], folder: PathBuf) -> Result<Instance, Fault> {
    let mut command = Command::new(&host.program);
    command.args([
        "run",
        "--rm",
        "-i",
        "--network",
        "none",
        "--user",
        "0",
        "--workdir",
        "/",
        "--entrypoint",
        "",
        "--hostname",
        HOSTNAME,
        "--templates",
        "never", // it boots, as the microVM beside it does
    ]);
    command.arg("--memory").arg(format!("{}m", host.asked.memory_mib));
    if let Some(kernel) = &host.asked.kernel {
        command.arg("--kernel").arg(kernel);
    }
    let name = host.container_name(&folder);
    command.arg("--name").arg(&name).arg(host.derived.name.to_string()).args(args);
    command.env("VMM_RUNTIME_DIR", folder.join("run")).process_group(0);
    let began = Instant::now();
    let instance = Instance::spawn(command, began, folder, host.asked.limit);
    let mut instance = instance.doing(|| "start vmm run".to_owned())?;
    instance.record = Some(host.record(&name));
    Ok(instance)
}
