//! A container of this host, by runc: what a container engine does after it has the image. The root file system is
//! joined and the specification written when the container is started, as engines do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use crate::host::Host;
use crate::instance::{Instance, Undo};
use crate::{Doing, Fault, shown};

/// The beginning of the names of our control groups, below the root.
const GROUP: &str = "vmm-compare-";
/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Starts it.
pub fn start(host: &Host, args: &[String], folder: PathBuf) -> Result<Instance, Fault> {
    let program = host.runc.as_ref().ok_or_else(|| Fault::Said("there is no runc".to_owned()))?;
    let began = Instant::now();
    let root = host.own_root(&folder)?;
    let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut spec = host.spec(args)?;
    spec["root"]["path"] = json!(root.path());
    spec["linux"]["cgroupsPath"] = json!(format!("/{GROUP}{}/{id}", std::process::id()));
    let config = folder.join("config.json");
    fs::write(&config, spec.to_string()).doing(|| format!("write {}", shown(&config)))?;
    let state = folder.join("state");
    let mut command = Command::new(program);
    command.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&folder).arg(&id);
    let mut instance =
        Instance::spawn(command, began, folder.clone(), host.asked.limit).doing(|| "start runc".to_owned())?;
    instance.undo = Some(Undo { program: program.clone(), state, id, _root: root });
    Ok(instance)
}

impl Undo {
    /// Ends the container, where it has not ended by itself.
    pub fn now(&self) {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state).args(["delete", "--force"]).arg(&self.id);
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Removes control groups that earlier runs, which were killed, have left. One that is in use cannot be removed.
pub fn forget_old() {
    let entries = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(GROUP)) {
        remove(&entry.path());
    }
}

/// Removes the groups of this run.
pub fn forget_own() {
    remove(&Path::new(CGROUPS).join(format!("{GROUP}{}", std::process::id())));
}

fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(entry.path());
    }
    let _ = fs::remove_dir(group);
}
