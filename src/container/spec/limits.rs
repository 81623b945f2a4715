//! What a container may use, as the OCI runtime specification says it: its control group's limits, and its processes'.

use serde_json::{Value, json};

use super::{SpecError, Wishes};

/// Limits (getrlimit(2)).
const LIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
/// The period in which a share of the CPUs' time is counted, µs.
const PERIOD: u64 = 100_000;

/// Limits of the first process, which all others inherit.
pub(super) fn rlimits(wishes: &Wishes) -> Result<Vec<Value>, SpecError> {
    let read = |text: &String| {
        let wrong = || SpecError::Ulimit(text.clone(), LIMITS.join(", "));
        let (name, values) = text.split_once('=').ok_or_else(wrong)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let number = |text: &str| if text == "-1" { Ok(u64::MAX) } else { text.parse::<u64>().map_err(|_| wrong()) };
        let (soft, hard) = (number(soft)?, number(hard)?);
        if !LIMITS.contains(&name) || soft > hard {
            return Err(wrong());
        }
        Ok(json!({"type": format!("RLIMIT_{}", name.to_ascii_uppercase()), "soft": soft, "hard": hard}))
    };
    wishes.ulimits.iter().map(read).collect()
}

/// Limits of the control group, without those of disks, which the agent adds.
pub(super) fn resources(wishes: &Wishes) -> Value {
    let mut resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
    if let Some(bytes) = wishes.memory {
        resources["memory"] = json!({"limit": bytes, "swap": bytes});
    }
    if let Some(share) = wishes.milli_cpus {
        resources["cpu"] = json!({"quota": share.saturating_mul(PERIOD) / 1000, "period": PERIOD});
    }
    if let Some(cpus) = &wishes.cpus {
        resources["cpu"]["cpus"] = cpus.to_string().into();
    }
    if let Some(most) = wishes.pids {
        resources["pids"] = json!({"limit": most});
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_control_groups_and_of_processes() {
        let ulimits = vec!["nofile=10:20".to_owned(), "core=-1".to_owned()];
        let wishes =
            Wishes { memory: Some(1 << 20), milli_cpus: Some(500), pids: Some(9), ulimits, ..Wishes::default() };
        let resources = resources(&wishes);
        assert_eq!(resources["memory"], json!({"limit": 1 << 20, "swap": 1 << 20}));
        assert_eq!(resources["cpu"], json!({"quota": 50_000, "period": 100_000}));
        assert_eq!(resources["pids"], json!({"limit": 9}));
        let cpus = Some("1-2,0".parse().unwrap());
        let only = super::resources(&Wishes { cpus: cpus.clone(), ..Wishes::default() });
        assert_eq!(only["cpu"], json!({"cpus": "0-2"}));
        let both = super::resources(&Wishes { cpus, milli_cpus: Some(1000), ..Wishes::default() });
        assert_eq!(both["cpu"], json!({"cpus": "0-2", "quota": 100_000, "period": 100_000}));
        let rlimits = rlimits(&wishes).unwrap();
        assert_eq!(rlimits[0], json!({"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}));
        assert_eq!(rlimits[1]["soft"], json!(u64::MAX));
        for wrong in ["nofile", "nofile=x", "nofile=2:1", "speed=1"] {
            let wishes = Wishes { ulimits: vec![wrong.to_owned()], ..Wishes::default() };
            assert!(matches!(super::rlimits(&wishes), Err(SpecError::Ulimit(..))), "{wrong}");
        }
    }
}
