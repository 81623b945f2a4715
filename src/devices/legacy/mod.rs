//! Small register devices of a PC: each one file, synchronous, called by vCPU threads under the bus lock.

pub mod cmos;
pub mod console_out;
pub mod debug_port;
pub mod i8042;
pub mod keyboard;
pub mod pm;
pub mod pvpanic;
pub mod serial;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::console_out::ConsoleOut;
    use crate::bus::BusDevice;
    use crate::seams::{Interrupt, Notify};

    /// Every register device of this module.
    fn all() -> Vec<Box<dyn BusDevice>> {
        let notify: Notify = Arc::new(|_| {});
        let line = || Interrupt::new().unwrap();
        let out = ConsoleOut::new(File::options().write(true).open("/dev/null").unwrap(), None).unwrap();
        vec![
            Box::new(super::serial::Serial::new(line(), out.into(), notify.clone()).unwrap()),
            Box::new(super::i8042::I8042::new(notify.clone(), None)),
            Box::new(super::i8042::I8042::new(notify.clone(), Some(line()))),
            Box::new(super::cmos::Cmos::new()),
            Box::new(super::pm::Pm::new(line(), notify.clone())),
            Box::new(super::pvpanic::Pvpanic::new(notify.clone())),
            Box::new(super::debug_port::DebugPort::new(notify)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn random_accesses_do_no_harm(
            accesses in prop::collection::vec(
                (prop_oneof![0..10_u64, any::<u64>()], prop::collection::vec(any::<u8>(), 0..9), any::<bool>()),
                0..200,
            ),
        ) {
            for mut device in all() {
                for (offset, data, write) in &accesses {
                    match write {
                        true => device.write(*offset, data),
                        false => device.read(*offset, &mut data.clone()),
                    }
                }
            }
        }
    }
}
