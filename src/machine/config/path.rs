//! Places in a configuration: `machine-config.vcpu_count`, `drives[1].path_on_host`. Pure.

use std::fmt;
use std::str::FromStr;

/// One step of a [`JsonPath`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A member of an object.
    Key(String),
    /// An element of an array.
    Index(usize),
    /// The end of an array: a new element. Only in edits.
    Next,
    /// The first element of an array whose member has this text (or `true`); a new one where there is none. Only in
    /// edits.
    Where(String, String),
}

/// A place in a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JsonPath(pub Vec<Step>);

/// Why a text is no [`JsonPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no place in a configuration; write it like machine-config.vcpu_count or drives[0].is_read_only")]
pub struct PathError(String);

impl JsonPath {
    /// The whole document.
    pub const ROOT: Self = Self(Vec::new());

    /// A place given by keys alone.
    pub fn keys<const N: usize>(keys: [&str; N]) -> Self {
        Self(keys.iter().map(|key| Step::Key((*key).to_owned())).collect())
    }

    /// The place of a member of this object.
    pub fn key(&self, key: &str) -> Self {
        self.join(Step::Key(key.to_owned()))
    }

    /// The place of an element of this array.
    pub fn index(&self, index: usize) -> Self {
        self.join(Step::Index(index))
    }

    /// The place one `step` further.
    pub fn join(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// A place inside of this one.
    pub fn within(&self, rest: &Self) -> Self {
        Self(self.0.iter().chain(&rest.0).cloned().collect())
    }

    /// The object or array that this place is in.
    pub fn parent(&self) -> Option<Self> {
        let (_, steps) = self.0.split_last()?;
        Some(Self(steps.to_vec()))
    }

    /// Whether this place is `whole` or inside it.
    pub fn is_in(&self, whole: &Self) -> bool {
        self.0.starts_with(&whole.0)
    }

    /// The rest of this place, seen from `whole`.
    pub fn seen_from(&self, whole: &Self) -> Self {
        Self(self.0.get(whole.0.len()..).unwrap_or_default().to_vec())
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if place == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Next => write!(f, "[+]")?,
                Step::Where(key, value) => write!(f, "[{key}={value}]")?,
            }
        }
        Ok(())
    }
}

impl FromStr for JsonPath {
    type Err = PathError;

    /// Reads `a.b[0].c`; an index may also stand between dots (`a.b.0.c`), `[+]` is a new element and `[key=text]` the
    /// element with that text.
    fn from_str(text: &str) -> Result<Self, PathError> {
        let error = || PathError(text.to_owned());
        let mut steps = Vec::new();
        for part in text.split('.') {
            let (key, mut rest) = part.split_at(part.find('[').unwrap_or(part.len()));
            match (key, key.parse()) {
                ("", _) if rest.is_empty() || steps.is_empty() => return Err(error()),
                ("", _) => {}
                (_, Ok(index)) if !steps.is_empty() => steps.push(Step::Index(index)),
                _ => steps.push(Step::Key(key.to_owned())),
            }
            while !rest.is_empty() {
                let (inner, after) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).ok_or_else(error)?;
                steps.push(match (inner, inner.split_once('=')) {
                    ("+", _) => Step::Next,
                    (_, Some((key, value))) => Step::Where(key.to_owned(), value.to_owned()),
                    _ => Step::Index(inner.parse().map_err(|_| error())?),
                });
                rest = after;
            }
        }
        Ok(Self(steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_as_they_are_written() {
        for text in ["machine-config.vcpu_count", "drives[1].path_on_host", "drives[+]", "drives[drive_id=a b].x", "id"]
        {
            assert_eq!(text.parse::<JsonPath>().unwrap().to_string(), text);
        }
        assert_eq!("drives.1.drive_id".parse::<JsonPath>().unwrap().to_string(), "drives[1].drive_id");
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["", ".", "a.", "a..b", "a[", "a[x]", "[0]", "a[1]b", "a.[-1]"] {
            assert!(text.parse::<JsonPath>().is_err(), "{text}");
        }
    }

    #[test]
    fn knows_inside_from_outside() {
        let drive: JsonPath = "drives[1]".parse().unwrap();
        let id = drive.key("drive_id");
        assert!(id.is_in(&drive) && drive.is_in(&drive) && !drive.is_in(&id));
        assert_eq!(id.seen_from(&drive).to_string(), "drive_id");
        assert_eq!(id.parent(), Some(drive));
    }
}
