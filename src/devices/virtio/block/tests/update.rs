//! Another image, and other limits, behind a disk that a driver uses.

use super::*;
use crate::virtio::DeviceConfig;

/// Another image: `sectors` sectors of this byte.
fn other(sectors: u64, byte: u8) -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    image.as_file().write_all_at(&vec![byte; (sectors * SECTOR) as usize], 0).unwrap();
    image
}

fn swap(disk: &mut Disk, config: &DriveConfig) -> Result<(), String> {
    disk.rig.update(&DeviceConfig::Block(config.clone()), &["path_on_host"]).map_err(|error| error.to_string())
}

fn capacity(disk: &mut Disk) -> u64 {
    u64::from_le_bytes(disk.rig.config(0, 8).try_into().unwrap())
}

fn engines(test: impl Fn(Disk, IoEngine)) {
    for engine in [IoEngine::Sync, IoEngine::Async] {
        test(Disk::new(|config| config.io_engine = engine), engine);
    }
}

#[test]
fn another_image_takes_the_place_of_the_old_one() {
    engines(|mut disk, io_engine| {
        let image = other(SECTORS * 2, 0x22);
        let from = disk.rig.readable(&[0x77; 512]);
        assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 0, &[from]), (OK, 1));
        disk.rig.take_interrupt();
        swap(&mut disk, &DriveConfig { io_engine, ..config(&image) }).unwrap();
        assert_eq!(disk.rig.take_interrupt().map(|bits| bits & 2), Some(2), "the configuration changed");
        assert_eq!((capacity(&mut disk), disk.rig.counted("updates")), (SECTORS * 2, 1));
        let into = disk.rig.writable(512);
        assert_eq!(disk.request(VIRTIO_BLK_T_IN, SECTORS + 3, &[into]), (OK, 513), "beyond the old image's end");
        assert_eq!(disk.rig.bytes(into), [0x22; 512]);
        assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 1, &[from]), (OK, 1));
        let mut bytes = [0; 1024];
        image.as_file().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes[..512], &bytes[512..]), (&[0x22; 512][..], &[0x77; 512][..]));
        assert_eq!(disk.image(0, 1), [0x77; 512], "the old image has what was written to it");
        assert_ne!(disk.image(1, 1), [0x77; 512]);
        // The old image's lock is free, the new one's is not.
        let lock = |image: &NamedTempFile| file::DiskFile::open(&config(image)).map(drop).map_err(|it| it.to_string());
        assert_eq!(lock(&disk.image), Ok(()));
        assert!(lock(&image).unwrap_err().contains("another process uses the image"));
        // A driver that comes later sees the new size, too.
        let features = RING_FEATURES | 1 << VIRTIO_BLK_F_FLUSH;
        disk.rig.drive(features);
        assert_eq!(capacity(&mut disk), SECTORS * 2);
    });
}

#[test]
fn what_is_in_flight_ends_on_the_old_image() {
    engines(|mut disk, io_engine| {
        let images = [other(SECTORS, 0), other(SECTORS, 0)];
        for round in 0..20 {
            disk.rig.free_all();
            let mut status = Vec::new();
            for sector in 0..20 {
                let (header, from) = (disk.header(VIRTIO_BLK_T_OUT, sector), disk.rig.readable(&[round + 1; 512]));
                let byte = disk.rig.writable(1);
                disk.rig.post(0, &[header, from, byte]);
                status.push(byte);
            }
            disk.rig.kick(0);
            let image = images.get(usize::from(round % 2)).unwrap();
            let config = DriveConfig { io_engine, ..config(image) };
            // A child of another test may hold a copy of the image's lock, between its fork and its exec.
            let swapped = loop {
                match swap(&mut disk, &config) {
                    Err(error) if error.contains("another process uses") => {}
                    done => break done,
                }
            };
            swapped.unwrap();
            for _ in &status {
                disk.rig.wait_used(0);
            }
            assert!(status.iter().all(|byte| disk.rig.bytes(*byte) == [OK]));
            // Each write is on the old image or on the new one, whole, and on none of them twice.
            let at = |image: &NamedTempFile, sector: u64| {
                let mut bytes = [0; 512];
                image.as_file().read_exact_at(&mut bytes, sector * SECTOR).unwrap();
                bytes == [round + 1; 512]
            };
            let old = if round == 0 { &disk.image } else { images.get(usize::from((round + 1) % 2)).unwrap() };
            assert!((0..20).all(|sector| at(old, sector) != at(image, sector)));
        }
    });
}

