//! What is mounted in a container beside its root, as the OCI runtime specification says it.

use serde_json::{Value, json};

use super::{SpecError, Wishes};
use crate::size::bytes;

/// Options of a tmpfs (tmpfs(5), mount(8)): those with a value, and the others.
const TMPFS_VALUES: [&str; 7] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
const TMPFS_FLAGS: [&str; 20] = [
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "defaults",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
];
/// Most bytes of /dev/shm, as the field settled on them.
const SHM: u64 = 64 << 20;

/// All of them, without what the agent adds.
pub(super) fn mounts(wishes: &Wishes) -> Result<Vec<Value>, SpecError> {
    let shm = format!("size={}", wishes.shm_bytes.unwrap_or(SHM));
    let one = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        one("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        one("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        one("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        one("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        one("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        one("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        one("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
    ];
    for text in &wishes.tmpfs {
        let (at, options) = text.split_once(':').unwrap_or((text, ""));
        if !at.starts_with('/') {
            return Err(SpecError::Path("--tmpfs", text.clone()));
        }
        let usual = ["nosuid", "nodev", "noexec"];
        let given = options.split(',').filter(|option| !option.is_empty()).map(|option| tmpfs_option(text, option));
        let given: Vec<String> = given.collect::<Result<_, _>>()?;
        let options: Vec<&str> = usual.into_iter().chain(given.iter().map(String::as_str)).collect();
        mounts.push(one(at, "tmpfs", &options));
    }
    Ok(mounts)
}

/// An option of the tmpfs that is written so, with a size as the kernel reads it.
fn tmpfs_option(text: &str, option: &str) -> Result<String, SpecError> {
    match option.split_once('=') {
        Some(("size", size)) if !size.ends_with('%') => match bytes(size) {
            Ok(size) => Ok(format!("size={size}")),
            Err(why) => Err(SpecError::Tmpfs(text.to_owned(), why)),
        },
        Some((name, _)) if TMPFS_VALUES.contains(&name) => Ok(option.to_owned()),
        None if TMPFS_FLAGS.contains(&option) => Ok(option.to_owned()),
        _ => {
            let known = TMPFS_VALUES.map(|name| format!("{name}=VALUE")).join(", ");
            let known = format!("{known}, {}", TMPFS_FLAGS.join(", "));
            Err(SpecError::TmpfsOption(text.to_owned(), option.to_owned(), known))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tmpfs_has_options() {
        let options = |text: &str| {
            let mounts = mounts(&Wishes { tmpfs: vec![text.to_owned()], ..Wishes::default() })?;
            Ok::<_, SpecError>(mounts.last().unwrap()["options"].clone())
        };
        let usual = ["nosuid", "nodev", "noexec"];
        for (text, own) in [
            ("/t", &[][..]),
            ("/t:", &[]),
            ("/t:size=64,mode=1777", &["size=64", "mode=1777"]),
            ("/t:exec,size=1.5K", &["exec", "size=1536"]),
            ("/t:size=4mb", &["size=4194304"]),
            ("/t:size=50%", &["size=50%"]),
        ] {
            assert_eq!(options(text).unwrap(), json!([&usual, own].concat()), "{text}");
        }
        assert_eq!(options("/t:ro,noatime,uid=33").unwrap()[5], json!("uid=33"));
        assert_eq!(options("/t:defaults,nodiratime,strictatime,mpol=local").unwrap()[6], json!("mpol=local"));
        for wrong in ["speed=1", "fast", "ro=1", "size", "mode"] {
            let why = options(&format!("/t:{wrong}")).unwrap_err().to_string();
            assert!(why.starts_with(&format!("--tmpfs /t:{wrong}: {wrong} is no option; size=VALUE, ")), "{why}");
        }
        let why = options("/t:size=much").unwrap_err().to_string();
        assert!(why.starts_with("--tmpfs /t:size=much: a size is a number of bytes"), "{why}");
    }
}
