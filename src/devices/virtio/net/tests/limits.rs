//! Rate limiters in both directions, and who gets a turn.

use super::*;
use crate::rate_limit::TokenBucketConfig;
use crate::virtio::DeviceConfig;

/// So many frames at once, then one every hour: what passes is counted, not timed.
fn few(frames: u64) -> Option<RateLimiterConfig> {
    let ops = TokenBucketConfig { size: frames, one_time_burst: None, refill_time: 3_600_000 * frames };
    Some(RateLimiterConfig { bandwidth: None, ops: Some(ops) })
}

/// So many frames at once, then one every 5 ms.
fn soon(frames: u64) -> Option<RateLimiterConfig> {
    let ops = TokenBucketConfig { size: frames, one_time_burst: None, refill_time: 5 * frames };
    Some(RateLimiterConfig { bandwidth: None, ops: Some(ops) })
}

#[test]
fn what_the_guest_sends_waits_for_its_time() {
    let (mut rig, host) = rig_with(NetConfig { tx_rate_limiter: few(3), ..NetConfig::default() });
    rig.drive(RING_FEATURES);
    let out = rig.readable(&[1; HEADER + 60]);
    for _ in 0..5 {
        rig.post(1, &[out]);
    }
    rig.kick(1);
    rig.settle();
    host.set_nonblocking(true).unwrap();
    let mut room = [0; 100];
    assert_eq!((0..5).filter(|_| host.recv(&mut room).is_ok()).count(), 3);
    assert_eq!((0..5).filter(|_| rig.take_used(1).is_some()).count(), 3);
    assert_eq!((rig.counted("frames_out_throttled"), rig.counted("frames_in_throttled")), (1, 0));
    assert_eq!((rig.counted("transmit_kicks"), rig.counted("receive_kicks")), (1, 0));
    // The other direction is free.
    let buffer = rig.writable(100);
    rig.post(0, &[buffer]);
    host.send(&frame(60)).unwrap();
    assert_eq!(rig.wait_used(0).1, 72);
}

#[test]
fn what_the_guest_receives_waits_for_its_time() {
    let (mut rig, host) = rig_with(NetConfig { rx_rate_limiter: few(3), ..NetConfig::default() });
    rig.drive(RING_FEATURES);
    let buffers: Vec<Buffer> = (0..5).map(|_| rig.writable(100)).collect();
    for buffer in &buffers {
        rig.post(0, &[*buffer]);
        host.send(&frame(60)).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(rig.wait_used(0).1, 72);
    }
    rig.settle();
    rig.kick(0);
    rig.settle();
    assert!(rig.take_used(0).is_none());
    assert_eq!((rig.counted("transmit_kicks"), rig.counted("receive_kicks")), (0, 1));
    assert_eq!((rig.counted("frames_out_throttled"), rig.counted("frames_in_throttled")), (0, 1));
    assert!(rig.counted("host_events") > 0);
    let out = rig.readable(&[1; HEADER + 60]);
    rig.request(1, &[out]);
    assert_eq!(received(&host), [1; 60]);
}

/// The timer alone brings what waited, both ways.
#[test]
fn time_comes() {
    let limits = NetConfig { rx_rate_limiter: soon(1), tx_rate_limiter: soon(1), ..NetConfig::default() };
    let (mut rig, host) = rig_with(limits);
    rig.drive(RING_FEATURES);
    let buffer = rig.writable(100);
    let out = rig.readable(&[1; HEADER + 60]);
    for _ in 0..5 {
        rig.post(0, &[buffer]);
        rig.post(1, &[out]);
        host.send(&frame(60)).unwrap();
    }
    rig.kick(1);
    for _ in 0..5 {
        assert_eq!(rig.wait_used(0).1, 72);
        assert_eq!(received(&host), [1; 60]);
    }
    for name in ["frames_in_throttled", "frames_out_throttled", "limit_in_events", "limit_out_events"] {
        assert!(rig.counted(name) > 0, "{name}");
    }
}

/// The limits are on what the guest may have, and what it does not want costs nothing.
#[test]
fn a_filtered_frame_is_free() {
    let config =
        NetConfig { guest_mac: Some("02:00:00:00:00:07".into()), rx_rate_limiter: few(1), ..NetConfig::default() };
    let (mut rig, host) = rig_with(config);
    rig.drive(RING_FEATURES | CONTROL);
    assert_eq!(control::order(&mut rig, 2, 0, 0, &[0]), 0);
    for _ in 0..3 {
        host.send(&[2; 60]).unwrap();
    }
    host.send(&[0xff; 60]).unwrap();
    let buffer = rig.writable(100);
    rig.post(0, &[buffer]);
    rig.kick(0);
    assert_eq!(rig.wait_used(0).1, 72);
    assert_eq!(rig.counted("frames_filtered"), 3);
    assert_eq!(rig.counted("frames_in_throttled"), 0);
}

#[test]
fn a_host_s_queue_that_is_full_is_counted() {
    let (mut rig, _host) = rig(0);
    let out = rig.readable(&[1; HEADER + 60]);
    // Nobody reads: the socket takes a few hundred at most.
    let mut sent = 0;
    while rig.counted("frames_full") == 0 {
        rig.request(1, &[out]);
        sent += 1;
        assert!(sent < 100_000);
    }
    let failed = rig.transport().worker().counters().failed.load(Ordering::Relaxed);
    assert_eq!(failed, 1);
}

/// Frames that find no buffers wait, and each wait counts.
#[test]
fn a_lack_of_buffers_is_counted() {
    let (mut rig, host) = rig(MRG);
    host.send(&frame(60)).unwrap();
    rig.settle();
    rig.settle();
    assert_eq!(rig.counted("frames_waited"), 1);
    let buffer = rig.writable(100);
    rig.post(0, &[buffer]);
    rig.kick(0);
    assert_eq!(rig.wait_used(0).1, 72);
}

#[test]
fn limits_change_while_the_driver_is_up() {
    let (mut rig, host) = rig_with(NetConfig { rx_rate_limiter: few(1), ..NetConfig::default() });
    rig.drive(RING_FEATURES);
    let buffers: Vec<Buffer> = (0..4).map(|_| rig.writable(100)).collect();
    for buffer in &buffers {
        rig.post(0, &[*buffer]);
        host.send(&frame(60)).unwrap();
    }
    assert_eq!(rig.wait_used(0).1, 72);
    rig.settle();
    assert!(rig.take_used(0).is_none());
    let wanted = NetConfig { rx_rate_limiter: few(3), tx_rate_limiter: few(2), ..NetConfig::default() };
    rig.update(&DeviceConfig::Net(wanted), &["rx_rate_limiter", "tx_rate_limiter"]).unwrap();
    for _ in 0..3 {
        assert_eq!(rig.wait_used(0).1, 72, "the frame that waited, and two more");
    }
    let out = rig.readable(&[1; HEADER + 60]);
    for _ in 0..3 {
        rig.post(1, &[out]);
    }
    rig.kick(1);
    rig.settle();
    assert_eq!((0..3).filter(|_| rig.take_used(1).is_some()).count(), 2);
}
