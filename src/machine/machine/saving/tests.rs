//! A machine of a few instructions on /dev/kvm: it runs, is saved, and another one goes on where it was.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::legacy::console_out::ConsoleOut;
use devices::memory::{Bytes, GuestAddress};
use devices::mmds::store::Store;
use devices::window::Window;
use kvm_ioctls::Kvm;
use serde_json::{Value, json};

use super::*;
use crate::boot::pvh_kernel;
use crate::config::VmConfig;
use crate::error::chain;
use crate::events::Events;
use crate::plan::Plan;
use crate::snapshot::{self, SnapshotConfig};
use crate::state::MsrState;
use crate::timeline::Timeline;
use crate::tiny::{CODE, START};
use crate::vcpu::install_kick;

const PATIENCE: Duration = Duration::from_secs(60);
/// Where the guest writes its count.
const COUNT: u64 = START + 0x2000;
/// IA32_TIME_STAMP_COUNTER.
const TIME_STAMP: u32 = 0x10;

/// What a configuration names.
struct Files {
    kernel: File,
    disk: tempfile::NamedTempFile,
    pmem: tempfile::NamedTempFile,
}

impl Files {
    fn new() -> Self {
        let [disk, pmem] = [1 << 20, 3 << 20].map(|len| {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(len).unwrap();
            file
        });
        Self { kernel: pvh_kernel(START, &CODE), disk, pmem }
    }

    fn config(&self, vcpus: u32) -> VmConfig {
        let kernel = format!("/proc/self/fd/{}", self.kernel.as_raw_fd());
        let disk = json!({ "drive_id": "disk", "path_on_host": self.disk.path(), "is_root_device": false });
        let path = self.pmem.path();
        let pmem =
            |id, private: bool| json!({ "id": id, "path_on_host": path, "read_only": !private, "private": private });
        let config = json!({
            "boot-source": { "kernel_image_path": kernel },
            "machine-config": { "vcpu_count": vcpus, "mem_size_mib": 32, "huge_pages": "None" },
            "drives": [disk], "pmem": [pmem("shared", false), pmem("own", true)], "keyboard": true,
            "entropy": {}, "balloon": { "amount_mib": 1 }
        });
        serde_json::from_value(config).unwrap()
    }

    /// A machine with the guest's code in it; nothing where there is no /dev/kvm, which is said.
    fn build(&self, vcpus: u32) -> Option<Machine> {
        Some(self.build_as(&self.config(vcpus))?.unwrap())
    }

    fn build_as(&self, config: &VmConfig) -> Option<Result<Machine, HostError>> {
        install_kick().unwrap();
        let plan = Plan::of(config).unwrap();
        let events = Events::new(Arc::new(Timeline::new(Instant::now(), Duration::ZERO))).unwrap();
        let console = ConsoleOut::new(File::options().write(true).open("/dev/null").unwrap(), None).unwrap();
        let metadata = Arc::new(Store::new(1000).unwrap());
        let built = Machine::build(config, &plan, Some(console), Arc::new(events), &metadata);
        if let Err(error) = Kvm::new() {
            let refused = built.err().expect("no VM without /dev/kvm");
            assert!(chain(&refused).contains("open /dev/kvm"), "{refused} ({error})");
            return None;
        }
        Some(built)
    }

    /// A machine that has counted for a while, paused.
    fn paused(&self, vcpus: u32) -> Option<Machine> {
        let machine = self.build(vcpus)?;
        machine.boot();
        let mut counted = 0;
        while counted < 1000 {
            counted = next_count(&machine, counted);
        }
        machine.pause();
        Some(machine)
    }
}

fn count(machine: &Machine) -> u32 {
    machine.ram.guest().read_obj(GuestAddress(COUNT)).unwrap()
}

/// Waits until the guest has written another count than `before`, and returns it.
fn next_count(machine: &Machine, before: u32) -> u32 {
    let since = Instant::now();
    while count(machine) == before {
        assert!(since.elapsed() < PATIENCE, "the guest does not run: {:?}", machine.events().take());
        std::thread::yield_now();
    }
    count(machine)
}

/// All memory of a machine, by its ranges.
fn memory(machine: &Machine) -> Vec<(GuestAddress, Vec<u8>)> {
    let ranges = machine.ram.slots().map(|(gpa, len, _)| (GuestAddress(gpa), vec![0; usize::try_from(len).unwrap()]));
    let mut ranges: Vec<_> = ranges.collect();
    for (gpa, bytes) in &mut ranges {
        machine.ram.guest().read_slice(bytes, *gpa).unwrap();
    }
    ranges
}

fn set_memory(machine: &Machine, memory: &[(GuestAddress, Vec<u8>)]) {
    for (gpa, bytes) in memory {
        machine.ram.guest().write_slice(bytes, *gpa).unwrap();
    }
}

/// What the guest has changed in windows that no file knows of.
fn changes(machine: &Machine) -> Vec<Vec<(u64, Vec<u8>)>> {
    let of = |window: &Window| -> Vec<_> {
        let bytes = |range: Range<u64>| {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
            window.read_at(range.start, &mut bytes).unwrap();
            (range.start, bytes)
        };
        window.changed().unwrap().into_iter().map(bytes).collect()
    };
    machine.private_windows().map(of).collect()
}

