//! An image's name in a registry, completed as Docker does: `nginx` is `docker.io/library/nginx:latest`.
//!
//! Source: OCI distribution specification 1.1 ("Pulling manifests"); github.com/distribution/reference, whose grammar
//! this is.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The registry of names that have none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Its older name.
const DEFAULT_REGISTRY_OF_OLD: &str = "index.docker.io";
/// Where that registry keeps what has no user's name.
const OFFICIAL: &str = "library/";
/// What is meant when neither tag nor digest is given.
const DEFAULT_TAG: &str = "latest";
/// Longest registry and repository together, bytes.
const NAME_MAX: usize = 255;
/// Longest tag, bytes.
const TAG_MAX: usize = 128;

/// A complete name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    registry: String,
    repository: String,
    selector: Selector,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// What has this tag now.
    Tag(String),
    /// This one and no other. A tag beside a digest says nothing, and is dropped.
    Digest(Digest),
}

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A character where it must not be.
    #[error("image name `{text}`: column {column}{}: {rule}", found(*.character))]
    Character {
        /// What was typed.
        text: String,
        /// Where, in characters, from 1.
        column: usize,
        /// What is there, if it is not the end.
        character: Option<char>,
        /// What may be there.
        rule: &'static str,
    },
    /// Nothing, or too much of it.
    #[error("image name `{text}`: {rule}")]
    Whole {
        /// What was typed.
        text: String,
        /// What is asked of it.
        rule: &'static str,
    },
    /// What follows `@`.
    #[error("image name `{text}`: {fault}")]
    Digest {
        /// What was typed.
        text: String,
        /// What is wrong with it.
        fault: DigestError,
    },
}

fn found(character: Option<char>) -> String {
    character.map_or(" (its end)".into(), |character| format!(" (`{}`)", character.escape_debug()))
}

impl Name {
    /// The registry as users write it: a host name, perhaps with a port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which image of the repository.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The digest that it is pinned to.
    pub fn pin(&self) -> Option<Digest> {
        match &self.selector {
            Selector::Digest(digest) => Some(*digest),
            Selector::Tag(_) => None,
        }
    }

    /// Whether it names whatever is the newest today.
    pub fn is_latest(&self) -> bool {
        self.selector == Selector::Tag(DEFAULT_TAG.into())
    }

    /// The same repository, with one image for ever.
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { selector: Selector::Digest(digest), ..self.clone() }
    }

    /// As users write it: without what goes without saying.
    pub fn familiar(&self) -> String {
        let whole = self.to_string();
        let Some(rest) = whole.strip_prefix(DEFAULT_REGISTRY).and_then(|rest| rest.strip_prefix('/')) else {
            return whole;
        };
        match rest.strip_prefix(OFFICIAL) {
            // `library/a/b` would become `a/b`, which is another; and a host's name must not come to the front.
            Some(short) if short.parse() == Ok(self.clone()) => short.to_owned(),
            _ if rest.parse() == Ok(self.clone()) => rest.to_owned(),
            _ => whole,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.registry, self.repository)?;
        match &self.selector {
            Selector::Tag(tag) => write!(to, ":{tag}"),
            Selector::Digest(digest) => write!(to, "@{digest}"),
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let reader = Reader { text };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let fault = |fault| NameError::Digest { text: text.to_owned(), fault };
                (rest, Some(digest.parse().map_err(fault)?))
            }
            None => (text, None),
        };
        // A colon before the last slash is a port's.
        let path_at = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (rest, tag) = match rest.get(path_at..).and_then(|last| last.find(':')) {
            Some(colon) => {
                let (path, tag) = rest.split_at(path_at + colon);
                reader.tag(path.len() + 1, tag.get(1..).unwrap_or_default())?;
                (path, tag.get(1..))
            }
            None => (rest, None),
        };
        let (registry, repository) = reader.split(rest)?;
        let selector = match digest {
            Some(digest) => Selector::Digest(digest),
            None => Selector::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        };
        let name = Self { registry, repository, selector };
        if name.registry.len() + 1 + name.repository.len() > NAME_MAX {
            return Err(reader.whole("registry and repository are longer than 255 characters"));
        }
        Ok(name)
    }
}

