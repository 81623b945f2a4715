//! The metadata service at an interface ([`crate::mmds`]): frames for it never reach the back end, and its own come to the
//! guest by the first pair, before the host's. Runs on the interface's worker thread.

use std::sync::Arc;

use super::Net;
use super::pair::Pair;
use crate::mmds::Service;
use crate::mmds::config::MmdsConfig;
use crate::mmds::store::Store;
use crate::virtio::{Broken, Io, OpenError};

impl Net {
    /// The same interface, with the service of `config` at it; not for one whose frames the host's kernel moves.
    pub fn with_metadata(mut self, config: &MmdsConfig, store: &Arc<Store>) -> Result<Self, OpenError> {
        self.gate.metadata = Some(Box::new(Service::new(config, self.mtu, Arc::clone(store))?));
        Ok(self)
    }

    /// Takes what the service has for the guest, unless another frame waits already.
    pub(super) fn answer(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        match self.gate.metadata.as_ref().is_some_and(|service| service.has_frames()) {
            true => self.receive(0, io, Pair::ready),
            false => Ok(()),
        }
    }

    /// The service's timer was ready.
    pub(super) fn metadata_timeout(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        if let Some(service) = &mut self.gate.metadata {
            service.timeout();
        }
        self.answer(io)
    }
}
