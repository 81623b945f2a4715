//! The console's output under readers that are slow, gone, or limited.

use std::io::Read;
use std::sync::mpsc;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

#[test]
fn bytes_arrive_in_order_and_bursts_are_flushed() {
    let (mut reader, writer) = io::pipe().unwrap();
    let out = ConsoleOut::new(writer, None).unwrap();
    let text = numbered(30_000);
    for chunk in text.chunks(7) {
        out.push(chunk);
    }
    let mut got = vec![0; text.len()];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(got, text);
    assert!(out.flush(PATIENCE));
    assert_eq!(out.tail(), text[text.len() - TAIL..]);
}

#[test]
fn a_reader_that_sleeps_costs_nobody_anything_but_the_newest_bytes() {
    let (mut reader, writer) = io::pipe().unwrap();
    let out = ConsoleOut::new(writer, None).unwrap();
    let text = numbered(LIMIT + (1 << 20));
    for chunk in text.chunks(4096) {
        out.push(chunk); // returns though nobody reads
    }
    assert!(!out.flush(Duration::from_millis(20)), "it gives up where nothing moves");
    let (done, all) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        done.send(got).unwrap();
    });
    assert!(out.flush(PATIENCE));
    out.push(b"after");
    drop(out);
    let got = all.recv_timeout(PATIENCE).unwrap();
    reading.join().unwrap();
    let notice = b"\r\n[vmm: ";
    let kept = got.windows(notice.len()).position(|bytes| bytes == notice).unwrap();
    assert_eq!(got[..kept], text[..kept]);
    assert!((LIMIT..LIMIT + (128 << 10)).contains(&kept), "what fits is kept: {kept}");
    let expected = format!("\r\n[vmm: {} bytes of console output dropped]\r\nafter", text.len() - kept);
    assert_eq!(String::from_utf8_lossy(&got[kept..]), expected);
}

#[test]
fn a_reader_that_is_gone_ends_it_quietly() {
    let (reader, writer) = io::pipe().unwrap();
    let out = ConsoleOut::new(writer, None).unwrap();
    drop(reader);
    out.push(b"x");
    assert!(out.flush(PATIENCE));
    for _ in 0..1000 {
        out.push(&[b'y'; 8192]);
    }
    assert!(out.flush(PATIENCE));
    assert_eq!(out.tail(), [b'y'; TAIL]);
    assert_eq!(out.0.0.lock().queue.capacity(), 0);
}

/// It sees what was there last and all that comes, whether or not anybody reads the output itself.
#[test]
fn who_follows_depends_on_nobody() {
    let (deaf, writer) = io::pipe().unwrap();
    let out = ConsoleOut::new(writer, None).unwrap();
    out.push(&numbered(LIMIT + 1)); // the output is full
    let start = out.tail();
    let attach = || {
        let (reader, writer) = io::pipe().unwrap();
        (reader, ConsoleOut::new(writer, None).unwrap())
    };
    let (mut one, follower) = attach();
    assert!(out.follow(follower).is_none());
    out.push(b"seen");
    let mut got = vec![0; TAIL + 4];
    one.read_exact(&mut got).unwrap();
    assert_eq!(got, [start.as_slice(), b"seen"].concat());
    // Another takes its place; the output's reader goes away, and that changes nothing.
    let (mut two, follower) = attach();
    let first = out.follow(follower).unwrap();
    first.push(b"taken");
    drop((first, deaf));
    let mut rest = Vec::new();
    one.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"taken");
    assert!(out.flush(PATIENCE));
    out.push(b"also");
    let mut got = vec![0; TAIL + 4];
    two.read_exact(&mut got).unwrap();
    assert!(got.ends_with(b"seenalso"));
    // A follower that is gone, or does not read, costs the output nothing.
    drop(two);
    out.push(b"x");
    assert!(out.unfollow().is_some_and(|follower| follower.flush(PATIENCE)) && out.unfollow().is_none());
}

