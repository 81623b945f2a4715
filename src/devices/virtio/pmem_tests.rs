//! virtio-pmem against a fake driver, and what is said of files that can not be opened.

use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::*;
use crate::rate_limit::TokenBucketConfig;
use crate::testing::{Buffer, RAM, Rig, WINDOWS};
use crate::virtio::DeviceConfig;
use crate::virtio::transport::RING_FEATURES;

const MIB: u64 = 1 << 20;

fn image(len: u64) -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(len).unwrap();
    image
}

fn config(path: &Path) -> PmemConfig {
    PmemConfig { id: "p".to_owned(), path_on_host: path.to_owned(), ..PmemConfig::default() }
}

fn rig(config: &PmemConfig) -> Rig {
    let mut rig = Rig::new(Box::new(Pmem::open(config).unwrap()));
    rig.drive(RING_FEATURES);
    rig
}

/// Sends a request of these bytes; the answer, if there was one.
fn ask(rig: &mut Rig, request: &[u8]) -> Option<i32> {
    let (request, answer) = (rig.readable(request), rig.writable(4));
    let written = rig.request(0, &[request, answer]);
    (written == 4).then(|| i32::from_le_bytes(rig.bytes(answer).try_into().unwrap()))
}

fn flushes(rig: &mut Rig) -> u64 {
    rig.counted("flushes")
}

#[test]
fn tells_where_it_is_and_how_long() {
    for (len, whole) in [(1, 2 * MIB), (2 * MIB, 2 * MIB), (7 * MIB, 8 * MIB)] {
        let image = image(len);
        assert_eq!(config(image.path()).window_len().unwrap(), whole);
        let mut rig = rig(&config(image.path()));
        assert_eq!(rig.config(0, 16), [WINDOWS.to_le_bytes(), whole.to_le_bytes()].concat());
        let windows = rig.transport().worker().facts().windows.clone();
        assert_eq!(windows.iter().map(|window| window.size()).collect::<Vec<_>>(), [whole]);
    }
}

#[test]
fn a_flush_of_what_can_be_written_reaches_the_host() {
    let image = image(2 * MIB);
    let shared = config(image.path());
    let private = PmemConfig { private: true, ..shared.clone() };
    let read_only = PmemConfig { read_only: true, ..shared.clone() };
    for (config, reaches) in [(shared, 1), (private, 0), (read_only, 0)] {
        let mut rig = rig(&config);
        assert_eq!(ask(&mut rig, &[0; 4]), Some(DONE));
        assert_eq!((flushes(&mut rig), rig.counted("flush_time")), (reaches, reaches), "{config:?}");
    }
}

#[test]
fn what_it_does_not_know_fails() {
    let image = image(2 * MIB);
    let mut rig = rig(&config(image.path()));
    for request in [&[1, 0, 0, 0][..], &[0, 0, 0, 1], &[0; 3], &[0xff; 4]] {
        assert_eq!(ask(&mut rig, request), Some(FAILED), "{request:?}");
    }
    let (request, short) = (rig.readable(&[0; 4]), rig.writable(3));
    assert_eq!(rig.request(0, &[request, short]), 0);
    assert_eq!(rig.bytes(short), [0xa5; 3]);
    assert_eq!(rig.request(0, &[request]), 0, "no room for an answer");
    assert!(!rig.needs_reset());
    let failed = rig.transport().worker().counters().failed.load(Ordering::Relaxed);
    assert_eq!(failed, 4);
    assert_eq!(ask(&mut rig, &[0, 0, 0, 0, 1]), Some(DONE), "the layout of buffers is the driver's");
}

/// A buffer in the window is not RAM: the monitor does not touch the file's memory.
#[test]
fn a_buffer_out_of_ram_breaks_it() {
    for addr in [RAM, WINDOWS, WINDOWS + 4096, u64::MAX - 2] {
        for writable in [false, true] {
            let image = image(2 * MIB);
            let mut rig = rig(&config(image.path()));
            let (good, bad) = (rig.readable(&[0; 4]), Buffer { addr, len: 4, writable });
            let request = if writable { vec![good, bad] } else { vec![bad] };
            rig.post(0, &request);
            rig.kick(0);
            rig.settle();
            assert!(rig.needs_reset(), "{addr:#x} {writable}");
        }
    }
}

