//! The flags that describe a VM, as edits of the configuration's document. Pure.

use machine::config::{Change, Edit, JsonPath};
use serde_json::{Value, json};

use super::disk::Disk;
use super::vm::VmArgs;

impl VmArgs {
    /// What the flags do to the document, in order.
    pub fn edits(&self) -> Vec<Edit> {
        let mut edits = Vec::new();
        let mut set = |path: &[&str], value: Option<Value>, flag: &str| {
            let path = JsonPath(path.iter().map(|key| machine::config::Step::Key((*key).to_owned())).collect());
            edits.extend(value.map(|value| Edit::set(path, value, flag)));
        };
        let text = |text: &Option<String>| text.as_deref().map(Value::from);
        set(&["boot-source", "kernel_image_path"], text(&self.kernel), "--kernel");
        set(&["boot-source", "initrd_path"], text(&self.initrd), "--initrd");
        set(&["boot-source", "boot_args"], text(&self.cmdline), "--cmdline");
        set(&["machine-config", "vcpu_count"], self.cpus.map(Value::from), "--cpus");
        set(&["machine-config", "mem_size_mib"], self.memory.map(Value::from), "--memory");
        set(&["cpu-config"], text(&self.cpu_config), "--cpu-config");
        set(&["machine-config", "cpu_template"], text(&self.cpu_template), "--cpu-template");
        set(&["gdb"], text(&self.gdb), "--gdb");
        set(&["keyboard"], self.keyboard.then(|| true.into()), "--keyboard");
        set(&["serial", "serial_out_path"], text(&self.serial), "--serial");
        set(&["serial", "enabled"], self.no_serial.then(|| false.into()), "--no-serial");
        for (module, level) in self.log_level.iter().flat_map(|levels| levels.split(',')).map(level_of) {
            match module {
                None => set(&["logger", "level"], Some(level.into()), "--log-level"),
                Some(module) => set(&["logger", "levels", module], Some(level.into()), "--log-level"),
            }
        }
        set(&["logger", "format"], text(&self.log_format), "--log-format");
        set(&["logger", "show_level"], self.show_level.then(|| true.into()), "--show-level");
        set(&["logger", "show_log_origin"], self.show_log_origin.then(|| true.into()), "--show-log-origin");
        set(&["logger", "module"], text(&self.module), "--module");
        set(&["logger", "log_path"], text(&self.log_file), "--log-file");
        set(&["metrics", "metrics_path"], text(&self.metrics_path), "--metrics-path");
        set(&["on-reboot"], text(&self.on_reboot), "--on-reboot");
        set(&["balloon"], self.balloon.clone(), "--balloon");
        set(&["entropy"], self.no_rng.then_some(Value::Null), "--no-rng");
        // A file, or the API, says by itself what there is.
        let rng = self.rng || self.config.is_none() && self.kernel.is_some() && !self.no_rng;
        edits.extend(rng.then(|| change(JsonPath::keys(["entropy"]), Change::Default(json!({})), "--rng")));
        let keyboard = self.keyboard_by_default;
        edits.extend(
            keyboard.then(|| change(JsonPath::keys(["keyboard"]), Change::Default(true.into()), "firecracker")),
        );
        let append = JsonPath::keys(["boot-source", "boot_args_append"]);
        edits.extend(self.append.iter().map(|words| change(append.clone(), Change::Words(words.clone()), "--append")));
        if let Some(vsock) = &self.vsock {
            let path = |key| JsonPath::keys(["vsock", key]);
            edits.push(Edit::set(path("uds_path"), vsock.path.as_str(), "--vsock"));
            edits.push(match vsock.cid {
                Some(cid) => Edit::set(path("guest_cid"), cid, "--vsock"),
                None => change(path("guest_cid"), Change::Default(3.into()), "--vsock"),
            });
        }
        edits.extend(self.rootfs.iter().flat_map(root_edits));
        edits.extend(self.disk.iter().enumerate().map(|(place, disk)| disk_edit(place, disk)));
        edits.extend(self.net.iter().enumerate().map(|(place, net)| net_edit(place, net)));
        edits.extend(self.pmem.iter().enumerate().map(|(place, pmem)| pmem_edit(place, pmem)));
        let end = JsonPath::keys(["shares"]).join(machine::config::Step::Next);
        edits.extend(self.share.iter().map(|share| Edit::set(end.clone(), share.clone(), "--share")));
        let settings = self.set.iter();
        edits.extend(
            settings.map(|set| Edit::set(set.path.clone(), set.value.clone(), format!("--set {}", set.written))),
        );
        edits
    }
}

fn change(path: JsonPath, change: Change, flag: &str) -> Edit {
    Edit { path, change, source: flag.to_owned() }
}

/// `--rootfs` changes the root drive that is there, or makes one.
fn root_edits(disk: &Disk) -> Vec<Edit> {
    const FLAG: &str = "--rootfs";
    let drives = JsonPath::keys(["drives"]);
    let root = drives.join(machine::config::Step::Where("is_root_device".into(), "true".into()));
    let mut edits = vec![
        Edit::set(root.key("path_on_host"), disk.path.as_str(), FLAG),
        Edit::set(root.key("is_read_only"), disk.read_only.unwrap_or(false), FLAG),
    ];
    edits.push(match &disk.id {
        Some(id) => Edit::set(root.key("drive_id"), id.as_str(), FLAG),
        None => change(root.key("drive_id"), Change::Default("rootfs".into()), FLAG),
    });
    edits.extend(disk.keys.iter().map(|(key, value)| Edit::set(root.key(key), value.clone(), FLAG)));
    edits
}

/// `--disk` adds a drive.
fn disk_edit(place: usize, disk: &Disk) -> Edit {
    let mut drive = json!({
        "drive_id": disk.id.clone().unwrap_or_else(|| format!("disk{}", place + 1)),
        "path_on_host": disk.path,
        "is_root_device": false,
        "is_read_only": disk.read_only.unwrap_or(false),
    });
    if let Some(drive) = drive.as_object_mut() {
        drive.extend(disk.keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    }
    let end = JsonPath::keys(["drives"]).join(machine::config::Step::Next);
    Edit::set(end, drive, format!("--disk {}", disk.path))
}

/// `--net` adds a network interface; `eth0`, `eth1`, ... are their names as the guest's.
fn net_edit(place: usize, net: &Value) -> Edit {
    let mut net = net.clone();
    if let Some(net) = net.as_object_mut() {
        net.entry("iface_id").or_insert_with(|| format!("eth{place}").into());
    }
    let end = JsonPath::keys(["network-interfaces"]).join(machine::config::Step::Next);
    Edit::set(end, net, "--net")
}

/// `--pmem` adds a file as memory; `pmem0`, `pmem1`, ... are their names.
fn pmem_edit(place: usize, pmem: &Value) -> Edit {
    let mut pmem = pmem.clone();
    if let Some(pmem) = pmem.as_object_mut() {
        pmem.entry("id").or_insert_with(|| format!("pmem{place}").into());
    }
    let end = JsonPath::keys(["pmem"]).join(machine::config::Step::Next);
    Edit::set(end, pmem, "--pmem")
}

/// `LEVEL` or `MODULE=LEVEL`.
fn level_of(item: &str) -> (Option<&str>, &str) {
    item.split_once('=').map_or((None, item), |(module, level)| (Some(module), level))
}
