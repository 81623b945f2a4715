//! The monitor's own log, as it is asked for. Firecracker's `logger` object, and besides: severities by module, and the
//! form of lines. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The parts of the program: every module's name begins with one of these.
pub const PARTS: [&str; 4] = ["api", "devices", "machine", "vmm"];

/// The monitor's own log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoggerConfig {
    /// File or FIFO to write to; standard error where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// Lowest severity that is written.
    pub level: LogLevel,
    /// Lowest severities by module, instead of `level`; of several names that fit the longest counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub levels: BTreeMap<String, LogLevel>,
    /// What lines look like.
    pub format: LogFormat,
    /// Show the severity of each line.
    pub show_level: bool,
    /// Show the file and line of each message.
    pub show_log_origin: bool,
    /// Only messages of modules whose name begins so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// Severity of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What is suspicious.
    Warning,
    /// Milestones.
    #[default]
    Info,
    /// Details.
    Debug,
    /// Everything.
    Trace,
}

/// What lines of the log look like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people: time, who, what.
    #[default]
    Text,
    /// For programs: one JSON object per line.
    Json,
}

impl LoggerConfig {
    /// The lowest severity that is written of what `module` says.
    pub fn level_of(&self, module: &str) -> LogLevel {
        if self.module.as_deref().is_some_and(|wanted| !module.starts_with(wanted)) {
            return LogLevel::Off;
        }
        let fits = |name: &str| module.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        let fitting = self.levels.iter().filter(|(name, _)| fits(name));
        fitting.max_by_key(|(name, _)| name.len()).map_or(self.level, |(_, level)| *level)
    }

    /// All severities that are asked for.
    pub fn severities(&self) -> impl Iterator<Item = LogLevel> {
        self.levels.values().copied().chain([self.level])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_that_fits_counts() {
        let levels = [("devices", LogLevel::Debug), ("devices::virtio::net", LogLevel::Off)];
        let levels = levels.map(|(name, level)| (name.to_owned(), level)).into();
        let mut config = LoggerConfig { level: LogLevel::Error, levels, ..Default::default() };
        for (module, level) in [
            ("devices", LogLevel::Debug),
            ("devices::virtio::block", LogLevel::Debug),
            ("devices::virtio::net", LogLevel::Off),
            ("devices::virtio::net::tap", LogLevel::Off),
            ("devices::virtio::network", LogLevel::Debug),
            ("devicesx", LogLevel::Error),
            ("machine::control", LogLevel::Error),
        ] {
            assert_eq!(config.level_of(module), level, "{module}");
        }
        config.module = Some("devices::virtio::b".into()); // Firecracker's: the beginning of a name
        assert_eq!(config.level_of("devices::virtio::block"), LogLevel::Debug);
        assert_eq!(config.level_of("machine"), LogLevel::Off);
    }
}
