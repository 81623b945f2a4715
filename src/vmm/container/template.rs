//! Templates of VMs: the second VM of a kind is saved when it has booted, and the next ones go on from there (the store's
//! `templates` folder).
//!
//! What is saved knows nothing of any container: no disk has an image, and the agent waits to be told what the VM shall be. It
//! has rehearsed a container whose only file is the runtime, so that all that makes one is in the guest's memory.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use ::container::document::RunConfig;
use ::container::network::VmNetwork;
use ::container::parts::{Parts, stamp};
use ::container::session::Session;
use ::container::spec::{Wishes, spec};
use ::container::store::{Making, Ready, Store, Template};
use ::container::vm::{Monitor, MonitorWishes, Vm, VmWishes};
use api::client;
use clap::ValueEnum;
use protocol::RUNTIME;
use protocol::disks::Writable;
use protocol::frame::Kind;
use protocol::message::{Order, Report, Run};
use serde_json::{Value, json};

use super::keeper::LETS_GO;
use super::run::complain;

/// When VMs go on from templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Templates {
    /// Where there is one; the second VM of a kind makes it.
    Auto,
    /// Every VM boots.
    Never,
}

/// Bytes of memory for what the rehearsal writes, which is little.
const REHEARSED: u64 = 1 << 20;
/// How long the guest's kernel has for what it takes away in the background: while a network namespace goes, none can be made.
const SETTLES: Duration = Duration::from_millis(250);
/// Its name in the VM.
const REHEARSAL: &str = "rehearsal";

/// The template for a VM, which is made where that is due. Without one it boots: what is wrong with templates is said, and
/// keeps nobody from running a container.
pub fn of(store: &Store, machine: &MonitorWishes, wishes: &VmWishes, parts: &Parts) -> Option<Ready> {
    let found = kind(machine, wishes, parts).map(|kind| {
        let size = machine.mem_size_mib.saturating_mul(1 << 20);
        store.template(&kind, size).map_err(|error| error.to_string())
    });
    let ready = match found? {
        Ok(Template::Ready(ready)) => Ok(Some(ready)),
        Ok(Template::Due(making)) => make(making, machine, wishes, parts).map(Some),
        Ok(Template::None) => Ok(None),
        Err(why) => Err(why),
    };
    ready.unwrap_or_else(|why| {
        complain(&format!("no template was made for the next VM: {why}"));
        None
    })
}

/// All that the state of a VM depends on that has booted and been told nothing, but for the host: nothing where it depends on
/// what one VM alone can have. A virtiofsd maps guest memory, and a TAP device has one user.
fn kind(machine: &MonitorWishes, wishes: &VmWishes, parts: &Parts) -> Option<String> {
    let sights = &wishes.sights;
    let interface = sights.network.as_ref().map(VmNetwork::unpublished);
    let is_tap = interface.as_ref().is_some_and(|interface| interface.get("user").is_none());
    if !sights.shares.is_empty() || is_tap {
        return None;
    }
    let stamped = |path| fs::metadata(path).ok().map(|facts| stamp(&facts));
    let facts = json!([
        stamped(&machine.program)?,
        stamped(&wishes.kernel.path)?,
        parts.initrd,
        parts.runtime,
        machine.mem_size_mib,
        machine.vcpu_count,
        sights.volumes.len(),
        sights.writable.is_some(),
        interface,
    ]);
    Some(facts.to_string())
}

/// Boots a VM of this kind, and saves it.
fn make(making: Making, machine: &MonitorWishes, wishes: &VmWishes, parts: &Parts) -> Result<Ready, String> {
    let mut wishes = wishes.clone();
    if let Some(network) = &mut wishes.sights.network {
        network.interface = network.unpublished(); // the ports are the container's
    }
    let monitor = Monitor::start(MonitorWishes { has_socket: true, ..machine.clone() });
    let blank = monitor.and_then(|monitor| Vm::blank(monitor, &wishes, parts));
    let (vm, _waiting) = blank.map_err(|error| error.to_string())?;
    rehearse(&vm)?;
    sleep(SETTLES);
    let ask = |method, path, body: Value| {
        let told = client::call(&vm.api(), method, path, Some(&body));
        told.map(drop).map_err(|error| format!("save a VM that has booted: {error}"))
    };
    ask("PATCH", "/vm", json!({"state": "Paused"}))?;
    ask("PUT", "/snapshot/create", making.files().order())?;
    making.finish().map_err(|error| error.to_string())
}

