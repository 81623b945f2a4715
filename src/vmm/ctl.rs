//! `vmm ctl`: speaks the API of a VM that runs, one request at a time.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use api::client;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::args::instance_id;
use crate::console::{self, Over};
use crate::runtime::Runtime;

/// Exit status when the VM refuses, or does not answer.
const REFUSED: u8 = 1;

/// Devices that are in lists: where, and by which key the body names one.
const LISTS: [(&str, &str); 3] = [("drives/", "drive_id"), ("network-interfaces/", "iface_id"), ("pmem/", "id")];

/// What `vmm ctl` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct CtlArgs {
    /// The VM's name (--id), or its API socket (--api-sock)
    #[arg(value_name = "ID|SOCKET")]
    pub vm: PathBuf,
    #[command(subcommand)]
    pub verb: CtlVerb,
}

/// What to do with the VM.
#[derive(Debug, Clone, Subcommand)]
pub enum CtlVerb {
    /// Print its name, its state and the monitor's version
    State,
    /// Print its configuration
    Config,
    /// Let it run for the first time
    Start,
    /// Stop its vCPUs and devices where they are
    Pause,
    /// Let it go on
    Resume,
    /// Ask the guest to power off
    PowerButton,
    /// Start the guest again from the beginning, running or paused
    Reset,
    /// End it now
    Stop,
    /// Write a core file of the guest, for gdb and crash(8); it stands still meanwhile
    Core {
        /// The file, which must not be there
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print what happens to it, a line of JSON each, from its start on and until its end
    Events,
    /// Speak to its serial console from here, in the place of who does so now. Ctrl-A x leaves; the VM goes on
    Console,
    /// Print what it counts, as Prometheus reads it
    Metrics,
    /// Write a line of metrics to --metrics-path
    FlushMetrics,
    /// Change a device: `update drives/root path_on_host=new.ext4`, `update balloon amount_mib=64`
    Update {
        /// drives/ID, network-interfaces/ID, pmem/ID, balloon, balloon/statistics, entropy or serial
        #[arg(value_name = "DEVICE")]
        device: String,
        /// JSON, or a bare text
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = setting)]
        settings: Vec<(String, Value)>,
    },
}

fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("KEY=VALUE is expected")?;
    Ok((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

impl CtlVerb {
    /// Method, path and body.
    fn request(&self) -> (&'static str, String, Option<Value>) {
        let state = |name: &str| ("PATCH", "/vm".to_owned(), Some(json!({ "state": name })));
        let action = |name: &str| ("PUT", "/actions".to_owned(), Some(json!({ "action_type": name })));
        match self {
            Self::State => ("GET", "/".into(), None),
            Self::Config => ("GET", "/vm/config".into(), None),
            Self::Start => action("InstanceStart"),
            Self::Pause => state("Paused"),
            Self::Resume => state("Resumed"),
            Self::PowerButton => action("PowerButton"),
            Self::Reset => action("Reset"),
            Self::Stop => action("Stop"),
            Self::Core { file } => {
                // The monitor may have another current directory.
                let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
                let body = json!({ "action_type": "CoreDump", "path_on_host": file });
                ("PUT", "/actions".into(), Some(body))
            }
            Self::Events => ("GET", "/vm/events".into(), None),
            Self::Console => ("GET", "/vm/console".into(), None),
            Self::Metrics => ("GET", "/metrics".into(), None),
            Self::FlushMetrics => action("FlushMetrics"),
            Self::Update { device, settings } => {
                let mut body: Map<_, _> = settings.iter().cloned().collect();
                for (list, key) in LISTS {
                    if let Some(id) = device.strip_prefix(list) {
                        body.insert(key.into(), id.into());
                    }
                }
                ("PATCH", format!("/{device}"), Some(body.into()))
            }
        }
    }
}

/// The socket of the VM of this name, if there is one; else the name is that of a socket.
fn socket(vm: &Path, runtime: Option<&Runtime>) -> Result<PathBuf, String> {
    let Some(id) = vm.to_str().filter(|text| instance_id(text).is_ok()) else { return Ok(vm.to_owned()) };
    let there = match runtime {
        Some(runtime) => runtime.has(id).map_err(|error| format!("{}: {error}", runtime.path().display()))?,
        None => false,
    };
    match runtime.filter(|_| there).map(|runtime| runtime.socket(id)) {
        Some(socket) if socket.symlink_metadata().is_ok() => Ok(socket),
        Some(_) => Err("it has no API (--no-api)".into()),
        None if vm.exists() => Ok(vm.to_owned()),
        None => Err("there is no VM of this name (vmm ps), and no socket".into()),
    }
}

/// Sends the request and prints the answer.
pub fn run(args: &CtlArgs) -> ExitCode {
    let failed = |error: String| {
        eprintln!("vmm: {}: {error}", args.vm.display());
        ExitCode::from(REFUSED)
    };
    let socket = match socket(&args.vm, Runtime::of_this_user().as_ref()) {
        Ok(socket) => socket,
        Err(error) => return failed(error),
    };
    let (method, path, body) = args.verb.request();
    let answer = match args.verb {
        CtlVerb::Events => client::follow(&socket, show).map(|()| Value::Null),
        CtlVerb::Console => client::console(&socket).and_then(|stream| Ok(speak(args, &stream)?)),
        _ => client::call(&socket, method, &path, body.as_ref()),
    };
    match answer {
        Ok(Value::Null) => ExitCode::SUCCESS,
        Ok(Value::String(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            println!("{answer:#}");
            ExitCode::SUCCESS
        }
        Err(error) => failed(error.to_string()),
    }
}

/// Speaks to the console, and says how that ended.
fn speak(args: &CtlArgs, stream: &UnixStream) -> io::Result<Value> {
    let words = match console::speak(stream)? {
        Over::Left => "left the console; the VM goes on",
        Over::Closed => "the console is closed",
    };
    eprintln!("vmm: {}: {words}", args.vm.display());
    Ok(Value::Null)
}

/// Prints a line, at once. Where nobody reads it the program ends.
fn show(line: &str) {
    if writeln!(io::stdout(), "{line}").is_err() {
        std::process::exit(i32::from(REFUSED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_file_s_path_is_absolute() {
        let (_, path, body) = CtlVerb::Core { file: "core".into() }.request();
        let body = body.unwrap();
        assert_eq!((path.as_str(), &body["action_type"]), ("/actions", &json!("CoreDump")));
        assert!(body["path_on_host"].as_str().is_some_and(|path| path.starts_with('/') && path.ends_with("/core")));
    }

    #[test]
    fn an_update_names_its_device_as_the_api_wants_it() {
        let update = |device: &str, settings: &[&str]| {
            let settings = settings.iter().map(|text| setting(text).unwrap()).collect();
            CtlVerb::Update { device: device.into(), settings }.request()
        };
        let (method, path, body) = update("drives/a", &["path_on_host=/x=y", "rate_limiter={\"ops\":null}"]);
        assert_eq!((method, path.as_str()), ("PATCH", "/drives/a"));
        let wanted = json!({ "drive_id": "a", "path_on_host": "/x=y", "rate_limiter": { "ops": null } });
        assert_eq!(body, Some(wanted));
        for (device, key) in [("network-interfaces/a", "iface_id"), ("pmem/a", "id")] {
            assert_eq!(update(device, &["rate_limiter=null"]).2, Some(json!({ key: "a", "rate_limiter": null })));
        }
        assert_eq!(update("balloon", &["amount_mib=64"]).2, Some(json!({ "amount_mib": 64 })));
        assert!(setting("x").is_err() && setting("=1").is_err());
    }
}