fn set_changes(machine: &Machine, changes: &[Vec<(u64, Vec<u8>)>]) {
    for (window, ranges) in machine.private_windows().zip(changes) {
        ranges.iter().for_each(|(at, bytes)| window.write_at(*at, bytes).unwrap());
    }
}

/// A state as text without the clocks, which go on, and those clocks.
fn told(state: &MachineState) -> (Value, Vec<u64>) {
    let mut state = state.clone();
    let mut clocks = vec![std::mem::take(&mut state.vm.clock_ns)];
    for vcpu in &mut state.vcpus {
        let stamps = vcpu.msrs.iter_mut().filter(|msr| msr.index == TIME_STAMP);
        clocks.extend(stamps.map(|msr| std::mem::take(&mut msr.data)));
    }
    (serde_json::to_value(state).unwrap(), clocks)
}

#[test]
fn another_machine_goes_on_where_the_first_was() {
    for vcpus in [1, 2] {
        let files = Files::new();
        let Some(first) = files.paused(vcpus) else { return };
        for window in first.private_windows() {
            window.write_at(5000, b"the guest's").unwrap(); // in its place
        }
        let state = first.save().unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let read: MachineState = serde_json::from_str(&text).unwrap();
        let (before, clocks_before) = told(&state);
        assert_eq!(told(&read), told(&state));
        assert_eq!(told(&first.save().unwrap()).0, before, "to look changes nothing");
        let (memory, changed, at) = (memory(&first), changes(&first), count(&first));
        let [own] = changed.as_slice() else { panic!("of two windows one is private") };
        let [(4096, page)] = own.as_slice() else { panic!("one page was changed") };
        assert_eq!((page.len(), &page[904..915]), (4096, &b"the guest's"[..]));
        assert!(state.vcpus[0].regs.rax >= u64::from(at) && state.vcpus[0].regs.rip >= START);
        drop(first);

        let second = files.build(vcpus).unwrap();
        assert!(changes(&second).iter().all(Vec::is_empty), "the file is as it was");
        set_memory(&second, &memory);
        set_changes(&second, &changed);
        second.load(&read).unwrap();
        let (again, clocks) = told(&second.save().unwrap());
        assert_eq!((again, changes(&second)), (before, changed));
        assert!(clocks.iter().zip(&clocks_before).all(|(now, then)| now >= then), "{clocks:?} after {clocks_before:?}");
        assert_eq!(count(&second), at, "nothing runs yet");
        second.resume_devices();
        second.resume_vcpus();
        assert!(next_count(&second, at) > at, "it goes on, and does not begin again");
    }
}

#[test]
fn what_was_saved_goes_on_itself() {
    let files = Files::new();
    let Some(machine) = files.paused(1) else { return };
    for _ in 0..20 {
        machine.save().unwrap();
        let at = count(&machine);
        machine.resume_devices();
        machine.resume_vcpus();
        assert!(next_count(&machine, at) > at);
        machine.pause();
    }
}

type Change = fn(&mut MachineState);

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let files = Files::new();
    let Some(first) = files.paused(1) else { return };
    let state = first.save().unwrap();
    drop(first);
    let changes: [(Change, &str); 14] = [
        (|state| state.cpuid_crc32 ^= 1, "load the machine: its guest saw another CPU: "),
        (|state| state.vcpus.clear(), "load the machine: it has 1 vCPUs, and 0 were saved"),
        (|state| state.devices.truncate(1), "load the machine: its devices are ["),
        (|state| state.devices[0].id = "other".into(), "\"other\""),
        (|state| state.devices.swap(0, 1), "load the machine: its devices are ["),
        (
            |state| {
                let (one, other) = state.devices.split_at_mut(1);
                std::mem::swap(&mut one[0].state, &mut other[0].state);
            },
            "load device '",
        ),
        (|state| state.registers.serial = None, "load the register devices: there was a serial port"),
        (
            |state| state.registers.keyboard.keyboard = None,
            "load the register devices: there was a keyboard and is none",
        ),
        (|state| state.registers.power_events = 0x80, "load the register devices: there are no power events 0x80"),
        (|state| state.vm.ioapic.chip_id = 0, "load interrupt controller 2 (KVM_SET_IRQCHIP): it is the state of"),
        (|state| state.vcpus[0].mp_state = 77, "load vCPU 0: load the mp_state 77 (KVM_SET_MP_STATE): "),
        (|state| state.vcpus[0].xsave.truncate(100), "bytes of extended state, and 400 were saved"),
        (
            |state| state.vcpus[0].msrs.push(MsrState { index: 0x7fff_ffff, data: 0 }),
            "load vCPU 0: load a vCPU: this host's KVM has no MSR 0x7fffffff",
        ),
        (
            |state| {
                let twice = state.vcpus[0].msrs.clone();
                state.vcpus[0].msrs.extend(twice.iter().cycle().take(10_000));
            },
            "load vCPU 0: load a vCPU: an MSR was saved twice",
        ),
    ];
    for (change, told) in changes {
        let mut lie = state.clone();
        change(&mut lie);
        let machine = files.build(1).unwrap();
        let refused = chain(&machine.load(&lie).unwrap_err());
        assert!(refused.contains(told), "{refused} is not: {told}");
    }
}

