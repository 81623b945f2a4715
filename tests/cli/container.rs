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

#[test]
fn wrong_command_lines_exit_with_125() {
    let room = Room::new();
    for (line, wanted) in [
        ("run --bogus image", "unexpected argument '--bogus'"),
        ("run --rm", "<IMAGE>"),
        ("run", "Usage: vmm run"),
        ("run --restart always --rm image", "cannot be used with"),
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
