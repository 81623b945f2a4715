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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Buffer, RAM, Rig};
    use crate::virtio::transport::RING_FEATURES;

    fn rig() -> Rig {
        let mut rig = Rig::new(Box::new(Rng::new(&EntropyConfig {})));
        rig.drive(RING_FEATURES);
        rig
    }

    #[test]
    fn fills_buffers_of_any_shape() {
        let mut rig = rig();
        let buffers = [rig.writable(1), rig.writable(3000), rig.writable(77)];
        assert_eq!(rig.request(0, &buffers), 3078);
        let bytes = rig.bytes(buffers[1]);
        assert!(bytes.iter().filter(|byte| **byte == 0xa5).count() < 100);
        let across = Buffer { addr: RAM / 2 - 50, len: 100, writable: true };
        assert_eq!(rig.request(0, &[across]), 100);
        assert!(rig.bytes(across).iter().any(|byte| *byte != 0));
    }

    #[test]
    fn gives_no_more_than_a_share_at_a_time() {
        let mut rig = rig();
        let buffers = [rig.writable(100_000), rig.writable(1)];
        assert_eq!(u64::from(rig.request(0, &buffers)), MOST);
        let bytes = rig.bytes(buffers[0]);
        assert!(bytes[65_536..].iter().all(|byte| *byte == 0xa5), "nothing is written beyond what is reported");
        let readable = rig.readable(b"nothing to write");
        assert_eq!(rig.request(0, &[readable]), 0);
    }

    #[test]
    fn a_buffer_out_of_ram_breaks_it() {
        for addr in [RAM - 10, RAM, u64::MAX - 5] {
            let mut rig = rig();
            rig.post(0, &[Buffer { addr, len: 100, writable: true }]);
            rig.kick(0);
            rig.settle();
            assert!(rig.needs_reset(), "{addr:#x}");
        }
    }

    #[test]
    fn the_config_has_no_unknown_keys() {
        serde_json::from_str::<EntropyConfig>("{}").unwrap();
        assert!(serde_json::from_str::<EntropyConfig>(r#"{"rate":1}"#).is_err());
    }
}
