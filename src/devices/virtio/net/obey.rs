//! The control queue (virtio 1.2, 5.1.6.5): its requests are taken, obeyed and answered. The interface's worker.

use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_F_MAC, VIRTIO_NET_OK};

use super::control::{Command, Refused};
use super::pair::TURN;
use super::{Net, bits};
use crate::log_limit::LogLimit;
use crate::virtio::io::{Broken, Io};

impl Net {
    /// Serves the control queue (5.1.6.5), until it is another queue's turn.
    pub(super) fn serve_control(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        io.listen(queue, false)?;
        for _ in 0..TURN {
            if io.is_wanted() {
                break;
            }
            let Some(held) = io.take(queue, Default::default())? else {
                if io.listen(queue, true)? {
                    continue;
                }
                return Ok(());
            };
            let chain = held.chain(io.memory());
            let done = Command::read(&chain, io.features()).and_then(|command| self.obey(command, io));
            let ack = if done.is_ok() { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            if let Err(Refused(why)) = done {
                io.counters().refuse();
                static LIMIT: LogLimit = LogLimit::new();
                if let Some(suppressed) = LIMIT.check() {
                    tracing::debug!(interface = self.id, why, suppressed, "a control request of the guest was refused");
                }
            }
            let ack = [u8::try_from(ack).unwrap_or(u8::MAX)];
            chain.write(0, &ack).map_err(|_| Broken("a control request has no room in RAM for its answer"))?;
            io.give(queue, held, 1)?;
            io.tell(queue)?;
        }
        io.ring(queue); // there may be more
        Ok(())
    }

    fn obey(&mut self, command: Command, io: &mut Io<'_>) -> Result<(), Refused> {
        match command {
            Command::Mode(mode, on) => self.gate.filter.set_mode(mode, on),
            Command::Tables(unicast, multicast) => self.gate.filter.set_tables(unicast, multicast),
            Command::Vlan(id, member) => self.gate.filter.set_vlan(id, member),
            Command::Address(mac) => {
                self.gate.filter.set_mac(mac);
                if io.features() & bits(&[VIRTIO_NET_F_MAC]) != 0 {
                    self.mac = Some(mac);
                    io.show_config(&self.config_space());
                }
            }
            Command::Pairs(pairs) => return self.use_pairs(usize::from(pairs), io),
        }
        Ok(())
    }

    /// Uses the first `wanted` pairs from now on, and no others.
    fn use_pairs(&mut self, wanted: usize, io: &mut Io<'_>) -> Result<(), Refused> {
        if wanted == 0 || wanted > self.pairs.len() {
            return Err(Refused("there are not that many queue pairs"));
        }
        while self.active != wanted {
            let grow = self.active < wanted;
            let place = if grow { self.active } else { self.active.saturating_sub(1) };
            let Some(pair) = self.pairs.get_mut(place) else { break };
            pair.back_end.attach(grow).map_err(|_| Refused("the host does not change the use of its queue"))?;
            if grow {
                let first = place.saturating_mul(2);
                for queue in [first, first.saturating_add(1)] {
                    if let Err(Broken(why)) = pair.lend(queue, io) {
                        pair.forget();
                        let _ = pair.back_end.attach(false);
                        return Err(Refused(why));
                    }
                    io.ring(queue);
                }
                self.active = self.active.saturating_add(1);
            } else {
                pair.let_go(io);
                pair.take_back(io).map_err(|Broken(why)| Refused(why))?;
                pair.forget();
                self.active = place;
            }
        }
        Ok(())
    }

    /// One pair is in use, as at power-on.
    pub(super) fn use_one_pair(&mut self) {
        for pair in self.pairs.iter().take(self.active).skip(1) {
            // A TAP device that is gone has no queues to detach.
            let _ = pair.back_end.attach(false);
        }
        self.active = 1;
    }
}
