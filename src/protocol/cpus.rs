//! A list of CPUs as the kernel writes it: numbers and ranges of them, `0-2,5` (cpuset(7), "List format").

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Highest number of a CPU, with room to spare: a VM has far fewer.
const HIGHEST: u32 = 1023;

/// Some CPUs, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(BTreeSet<u32>);

impl CpuList {
    /// So many CPUs a machine must have to have these.
    pub fn needs(&self) -> u32 {
        self.0.last().map_or(0, |last| last.saturating_add(1))
    }

    /// The first that is not among `others`.
    pub fn not_in(&self, others: &Self) -> Option<u32> {
        self.0.difference(&others.0).next().copied()
    }
}

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("CPUs are written as numbers from 0 to {HIGHEST} and ranges of them, as 0-2,5");
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number: Option<u32> = text.parse().ok().filter(|number| digits && *number <= HIGHEST);
            number.ok_or_else(wrong)
        };
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for cpu in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(*cpu) => *last = *cpu,
                _ => ranges.push((*cpu, *cpu)),
            }
        }
        for (number, (first, last)) in ranges.into_iter().enumerate() {
            to.write_str(if number == 0 { "" } else { "," })?;
            if first == last { write!(to, "{first}")? } else { write!(to, "{first}-{last}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        let of = |text: &str| text.parse::<CpuList>();
        for (text, written, needs) in [("0", "0", 1), ("3,1,0-1", "0-1,3", 4), ("0-3\n", "0-3", 4), ("1,2,3", "1-3", 4)]
        {
            let list = of(text).unwrap();
            assert_eq!((list.to_string().as_str(), list.needs()), (written, needs));
            assert_eq!(of(written).unwrap(), list);
        }
        for wrong in ["", ",", "0,", "-1", "1-", "2-1", "a", "+1", "0-1024", "4294967296", "0 1", "0-1-2"] {
            assert!(of(wrong).unwrap_err().contains("as 0-2,5"), "{wrong}");
        }
        assert_eq!(of("0-3").unwrap().not_in(&of("0-1,3").unwrap()), Some(2));
        assert_eq!(of("1").unwrap().not_in(&of("0-1").unwrap()), None);
    }
}
