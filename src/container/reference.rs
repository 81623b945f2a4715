//! What users type to name an image: `nginx:1.27`, `debian@sha256:…`, `oci:DIR:REF`, `docker-archive:FILE`, `-`.
//!
//! Source: OCI distribution specification 1.1 ("Pulling manifests": names and tags); the transports are those of
//! containers-transports(5); short names are completed as Docker does.

mod name;

use std::path::PathBuf;
use std::str::FromStr;

pub use name::{DEFAULT_REGISTRY, Name, NameError, Selector};

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// In a registry, or already in the store under this name: `nginx`, `docker://nginx`.
    Registry(Name),
    /// In a directory: `oci:DIR[:REF]`.
    Layout(Place),
    /// In a tar of such a directory: `oci-archive:FILE[:REF]`.
    OciArchive(Place),
    /// In what `docker save` writes: `docker-archive:FILE[:REF]`.
    DockerArchive(Place),
    /// In a tar of either kind on standard input: `-`.
    Stdin,
}

/// A directory or a file, and which of its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Of the directory or the file.
    pub path: PathBuf,
    /// The image's name therein; not needed when there is but one.
    pub selector: Option<String>,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It has the form of a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A transport without a path.
    #[error("`{0}` has no path: write {0}PATH or {0}PATH:REF")]
    NoPath(&'static str),
    /// `xyz://…`
    #[error(
        "`{0}://` is not understood; images are at docker://, oci:, oci-archive:, docker-archive: or - (a tar on stdin)"
    )]
    Transport(String),
    /// A path alone.
    #[error("`{0}` looks like a path: write oci:{0} for a directory, oci-archive:{0} or docker-archive:{0} for a tar")]
    Path(String),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        type Make = fn(Place) -> Reference;
        let transports: [(&'static str, Make); 3] =
            [("oci:", Self::Layout), ("oci-archive:", Self::OciArchive), ("docker-archive:", Self::DockerArchive)];
        for (transport, make) in transports {
            if let Some(rest) = text.strip_prefix(transport) {
                return Place::of(rest).map(make).ok_or(ReferenceError::NoPath(transport));
            }
        }
        if text == "-" {
            return Ok(Self::Stdin);
        }
        let name = text.strip_prefix("docker://").unwrap_or(text);
        if let Some((scheme, _)) = name.split_once("://") {
            return Err(ReferenceError::Transport(scheme.to_owned()));
        }
        if name.starts_with(['.', '/', '~']) {
            return Err(ReferenceError::Path(name.to_owned()));
        }
        Ok(Self::Registry(name.parse()?))
    }
}

impl Place {
    /// The path ends at the first colon, as in containers-transports(5): what follows may have colons itself.
    fn of(text: &str) -> Option<Self> {
        let (path, selector) = match text.split_once(':') {
            Some((path, selector)) => (path, Some(selector).filter(|selector| !selector.is_empty())),
            None => (text, None),
        };
        (!path.is_empty()).then(|| Self { path: path.into(), selector: selector.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(path: &str, selector: Option<&str>) -> Place {
        Place { path: path.into(), selector: selector.map(str::to_owned) }
    }

    #[test]
    fn each_transport_has_its_prefix() {
        let read = |text: &str| text.parse::<Reference>().unwrap();
        assert_eq!(read("oci:./layout"), Reference::Layout(place("./layout", None)));
        assert_eq!(read("oci:/a/b:v1"), Reference::Layout(place("/a/b", Some("v1"))));
        assert_eq!(read("oci:dir:"), Reference::Layout(place("dir", None)));
        let port = place("f.tar", Some("localhost:5000/app:1"));
        assert_eq!(read("oci-archive:f.tar:localhost:5000/app:1"), Reference::OciArchive(port));
        assert_eq!(read("docker-archive:f.tar"), Reference::DockerArchive(place("f.tar", None)));
        assert_eq!(read("-"), Reference::Stdin);
        assert_eq!(read("docker://nginx:1.27"), read("nginx:1.27"));
    }

    #[test]
    fn what_is_wrong_has_a_cure() {
        let refuse = |text: &str| text.parse::<Reference>().unwrap_err().to_string();
        assert_eq!(refuse("oci:"), "`oci:` has no path: write oci:PATH or oci:PATH:REF");
        assert!(refuse("oci-archive::x").starts_with("`oci-archive:` has no path"));
        assert!(refuse("http://host/x").starts_with("`http://` is not understood"));
        assert!(refuse("./image.tar").contains("docker-archive:./image.tar"));
        assert!(refuse("docker://").contains("empty"));
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in ".{0,300}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn no_text_after_a_transport_is_too_odd(
            transport in "(docker://|oci:|oci-archive:|docker-archive:)", text in "[a-zA-Z0-9:/@._-]{0,80}"
        ) {
            let _ = format!("{transport}{text}").parse::<Reference>();
        }
    }
}
