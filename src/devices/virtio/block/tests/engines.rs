//! Both engines and several queues: many requests in flight, resets and pauses meanwhile.

use super::*;

fn both_engines(test: impl Fn(fn(&mut DriveConfig))) {
    test(|_| {});
    test(|config| config.io_engine = IoEngine::Async);
    test(|config| (config.io_engine, config.direct) = (IoEngine::Async, true));
}

#[test]
fn many_requests_in_flight_reach_their_places() {
    both_engines(|change| {
        let mut disk = Disk::new(change);
        let arena = disk.rig.alloc(SECTORS * 1024);
        let mut posted = std::collections::HashMap::new();
        for round in 0..20 {
            for sector in 0..SECTORS {
                let from = Buffer { addr: arena + sector * 1024, len: 512, writable: false };
                disk.rig.memory().write_slice(&[(round + sector) as u8; 512], GuestAddress(from.addr)).unwrap();
                let (header, status) = (disk.header(VIRTIO_BLK_T_OUT, sector), disk.rig.writable(1));
                posted.insert(disk.rig.post(0, &[header, from, status]), status);
            }
            disk.rig.kick(0);
            for _ in 0..SECTORS {
                let (head, len) = disk.rig.wait_used(0);
                let status = posted.remove(&head).unwrap();
                assert_eq!((len, disk.rig.bytes(status)[0]), (1, OK));
            }
            let bytes: Vec<u8> = (0..SECTORS * 512).map(|at| (round + at / 512) as u8).collect();
            assert_eq!(disk.image(0, SECTORS as usize), bytes);
            disk.rig.free_all();
            disk.rig.alloc(SECTORS * 1024);
        }
        assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    });
}

#[test]
fn the_asynchronous_engine_fails_what_is_wrong_too() {
    let mut disk = Disk::new(|config| config.io_engine = IoEngine::Async);
    let nowhere = |writable| Buffer { addr: RAM, len: 512, writable };
    let into = disk.rig.writable(1024);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[nowhere(true)]), (IOERR, 0));
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 0, &[nowhere(false)]), (IOERR, 1));
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, SECTORS, &[into]), (IOERR, 0));
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, SECTORS, &[]), (OK, 1), "nothing, read from the very end");
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 3, &[into]), (OK, 1025));
    assert_eq!(disk.rig.bytes(into), disk.image(3, 2));
    let ranges = disk.ranges(&[(3, 2, 0)]);
    assert_eq!(disk.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[ranges]), (OK, 1));
    assert_eq!(disk.image(3, 2), [0; 1024]);
    let whole = disk.rig.writable(20);
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, &[whole]), (OK, 21));
    // More pieces than one system call takes.
    let mut chain = vec![disk.header(VIRTIO_BLK_T_IN, 0)];
    let into = disk.rig.writable(1016 * 16);
    chain.extend((0..1016).map(|n| Buffer { addr: into.addr + n * 16, len: 16, writable: true }));
    chain.extend([Buffer { addr: RAM / 2 - 64, len: 128, writable: true }, disk.rig.writable(1)]);
    disk.rig.post_indirect(0, &chain);
    disk.rig.kick(0);
    assert_eq!(disk.rig.wait_used(0).1, 1016 * 16 + 128 + 1);
    assert_eq!(disk.rig.bytes(into), disk.image(0, 32)[..1016 * 16]);
    disk.image.as_file().set_len(512).unwrap();
    let into = disk.rig.writable(1024);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[into]), (IOERR, 0), "the file shrank");
    assert!(!disk.rig.needs_reset());
}

