//! A container's limits, where only the guest can settle them: which CPUs the VM has, and which disks are meant. Threads of
//! orders.
//!
//! Sources: Linux, Documentation/admin-guide/cgroup-v2.rst (cpuset, io.max); OCI runtime specification, config-linux.md.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use protocol::cpus::CpuList;
use protocol::disks::DiskLimit;
use protocol::message::Run;
use rustix::fs::{major, minor};
use rustix::process::{Resource, getrlimit};
use serde_json::{Map, Value, json};

use crate::container::group;
use crate::system::CGROUPS;
use crate::{Doing, Fault};

/// Block devices by their numbers.
const DISKS: &str = "/sys/dev/block";

/// Limits of processes, as the specification names them.
const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

/// Looks whether the specification can be kept to, and adds the limits of disks. `layers` are where those of
/// its root file system are mounted.
pub fn settle(spec: &mut Value, order: &Run, layers: &[PathBuf]) -> Result<(), Fault> {
    if let Some(wanted) = spec.pointer("/linux/resources/cpu/cpus").and_then(Value::as_str) {
        let online = fs::read_to_string(Path::new(CGROUPS).join("cpuset.cpus.effective"));
        let online = online.map_err(|_| lacking("--cpuset-cpus", "CONFIG_CPUSETS"))?;
        check_cpus(wanted, &online)?;
    }
    if order.own_users {
        check_processes(spec)?;
    }
    if order.disk_limits.is_empty() {
        return Ok(());
    }
    let parent = Path::new(CGROUPS).join(group("")); // the root has no such files
    fs::create_dir_all(&parent).doing(|| "make a control group".to_owned())?;
    if !parent.join("io.max").exists() {
        return Err(lacking("a limit of disks", "CONFIG_BLK_DEV_THROTTLING"));
    }
    let limits = throttles(&order.disk_limits, |path| match path {
        "/" => layers.to_vec(),
        path => sources(spec, path),
    })?;
    let resources = spec.pointer_mut("/linux/resources").and_then(Value::as_object_mut);
    resources.ok_or("the specification has no limits")?.insert("blockIO".to_owned(), limits.into());
    Ok(())
}

fn lacking(what: &str, option: &str) -> Fault {
    format!("{what} takes a kernel with {option}, which this one is not")
}

/// Without this the kernel would let a container with other CPUs run on any.
fn check_cpus(wanted: &str, online: &str) -> Result<(), Fault> {
    let (asked, online): (CpuList, CpuList) = (wanted.parse()?, online.parse()?);
    match asked.not_in(&online) {
        None => Ok(()),
        Some(cpu) => Err(format!("--cpuset-cpus {wanted}: the VM has the CPUs {online}, and {cpu} is not one of them")),
    }
}

/// Only the VM's root may raise the limits that the runtime has from this process (setrlimit(2)), and by the time when they
/// are set, a container with users of its own has none.
fn check_processes(spec: &Value) -> Result<(), Fault> {
    let limits = spec.pointer("/process/rlimits").and_then(Value::as_array);
    for limit in limits.into_iter().flatten() {
        let name = limit.get("type").and_then(Value::as_str).unwrap_or_default();
        let Some((_, resource)) = RESOURCES.iter().find(|(known, _)| *known == name) else { continue };
        let (Some(asked), Some(most)) = (limit.get("hard").and_then(Value::as_u64), getrlimit(*resource).maximum)
        else {
            continue;
        };
        if asked > most {
            let name = name.trim_start_matches("RLIMIT_").to_ascii_lowercase();
            return Err(format!("--ulimit {name}: with users of its own a container can have {most} at most"));
        }
    }
    Ok(())
}

/// Where what is seen at a path of the container comes from.
fn sources(spec: &Value, path: &str) -> Vec<PathBuf> {
    let mounts = spec.get("mounts").and_then(Value::as_array).into_iter().flatten();
    let here = mounts.filter(|mount| mount.get("destination").is_some_and(|at| at == path));
    here.filter_map(|mount| mount.get("source")?.as_str().map(PathBuf::from)).collect()
}

