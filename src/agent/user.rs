//! Who a container's process is: names of users and groups, looked up in the container's own files (passwd(5),
//! group(5)). What stands there is hostile: it is read, with a limit, and never written.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use crate::{Doing, Fault};

/// Most bytes of /etc/passwd or /etc/group that are looked at.
const MOST: u64 = 4 << 20;

/// Numbers and the home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Other groups of the user.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

impl User {
    /// The user that `named` means (`name`, `number`, each also with `:group`; empty: root) in this root file system.
    pub fn find(root: &Path, named: &str) -> Result<Self, Fault> {
        let (user, group) = match named.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (named, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let (passwd, groups) = (text(root, "etc/passwd")?, text(root, "etc/group")?);
        let entry = lines(&passwd)
            .find(|fields| matches!(fields.as_slice(), [name, _, uid, ..] if *name == user || *uid == user));
        let mut found = match (entry.as_deref(), user.parse::<u32>()) {
            (Some([name, _, uid, gid, _, home, ..]), _) => {
                let number =
                    |text: &str| text.parse().doing(|| format!("read the numbers of user {user} in /etc/passwd"));
                let groups = lines(&groups).filter_map(|fields| match fields.as_slice() {
                    [_, _, gid, members, ..] if members.split(',').any(|member| member == *name) => gid.parse().ok(),
                    _ => None,
                });
                let home = if home.is_empty() { "/" } else { home };
                Self { uid: number(uid)?, gid: number(gid)?, groups: groups.collect(), home: home.to_owned() }
            }
            (_, Ok(uid)) => Self { uid, gid: 0, groups: Vec::new(), home: "/".to_owned() },
            _ => return Err(format!("the image has no user {user} (/etc/passwd)")),
        };
        if let Some(group) = group {
            found.gid = number_of(group, &groups)?;
            found.groups.clear();
        }
        Ok(found)
    }

    /// The same user, in these groups, too.
    pub fn with_groups(mut self, root: &Path, more: &[String]) -> Result<Self, Fault> {
        let groups = if more.is_empty() { String::new() } else { text(root, "etc/group")? };
        for group in more {
            let number = number_of(group, &groups)?;
            if !self.groups.contains(&number) {
                self.groups.push(number);
            }
        }
        Ok(self)
    }
}

/// The number of a group, by its name in the text of /etc/group or by itself.
fn number_of(group: &str, groups: &str) -> Result<u32, Fault> {
    let entry = lines(groups).find(|fields| matches!(fields.as_slice(), [name, ..] if *name == group));
    let number = match entry.as_deref() {
        Some([_, _, gid, ..]) => gid,
        _ => group,
    };
    number.parse().map_err(|_| format!("the image has no group {group} (/etc/group)"))
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

/// The text of a file of the container; empty where there is none. Links lead nowhere outside of it.
fn text(root: &Path, name: &str) -> Result<String, Fault> {
    let reading = || format!("read /{name} of the image");
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing(reading)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match openat2(&root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
        Ok(file) => File::from(file),
        Err(error) if io::Error::from(error).kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error).doing(reading),
    };
    if !file.metadata().doing(reading)?.is_file() {
        return Err(format!("/{name} of the image is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).doing(reading)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\n")
            .unwrap();
        fs::write(root.path().join("etc/group"), "root:x:0:\nwww:x:34:\nlogs:x:4:web,other\n").unwrap();
        root
    }

    #[test]
    fn users_are_names_or_numbers_of_the_image() {
        let root = root();
        let found = |named| User::find(root.path(), named).unwrap();
        let web = User { uid: 33, gid: 34, groups: vec![4], home: "/srv".to_owned() };
        assert_eq!(found("web"), web);
        assert_eq!(found("33"), web);
        assert_eq!(found(""), User { uid: 0, gid: 0, groups: vec![], home: "/root".to_owned() });
        assert_eq!(found("web:logs"), User { gid: 4, groups: vec![], ..web.clone() });
        assert_eq!(found("web:77").gid, 77);
        assert_eq!(found("1234"), User { uid: 1234, gid: 0, groups: vec![], home: "/".to_owned() });
        let more = |groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
            found("web").with_groups(root.path(), &groups).map(|user| user.groups)
        };
        assert_eq!(more(&["www", "9", "logs"]), Ok(vec![4, 34, 9]));
        assert_eq!(more(&["none"]).unwrap_err(), "the image has no group none (/etc/group)");
        assert_eq!(User::find(root.path(), "nobody").unwrap_err(), "the image has no user nobody (/etc/passwd)");
        assert_eq!(User::find(root.path(), "web:none").unwrap_err(), "the image has no group none (/etc/group)");
    }

    #[test]
    fn links_do_not_leave_the_image() {
        let (root, outside) = (root(), root());
        let passwd = root.path().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink(outside.path().join("etc/passwd"), &passwd).unwrap();
        assert!(User::find(root.path(), "web").is_err()); // nothing is there, seen from within
        fs::remove_file(&passwd).unwrap();
        fs::create_dir(&passwd).unwrap();
        assert_eq!(User::find(root.path(), "web").unwrap_err(), "/etc/passwd of the image is not a file");
    }
}
