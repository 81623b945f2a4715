//! What a user says of the device, and what is wrong with it. Pure.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::socket::PATH_MAX;

/// Sockets between the guest and UNIX sockets of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address: at least 3.
    #[schemars(range(min = 3, max = 4_294_967_294_u32))]
    pub guest_cid: u32,
    /// UNIX socket to make: who connects to it and says `CONNECT port` reaches the guest's port. What the guest
    /// connects to at CID 2, port P goes to the UNIX socket at this path with `_P` behind it.
    pub uds_path: PathBuf,
    /// Accepted for old files, without a meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

impl VsockConfig {
    /// What is wrong with it, by key.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.guest_cid < 3 || self.guest_cid == u32::MAX {
            problems.push(("guest_cid", format!("must be from 3 to 4294967294, not {}", self.guest_cid)));
        }
        let most = PATH_MAX.saturating_sub("_4294967295".len());
        let len = self.uds_path.as_os_str().len();
        if len > most {
            problems
                .push(("uds_path", format!("is {len} bytes long; at most {most} fit a socket's path and its port")));
        }
        problems
    }
}
