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
