//! The directories of a tenant's VM. It has shares that wait for them: the monitor's API gives one a directory, which then has
//! a virtiofsd, when a container brings one that the VM does not see, and takes it away when the last container that used it
//! has ended and nothing of it is left in the guest. Threads of containers.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ::container::vm::{Share, share_tag};
use protocol::message::VolumeSource;
use serde_json::{Value, json};

use super::{LETS_GO, change, release};

/// The VM's shares.
pub struct Directories {
    shares: Mutex<Vec<Holds>>,
    /// One does not leave any more.
    settled: Condvar,
    /// The agent's socket, and the API's.
    agent: PathBuf,
    api: PathBuf,
}

/// What a share has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holds {
    /// It waits.
    Nothing,
    /// A directory, and so many containers that use it: none where the guest did not let go of it.
    Directory(Share, usize),
    /// A directory that nobody uses any more, until the guest has let go of it.
    Leaving,
}

impl Directories {
    /// So many shares that wait.
    pub fn new(count: usize, agent: PathBuf, api: PathBuf) -> Self {
        Self { shares: Mutex::new(vec![Holds::Nothing; count]), settled: Condvar::new(), agent, api }
    }

    /// Has the VM see these for one more container, all or none: the tags of their shares.
    pub fn show(&self, wanted: &[Share]) -> Result<Vec<String>, String> {
        let mut tags = Vec::new();
        for share in wanted {
            match self.show_one(share) {
                Ok(number) => tags.push(share_tag(number)),
                Err(why) => {
                    self.leave(&tags);
                    return Err(why);
                }
            }
        }
        Ok(tags)
    }

    fn show_one(&self, wanted: &Share) -> Result<usize, String> {
        let leaves = |shares: &mut Vec<Holds>| {
            let is_there = |holds: &Holds| matches!(holds, Holds::Directory(share, _) if share == wanted);
            shares.contains(&Holds::Leaving) && !shares.contains(&Holds::Nothing) && !shares.iter().any(is_there)
        };
        let waited = self.settled.wait_timeout_while(self.lock(), LETS_GO, leaves);
        let (mut shares, _) = waited.unwrap_or_else(PoisonError::into_inner);
        for (number, holds) in shares.iter_mut().enumerate() {
            if let Holds::Directory(share, users) = holds
                && share == wanted
            {
                *users += 1;
                return Ok(number);
            }
        }
        let most = shares.len();
        let free = shares.iter_mut().enumerate().find(|(_, holds)| **holds == Holds::Nothing);
        let (number, holds) = free.ok_or_else(|| {
            format!(
                "it sees {most} directories already, which is all that it can see, and not {}; end a container that has one, \
                 or use another --vm or a named volume",
                wanted.path.display()
            )
        })?;
        let tag = share_tag(number);
        self.change(&tag, &wanted.given(&tag))?;
        *holds = Holds::Directory(wanted.clone(), 1);
        Ok(number)
    }

    /// A container does not use these any more.
    pub fn leave(&self, tags: &[String]) {
        for tag in tags {
            let Some((number, share)) = self.left(tag) else { continue };
            let holds = match self.take_back(tag) {
                Ok(()) => Holds::Nothing,
                Err(why) => {
                    eprintln!("vmm: take {} back: {why}", share.path.display());
                    Holds::Directory(share, 0)
                }
            };
            self.lock().iter_mut().skip(number).take(1).for_each(|place| *place = holds.clone());
            self.settled.notify_all();
        }
    }

    /// One container less uses this share; which directory it had, where that was the last one.
    fn left(&self, tag: &str) -> Option<(usize, Share)> {
        let mut shares = self.lock();
        let (number, holds) = shares.iter_mut().enumerate().find(|(number, _)| share_tag(*number) == tag)?;
        let Holds::Directory(share, users) = holds else { return None };
        *users = users.saturating_sub(1);
        if *users > 0 {
            return None;
        }
        let share = share.clone();
        *holds = Holds::Leaving;
        Some((number, share))
    }

    /// Has the guest let go of a directory and then takes it away.
    fn take_back(&self, tag: &str) -> Result<(), String> {
        release(&self.agent, VolumeSource::Share { tag: tag.to_owned() })?;
        self.change(tag, &json!({"tag": tag, "path_on_host": ""}))
    }

    /// Has the monitor change a share.
    fn change(&self, tag: &str, body: &Value) -> Result<(), String> {
        change(&self.api, &format!("/shares/{tag}"), body)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Holds>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