#[test]
fn a_refused_image_leaves_the_old_one() {
    let mut disk = Disk::writable();
    let (empty, taken) = (NamedTempFile::new().unwrap(), other(1, 1));
    let _owner = file::DiskFile::open(&config(&taken)).unwrap();
    let missing = DriveConfig { path_on_host: Some("/no/such/image".into()), ..config(&empty) };
    for (bad, why) in
        [(&config(&empty), "the file is empty"), (&config(&taken), "another process uses"), (&missing, "No such file")]
    {
        disk.rig.take_interrupt();
        let refusal = swap(&mut disk, bad).unwrap_err();
        assert!(refusal.contains(why), "{refusal}");
        assert_eq!((capacity(&mut disk), disk.rig.take_interrupt()), (SECTORS, None));
        let into = disk.rig.writable(512);
        assert_eq!(disk.request(VIRTIO_BLK_T_IN, 3, &[into]), (OK, 513));
        assert_eq!(disk.rig.bytes(into), disk.image(3, 1));
    }
}

#[test]
fn the_same_image_again_shows_its_new_size() {
    engines(|mut disk, io_engine| {
        disk.image.as_file().set_len((SECTORS + 5) * SECTOR).unwrap();
        let same = DriveConfig { io_engine, ..config(&disk.image) };
        swap(&mut disk, &same).unwrap();
        assert_eq!(capacity(&mut disk), SECTORS + 5);
        let into = disk.rig.writable(512);
        assert_eq!(disk.request(VIRTIO_BLK_T_IN, SECTORS + 4, &[into]), (OK, 513));
        assert!(file::DiskFile::open(&config(&disk.image)).is_err(), "it is still locked");
        disk.rig.take_interrupt();
        swap(&mut disk, &same).unwrap();
        assert_eq!(disk.rig.take_interrupt(), None, "nothing has changed");
    });
}

#[test]
fn an_image_may_change_before_a_driver_comes_and_while_the_machine_pauses() {
    let mut disk = Disk::writable();
    let offered = disk.rig.offered();
    disk.rig.begin();
    let images = [other(1, 1), other(2, 2)];
    swap(&mut disk, &config(&images[0])).unwrap();
    assert_eq!((capacity(&mut disk), disk.rig.take_interrupt()), (1, None));
    disk.rig.drive(offered);
    disk.rig.pause();
    swap(&mut disk, &config(&images[1])).unwrap();
    disk.rig.resume();
    assert_eq!(capacity(&mut disk), 2);
    assert_eq!(disk.rig.take_interrupt().map(|bits| bits & 2), Some(2));
    let into = disk.rig.writable(512);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 1, &[into]), (OK, 513));
    assert_eq!(disk.rig.bytes(into), [2; 512]);
}

#[test]
fn limits_come_change_and_go() {
    engines(|mut disk, io_engine| {
        let limit = |ops: u64| {
            let ops = TokenBucketConfig { size: ops, one_time_burst: None, refill_time: 3_600_000 };
            Some(RateLimiterConfig { bandwidth: None, ops: Some(ops) })
        };
        let image = config(&disk.image);
        let update = |disk: &mut Disk, rate_limiter| {
            let drive = DriveConfig { rate_limiter, io_engine, ..image.clone() };
            disk.rig.update(&DeviceConfig::Block(drive), &["drive_id", "rate_limiter"]).unwrap();
        };
        let served = |disk: &mut Disk, wanted: usize| {
            disk.rig.settle();
            for _ in 0..wanted {
                disk.rig.wait_used(0);
            }
            disk.rig.settle();
            assert!(disk.rig.take_used(0).is_none(), "no more than {wanted}");
        };
        update(&mut disk, limit(2));
        for _ in 0..10 {
            let chain = [disk.header(VIRTIO_BLK_T_IN, 0), disk.rig.writable(512), disk.rig.writable(1)];
            disk.rig.post(0, &chain);
        }
        disk.rig.kick(0);
        served(&mut disk, 2);
        update(&mut disk, limit(3)); // a full bucket of another size
        served(&mut disk, 3);
        update(&mut disk, None);
        served(&mut disk, 5);
    });
}
