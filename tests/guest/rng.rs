//! The random source: the guest's kernel takes it as its own.

use crate::vm::Vm;

const READ: &str = r"
echo current=$(cat /sys/class/misc/hw_random/rng_current)
for i in 1 2 3; do echo sample$i=$(head -c 32 /dev/hwrng | od -An -v -t x1 | tr -d ' \n'); done
echo bytes=$(head -c 100000 /dev/hwrng | wc -c)
";

#[test]
fn the_guest_reads_random_bytes() {
    for kernel in ["debian12/vmlinux", "debian13/vmlinux", "tuned/vmlinux"] {
        let ended = Vm::boot(kernel).run(READ).start().ends(0);
        assert!(ended.value("current").starts_with("virtio_rng"), "{}", ended.value("current"));
        let samples = ["sample1", "sample2", "sample3"].map(|name| ended.value(name));
        assert!(samples.iter().all(|sample| sample.len() == 64), "{samples:?}");
        assert!(samples[0] != samples[1] && samples[1] != samples[2] && samples[0] != samples[2], "{samples:?}");
        assert_eq!(ended.number("bytes"), 100_000);
    }
}

/// 16 KiB, of which 4 are in the bucket: the others wait three seconds.
#[test]
fn a_limited_source_takes_its_time() {
    let limit = r#"entropy={"rate_limiter":{"bandwidth":{"size":4096,"refill_time":1000}}}"#;
    let script = r#"read up idle < /proc/uptime; echo bytes=$(head -c 16384 /dev/hwrng | wc -c); read now idle < /proc/uptime
        awk "BEGIN { print \"ms=\" int(($now - $up) * 1000) }""#;
    let ended = Vm::tuned().args(["--set", limit]).run(script).start().ends(0);
    assert_eq!(ended.number("bytes"), 16_384);
    assert!(ended.number("ms") >= 2500, "{} ms", ended.number("ms"));
}
