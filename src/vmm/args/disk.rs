//! `--rootfs` and `--disk`: PATH, then options after commas. Pure.

use serde_json::Value;

/// A disk as the command line names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Image file or block device.
    pub path: String,
    /// `ro` or `rw`, if it says so.
    pub read_only: Option<bool>,
    /// `id=`.
    pub id: Option<String>,
    /// What else it says: keys of the drive with their values.
    pub keys: Vec<(&'static str, Value)>,
}

const KNOWN: &str = "ro, rw, id=NAME, cache=unsafe|writeback, engine=sync|async, queues=N, direct and partuuid=ID";

/// Reads `PATH`, then any of [`KNOWN`] after commas.
pub fn parse(text: &str) -> Result<Disk, String> {
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default().to_owned();
    if path.is_empty() {
        return Err("a path is expected before the options".into());
    }
    let mut disk = Disk { path, ..Disk::default() };
    for option in parts {
        let (key, value): (_, Value) = match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => {
                disk.read_only = Some(true);
                continue;
            }
            ("rw", "") => {
                disk.read_only = Some(false);
                continue;
            }
            ("id", name) if !name.is_empty() => {
                disk.id = Some(name.to_owned());
                continue;
            }
            ("cache", "unsafe") => ("cache_type", "Unsafe".into()),
            ("cache", "writeback") => ("cache_type", "Writeback".into()),
            ("engine", "sync") => ("io_engine", "Sync".into()),
            ("engine", "async") => ("io_engine", "Async".into()),
            ("queues", number) if number.parse::<u16>().is_ok() => ("num_queues", number.parse::<u16>().ok().into()),
            ("direct", "") => ("direct", true.into()),
            ("partuuid", id) if !id.is_empty() => ("partuuid", id.into()),
            _ => {
                return Err(format!(
                    "unknown option `{option}`; known are {KNOWN} (a path with a comma in it needs --set or a file)"
                ));
            }
        };
        disk.keys.push((key, value));
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_path() {
        let plain = Disk { path: "a.img".into(), ..Disk::default() };
        assert_eq!(parse("a.img").unwrap(), plain);
        let engine = [("io_engine", "Async".into()), ("num_queues", 2.into())];
        let keys = [("cache_type", "Unsafe".into()), ("direct", true.into()), ("partuuid", "x-1".into())];
        let keys = keys.into_iter().chain(engine).collect();
        let all = Disk { read_only: Some(true), id: Some("x".into()), keys, ..plain };
        assert_eq!(parse("a.img,ro,id=x,cache=unsafe,direct,partuuid=x-1,engine=async,queues=2").unwrap(), all);
    }

    #[test]
    fn unknown_options_are_named() {
        for (text, word) in [
            ("a,r", "`r`"),
            ("a,id=", "`id=`"),
            ("a,cache=x", "`cache=x`"),
            ("a,ro=1", "`ro=1`"),
            ("a,direct=1", "`direct=1`"),
            ("a,queues=x", "`queues=x`"),
            ("a,engine=", "`engine=`"),
            ("a,partuuid=", "`partuuid=`"),
            ("", "path"),
        ] {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}
