//! virtio entropy source (virtio 1.2, 5.4), fed by getrandom(2). Runs on its worker thread.
#![allow(unsafe_code)] // getrandom(2)

use std::io;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::io::{Broken, Io, count};
use super::{Device, Facts};

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_RNG: u32 = 4;
const QUEUE_SIZE: u16 = 64;
/// Most bytes for one request: the driver asks again if it wants more.
const MOST: u64 = 64 << 10;

/// A random number generator for the guest, fed by the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {}

/// The device.
pub struct Rng(());

impl Rng {
    /// Opens nothing: getrandom(2) is always there.
    pub fn new(_config: &EntropyConfig) -> Self {
        Self(())
    }
}

impl Device for Rng {
    fn facts(&self) -> Facts {
        Facts { virtio_id: VIRTIO_ID_RNG, queue_sizes: vec![QUEUE_SIZE], ..Facts::default() }
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let counters = io.counters();
        io.drain(queue, |chain| {
            let wanted = chain.writable_len().min(MOST);
            let mut room = [0; 1024];
            let mut done = 0_u64;
            while done < wanted {
                let now = usize::try_from(wanted.saturating_sub(done)).unwrap_or(usize::MAX).min(room.len());
                let part = room.get_mut(..now).unwrap_or_default();
                fill(part).map_err(|_| Broken("the host has no random bytes"))?;
                chain.write(done, part).map_err(|_| Broken("a buffer is not in RAM"))?;
                done = done.saturating_add(u64::try_from(now).unwrap_or(0));
            }
            count(&counters.bytes, done);
            u32::try_from(done).map_err(|_| Broken("a buffer is too long"))
        })
    }
}

/// Fills `buf` with random bytes.
fn fill(buf: &mut [u8]) -> io::Result<()> {
    let mut rest = buf;
    while !rest.is_empty() {
        // SAFETY: `rest` is a live, writable slice of exactly that many bytes.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => rest = rest.get_mut(got..).unwrap_or_default(),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}