/// Requests in flight when another one breaks the device still end in guest memory.
#[test]
fn reads_of_a_broken_device_are_marked_dirty() {
    let mut disk = Disk::new(|config| config.io_engine = IoEngine::Async);
    let into = Buffer { addr: RAM / 2 + (512 << 10), len: 512, writable: true };
    let (header, status) = (disk.header(VIRTIO_BLK_T_IN, 1), disk.rig.writable(1));
    disk.rig.post(0, &[header, into, status]);
    disk.rig.post(0, &[header]); // no room for its status
    disk.rig.kick(0);
    disk.rig.settle();
    assert!(disk.rig.needs_reset());
    disk.rig.begin();
    assert_eq!(disk.rig.bytes(into), disk.image(1, 1));
    let (region, at) = disk.rig.memory().to_region_addr(GuestAddress(into.addr)).unwrap();
    assert!(GuestMemoryRegion::bitmap(region).dirty_at(at.0 as usize));
}

#[test]
fn a_driver_without_flushes_gets_safe_writes_asynchronously_too() {
    let mut disk = Disk::new(|config| config.io_engine = IoEngine::Async);
    disk.rig.drive(RING_FEATURES);
    let data = disk.rig.readable(&[9; 512]);
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 0, &[data]), (OK, 1));
    assert_eq!(disk.image(0, 1), [9; 512]);
    assert_eq!(disk.rig.counted("flushes"), 1);
}

/// A queue that is taken away stops and starts the device: what was in flight then is given back all the same.
#[test]
fn a_pause_loses_no_request() {
    both_engines(|change| {
        let mut disk = Disk::new(|config| {
            change(config);
            config.num_queues = Some(2);
        });
        for round in 0..50 {
            disk.rig.free_all();
            let offered = disk.rig.offered();
            disk.rig.drive(offered);
            let into = disk.rig.writable(4096);
            let heads: Vec<u16> = (0..40)
                .map(|_| {
                    let (header, status) = (disk.header(VIRTIO_BLK_T_IN, round % 8), disk.rig.writable(1));
                    disk.rig.post(0, &[header, into, status])
                })
                .collect();
            disk.rig.kick(0);
            disk.rig.write(offset::QUEUE_SEL, 1);
            disk.rig.write(offset::QUEUE_READY, 0);
            let mut back: Vec<u16> = heads.iter().map(|_| disk.rig.wait_used(0).0).collect();
            back.sort_unstable();
            let mut heads = heads;
            heads.sort_unstable();
            assert_eq!(back, heads);
        }
    });
}

/// After a reset nothing that was in flight writes to guest memory.
#[test]
fn a_reset_ends_all_that_is_in_flight() {
    let mut disk = Disk::new(|config| config.io_engine = IoEngine::Async);
    for _ in 0..50 {
        disk.rig.free_all();
        let offered = disk.rig.offered();
        disk.rig.drive(offered);
        let into: Vec<Buffer> = (0..40).map(|_| disk.rig.writable(8192)).collect();
        for buffer in &into {
            let (header, status) = (disk.header(VIRTIO_BLK_T_IN, 8), disk.rig.writable(1));
            disk.rig.post(0, &[header, *buffer, status]);
        }
        disk.rig.kick(0);
        disk.rig.write(offset::STATUS, 0);
        for buffer in &into {
            disk.rig.memory().write_slice(&[0x5a; 8192], GuestAddress(buffer.addr)).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
        assert!(into.iter().all(|buffer| disk.rig.bytes(*buffer) == [0x5a; 8192]));
    }
}

#[test]
fn every_queue_serves() {
    both_engines(|change| {
        let mut disk = Disk::new(|config| {
            change(config);
            config.num_queues = Some(4);
        });
        assert_eq!(disk.rig.offered() & 1 << 12, 1 << 12);
        assert_eq!(disk.rig.config(34, 2), [4, 0]);
        for queue in 0..4 {
            let (header, into) = (disk.header(VIRTIO_BLK_T_IN, queue.into()), disk.rig.writable(512));
            let status = disk.rig.writable(1);
            assert_eq!(disk.rig.request(queue, &[header, into, status]), 513);
            assert_eq!(disk.rig.bytes(into), disk.image(queue.into(), 1));
        }
    });
    let mut single = Disk::writable();
    assert_eq!((single.rig.offered() & 1 << 12, single.rig.config(34, 2)), (0, vec![1, 0]));
}
