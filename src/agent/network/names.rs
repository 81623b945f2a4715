//! How containers of the VM find each other: by the file /etc/hosts that each of them sees (hosts(5)). When one comes or
//! goes, the files of all are written anew. What a container wrote into its file is gone then, and never read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::{Doing, Fault};

/// The containers that have a name.
#[derive(Debug, Default)]
pub struct Names(Mutex<BTreeMap<String, Member>>);

#[derive(Debug)]
struct Member {
    address: Ipv4Addr,
    names: Vec<String>,
    /// Its file, and what stands in it before the names.
    file: Option<(PathBuf, String)>,
}

impl Names {
    /// A container has come.
    pub fn add(&self, id: &str, address: Ipv4Addr, names: &[String]) -> Result<(), Fault> {
        let plain = |name: &&String| !name.is_empty() && !name.contains(|letter: char| letter.is_whitespace());
        if let Some(wrong) = names.iter().find(|name| !plain(name)) {
            return Err(format!("{wrong:?} is no name for a container"));
        }
        let member = Member { address, names: names.to_vec(), file: None };
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.insert(id.to_owned(), member);
        Ok(())
    }

    /// Where a container is.
    pub fn address(&self, id: &str) -> Option<Ipv4Addr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(|member| member.address)
    }

    /// Writes its file, and those of the others.
    pub fn tell(&self, id: &str, before: &str, file: &Path) -> Result<(), Fault> {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = members.get_mut(id) {
            member.file = Some((file.to_owned(), before.to_owned()));
        }
        write_all(&members)
    }

    /// A container has gone.
    pub fn remove(&self, id: &str) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.remove(id);
        if let Err(why) = write_all(&members) {
            eprintln!("vmm-agent: {why}");
        }
    }
}

fn write_all(members: &BTreeMap<String, Member>) -> Result<(), Fault> {
    let mut lines = String::new();
    for member in members.values() {
        let _ = writeln!(lines, "{}\t{}", member.address, member.names.join(" "));
    }
    // All are tried: one container's full file system is not the others' affair.
    let files = members.values().filter_map(|member| member.file.as_ref());
    let done = files.map(|(file, before)| {
        let text = format!("{before}{lines}");
        replace(file, text.as_bytes()).doing(|| format!("write {}", file.display()))
    });
    done.collect::<Vec<_>>().into_iter().collect()
}

/// The file stays the one that the container has mounted, and has at no time less than a reader may expect.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut to = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
    to.write_all(bytes)?;
    to.set_len(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn all_know_who_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (db, web) = (folder.path().join("db"), folder.path().join("web"));
        let (names, own) = (Names::default(), |name: &str| vec![name.to_owned()]);
        names.add("db", Ipv4Addr::new(172, 17, 0, 2), &["db".to_owned(), "db.local".to_owned()]).unwrap();
        names.tell("db", "127.0.0.1\tlocalhost\n", &db).unwrap();
        assert_eq!((names.address("db"), names.address("web")), (Some(Ipv4Addr::new(172, 17, 0, 2)), None));
        let alone = "127.0.0.1\tlocalhost\n172.17.0.2\tdb db.local\n";
        assert_eq!(fs::read_to_string(&db).unwrap(), alone);
        names.add("web", Ipv4Addr::new(172, 17, 0, 3), &own("web")).unwrap();
        names.tell("web", "", &web).unwrap();
        assert_eq!(fs::read_to_string(&db).unwrap(), format!("{alone}172.17.0.3\tweb\n"));
        assert_eq!(fs::read_to_string(&web).unwrap(), "172.17.0.2\tdb db.local\n172.17.0.3\tweb\n");
        fs::write(&db, "what the container wrote, ".repeat(100)).unwrap();
        names.remove("web");
        assert_eq!(fs::read_to_string(&db).unwrap(), alone);
    }

    #[test]
    fn a_name_is_one_word() {
        for wrong in ["", "a b", "a\n127.0.0.1 b"] {
            assert!(Names::default().add("x", Ipv4Addr::LOCALHOST, &[wrong.to_owned()]).is_err(), "{wrong:?}");
        }
    }
}
