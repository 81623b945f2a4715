//! What `vmm run` and `vmm exec` say of a command line that is wrong, before they look for anything.

use crate::support::Room;

/// As Docker's: every other exit status is that of the program in the container.
const FAILED: i32 = 125;

/// What it says of a command line that is wrong.
fn refused(room: &Room, line: &str) -> String {
    let outcome = room.line(line);
    assert_eq!((outcome.status, outcome.out.as_str()), (FAILED, ""), "{line}: {}", outcome.err);
    outcome.err
}

/// An image may take minutes to come: what is wrong with a flag is said first.
#[test]
fn flags_are_read_before_an_image_is_looked_for() {
    let room = Room::new();
    for (flags, wanted) in [
        ("-v nowhere", "-v nowhere: a source and a path are expected"),
        ("-v ./missing:/data", "-v ./missing:/data: ./missing: No such file or directory"),
        ("-v data:data", "the container's path is one from / on"),
        ("-p 80", "-p 80: [IP:]HOST:CONTAINER[/tcp|/udp] is expected"),
        ("-p 80:80 -p 80:81", "-p 80:81: port 80 is published already"),
        ("--network none -p 80:80", "with --network none nothing reaches the container"),
        ("--workdir here", "--workdir here: it is a path from / on"),
        ("--tmpfs t", "--tmpfs t: it is a path from / on"),
        ("--tmpfs /t:size=x", "--tmpfs /t:size=x: a size is a number of bytes"),
        ("--tmpfs /t:fast", "--tmpfs /t:fast: fast is no option; size=VALUE, mode=VALUE"),
        ("--cap-add FLY", "there is no capability FLY"),
        ("--ulimit speed=1", "--ulimit speed=1: it is written NAME=SOFT[:HARD]"),
        ("--security-opt label=x", "--security-opt label=x: no-new-privileges, seccomp=unconfined"),
        ("--env-file missing", "--env-file missing: No such file or directory"),
        ("--name a/b", "\"a/b\" is no container's name"),
        ("--device-read-bps /data:1m", "--device-read-bps /data: a container sees no disks of the host"),
        ("--cpuset-cpus 0-3 --vm-cpus 2", "--cpuset-cpus 0-3: the VM has no more than 2"),
        ("--userns private -v .:/data", "--userns private: what is in a volume"),
        ("--kernel missing", "the kernel missing (--kernel, VMM_KERNEL): No such file or directory"),
    ] {
        let why = refused(&room, &format!("run {flags} oci:nowhere"));
        assert!(why.starts_with("vmm: ") && why.contains(wanted) && why.lines().count() == 1, "{flags}: {why}");
    }
}

#[test]
fn wrong_command_lines_exit_with_125() {
    let room = Room::new();
    for (line, wanted) in [
        ("run --bogus image", "unexpected argument '--bogus'"),
        ("run --rm", "<IMAGE>"),
        ("run", "Usage: vmm run"),
        ("run --restart always --rm image", "cannot be used with"),
        (
            "run --memory 64 image",
            "'64' for '--memory <SIZE>': at least 6m, or 0 for no limit; a number without a unit is bytes",
        ),
        ("run --memory 64x image", "a size is a number of bytes, or one with a unit: k, m, g or t, as 512m"),
        ("run --memory -1 image", "unexpected argument '-1'"),
        ("run --shm-size x image", "as 512m"),
        ("run --storage-opt size=64 image", "from 8m to 16t; a number without a unit is bytes"),
        ("run --pids-limit many image", "invalid value 'many' for '--pids-limit <NUMBER>'"),
        ("run --cpus 0.001 image", "from 0.01 to 1024 CPUs, or 0 for no limit"),
        ("run --health-interval 5 image", "5 is no time; 500ms, 1.5s, 1m30s and 2h are"),
        ("run --health-timeout 10us image", "at least 1ms, or 0 for what is usual"),
        ("run -it image", "-i and -t together: standard input is not a terminal; leave one of them out"),
        ("exec -it c sh", "-i and -t together: standard input is not a terminal; leave one of them out"),
        ("exec --bogus c sh", "unexpected argument '--bogus'"),
        ("exec c", "<COMMAND>"),
        ("exec", "Usage: vmm exec"),
    ] {
        let why = refused(&room, line);
        assert!(why.contains(wanted), "{line}: {why}");
    }
    for line in ["stop", "logs --bogus c", "image pull", "ps --bogus"] {
        assert_eq!(room.line(line).status, 153, "{line}");
    }
    assert_eq!(room.line("run --help").status, 0);
}
