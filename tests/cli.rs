//! The built program, from outside: every message of the command line and the configuration, and the exit statuses.
//!
//! Nothing here needs KVM: what would run a VM fails before, and what does not fail is not run.

#[path = "cli/container.rs"]
mod container;
#[path = "cli/faults.rs"]
mod faults;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/verbs.rs"]
mod verbs;
