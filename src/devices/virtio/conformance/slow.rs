//! The status machine and the worker, with a device made for it whose requests wait for the test.

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use super::*;
use crate::virtio::{Broken, Device, Facts, Io, Stop};

/// A device whose requests wait for the test, and that tells what is called.
struct Slow {
    said: Sender<&'static str>,
    go: Receiver<()>,
    config: Vec<u8>,
}

impl Device for Slow {
    fn facts(&self) -> Facts {
        Facts {
            virtio_id: 42,
            features: 1,
            queue_sizes: vec![16, 4],
            config: self.config.clone(),
            config_writable: 2..4,
            ..Facts::default()
        }
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        io.drain(queue, |chain| {
            let _ = self.said.send("begun");
            let _ = self.go.recv_timeout(PATIENCE);
            chain.write(0, &[1]).map_err(|_| Broken("no room"))?;
            let _ = self.said.send("done");
            Ok(1)
        })
    }

    fn started(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        assert_ne!(io.features() & V1, 0);
        let _ = self.said.send("started");
        Ok(())
    }

    fn stopping(&mut self, why: Stop) {
        let _ = self.said.send(match why {
            Stop::Reset => "stopping",
            Stop::Pause => "pausing",
        });
    }

    fn wrote_config(&mut self, offset: usize, data: &[u8]) {
        self.config[offset..][..data.len()].copy_from_slice(data);
    }
}

fn slow() -> (Rig, Receiver<&'static str>, Sender<()>) {
    let ((said, hear), (tell, go)) = (mpsc::channel(), mpsc::channel());
    (Rig::new(Box::new(Slow { said, go, config: vec![0; 6] })), hear, tell)
}

#[test]
fn a_reset_waits_for_the_request_at_hand_and_drops_the_rest() {
    let (mut rig, hear, tell) = slow();
    rig.drive(V1 | 1);
    let buffer = rig.writable(1);
    for _ in 0..3 {
        rig.post(0, &[buffer]);
    }
    rig.kick(0);
    assert_eq!(hear.recv_timeout(PATIENCE), Ok("started"));
    assert_eq!(hear.recv_timeout(PATIENCE), Ok("begun"));
    let (reset, is_reset) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rig.write(offset::STATUS, 0);
            reset.send(()).unwrap();
        });
        // The reset can not be over while the device is busy. (A wrong one would show here or in the order below.)
        assert!(is_reset.recv_timeout(Duration::from_millis(50)).is_err());
        tell.send(()).unwrap();
        is_reset.recv_timeout(PATIENCE).unwrap();
    });
    let after: Vec<_> = hear.try_iter().collect();
    assert_eq!(after, ["done", "stopping"], "the other two requests were not begun");
    assert_eq!(rig.status(), 0);

    rig.drive(V1); // a second driver, with other features
    let head = rig.post(1, &[buffer]);
    rig.kick(1);
    tell.send(()).unwrap();
    assert_eq!(rig.wait_used(1), (head, 1));
}

#[test]
fn the_device_is_told_whether_it_pauses_or_is_reset() {
    let (mut rig, hear, tell) = slow();
    let buffer = rig.writable(1);
    rig.drive(V1);
    rig.pause();
    rig.resume();
    let head = rig.post(0, &[buffer]);
    rig.kick(0);
    tell.send(()).unwrap();
    assert_eq!(rig.wait_used(0), (head, 1));
    rig.pause();
    rig.write(offset::STATUS, 0);
    assert_eq!(rig.status(), 0);
    let heard: Vec<_> = hear.try_iter().collect();
    assert_eq!(heard, ["started", "pausing", "begun", "done", "pausing", "stopping"]);
}

#[test]
fn config_writes_reach_the_device_only_where_it_wants_them() {
    let (mut rig, _hear, _tell) = slow();
    let generation = rig.read(offset::CONFIG_GENERATION);
    for (at, data) in [(0, &[9_u8][..]), (1, &[9, 9]), (3, &[9, 9]), (4, &[9]), (2, &[7]), (3, &[8])] {
        rig.transport().write(offset::CONFIG + at, data);
    }
    assert_eq!(rig.config(0, 6), [0, 0, 7, 8, 0, 0]);
    assert_ne!(rig.read(offset::CONFIG_GENERATION), generation);
}

#[test]
fn one_of_two_queues_goes_on_when_the_other_is_taken_away() {
    let (mut rig, _hear, tell) = slow();
    rig.drive(V1);
    rig.write(offset::QUEUE_SEL, 0);
    rig.write(offset::QUEUE_READY, 0);
    let buffer = rig.writable(1);
    let head = rig.post(1, &[buffer]);
    rig.kick(1);
    tell.send(()).unwrap();
    assert_eq!(rig.wait_used(1), (head, 1));
}
