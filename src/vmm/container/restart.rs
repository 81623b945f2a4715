//! Whether a container that has ended is started again, as Docker's `--restart` says it.

use std::str::FromStr;
use std::time::Duration;

/// The first pause before a new start; each next one is twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST: Duration = Duration::from_secs(60);
/// A container that ran so long is well again: the next pause is the first one.
const WELL: Duration = Duration::from_secs(10);

/// When a container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Never.
    No,
    /// When it failed, so often at most.
    OnFailure(Option<u32>),
    /// Until somebody ends it. Docker's `always` and `unless-stopped` differ when its daemon starts, and here is none.
    Always,
}

impl FromStr for Restart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "no" => Ok(Self::No),
            None if text == "always" || text == "unless-stopped" => Ok(Self::Always),
            None if text == "on-failure" => Ok(Self::OnFailure(None)),
            Some(("on-failure", times)) => {
                times.parse().map(Some).map(Self::OnFailure).map_err(|_| format!("{times} is no number of times"))
            }
            _ => Err("no, on-failure[:TIMES], always or unless-stopped is expected".to_owned()),
        }
    }
}

impl Restart {
    /// Whether one that ended with this status is started again, after so many new starts.
    pub fn again(self, code: u8, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => code != 0 && most.is_none_or(|most| restarts < most),
            Self::Always => true,
        }
    }
}

/// The pauses before new starts.
#[derive(Debug)]
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pauses {
    /// The next one, after a container that ran so long.
    pub fn next(&mut self, ran: Duration) -> Duration {
        if ran >= WELL {
            self.0 = FIRST;
        }
        let pause = self.0;
        self.0 = pause.saturating_mul(2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_say_when() {
        let of = |text: &str| text.parse::<Restart>().unwrap();
        assert!(!of("no").again(1, 0));
        assert!(of("always").again(0, 9) && of("unless-stopped").again(1, 9));
        assert!(of("on-failure").again(1, 1000) && !of("on-failure").again(0, 0));
        assert!(of("on-failure:2").again(1, 1) && !of("on-failure:2").again(1, 2));
        for wrong in ["", "yes", "on-failure:", "on-failure:x", "always:1"] {
            assert!(wrong.parse::<Restart>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn pauses_grow_until_it_is_well() {
        let mut pauses = Pauses::default();
        let millis: Vec<_> = (0..12).map(|_| pauses.next(Duration::ZERO).as_millis()).collect();
        assert_eq!(millis[..4], [100, 200, 400, 800]);
        assert_eq!(millis[11], 60_000);
        assert_eq!(pauses.next(WELL), FIRST);
    }
}
