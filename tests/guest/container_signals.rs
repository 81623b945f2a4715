//! Signals and keys of a user who stands before a container: what reaches it, and what comes back.

use rustix::process::Signal;

use crate::container::image;
use crate::container_life::User;
use crate::terminal::Terminal;
use crate::vm::Vm;

/// `vmm run` of this image in the VM `t`, as the user's.
fn in_vm(user: &User, options: &[&str], words: &[&str]) -> Vm {
    user.stays(&[&["run", "--rm", "--vm", "t"], options, &[&image()], words].concat())
}

#[test]
fn one_in_the_foreground_gets_its_users_signals_and_keys() {
    let user = User::new();
    user.start(&["--vm", "t", "--name", "first"], "exec sleep 1000");
    for (signal, name, code) in [(Signal::TERM, "TERM", 7), (Signal::INT, "INT", 8)] {
        let script = format!("trap 'echo heard {name}; exit {code}' {name}; echo up; while :; do sleep 0.1; done");
        let mut run = in_vm(&user, &[], &["sh", "-c", &script]).start();
        run.expect("up");
        run.signal(signal);
        run.expect(&format!("heard {name}"));
        assert_eq!(run.ends(code).errors, "");
    }
    // Job control: Ctrl-Z stops a job of the shell in the container, and `fg` has it go on.
    let terminal = Terminal::open();
    let mut run = in_vm(&user, &["-it"], &["sh"]).on(&terminal).start();
    run.expect("# ");
    run.send("sh -c 'echo $$ > /tmp/job; echo RUN\"\"NING; read line; echo heard $line'\n");
    run.expect("RUNNING"); // the shell no longer reads keys
    run.send("\x1a");
    run.expect("Stopped");
    run.expect("# ");
    run.send("grep State /proc/$(cat /tmp/job)/status; fg\n");
    run.expect("T (stopped)");
    run.expect("read line"); // the job's words, as `fg` says them
    run.send("words\n");
    run.expect("heard words");
    run.expect("# ");
    run.send("exit 5\n");
    run.ends(5);
    assert!(terminal.is_cooked(), "the user's terminal is as it was");
    user.says(&["rm", "-f", "first"]);
}
