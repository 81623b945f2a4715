//! The subject of `vmm compare`: the same program in every world, added to the image as one more layer.
//!
//!     vmm-subject hello    says one line
//!     vmm-subject work N   does N percent of the work (`work.rs`) and says what it took, as JSON
//!     vmm-subject wait     says one line and waits for the end of standard input
//!     vmm-subject end      does nothing: what `work` starts a thousand times
//!
//! As /init of a VM it mounts the image and starts the command (`init.rs`).
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod init;
mod work;

use std::io::{self, Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let (name, order) = (arguments.next(), arguments.next());
    if std::process::id() == 1 && name.as_deref() == Some("/init") {
        init::run();
    }
    let done = match order.as_deref() {
        Some("end") => Ok(()),
        Some("hello") => say("hello"),
        Some("work") => {
            percent(arguments.next()).and_then(work::work).and_then(|work| say(&serde_json::to_string(&work)?))
        }
        Some("wait") => say("ready").and_then(|()| io::stdin().read_to_end(&mut Vec::new()).map(|_| ())),
        _ => Err(io::Error::other("this program is for vmm compare: hello, work, wait or end")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm-subject: {error}");
            ExitCode::FAILURE
        }
    }
}

fn percent(word: Option<String>) -> io::Result<u64> {
    let number = word.and_then(|word| word.parse().ok()).filter(|number| (1..=100).contains(number));
    number.ok_or_else(|| io::Error::other("work: how many percent, 1 to 100?"))
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}
