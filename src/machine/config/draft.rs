//! A configuration that comes piece by piece, and changes of one that is in use: edits of the same JSON value as a file's
//! and the flags', typed and checked by the same code. The control thread owns it. Pure but for the host's checks.

use serde_json::{Map, Value, json};

use super::VmConfig;
use super::edit::Edit;
use super::fault::Faults;
use super::host::HostLimits;
use super::load::{Document, check};
use super::path::{JsonPath, Step};

/// A configuration without faults, but perhaps without anything to boot.
#[derive(Debug, Clone)]
pub struct Draft {
    config: VmConfig,
}

impl Draft {
    /// Defaults, changed by `edits`. The host is asked when a later edit or [`Self::finish`] wants to know.
    pub fn new(edits: &[Edit]) -> Result<Self, Faults> {
        let nothing = json!({ "boot-source": { "kernel_image_path": "" } });
        let document = Document { value: nothing, source: None, unfinished: Some(boot_source()) };
        check(document, edits, None).map(Self::of)
    }

    /// A configuration that is complete.
    pub fn of(config: VmConfig) -> Self {
        Self { config }
    }

    /// What is there so far. Without something to boot, its path is empty.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Whether there is something to boot.
    pub fn is_bootable(&self) -> bool {
        !self.config.boot_source.kernel_image_path.as_os_str().is_empty()
    }

    /// The configuration as JSON; `boot-source` is missing until it is given.
    pub fn show(&self) -> Value {
        let mut document = document(&self.config);
        if let Some(document) = document.as_object_mut().filter(|_| !self.is_bootable()) {
            document.remove("boot-source");
        }
        document
    }

    /// Applies edits, or leaves everything as it is.
    pub fn edit(&mut self, edits: &[Edit], host: Option<&HostLimits>) -> Result<(), Faults> {
        self.become_of(document(&self.config), edits, host)
    }

    /// Takes an element out of a list, or a device of which there is one. Whether it was there.
    pub fn remove(&mut self, place: &JsonPath) -> Result<bool, Faults> {
        let mut document = document(&self.config);
        let removed = match place.0.as_slice() {
            [Step::Key(key)] => document.as_object_mut().and_then(|members| members.remove(key)).is_some(),
            [Step::Key(list), Step::Index(index)] => {
                let list = document.get_mut(list).and_then(Value::as_array_mut);
                list.filter(|list| *index < list.len()).map(|list| list.remove(*index)).is_some()
            }
            _ => false,
        };
        self.become_of(document, &[], None).map(|()| removed)
    }

    /// The configuration, if a VM can be made of it.
    pub fn finish(&self, host: Option<&HostLimits>) -> Result<VmConfig, Faults> {
        check(Document { value: document(&self.config), source: None, unfinished: None }, &[], host)
    }

    fn become_of(&mut self, value: Value, edits: &[Edit], host: Option<&HostLimits>) -> Result<(), Faults> {
        let boots = edits.iter().any(|edit| edit.path.is_in(&boot_source()));
        let unfinished = (!boots && !self.is_bootable()).then(boot_source);
        self.config = check(Document { value, source: None, unfinished }, edits, host)?;
        Ok(())
    }
}

impl VmConfig {
    /// The place of the device `id`.
    pub fn place_of(&self, id: &str) -> Option<JsonPath> {
        let list = |key, place: Option<usize>| Some(JsonPath::keys([key]).index(place?));
        list("drives", self.drives.iter().position(|drive| drive.drive_id == id))
            .or_else(|| list("network-interfaces", self.network_interfaces.iter().position(|net| net.iface_id == id)))
            .or_else(|| list("pmem", self.pmem.iter().position(|pmem| pmem.id == id)))
            .or_else(|| list("shares", self.shares.iter().position(|share| share.tag == id)))
            .or_else(|| {
                let single = [
                    ("balloon", "balloon", self.balloon.is_some()),
                    ("rng", "entropy", self.entropy.is_some()),
                    ("vsock", "vsock", self.vsock.is_some()),
                    ("serial", "serial", self.serial.enabled),
                ];
                single
                    .iter()
                    .find(|(name, _, is_there)| *name == id && *is_there)
                    .map(|(_, key, _)| JsonPath::keys([*key]))
            })
    }

    /// This configuration with `patch` applied to what is at `place` ([`Edit::patch`]).
    pub fn patched(
        &self,
        place: &JsonPath,
        patch: &Map<String, Value>,
        source: &str,
        host: Option<&HostLimits>,
    ) -> Result<Self, Faults> {
        let document = Document { value: document(self), source: None, unfinished: None };
        check(document, &Edit::patch(place, patch, source), host)
    }
}

fn boot_source() -> JsonPath {
    JsonPath::keys(["boot-source"])
}

