//! Before there is a machine: the control thread takes pieces of its configuration until it is told to start.

use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::mailbox::{Answer, Letter, Mailbox, Refusal, Reply, Request, State};
use super::{End, SetLog};
use crate::config::{Draft, Edit, Faults, HostLimits, JsonPath, VmConfig};
use crate::error::{Doing, HostError};
use crate::signals::Signals;

/// How configuring ended.
pub enum Begin {
    /// Build this, let it run, then answer.
    Start(Box<VmConfig>, Letter),
    /// There will be no VM.
    End(End),
}

/// Why nothing but configuring can be done.
const NOT_STARTED: Refusal = Refusal::WrongState("the VM is not started; start it first (InstanceStart)");

/// Takes requests until one of them starts the VM, or a signal comes. The log is the only thing that changes before the start.
pub fn configure(
    draft: &mut Draft,
    mailbox: &Mailbox,
    signals: &Signals,
    set_log: SetLog<'_>,
) -> Result<Begin, HostError> {
    let epoll = Epoll::new().doing(|| "create an epoll instance")?;
    for fd in [mailbox.as_raw_fd(), signals.as_raw_fd()] {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).doing(|| "wait for requests")?;
    }
    let mut host = None;
    loop {
        if let Some(signal) = signals.next() {
            return Ok(Begin::End(End::NotStarted(signal)));
        }
        while let Some(mut letter) = mailbox.next() {
            let request = std::mem::replace(&mut letter.request, Request::Describe);
            let host = || *host.get_or_insert_with(HostLimits::of_this_host);
            match request {
                Request::Start => match start(draft, host) {
                    Ok(config) => return Ok(Begin::Start(Box::new(config), letter)),
                    Err(refusal) => letter.answer(Err(refusal)),
                },
                Request::Stop => {
                    letter.answer(Ok(Answer::Done));
                    return Ok(Begin::End(End::Stopped));
                }
                request => letter.answer(obey(draft, request, host, set_log)),
            }
        }
        let mut ready = [EpollEvent::default(); 2];
        match epoll.wait(-1, &mut ready) {
            Err(error) if error.raw_os_error() != Some(libc::EINTR) => {
                return Err(HostError::new("wait for requests", error));
            }
            _ => {}
        }
    }
}

fn obey(draft: &mut Draft, request: Request, host: impl FnOnce() -> HostLimits, set_log: SetLog<'_>) -> Reply {
    match request {
        Request::Configure(edits) => change(draft, &edits, Some(&host()), set_log)?,
        Request::Remove { id } => {
            let place = draft.config().place_of(&id).ok_or(Refusal::NoDevice(id))?;
            draft.remove(&place).map_err(refused)?;
        }
        Request::Describe => {
            let config = Box::new(draft.config().clone());
            return Ok(Answer::Described { state: State::NotStarted, config, json: draft.show() });
        }
        _ => return Err(NOT_STARTED),
    }
    Ok(Answer::Done)
}

/// Whether these edits are about the log alone, which can be changed at any time.
pub(super) fn is_of_log(edits: &[Edit]) -> bool {
    let logger = JsonPath::keys(["logger"]);
    !edits.is_empty() && edits.iter().all(|edit| edit.path.is_in(&logger))
}

/// Changes the configuration, and with it the log: both, or nothing.
pub(super) fn change(
    draft: &mut Draft,
    edits: &[Edit],
    host: Option<&HostLimits>,
    set_log: SetLog<'_>,
) -> Result<(), Refusal> {
    if !is_of_log(edits) {
        return draft.edit(edits, host).map_err(refused);
    }
    let mut changed = draft.clone();
    changed.edit(edits, host).map_err(refused)?;
    set_log(changed.config().logger.as_ref()).map_err(Refusal::Refused)?;
    *draft = changed;
    Ok(())
}

fn start(draft: &Draft, host: impl FnOnce() -> HostLimits) -> Result<VmConfig, Refusal> {
    if !draft.is_bootable() {
        return Err(Refusal::WrongState("there is no kernel to boot; PUT /boot-source comes before the start"));
    }
    draft.finish(Some(&host())).map_err(refused)
}

fn refused(faults: Faults) -> Refusal {
    Refusal::Refused(faults.to_string())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use serde_json::json;

    use super::*;
    use crate::config::{LogLevel, LoggerConfig};

    const LEVEL: &str = "logger.level";

    #[test]
    fn a_vm_is_configured_and_started_by_letters() {
        let (mailbox, remote) = Mailbox::new().unwrap();
        let asking = thread::spawn(move || {
            let early = remote.ask(Request::Start);
            let paused = remote.ask(Request::Pause);
            let unknown = remote.ask(Request::Remove { id: "a".into() });
            let wrong = remote.configure(JsonPath::keys(["machine-config"]), json!({ "vcpu_count": 0 }), "PUT /m");
            let right = remote.configure(JsonPath::keys(["machine-config"]), json!({ "vcpu_count": 2 }), "PUT /m");
            let logs = ["Debug", "Trace"].map(|level| remote.configure(LEVEL.parse().unwrap(), level.into(), "PUT /l"));
            let state = remote.state();
            let stopped = remote.ask(Request::Stop);
            (early, paused, unknown, wrong, right, logs, state, stopped)
        });
        let signals = Signals::block(&crate::signals::ENDING).unwrap();
        let mut draft = Draft::new(&[]).unwrap();
        // A log that can not be opened.
        let set_log = |config: Option<&LoggerConfig>| match config.map(|config| config.level) {
            Some(LogLevel::Debug) => Ok(()),
            level => Err(format!("no {level:?}")),
        };
        assert!(matches!(configure(&mut draft, &mailbox, &signals, &set_log), Ok(Begin::End(End::Stopped))));
        let (early, paused, unknown, wrong, right, logs, state, stopped) = asking.join().unwrap();
        assert!(matches!(early, Err(Refusal::WrongState(text)) if text.contains("no kernel")));
        assert_eq!(paused, Err(NOT_STARTED));
        assert_eq!(unknown, Err(Refusal::NoDevice("a".into())));
        assert_eq!(wrong, Err(Refusal::Refused("PUT /m: vcpu_count: must be at least 1, not 0".into())));
        assert_eq!((right, state, stopped), (Ok(Answer::Done), Ok(State::NotStarted), Ok(Answer::Done)));
        assert_eq!(draft.config().machine_config.vcpu_count, 2);
        assert_eq!(logs, [Ok(Answer::Done), Err(Refusal::Refused("no Some(Trace)".into()))]);
        assert_eq!(
            draft.config().logger.as_ref().map(|logger| logger.level),
            Some(LogLevel::Debug),
            "both, or nothing"
        );
    }
}