/// A flush costs a request and as many bytes as the file has.
#[test]
fn flushes_have_limits() {
    let image = image(2 * MIB);
    let bucket = |size| Some(TokenBucketConfig { size, one_time_burst: None, refill_time: 40 });
    let limits = [
        RateLimiterConfig { bandwidth: None, ops: bucket(1) },
        RateLimiterConfig { bandwidth: bucket(2 * MIB), ops: None },
    ];
    for limit in limits {
        let mut rig = rig(&PmemConfig { rate_limiter: Some(limit), ..config(image.path()) });
        let begin = Instant::now();
        let (request, answer) = (rig.readable(&[0; 4]), rig.writable(4));
        (0..4).for_each(|_| _ = rig.post(0, &[request, answer]));
        rig.kick(0); // the only one: the timer does the rest
        (0..4).for_each(|_| assert_eq!(rig.wait_used(0).1, 4));
        assert!(begin.elapsed() > Duration::from_millis(100), "the bucket was filled three times");
    }
}

/// The first flush after `size` is 1 is served at once; the second waits for hours, or for other limits.
#[test]
fn limits_change_while_a_flush_waits() {
    let image = image(2 * MIB);
    let with = |size| {
        let ops = Some(TokenBucketConfig { size, one_time_burst: None, refill_time: 3_600_000 });
        let rate_limiter = Some(RateLimiterConfig { bandwidth: None, ops });
        DeviceConfig::Pmem(PmemConfig { rate_limiter, ..config(image.path()) })
    };
    let mut rig = rig(&config(image.path()));
    rig.update(&with(1), &["rate_limiter"]).unwrap();
    assert!(rig.update(&with(1), &["read_only"]).is_err());
    assert_eq!(ask(&mut rig, &[0; 4]), Some(DONE));
    let (request, answer) = (rig.readable(&[0; 4]), rig.writable(4));
    rig.post(0, &[request, answer]);
    rig.kick(0);
    rig.settle();
    assert!(rig.take_used(0).is_none());
    rig.update(&with(5), &["rate_limiter"]).unwrap(); // no kick comes after this
    assert_eq!(rig.wait_used(0).1, 4);
}

#[test]
fn says_in_words_what_can_not_be_memory() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let empty = image(0);
    for (path, why) in [
        (dir.path().join("missing"), "No such file or directory"),
        (dir.path().to_owned(), "it is a directory, not a file"),
        (dir.path().join("socket"), "it is a socket, not a file"),
        ("/dev/null".into(), "it is a character device, not a file"),
        (empty.path().into(), "the file is empty"),
    ] {
        let said = Pmem::open(&config(&path)).map(|_| ()).unwrap_err().to_string();
        assert_eq!(said, format!("open pmem 'p' at {}: {why}", path.display()));
    }
    let error = io::Error::from_raw_os_error(libc::EACCES);
    let opening = opening("p", Path::new("/x"));
    assert!(not_openable(&opening, &error, true).to_string().ends_with("(read_only, --pmem PATH,ro, or private)"));
    assert_eq!(not_openable(&opening, &error, false).to_string(), "open pmem 'p' at /x: Permission denied");
}

#[test]
fn one_writer_or_many_readers() {
    let image = image(2 * MIB);
    let shared = config(image.path());
    let private = PmemConfig { private: true, ..shared.clone() };
    let read_only = PmemConfig { read_only: true, ..shared.clone() };
    let refusal = |config| Pmem::open(config).map(|_| ()).unwrap_err().to_string();
    let writer = Pmem::open(&shared).unwrap();
    assert!(refusal(&shared).contains("another process uses the image"));
    assert!(refusal(&read_only).contains("another process has the image open for writing"));
    let window = writer.facts().windows;
    drop(writer);
    assert!(refusal(&private).contains("for writing"), "the guest may still write as long as the window is there");
    drop(window);
    let readers = [&private, &read_only, &private].map(|config| Pmem::open(config).unwrap());
    assert!(refusal(&shared).contains("another process uses the image"));
    drop(readers);
    Pmem::open(&shared).unwrap();
}
