//! Flags of `vmm run` that have Docker's meaning, as the container sees it.

use crate::container::image;
use crate::container_life::User;

const LIMITS: &str =
    "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max; df -k /dev/shm /t | awk 'NR > 1 { print $2 }'";

#[test]
fn sizes_are_in_bytes_and_nothing_is_no_limit() {
    let (user, image) = (User::new(), image());
    let limits = |options: &[&str]| user.says(&[&["run", "--rm"], options, &[&image, "sh", "-c", LIMITS]].concat());
    let options = ["--memory", "67108864", "--pids-limit", "9", "--cpus", "0.01", "--shm-size", "3145728"];
    assert_eq!(limits(&[&options[..], &["--tmpfs", "/t:size=2mb"]].concat()), "67108864\n9\n1000 100000\n3072\n2048\n");
    let options = ["--memory", "0", "--pids-limit", "-1", "--cpus", "0", "--shm-size", "0", "--tmpfs", "/t:size=65536"];
    assert_eq!(limits(&options), "max\nmax\nmax 100000\n65536\n64\n");
}