/// Looks at what was typed.
struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    /// Registry and repository of what stands before tag and digest.
    fn split(&self, rest: &str) -> Result<(String, String), NameError> {
        if rest.is_empty() {
            return Err(self.whole("is empty"));
        }
        let (registry, path_at, path) = match rest.split_once('/') {
            Some((first, path)) if is_host(first) => {
                self.host(first)?;
                (first, first.len() + 1, path)
            }
            _ => (DEFAULT_REGISTRY, 0, rest),
        };
        self.path(path_at, path)?;
        if path_at == 0 && Digest::from_hex(path).is_ok() {
            return Err(self.whole("64 hexadecimal digits alone are a digest: write NAME@sha256:DIGITS"));
        }
        let registry = if registry == DEFAULT_REGISTRY_OF_OLD { DEFAULT_REGISTRY } else { registry };
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        Ok((registry.to_owned(), if official { format!("{OFFICIAL}{path}") } else { path.to_owned() }))
    }

    /// Parts of small letters and digits, joined by `.`, `_`, `__` or dashes, between slashes.
    fn path(&self, at: usize, path: &str) -> Result<(), NameError> {
        const RULE: &str = "a repository has small letters and digits, joined by `.`, `_`, `__` or `-`, between `/`";
        let plain = |character: char| matches!(character, 'a'..='z' | '0'..='9');
        let mut joint = String::from("/");
        for (index, character) in path.char_indices() {
            if plain(character) {
                joint.clear();
                continue;
            }
            joint.push(character);
            let fits = matches!(joint.as_str(), "." | "_" | "__" | "/") || joint.bytes().all(|byte| byte == b'-');
            if !fits {
                return Err(self.character(at + index, RULE));
            }
        }
        if joint.is_empty() { Ok(()) } else { Err(self.character(at + path.len(), RULE)) }
    }

    fn tag(&self, at: usize, tag: &str) -> Result<(), NameError> {
        const RULE: &str = "a tag has letters, digits, `_`, `.` and `-`, and begins with none of the last two";
        let plain = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let wrong = tag
            .char_indices()
            .find(|(index, character)| !(plain(*character) || *index > 0 && matches!(character, '.' | '-')));
        match wrong {
            Some((index, _)) => Err(self.character(at + index, RULE)),
            None if tag.is_empty() => Err(self.character(at, RULE)),
            None if tag.len() > TAG_MAX => Err(self.whole("its tag is longer than 128 characters")),
            None => Ok(()),
        }
    }

    /// A host name or address, perhaps with a port. It becomes a part of URLs.
    fn host(&self, host: &str) -> Result<(), NameError> {
        const RULE: &str = "a registry is a host name or an address, and perhaps `:` and a port";
        const PORT: &str = "a port is a number from 1 to 65535";
        let (name, port) = match host.rsplit_once(':') {
            // The colons within brackets are an IPv6 address's.
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (host, None),
        };
        let wrong = match name.strip_prefix('[') {
            Some(rest) => match rest.strip_suffix(']').map(str::parse::<std::net::Ipv6Addr>) {
                Some(Ok(_)) => None,
                _ => Some(0),
            },
            None => self.wrong_in_host(name),
        };
        if let Some(wrong) = wrong {
            return Err(self.character(wrong, RULE));
        }
        let fits = |port: &str| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        if port.is_none_or(fits) { Ok(()) } else { Err(self.character(name.len() + 1, PORT)) }
    }

    /// Where a host name goes wrong: letters, digits and inner dashes, between dots.
    fn wrong_in_host(&self, name: &str) -> Option<usize> {
        let mut before = '.';
        for (index, character) in name.char_indices() {
            let plain = character.is_ascii_alphanumeric();
            let fits = plain || character == '-' && before != '.' || character == '.' && !matches!(before, '.' | '-');
            if !fits {
                return Some(index);
            }
            before = character;
        }
        matches!(before, '.' | '-').then_some(name.len())
    }

    /// What is wrong is at this byte.
    fn character(&self, at: usize, rule: &'static str) -> NameError {
        NameError::Character {
            text: self.text.to_owned(),
            column: self.text.get(..at).map_or(0, |before| before.chars().count()) + 1,
            character: self.text.get(at..).and_then(|rest| rest.chars().next()),
            rule,
        }
    }

    fn whole(&self, rule: &'static str) -> NameError {
        NameError::Whole { text: self.text.chars().take(80).collect(), rule }
    }
}

/// Docker's rule: what has a dot or a port, is `localhost`, or has capital letters, which a repository never has.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(|letter| letter.is_ascii_uppercase())
}

#[cfg(test)]
mod tests;
