//! The host's errors: what was being done, to what, and why it failed. The chain is printed once, at the top.

use std::error::Error as StdError;

/// Something that the host refused. `Display` says what was being done; `source` says why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct HostError {
    doing: String,
    #[source]
    source: Box<dyn StdError + Send + Sync>,
}

impl HostError {
    /// An error met while `doing` something.
    pub fn new(doing: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { doing: doing.into(), source: source.into() }
    }
}

/// Adds what was being done to a host's error.
pub trait Doing<T> {
    /// `doing` reads like "open /dev/kvm".
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, HostError>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Doing<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, HostError> {
        self.map_err(|source| HostError::new(doing(), source))
    }
}

/// The whole chain on one line: "boot the VM: open /dev/kvm: Permission denied".
pub fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_step_once() {
        let inner: Result<(), _> = Err(std::io::Error::from_raw_os_error(libc::EACCES));
        let outer = inner.doing(|| "open /dev/kvm").doing(|| "start the VM").unwrap_err();
        assert_eq!(chain(&outer), "start the VM: open /dev/kvm: Permission denied (os error 13)");
    }
}
