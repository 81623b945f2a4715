//! A microVM that has nothing to do but the command: the image's layers are its disk, the subject's program its init,
//! which mounts them, starts the command and switches off (`src/subject/init.rs`).
#![allow(unsafe_code)] // prctl(2) between fork(2) and execve(2)

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};
use serde_json::{Value, json};
use subject::{PORT, Start};

use crate::host::{HOSTNAME, Host};
use crate::instance::{Instance, Streams};
use crate::{Doing, Fault, shown};

/// Starts it.
pub fn start(host: &Host, args: &[String], folder: PathBuf) -> Result<Instance, Fault> {
    let env = host.env(args)?;
    let began = Instant::now();
    let layers: Vec<String> = (0..host.layers().len()).map(|number| format!("layer-{number}")).collect();
    let file = folder.join("vm.json");
    fs::write(&file, config(host, &folder, &layers).to_string()).doing(|| format!("write {}", shown(&file)))?;
    let socket = folder.join(format!("vsock_{PORT}"));
    let listening = UnixListener::bind(&socket).doing(|| format!("listen at {}", shown(&socket)))?;
    let mut monitor = monitor(host, &folder, &file)?;
    let conversation = || -> Result<(UnixStream, UnixStream), Fault> {
        let mut control = called(&listening, &monitor, host.asked.limit)?;
        let start = Start {
            layers,
            writable_bytes: host.writable_bytes(),
            hostname: HOSTNAME.to_owned(),
            args: args.to_vec(),
            env,
        };
        let line = json!(start);
        writeln!(control, "{line}").doing(|| "give the VM its order".to_owned())?;
        Ok((control, called(&listening, &monitor, host.asked.limit)?))
    };
    match conversation() {
        Ok((control, stream)) => {
            Instance::of_vm(monitor, began, folder, Streams { control, stream, limit: host.asked.limit })
                .doing(|| "speak with the VM".to_owned())
        }
        Err(why) => {
            let _ = monitor.kill();
            let _ = monitor.wait();
            let console = fs::read(folder.join("errors")).unwrap_or_default();
            Err(Fault::Said(format!("{why}; its console:\n{}", String::from_utf8_lossy(&console).trim())))
        }
    }
}

fn monitor(host: &Host, folder: &Path, config: &Path) -> Result<Child, Fault> {
    let console = File::create(folder.join("errors")).doing(|| "write the VM's console".to_owned())?;
    let errors = console.try_clone().doing(|| "write the VM's console".to_owned())?;
    let mut command = Command::new(&host.program);
    command.arg("--config").arg(config).stdin(Stdio::null()).stdout(console).stderr(errors).process_group(0);
    let tell = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // SAFETY: the closure makes one system call, which is async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(tell) };
    command.spawn().doing(|| "start the monitor".to_owned())
}

/// As for `vmm run`, without the partition of the container runtime.
fn config(host: &Host, folder: &Path, names: &[String]) -> Value {
    let partitions: Vec<Value> =
        names.iter().zip(host.layers()).map(|(name, path)| json!({"name": name, "path_on_host": path})).collect();
    json!({
        "boot-source": {
            "kernel_image_path": host.asked.kernel, "initrd_path": host.initrd,
            "boot_args": "console=ttyS0 quiet panic=-1 rdinit=/init",
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": host.asked.memory_mib},
        "drives": [{"drive_id": "image", "is_root_device": false, "is_read_only": true, "partitions": partitions}],
        "vsock": {"guest_cid": 3, "uds_path": folder.join("vsock")},
    })
}

/// The VM's next call, or the monitor's end.
fn called(listening: &UnixListener, monitor: &Child, limit: Duration) -> Result<UnixStream, Fault> {
    let doing = || "wait for the VM".to_owned();
    let pid = i32::try_from(monitor.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Fault::Said("the monitor has no number".to_owned()))?;
    let ended: OwnedFd = pidfd_open(pid, PidfdFlags::empty()).doing(doing)?;
    let time = Timespec::try_from(limit).map_err(|_| Fault::Said("the time limit is too long".to_owned()))?;
    let mut watched = [PollFd::new(listening, PollFlags::IN), PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
    let count = poll(&mut watched, Some(&time)).doing(doing)?;
    let [call, _] = watched;
    match (count, call.revents().is_empty()) {
        (0, _) => Err(Fault::Said(format!("the VM did not call within {limit:?}"))),
        (_, true) => Err(Fault::Said("the VM ended before it had its order".to_owned())),
        (_, false) => Ok(listening.accept().doing(doing)?.0),
    }
}
