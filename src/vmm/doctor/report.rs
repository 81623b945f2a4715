//! A list of findings, as lines for people or JSON for programs.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

/// How a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// As it should be.
    Good,
    /// It works, but something is lost.
    Limited,
    /// It is not there.
    Missing,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub status: Status,
    /// No VM runs without it.
    pub needed: bool,
    /// What was found.
    pub found: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Check {
    /// Something that is as it should be.
    pub fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Good, needed: false, found: found.into(), cure: None }
    }

    /// Something that could be better.
    pub fn limited(name: impl Into<String>, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { status: Status::Limited, cure: Some(cure.into()), ..Self::good(name, found) }
    }

    /// Something that is not there.
    pub fn missing(name: impl Into<String>, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { status: Status::Missing, ..Self::limited(name, found, cure) }
    }

    /// No VM runs without it.
    pub fn needed(self) -> Self {
        Self { needed: true, ..self }
    }
}

/// Everything that was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What is neither good nor bad.
    pub facts: Vec<(&'static str, String)>,
    /// What is good or bad.
    pub checks: Vec<Check>,
}

impl Report {
    /// Prints the report and says whether all that is needed is there.
    pub fn print(&self, as_json: bool) -> ExitCode {
        let text = if as_json { format!("{:#}\n", self.document()) } else { self.page() };
        match io::stdout().write_all(text.as_bytes()) {
            Ok(()) if self.is_enough() => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    fn is_enough(&self) -> bool {
        !self.checks.iter().any(|check| check.needed && check.status == Status::Missing)
    }

    fn document(&self) -> serde_json::Value {
        let facts: serde_json::Map<_, _> =
            self.facts.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
        json!({ "ok": self.is_enough(), "facts": facts, "checks": self.checks })
    }

    fn page(&self) -> String {
        let wide = |names: &mut dyn Iterator<Item = usize>| names.max().unwrap_or(0).min(32);
        let width = wide(&mut self.facts.iter().map(|(name, _)| name.len()));
        let mut page = String::new();
        for (name, value) in &self.facts {
            page.push_str(&format!("{name:<width$}  {value}\n"));
        }
        if !self.facts.is_empty() && !self.checks.is_empty() {
            page.push('\n');
        }
        let width = wide(&mut self.checks.iter().map(|check| check.name.len()));
        for check in &self.checks {
            let status = match check.status {
                Status::Good => "good",
                Status::Limited => "limited",
                Status::Missing => "missing",
            };
            page.push_str(&format!("{status:<7}  {:<width$}  {}\n", check.name, check.found));
            if let Some(cure) = &check.cure {
                page.push_str(&format!("{:<7}  {:<width$}  -> {cure}\n", "", ""));
            }
        }
        let lost: Vec<_> = self.checks.iter().filter(|check| check.needed && check.status == Status::Missing).collect();
        page.push_str(&match lost.as_slice() {
            [] if self.checks.is_empty() => String::new(),
            [] => "\nEverything that is needed is there.\n".to_owned(),
            lost => {
                let names: Vec<_> = lost.iter().map(|check| check.name.as_str()).collect();
                format!("\nNeeded and missing: {}.\n", names.join(", "))
            }
        });
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_decides() {
        let optional = Check::missing("tun", "absent", "load it");
        let report = |checks: Vec<Check>| Report { facts: vec![("format", "x".into())], checks };
        let fine = report(vec![Check::good("kvm", "there").needed(), optional.clone()]);
        assert!(fine.is_enough() && fine.page().ends_with("Everything that is needed is there.\n"));
        assert!(fine.page().contains("missing  tun  absent\n              -> load it\n"), "{}", fine.page());
        let bad = report(vec![optional.needed()]);
        assert!(!bad.is_enough() && bad.page().ends_with("Needed and missing: tun.\n"));
        assert_eq!(bad.document()["ok"], false);
        assert_eq!(bad.document()["checks"][0]["status"], "missing");
        assert_eq!(bad.document()["facts"]["format"], "x");
    }
}