/// The specification's lists of limits. `mounted` says on which file systems a path of the container is.
fn throttles(limits: &[DiskLimit], mounted: impl Fn(&str) -> Vec<PathBuf>) -> Result<Map<String, Value>, Fault> {
    let mut lists = Map::new();
    for limit in limits {
        let mut disks = Vec::new();
        for source in mounted(&limit.path) {
            disks.extend(disk_of(Path::new(DISKS), &source)?);
        }
        disks.sort_unstable();
        disks.dedup();
        if disks.is_empty() {
            return Err(format!(
                "{} of the container is on no disk of the VM, so its speed cannot be limited",
                limit.path
            ));
        }
        let list = lists.entry(limit.counts.oci()).or_insert_with(|| json!([]));
        let entry = |(major, minor)| json!({"major": major, "minor": minor, "rate": limit.rate});
        if let Some(list) = list.as_array_mut() {
            list.extend(disks.into_iter().map(entry));
        }
    }
    Ok(lists)
}

/// The numbers of the disk whose file system `path` is on, if that is one of a disk. Partitions cannot be limited.
fn disk_of(disks: &Path, path: &Path) -> Result<Option<(u32, u32)>, Fault> {
    let looking = || format!("look for the disk of {}", path.display());
    let device = fs::metadata(path).doing(looking)?.dev();
    whole(disks, (major(device), minor(device))).doing(looking)
}

/// The disk of a partition, or the disk itself.
fn whole(disks: &Path, (major, minor): (u32, u32)) -> std::io::Result<Option<(u32, u32)>> {
    let entry = disks.join(format!("{major}:{minor}")); // a link: what is above is the disk's
    let numbers = match entry.join("partition").exists() {
        false => return Ok(entry.exists().then_some((major, minor))),
        true => fs::read_to_string(entry.join("../dev"))?,
    };
    let pair =
        numbers.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    pair.map(Some).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use protocol::disks::Counts;

    use super::*;

    #[test]
    fn cpus_are_those_of_the_vm() {
        assert_eq!(check_cpus("1", "0-1\n"), Ok(()));
        let why = check_cpus("0,2-3", "0-1\n").unwrap_err();
        assert_eq!(why, "--cpuset-cpus 0,2-3: the VM has the CPUs 0-1, and 2 is not one of them");
        assert!(check_cpus("x", "0").is_err());
    }

    #[test]
    fn limits_of_processes_are_not_raised() {
        let spec = |hard: u64| json!({"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": hard}]}});
        let most = getrlimit(Resource::Nofile).maximum.unwrap();
        assert_eq!((check_processes(&spec(most)), check_processes(&json!({}))), (Ok(()), Ok(())));
        let why = check_processes(&spec(most + 1)).unwrap_err();
        assert_eq!(why, format!("--ulimit nofile: with users of its own a container can have {most} at most"));
    }

    #[test]
    fn a_partition_is_a_part_of_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/vda");
        fs::create_dir_all(disk.join("vda1")).unwrap();
        fs::write(disk.join("dev"), "254:16\n").unwrap();
        fs::write(disk.join("vda1/partition"), "1\n").unwrap();
        fs::write(disk.join("vda1/dev"), "254:17\n").unwrap();
        let numbers = sys.path().join("dev");
        fs::create_dir(&numbers).unwrap();
        std::os::unix::fs::symlink("../devices/vda", numbers.join("254:16")).unwrap();
        std::os::unix::fs::symlink("../devices/vda/vda1", numbers.join("254:17")).unwrap();
        let of = |minor| whole(&numbers, (254, minor)).unwrap();
        assert_eq!((of(16), of(17), of(18)), (Some((254, 16)), Some((254, 16)), None));
        fs::write(disk.join("dev"), "x\n").unwrap();
        assert!(whole(&numbers, (254, 17)).is_err());
    }

    #[test]
    fn what_is_on_no_disk_has_no_speed() {
        let limit = |path: &str| DiskLimit { path: path.to_owned(), counts: Counts::Reads, rate: 7 };
        let none = throttles(&[limit("/v")], |_| Vec::new()).unwrap_err();
        assert_eq!(none, "/v of the container is on no disk of the VM, so its speed cannot be limited");
        assert!(throttles(&[limit("/v")], |_| vec!["/proc/self".into()]).is_err());
        let spec =
            json!({"mounts": [{"destination": "/v", "source": "/run/v"}, {"destination": "/w", "source": "/run/w"}]});
        assert_eq!(sources(&spec, "/v"), [PathBuf::from("/run/v")]);
        assert!(throttles(&[], |_| Vec::new()).unwrap().is_empty());
    }
}