#[test]
fn a_register_that_kvm_refuses_is_named() {
    let files = Files::new();
    let Some(first) = files.paused(1) else { return };
    let mut state = first.save().unwrap();
    drop(first);
    let lstar = 0xc000_0082;
    let found = state.vcpus[0].msrs.iter_mut().find(|msr| msr.index == lstar).unwrap();
    found.data = 1 << 63; // no canonical address
    let machine = files.build(1).unwrap();
    let refused = chain(&machine.load(&state).unwrap_err());
    assert_eq!(refused, "load vCPU 0: load MSR 0xc0000082: KVM refuses the value 0x8000000000000000");
}

/// A machine that was written to files, its configuration, and the one of another that goes on from them.
fn in_files(files: &Files, folder: &Path) -> Option<(u32, VmConfig, VmConfig)> {
    let mut config = files.config(1);
    config.pmem.retain(|pmem| !pmem.private);
    let first = files.build_as(&config)?.unwrap();
    first.boot();
    next_count(&first, 0);
    first.pause();
    let from = SnapshotConfig {
        snapshot_path: folder.join("state"),
        mem_file_path: folder.join("memory"),
        other_images: Vec::new(),
    };
    snapshot::save(&first, &config, &from.snapshot_path, &from.mem_file_path).unwrap();
    let next = VmConfig { snapshot: Some(from), ..config.clone() };
    Some((count(&first), config, next))
}

#[test]
fn another_machine_goes_on_from_files() {
    let (files, folder) = (Files::new(), tempfile::tempdir().unwrap());
    let Some((at, _, next)) = in_files(&files, folder.path()) else { return };
    for _ in 0..2 {
        let second = files.build_as(&next).unwrap().unwrap();
        assert_eq!(count(&second), at, "nothing runs yet");
        second.boot();
        assert!(next_count(&second, at) > at, "it goes on, and does not begin again");
    }
}

#[test]
fn a_disk_may_have_another_image_where_that_is_said() {
    let (files, folder) = (Files::new(), tempfile::tempdir().unwrap());
    let Some((.., mut next)) = in_files(&files, folder.path()) else { return };
    files.disk.as_file().set_len(2 << 20).unwrap();
    let refused = chain(&files.build_as(&next).unwrap().err().unwrap());
    assert!(refused.ends_with("load device 'disk': its image has 2097152 bytes, and had 1048576"), "{refused}");
    next.snapshot.as_mut().unwrap().other_images.push("disk".to_owned());
    files.build_as(&next).unwrap().unwrap();
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let (files, folder) = (Files::new(), tempfile::tempdir().unwrap());
    let Some((_, config, next)) = in_files(&files, folder.path()) else { return };
    let refused = |config: &VmConfig| chain(&files.build_as(config).unwrap().err().unwrap());
    let changed = |change: fn(&mut VmConfig)| {
        let mut config = next.clone();
        change(&mut config);
        refused(&config)
    };
    let cpus = changed(|config| config.machine_config.vcpu_count = 2);
    assert!(cpus.ends_with("load the machine: it has 2 vCPUs, and 1 were saved"), "{cpus}");
    let memory = changed(|config| config.machine_config.mem_size_mib = 64);
    assert!(memory.ends_with("it has 33554432 bytes, and the VM 67108864 of memory"), "{memory}");
    let swapped = changed(|config| {
        let from = config.snapshot.as_mut().unwrap();
        from.snapshot_path = from.mem_file_path.clone();
    });
    assert!(swapped.ends_with("it is no snapshot of a VM"), "{swapped}");
    let from = next.snapshot.clone().unwrap();
    let machine = files.build_as(&config).unwrap().unwrap();
    machine.pause();
    let there = chain(&snapshot::save(&machine, &config, &from.snapshot_path, &from.mem_file_path).unwrap_err());
    assert!(there.contains("File exists"), "{there}");
    assert_eq!(snapshot::read(&from).unwrap().devices.len(), config.pmem.len() + 3, "what was there is there");
    let state = folder.path().join("other");
    snapshot::save(&machine, &config, &state, &from.mem_file_path).unwrap_err();
    assert!(!state.exists(), "half a snapshot is none");
    let memory = folder.path().join("other memory");
    snapshot::save(&machine, &config, &from.snapshot_path, &memory).unwrap_err();
    assert!(!memory.exists() && from.snapshot_path.exists(), "half a snapshot is none");
    drop(machine); // it has the disk
    let own = files.build(1).unwrap(); // with private pmem
    own.pause();
    let refused = chain(&snapshot::save(&own, &config, &state, &folder.path().join("more")).unwrap_err());
    assert!(refused.contains("a pmem device with `private`") && !state.exists(), "{refused}");
}
