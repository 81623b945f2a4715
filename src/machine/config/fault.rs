//! What is wrong with a configuration, said in one line each, with the place to mend it. Pure.

use std::fmt;
use std::path::PathBuf;

use super::path::JsonPath;

/// Something wrong at a place, before anyone knows where that place was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The place.
    pub path: JsonPath,
    /// What is wrong with it, as it follows a colon.
    pub text: String,
}

impl Problem {
    /// A problem at `path`.
    pub fn new(path: JsonPath, text: impl Into<String>) -> Self {
        Self { path, text: text.into() }
    }
}

/// Where the user wrote what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the document, at this line where it is known.
    Document {
        /// The file, where the document is one.
        file: Option<PathBuf>,
        /// Line, from 1.
        line: Option<usize>,
    },
    /// In a flag, as the user would name it.
    Flag(String),
    /// Nowhere: something is missing and there is no document.
    Nowhere,
}

/// One fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where to mend it.
    pub origin: Origin,
    /// The place in the configuration, relative to what the flag sets where a flag is the origin.
    pub path: JsonPath,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Document { file, line } => {
                if let Some(file) = file {
                    write!(f, "{}:", file.display())?;
                }
                match (line, file) {
                    (Some(line), Some(_)) => write!(f, "{line}: ")?,
                    (Some(line), None) => write!(f, "line {line}: ")?,
                    (None, Some(_)) => write!(f, " ")?,
                    (None, None) => {}
                }
            }
            Origin::Flag(flag) => write!(f, "{flag}: ")?,
            Origin::Nowhere => {}
        }
        match self.path.0.is_empty() {
            true => write!(f, "{}", self.text),
            false => write!(f, "{}: {}", self.path, self.text),
        }
    }
}

/// All faults of a configuration, in the order of the document; those of flags last. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn new(mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(|fault| match &fault.origin {
            Origin::Document { line, .. } => (0, line.unwrap_or(0)),
            Origin::Nowhere => (1, 0),
            Origin::Flag(_) => (2, 0),
        });
        Self(faults)
    }

    /// Each fault.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    /// Whether at least one fault is in the document, not on the command line.
    pub fn is_in_document(&self) -> bool {
        self.0.iter().any(|fault| matches!(fault.origin, Origin::Document { .. }))
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    /// One line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, fault) in self.0.iter().enumerate() {
            if place > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
