//! `--metadata` and `--mmds-size-limit`: the metadata service's contents at the start.

use std::path::Path;
use std::sync::Arc;

use machine::metadata::{Store, StoreError};

use super::{Failure, RunArgs, vm};

impl RunArgs {
    /// The metadata service's store, with what `--metadata` names in it.
    pub fn metadata(&self) -> Result<Arc<Store>, Failure> {
        let limit = self.mmds_size_limit.unwrap_or(self.http_api_max_payload_size);
        let store = Store::new(usize::try_from(limit).unwrap_or(usize::MAX))
            .map_err(|error| Failure::Args(format!("the host has no random numbers: {error}")))?;
        if let Some(path) = &self.metadata {
            fill(&store, path, limit).map_err(Failure::Args)?;
        }
        Ok(Arc::new(store))
    }
}

fn fill(store: &Store, path: &Path, limit: u32) -> Result<(), String> {
    let text = vm::read("--metadata", path)?;
    let place = || format!("--metadata: {}", path.display());
    let contents = serde_json::from_str(&text).map_err(|error| format!("{}: not JSON: {error}", place()))?;
    store.put(contents).map_err(|error| match error {
        StoreError::TooLong => format!("{}: is longer than {limit} bytes of JSON (--mmds-size-limit)", place()),
        error => format!("{}: {error}", place()),
    })
}