fn document(config: &VmConfig) -> Value {
    // Every field of the configuration is a text, a number, a list or an object with texts as keys.
    serde_json::to_value(config).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(draft: &mut Draft, path: &str, value: Value) -> Result<(), String> {
        draft.edit(&[Edit::set(path.parse().unwrap(), value, "PUT /x")], None).map_err(|faults| faults.to_string())
    }

    #[test]
    fn comes_in_pieces_of_any_order() {
        let mut draft = Draft::new(&[]).unwrap();
        assert!(!draft.is_bootable());
        assert_eq!(draft.show().get("boot-source"), None);
        let drive = json!({ "drive_id": "a", "path_on_host": "x", "is_root_device": false });
        put(&mut draft, "drives[drive_id=a]", drive.clone()).unwrap();
        put(&mut draft, "drives[drive_id=a]", json!({ "drive_id": "a", "path_on_host": "y" })).unwrap();
        put(&mut draft, "drives[drive_id=b]", json!({ "drive_id": "b", "path_on_host": "z" })).unwrap();
        assert_eq!(draft.config().drives.len(), 2, "the same id is the same drive");
        assert!(draft.finish(None).unwrap_err().to_string().contains("kernel_image_path: is empty"));
        put(&mut draft, "boot-source", json!({ "kernel_image_path": "k" })).unwrap();
        let config = draft.finish(None).unwrap();
        assert_eq!(draft.show(), serde_json::to_value(&config).unwrap());
        assert!(draft.remove(&config.place_of("a").unwrap()).unwrap());
        assert!(!draft.remove(&JsonPath::keys(["vsock"])).unwrap());
        assert_eq!(draft.config().place_of("b"), Some("drives[0]".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_changes_nothing_and_is_said_as_of_a_file() {
        let mut draft = Draft::new(&[]).unwrap();
        let before = draft.show();
        for (path, value, text) in [
            ("machine-config", json!({ "vcpu_count": 0 }), "PUT /x: vcpu_count: must be at least 1, not 0"),
            (
                "drives[drive_id=a]",
                json!({ "drive_id": "a", "path_on_hots": "x" }),
                "PUT /x: path_on_hots: unknown key; did you mean `path_on_host`?\n\
                 PUT /x: path_on_host: is missing (Raw image file or block device on the host; or give `partitions`)",
            ),
            (
                "boot-source",
                json!({ "kernel_image_path": "" }),
                "PUT /x: kernel_image_path: is empty; a file's path is expected",
            ),
            (
                "balloon",
                json!({ "amount_mib": 128 }),
                "PUT /x: amount_mib: must be less than the VM's memory (128 MiB), not 128",
            ),
        ] {
            assert_eq!(put(&mut draft, path, value), Err(text.to_owned()));
            assert_eq!(draft.show(), before);
        }
    }

    #[test]
    fn the_host_is_asked_but_not_for_what_is_to_come() {
        let host = HostLimits { memory_mib: Some(64), cpus: None };
        let mut draft = Draft::new(&[]).unwrap();
        let mut put = |path: &str, value| {
            let edit = Edit::set(path.parse().unwrap(), value, "PUT");
            draft.edit(&[edit], Some(&host)).map_err(|faults| faults.to_string())
        };
        put("machine-config", json!({ "mem_size_mib": 64 })).unwrap();
        let text = "PUT: mem_size_mib: this host has 64 MiB of memory and swap, not 65";
        assert_eq!(put("machine-config", json!({ "mem_size_mib": 65 })), Err(text.into()));
        let missing = json!({ "kernel_image_path": "/no/such/kernel" });
        assert_eq!(put("boot-source", missing), Err("PUT: kernel_image_path: /no/such/kernel does not exist".into()));
    }

    #[test]
    fn a_patch_replaces_bucket_by_bucket() {
        let config: VmConfig = serde_json::from_value(json!({
            "boot-source": { "kernel_image_path": "k" },
            "drives": [{ "drive_id": "a", "path_on_host": "x", "rate_limiter": {
                "bandwidth": { "size": 1, "refill_time": 1, "one_time_burst": 9 }, "ops": { "size": 2, "refill_time": 2 } } }]
        }))
        .unwrap();
        let place = config.place_of("a").unwrap();
        let patched = |patch: Value| {
            let patched = config.patched(&place, patch.as_object().unwrap(), "PATCH /drives/a", None);
            patched.map(|config| serde_json::to_value(&config.drives[0]).unwrap()).map_err(|faults| faults.to_string())
        };
        let drive =
            patched(json!({ "path_on_host": "y", "rate_limiter": { "bandwidth": { "size": 3, "refill_time": 3 } } }));
        let drive = drive.unwrap();
        assert_eq!(drive["path_on_host"], "y");
        let limits = json!({ "bandwidth": { "size": 3, "refill_time": 3 }, "ops": { "size": 2, "refill_time": 2 } });
        assert_eq!(drive["rate_limiter"], limits);
        assert_eq!(patched(json!({ "rate_limiter": null, "path_on_host": null })).unwrap()["path_on_host"], "x");
        let unknown = patched(json!({ "color": 1 })).unwrap_err();
        assert!(unknown.starts_with("PATCH /drives/a: color: unknown key"), "{unknown}");
        let wrong = patched(json!({ "rate_limiter": { "ops": 1 } })).unwrap_err();
        assert_eq!(wrong, "PATCH /drives/a: rate_limiter.ops: must be an object in braces, not 1");
    }
}
