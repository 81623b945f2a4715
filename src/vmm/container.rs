//! Containers in microVMs: `vmm run`.

mod attach;
mod run;

pub use run::{ContainerArgs, run};
