//! What is kept of a device or a VM so that another of the same configuration goes on in its place. Any thread.
//!
//! An `XxxState` is plain data with nothing of this process in it: no descriptor, no address of ours, no clock of the host's.
//! `save` makes one while the VM is paused, `load` takes one over. Whoever loads believes nothing of it: a state may come from
//! a file that anybody wrote. What a configuration says is not in the states; the two belong together.

/// Why something can not be saved, or its state not be loaded. The text follows the thing's name and a colon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StateError(String);

impl StateError {
    /// The whole sentence, without a full stop.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Says whose state it is.
    pub fn of(self, what: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }

    /// Something else was saved.
    pub fn other_kind() -> Self {
        Self::new("the state is one of another kind of device")
    }
}

/// An error with this text where `right` does not hold.
pub fn check(right: bool, text: impl FnOnce() -> String) -> Result<(), StateError> {
    if right { Ok(()) } else { Err(StateError::new(text())) }
}
