//! What the control thread does with the requests to a VM that is started.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use devices::tally::{Gauge, micros};
use devices::virtio::balloon::BalloonChange;
use devices::virtio::update::refuse_fixed;
use devices::virtio::{Change, UpdateError};
use serde_json::{Map, Value, json};

use super::mailbox::{Answer, Refusal, Reply, Request, State};
use super::{Control, End, configure};
use crate::config::{Draft, SerialConfig};
use crate::error::chain;
use crate::journal::Happening;
use crate::plan::Plan;
use crate::snapshot;

/// Why the configuration of a VM that is started does not change.
const STARTED: Refusal = Refusal::WrongState("the VM is started already; this can only be set before it is");

/// What is saved must stand still.
const RUNNING: Refusal = Refusal::WrongState("the VM is running; pause it first (PATCH /vm)");

/// A signal has asked for the end: a reset would undo it.
const ENDING: Refusal = Refusal::WrongState("the VM is about to end: a signal has asked the guest to power off");

impl Control<'_> {
    /// Answers every letter that is there.
    pub(super) fn requests(&mut self) -> Option<End> {
        let mailbox = self.mailbox?;
        while let Some(mut letter) = mailbox.next() {
            let request = std::mem::replace(&mut letter.request, Request::Describe);
            if request == Request::Stop {
                letter.answer(Ok(Answer::Done));
                return Some(End::Stopped);
            }
            if request == Request::Reset {
                if self.deadline.is_some() {
                    letter.answer(Err(ENDING));
                    continue;
                }
                self.reset = Some(letter);
                return Some(End::ResetByRequest);
            }
            let reply = self.obey(request);
            letter.answer(reply);
        }
        None
    }

    fn obey(&mut self, request: Request) -> Reply {
        match request {
            Request::Configure(edits) if configure::is_of_log(&edits) => {
                let mut draft = Draft::of(self.config.clone());
                configure::change(&mut draft, &edits, None, self.set_log)?;
                *self.config = draft.config().clone();
            }
            Request::Configure(_) | Request::Remove { .. } | Request::Start => return Err(STARTED),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::PowerButton => self.machine.press_power_button(),
            Request::CtrlAltDel => {
                self.machine.press_ctrl_alt_del().map_err(|unread| Refusal::Refused(unread.to_string()))?;
            }
            Request::FlushMetrics => self.metrics.flush(),
            Request::CoreDump { path } => self.core_dump(&path)?,
            Request::Save { .. } if !self.paused => return Err(RUNNING),
            Request::Save { state, memory } => {
                snapshot::save(self.machine, self.config, &state, &memory)
                    .map_err(|error| Refusal::Refused(chain(&error)))?;
            }
            Request::Update { id, patch, source } => self.update(&id, &patch, &source)?,
            Request::Hint(hint) => self.change_balloon(BalloonChange { hint: Some(hint), ..Default::default() })?,
            Request::PauseReporting(paused) => {
                self.change_balloon(BalloonChange { pause_reporting: Some(paused), ..Default::default() })?;
            }
            Request::Resident => {
                let resident = self.machine.resident_pages().map_err(|error| Refusal::Refused(chain(&error)))?;
                return Ok(Answer::Told(json!({ "resident": resident })));
            }
            Request::Mappings => return Ok(Answer::Told(json!({ "mappings": self.machine.mappings() }))),
            Request::Inspect { id } => {
                return self.machine.inspect(&id).map(Answer::Told).ok_or(Refusal::NoDevice(id));
            }
            Request::Console(client) => self.attach(client)?,
            Request::Describe => return Ok(self.describe()),
            Request::Stop | Request::Reset => {}
        }
        Ok(Answer::Done)
    }

    /// The serial port's limit is all of it that changes.
    fn update_serial(&self, patch: &Map<String, Value>, wanted: &SerialConfig) -> Result<(), UpdateError> {
        refuse_fixed(patch.keys().map(String::as_str), &["rate_limiter"])?;
        if let Some(console) = self.console {
            console.set_limit(wanted.rate_limiter.as_ref());
        }
        Ok(())
    }

    fn change_balloon(&self, change: BalloonChange) -> Result<(), Refusal> {
        let done = self.machine.update("balloon", Change::Balloon(change));
        done.map_err(|error| Refusal::Refused(format!("the balloon: {error}")))
    }

    /// Writes a core file of the guest, which stands still meanwhile.
    fn core_dump(&mut self, path: &Path) -> Result<(), Refusal> {
        let was_paused = self.paused;
        self.pause();
        let written = self.machine.core_dump(path);
        if !was_paused {
            self.resume();
        }
        written.map_err(|error| Refusal::Refused(chain(&error)))
    }

    /// Parks the machine. Twice is as once, as in Firecracker.
    fn pause(&mut self) {
        let begun = Instant::now();
        if !std::mem::replace(&mut self.paused, true) {
            self.machine.pause();
            if let Some(gdb) = &mut self.gdb {
                gdb.pause();
            }
            note(&self.metrics.latencies.pause_vm, begun);
            self.journal.note(&Happening::Paused);
        }
    }

    /// Lets the machine go on.
    pub(super) fn resume(&mut self) {
        let begun = Instant::now();
        if std::mem::replace(&mut self.paused, false) {
            self.machine.resume_devices();
            match &mut self.gdb {
                Some(gdb) => _ = gdb.resume(),
                None => self.machine.resume_vcpus(),
            }
            note(&self.metrics.latencies.resume_vm, begun);
            self.journal.note(&Happening::Resumed);
        }
    }

    fn update(&mut self, id: &str, patch: &Map<String, Value>, source: &str) -> Result<(), Refusal> {
        let refused = |text: String| Refusal::Refused(format!("{source}: {text}"));
        let place = self.config.place_of(id).ok_or_else(|| Refusal::NoDevice(id.to_owned()))?;
        let wanted = self.config.patched(&place, patch, source, None);
        let wanted = wanted.map_err(|faults| Refusal::Refused(faults.to_string()))?;
        if id == "serial" {
            self.update_serial(patch, &wanted.serial).map_err(|error| refused(error.to_string()))?;
            *self.config = wanted;
            return Ok(());
        }
        let plan = Plan::of(&wanted).map_err(|error| refused(error.to_string()))?;
        let Some(slot) = plan.devices.iter().find(|slot| slot.id == id) else {
            return Err(Refusal::NoDevice(id.to_owned()));
        };
        let keys: Vec<_> = patch.iter().filter(|(_, new)| !new.is_null()).map(|(key, _)| key.as_str()).collect();
        let change = slot.config.change(&keys).map_err(|error| refused(error.to_string()))?;
        self.machine.update(id, change).map_err(|error| refused(error.to_string()))?;
        *self.config = wanted;
        Ok(())
    }

    fn describe(&self) -> Answer {
        let state = if self.paused { State::Paused } else { State::Running };
        let json = serde_json::to_value(&*self.config).unwrap_or_default();
        Answer::Described { state, config: Box::new(self.config.clone()), json }
    }
}

/// Notes how many microseconds something took.
fn note(gauge: &Gauge, begun: Instant) {
    gauge.0.store(micros(begun.elapsed()), Ordering::Relaxed);
}