/// Has a container made and taken away again. Its program, the runtime, ends at once, as nobody tells it what to do.
fn rehearse(vm: &Vm) -> Result<(), String> {
    let wishes = Wishes { args: vec![format!("/{}", ::container::parts::RUNTIME)], ..Wishes::default() };
    let order = Run {
        id: REHEARSAL.to_owned(),
        layers: vec![RUNTIME.to_owned()],
        writable: Writable::Memory { bytes: REHEARSED },
        spec: spec(&RunConfig::default(), &wishes).map_err(|error| error.to_string())?,
        user: String::new(),
        own_users: false,
        groups: Vec::new(),
        files: Vec::new(),
        volumes: Vec::new(),
        disk_limits: Vec::new(),
        network: None,
        init: false,
        terminal: None,
        stdin: false,
    };
    let told = |error: ::container::session::SessionError| error.to_string();
    let mut session = Session::call_within(&vm.socket(), LETS_GO).map_err(told)?;
    session.say(&Order::Run(Box::new(order))).map_err(told)?;
    loop {
        let frame = session.hear().map_err(told)?.ok_or("the agent hung up before a container had ended")?;
        if frame.kind != Kind::Message {
            continue;
        }
        match frame.open().map_err(|error| error.to_string())? {
            Report::Started { .. } => {}
            Report::Failed(failure) => return Err(failure.why),
            Report::Exited(_) => break,
        }
    }
    drop(session);
    Session::have_done(&vm.socket(), &Order::Settle, LETS_GO).map_err(told)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use ::container::kernel::Kernel;
    use ::container::vm::{Share, Sights};

    use super::*;

    fn kind_of(change: impl FnOnce(&mut MonitorWishes, &mut VmWishes)) -> Option<String> {
        let program: PathBuf = std::env::current_exe().unwrap();
        let mut machine = MonitorWishes {
            program: program.clone(),
            room: "/run".into(),
            id: None,
            has_socket: false,
            mem_size_mib: 512,
            vcpu_count: 1,
        };
        let kernel = Kernel { path: program, modules: None };
        let sights = Sights::default();
        let mut wishes = VmWishes { kernel, hostname: "h".into(), sights, spare: 0, spare_shares: 0 };
        change(&mut machine, &mut wishes);
        kind(&machine, &wishes, &Parts { initrd: "i".into(), runtime: "r".into() })
    }

    fn with_network(network: &str, ports: &[&str]) -> Option<String> {
        let choice: ::container::network::Choice = network.parse().unwrap();
        let ports: Vec<String> = ports.iter().map(|port| (*port).to_owned()).collect();
        let ports = ::container::network::ports(&ports).unwrap();
        kind_of(|_, wishes| wishes.sights.network = choice.network(&ports, "", &[]).unwrap())
    }

    #[test]
    fn vms_of_one_kind_differ_in_what_they_are_told_later() {
        let usual = kind_of(|_, _| ()).unwrap();
        assert_eq!(kind_of(|_, wishes| wishes.hostname = "other".into()).unwrap(), usual);
        let layers = vec![("l".to_owned(), PathBuf::from("/l"))];
        assert_eq!(kind_of(|_, wishes| wishes.sights.layers = layers).unwrap(), usual);
        let volume = |path: &str| {
            let volumes = vec![("v".to_owned(), PathBuf::from(path))];
            kind_of(|_, wishes| wishes.sights.volumes = volumes).unwrap()
        };
        assert_eq!(volume("/a"), volume("/b"));
        assert_eq!(with_network("user", &["80:80"]), with_network("user", &[]));
        let others = [
            volume("/a"),
            with_network("user", &[]).unwrap(),
            kind_of(|machine, _| machine.mem_size_mib = 513).unwrap(),
            kind_of(|machine, _| machine.vcpu_count = 2).unwrap(),
            kind_of(|_, wishes| wishes.sights.writable = Some("/w".into())).unwrap(),
            kind_of(|_, wishes| wishes.kernel.path = "/proc/self/exe".into()).map(|kind| kind + "?").unwrap(),
        ];
        assert!(others.iter().all(|other| *other != usual), "{others:?}");
    }

    #[test]
    fn what_one_vm_alone_can_have_makes_no_kind() {
        let share = Share { path: Path::new("/data").to_owned(), read_only: true };
        assert_eq!(kind_of(|_, wishes| wishes.sights.shares.push(share)), None);
        assert_eq!(with_network("tap:t0,address=192.0.2.2/24", &[]), None);
        assert_eq!(kind_of(|_, wishes| wishes.kernel.path = "/no/kernel".into()), None);
    }
}