#[test]
fn a_non_blocking_file_is_waited_for() {
    let (mut reader, writer) = io::pipe().unwrap();
    // SAFETY: the descriptor is open; F_SETFL takes an int.
    assert_eq!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
    let out = ConsoleOut::new(writer, None).unwrap();
    let text = numbered(1 << 20);
    out.push(&text);
    let mut got = vec![0; text.len()];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(got, text);
}

/// Of a bucket that is not filled again within the test, so much is written and no more, and pushing goes on.
#[test]
fn a_limit_slows_the_thread_and_nobody_else() {
    let (mut reader, writer) = io::pipe().unwrap();
    let limit = TokenBucketConfig { size: 1000, one_time_burst: Some(500), refill_time: 1 << 31 };
    let out = ConsoleOut::new(writer, Some(&limit)).unwrap();
    let text = numbered(LIMIT + 5000);
    out.push(&text[..1500]);
    let mut got = vec![0; 1500];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(got, text[..1500]);
    assert!(out.flush(PATIENCE), "the thread knows that it has written them");
    out.push(&text[1500..]); // more than fits: what is too much is dropped
    assert_eq!(out.waiting(), LIMIT);
    // At the end what waits is written, limit or not.
    let (done, all) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        done.send(got).unwrap();
    });
    assert!(out.flush(PATIENCE));
    drop(out);
    let got = all.recv_timeout(PATIENCE).unwrap();
    reading.join().unwrap();
    let kept = text.get(1500..1500 + LIMIT).unwrap();
    assert_eq!(got[..kept.len()], *kept);
    let notice = format!("\r\n[vmm: {} bytes of console output dropped]\r\n", text.len() - 1500 - LIMIT);
    assert_eq!(String::from_utf8_lossy(&got[kept.len()..]), notice);
}

#[test]
fn a_limited_writer_goes_on_when_the_bucket_fills() {
    let (mut reader, writer) = io::pipe().unwrap();
    let limit = TokenBucketConfig { size: 100, one_time_burst: None, refill_time: 10 };
    let out = ConsoleOut::new(writer, Some(&limit)).unwrap();
    let text = numbered(2000);
    let begin = Instant::now();
    out.push(&text);
    let mut got = vec![0; text.len()];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(got, text);
    assert!(begin.elapsed() >= Duration::from_millis(150), "the bucket was filled nineteen times");
}

#[test]
fn a_limit_comes_and_goes_while_bytes_wait() {
    let (mut reader, writer) = io::pipe().unwrap();
    let out = ConsoleOut::new(writer, None).unwrap();
    let text = numbered(3000);
    let mut got = vec![0; 1000];
    out.push(&text[..1000]);
    reader.read_exact(&mut got).unwrap();
    assert!(out.flush(PATIENCE));
    out.set_limit(Some(&TokenBucketConfig { size: 1000, one_time_burst: None, refill_time: 1 << 31 }));
    out.push(&text[1000..]);
    reader.read_exact(&mut got).unwrap();
    assert_eq!(got, text[1000..2000]);
    // The reader may have the bytes before the writer has counted them.
    let until = Instant::now() + PATIENCE;
    while out.waiting() > 1000 && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(out.waiting(), 1000);
    out.set_limit(None);
    reader.read_exact(&mut got).unwrap();
    assert_eq!(got, text[2000..]);
}

#[test]
fn a_bucket_of_nothing_is_no_limit() {
    for (size, refill_time) in [(0, 1000), (1, 0)] {
        assert!(Pace::new(&TokenBucketConfig { size, one_time_burst: None, refill_time }).is_none());
    }
}

#[test]
fn a_drained_queue_gives_its_memory_back() {
    let (mut reader, writer) = io::pipe().unwrap();
    let out = ConsoleOut::new(writer, None).unwrap();
    out.push(&numbered(1 << 20));
    reader.read_exact(&mut vec![0; 1 << 20]).unwrap();
    assert!(out.flush(PATIENCE));
    out.push(b"x");
    assert!(out.flush(PATIENCE));
    assert!(out.0.0.lock().queue.capacity() <= KEEP);
}
