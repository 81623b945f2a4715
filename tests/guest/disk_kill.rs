//! The monitor is killed while the guest writes, again and again on the same file system: it is sound each time, and holds
//! all that was synced before.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::disk::{checksum, disk, empty, folder, noise};
use crate::disk_options::Mounted;
use crate::vm::{Ended, Vm, host};

/// Makes and renames files, replaces one again and again, cuts some short and removes some, with as much noise beside it
/// as goes. What is about to be in `current` is said before it is renamed; the rest when it is safe.
fn script(round: usize) -> String {
    format!(
        r#"mkdir -p /mnt; mount -t ext4 /dev/vda /mnt || exit; cd /mnt
        while :; do dd if=/dev/urandom of=noise bs=64k count=32 2>/dev/null; done &
        sum() {{ md5sum <$1 | cut -d' ' -f1; }}
        i=0; while :; do
            i=$((i + 1)); n={round}-$i
            head -c $((i * 7919 % 60000)) /dev/urandom >new$n; mkdir dir$n; : >gone$n
            head -c 50000 /dev/urandom >cut$n; head -c 9000 /dev/urandom >next; sync
            truncate -s $((i * 3571 % 50000)) cut$n; mv new$n dir$n/moved; rm gone$n
            next=$(sum next); echo "next $next"; mv next current; sync
            echo "safe $n $(sum dir$n/moved) $(sum cut$n) $next"
        done"#
    )
}

/// What a guest said that was safe, over all its lives.
#[derive(Default)]
struct Said {
    /// Name, checksum of the moved file, checksum of the cut one.
    safe: Vec<[String; 3]>,
    /// What `current` may hold: its last safe content, and all that was meant to come after it.
    current: Vec<String>,
}

impl Said {
    /// Adds what one life said. A last line that was cut off by the kill said nothing.
    fn hear(&mut self, ended: &Ended) {
        let whole = ended.console.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["next", sum] => self.current.push(sum.to_owned()),
                ["safe", name, moved, cut, current] => {
                    self.safe.push([name, moved, cut].map(str::to_owned));
                    self.current = vec![current.to_owned()];
                }
                _ => {}
            }
        }
    }

    /// Compares it with a copy of the file system.
    fn check(&self, copy: &Path) {
        for [name, moved, cut] in &self.safe {
            assert_eq!(checksum(&copy.join(format!("dir{name}/moved"))), *moved, "moved {name}");
            assert_eq!(checksum(&copy.join(format!("cut{name}"))), *cut, "cut {name}");
            assert!(!copy.join(format!("new{name}")).exists(), "new {name}");
            assert!(!copy.join(format!("gone{name}")).exists(), "gone {name}");
        }
        let current = checksum(&copy.join("current"));
        assert!(self.current.contains(&current), "current: {current}, not one of {:?}", self.current);
    }
}

/// Replays the journal, looks for faults, and copies all files to `copy`.
fn sound(image: &Path, copy: &Path) {
    let e2fsck = |how: &str| Command::new("e2fsck").arg(how).arg(image).output().expect("e2fsck");
    let replayed = e2fsck("-p");
    assert!(replayed.status.code().is_some_and(|code| code <= 1), "{}", String::from_utf8_lossy(&replayed.stdout));
    let clean = e2fsck("-fn");
    assert!(clean.status.success(), "{}", String::from_utf8_lossy(&clean.stdout));
    std::fs::create_dir(copy).expect("a folder");
    let command = format!("rdump / {}", copy.display());
    host("debugfs", &["-R".as_ref(), command.as_ref(), image.as_os_str()]);
}

#[test]
fn what_was_synced_survives_a_kill() {
    let folder = folder();
    // A file system of the host that has O_DIRECT.
    let mounted = Mounted::ext4(folder.path(), 256);
    let image = empty(&mounted.0, "data.ext4", 64 << 20);
    host("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), image.as_os_str()]);
    let mut said = Said::default();
    let chance = noise(16);
    let options = [",engine=sync", ",engine=async", ",engine=async,direct", ",engine=sync,direct", ",engine=async"];
    for (round, options) in options.into_iter().enumerate() {
        let (steps, pause) = (1 + chance[round] % 5, u64::from(chance[8 + round]));
        let mut vm = Vm::tuned().args(disk(&image, options)).run(&script(round)).start();
        vm.expect(&format!("safe {round}-{steps} "));
        sleep(Duration::from_millis(pause));
        let ended = vm.kill();
        said.hear(&ended);
        assert!(said.safe.iter().any(|[name, ..]| name.starts_with(&format!("{round}-"))));
        let copy = folder.path().join(format!("copy{round}"));
        sound(&image, &copy);
        said.check(&copy);
    }
}
