//! `--rootfs` and `--disk`: PATH, then options after commas. Pure.

/// A disk as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Image file or block device.
    pub path: String,
    /// `ro` or `rw`, if it says so.
    pub read_only: Option<bool>,
    /// `id=`.
    pub id: Option<String>,
    /// `cache=`, in Firecracker's words.
    pub cache: Option<&'static str>,
}

/// Reads `PATH[,ro|rw][,id=NAME][,cache=unsafe|writeback]`.
pub fn parse(text: &str) -> Result<Disk, String> {
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default().to_owned();
    if path.is_empty() {
        return Err("a path is expected before the options".into());
    }
    let mut disk = Disk { path, read_only: None, id: None, cache: None };
    for option in parts {
        match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => disk.read_only = Some(true),
            ("rw", "") => disk.read_only = Some(false),
            ("id", name) if !name.is_empty() => disk.id = Some(name.to_owned()),
            ("cache", "unsafe") => disk.cache = Some("Unsafe"),
            ("cache", "writeback") => disk.cache = Some("Writeback"),
            _ => {
                return Err(format!(
                    "unknown option `{option}`; ro, rw, id=NAME and cache=unsafe|writeback are known (a path with a \
                     comma in it needs --set or a file)"
                ));
            }
        }
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_path() {
        let plain = Disk { path: "a.img".into(), read_only: None, id: None, cache: None };
        assert_eq!(parse("a.img").unwrap(), plain);
        let all = Disk { read_only: Some(true), id: Some("x".into()), cache: Some("Unsafe"), ..plain };
        assert_eq!(parse("a.img,ro,id=x,cache=unsafe").unwrap(), all);
    }

    #[test]
    fn unknown_options_are_named() {
        for (text, word) in
            [("a,r", "`r`"), ("a,id=", "`id=`"), ("a,cache=x", "`cache=x`"), ("a,ro=1", "`ro=1`"), ("", "path")]
        {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}
