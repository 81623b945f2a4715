//! The first words between an agent and its host: who it is, and what the VM shall be.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::VERSION;
use protocol::message::{Done, Hello, Setup};

use super::{VmError, VmWishes, doing};
use crate::session::Session;

/// Bytes of chance for a guest: as many as the kernel's generator has of its own.
const SEED: usize = 32;

/// Hears the agent's greeting, and tells it what the VM shall be.
pub fn set_up(stream: UnixStream, wishes: &VmWishes) -> Result<(), VmError> {
    let mut session = Session::new(stream);
    let hello: Hello = session.message()?;
    if hello.version != VERSION {
        return Err(VmError::Version(hello.version));
    }
    session.say(&Setup {
        version: VERSION,
        hostname: wishes.hostname.clone(),
        network: wishes.sights.network.as_ref().map(|network| network.told.clone()),
        clock_ns: now_ns(),
        seed: seed().map_err(doing("take random bytes"))?,
    })?;
    match session.message()? {
        Done::Ok => Ok(()),
        Done::Failed(failure) => Err(VmError::Agent(failure.why)),
    }
}

/// What time it is.
fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Chance for the guest's random numbers.
fn seed() -> io::Result<Vec<u8>> {
    let mut seed = vec![0; SEED];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::plain;
    use super::*;

    /// An agent of this version, or of another with more to say, greets.
    fn greeted_by(version: u32) -> Result<(), VmError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let agent = std::thread::spawn(move || {
            let mut host = Session::new(theirs);
            host.say(&json!({"version": version, "kernel": "6.1", "of_another_time": true})).unwrap();
            if host.hear().unwrap().is_some() {
                host.say(&Done::Ok).unwrap();
            }
        });
        let done = set_up(ours, &plain());
        agent.join().unwrap();
        done
    }

    #[test]
    fn an_agent_of_another_version_is_told_in_one_line() {
        greeted_by(VERSION).unwrap();
        let other = VERSION + 1;
        let wanted = format!(
            "the agent in the VM speaks version {other} of the protocol, this program {VERSION}: they come together"
        );
        assert_eq!(greeted_by(other).unwrap_err().to_string(), wanted);
    }
}
