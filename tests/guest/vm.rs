//! A VM under test: started as a user would start it, watched with patience, and gone when the test is.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::screen::{Missing, Screen};
use crate::terminal::Terminal;

/// How long anything may take. In the lab a second of work takes many; a healthy run needs a tenth of this.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The program under test: cargo's own build, or the one that the variable VMM names (tools/test: the release binary).
pub fn program() -> OsString {
    std::env::var_os("VMM").unwrap_or_else(|| env!("CARGO_BIN_EXE_vmm").into())
}

/// The user and the group without rights, on any Linux.
const NOBODY: u32 = 65534;

/// What to start.
pub struct Vm {
    args: Vec<OsString>,
    /// Added to the kernel's command line.
    append: Vec<String>,
    stdin: Stdio,
    stdout: Stdio,
    /// Variables of the monitor's environment.
    env: Vec<(OsString, OsString)>,
    /// What the program is called.
    name: Option<&'static str>,
    /// The program that becomes the monitor, with its arguments.
    launcher: Vec<OsString>,
    /// Run as nobody.
    nobody: bool,
    /// The user's side of the terminal that both are.
    user: Option<File>,
    read: bool,
}

impl Vm {
    /// `vmm` without arguments, its standard input /dev/null.
    pub fn new() -> Self {
        let (stdin, stdout) = (Stdio::null(), Stdio::piped());
        Self {
            args: Vec::new(),
            append: Vec::new(),
            env: Vec::new(),
            name: None,
            launcher: Vec::new(),
            stdin,
            stdout,
            nobody: false,
            user: None,
            read: true,
        }
    }

    /// A kernel of tools/guest and the initrd that goes with it: `debian12/bzImage`. The variable GUEST_KERNEL names
    /// another one for every VM, so that tests of devices meet the drivers of more than one Linux.
    pub fn boot(kernel: &str) -> Self {
        let other = std::env::var("GUEST_KERNEL").ok().filter(|name| !name.is_empty());
        Self::only(other.as_deref().unwrap_or(kernel))
    }

    /// The same with this kernel, whatever the variable says: only it has what is tested.
    pub fn only(kernel: &str) -> Self {
        let image = guest(kernel);
        let initrd = image.with_file_name("initrd");
        Self::new().args(["--kernel".into(), image, "--initrd".into(), initrd])
    }

    /// The quickest guest: the tuned kernel. For tests of what is not the kernel's business.
    pub fn tuned() -> Self {
        Self::boot("tuned/vmlinux")
    }

    /// More arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// More of the kernel's command line.
    pub fn append(mut self, words: &str) -> Self {
        self.append.push(words.to_owned());
        self
    }

    /// The initrd runs this script on the console, then powers off. Kernel messages stay out of its lines.
    pub fn run(self, script: &str) -> Self {
        let script = format!("dmesg -n 1\n{script}\n");
        self.append(&format!("vmm.run={}", base64(script.as_bytes())))
    }

    /// A variable of the monitor's environment.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The program is called by this name.
    pub fn called(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// Started by this command, which gets the program and its arguments as more words, and becomes it (execve).
    pub fn through<A: Into<OsString>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        self.launcher.extend(words.into_iter().map(Into::into));
        self
    }

    /// The monitor runs as the user nobody, who has no rights.
    pub fn nobody(mut self) -> Self {
        self.nobody = true;
        self
    }

    /// Standard input is a pipe, for [`Running::send`].
    pub fn pipe(mut self) -> Self {
        self.stdin = Stdio::piped();
        self
    }

    /// Standard input and output are this terminal, and the VM is in its foreground.
    pub fn on(mut self, terminal: &Terminal) -> Self {
        (self.stdin, self.stdout, self.user) = (terminal.stdio(), terminal.stdio(), Some(terminal.user()));
        // A session of its own, so that the terminal is its controlling one.
        self.through(["setsid", "--ctty"])
    }

    /// Nobody reads standard output before [`Running::read`].
    pub fn unread(mut self) -> Self {
        self.read = false;
        self
    }

    /// Starts it.
    pub fn start(self) -> Running {
        if let Err(why) = able() {
            panic!("{why}");
        }
        let mut words = self.launcher.into_iter().chain([program()]).chain(self.args);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).envs(self.env);
        if let Some(name) = self.name {
            command.arg0(name);
        }
        if !self.append.is_empty() {
            command.arg("--append").arg(self.append.join(" "));
        }
        command.stdin(self.stdin).stdout(self.stdout).stderr(Stdio::piped());
        if self.nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {:?}: {error}", command.get_program()));
        // The terminal's descriptors in it would keep the terminal from ending.
        drop(command);

        let errors = Screen::of(child.stderr.take().expect("a pipe"));
        let mut stdout = child.stdout.take();
        let console = match (&self.user, self.read) {
            (Some(user), _) => Screen::of(user.try_clone().expect("a descriptor")),
            (None, true) => Screen::of(stdout.take().expect("a pipe")),
            (None, false) => Screen::default(),
        };
        let on_terminal = self.user.is_some();
        let keyboard = self.user.or_else(|| child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe))));
        Running { child, keyboard, on_terminal, unread: stdout, console, errors, seen: 0 }
    }
}

/// A VM that was started. Dropping it kills it.
pub struct Running {
    child: Child,
    keyboard: Option<File>,
    on_terminal: bool,
    unread: Option<ChildStdout>,
    console: Screen,
    errors: Screen,
    /// How far into the console's text the test has come.
    seen: usize,
}

impl Running {
    /// Waits until the console shows `text`, after what was waited for before.
    pub fn expect(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            // A terminal does not end with the VM, so this looks at both.
            let running = self.is_running();
            match self.console.wait_for(text, self.seen, Duration::from_secs(1)) {
                Ok(end) => return self.seen = end,
                Err(Missing::Late) if running && Instant::now() < until => {}
                Err(Missing::Late) if running => self.fail(&format!("no {text:?} on the console in {PATIENCE:?}")),
                Err(_) => self.fail(&format!("the VM ended without {text:?} on the console")),
            }
        }
    }

    /// Waits until standard error shows `text`.
    pub fn expect_error(&mut self, text: &str) {
        if let Err(missing) = self.errors.wait_for(text, 0, PATIENCE) {
            self.fail(&format!("no {text:?} on standard error ({missing:?})"));
        }
    }

    /// Types.
    pub fn send(&mut self, text: &str) {
        let keyboard = self.keyboard.as_mut().expect("a pipe or a terminal as standard input");
        keyboard.write_all(text.as_bytes()).expect("writing to standard input");
    }

    /// Closes the pipe that is standard input.
    pub fn end_input(&mut self) {
        self.keyboard = None;
    }

    /// Starts reading what nobody read until now.
    pub fn read(&mut self) {
        self.console = Screen::of(self.unread.take().expect("unread output"));
    }

    /// Closes the pipe that is standard output, unread.
    pub fn hang_up(&mut self) {
        self.unread = None;
    }

    /// The monitor's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many files the monitor has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).expect("the monitor runs").count()
    }

    /// The processes that the monitor has started.
    pub fn children(&self) -> Vec<String> {
        let list =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.id())).expect("the monitor runs");
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// Sends a signal to the monitor.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("sending a signal");
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("waiting").is_none()
    }

    /// Waits for the end, which must have this exit code.
    pub fn ends(mut self, code: i32) -> Ended {
        let status = self.wait();
        // A terminal has no end to see, as the test holds it open; what is on its way arrives soon.
        let patience = Duration::from_secs(if self.on_terminal { 1 } else { 30 });
        let ended = Ended { console: self.console.all(patience), errors: self.errors.all(patience) };
        if status.code() != Some(code) {
            self.fail(&format!("ended with {status}, expected exit code {code}"));
        }
        ended
    }

    /// Kills the monitor, in the midst of whatever it does.
    pub fn kill(mut self) -> Ended {
        self.signal(Signal::KILL);
        self.wait();
        let patience = Duration::from_secs(30);
        Ended { console: self.console.all(patience), errors: self.errors.all(patience) }
    }

    fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting") {
                return status;
            }
            if Instant::now() > until {
                self.fail(&format!("the VM did not end in {PATIENCE:?}"));
            }
            sleep(Duration::from_millis(10));
        }
    }

    fn fail(&mut self, why: &str) -> ! {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.unread.is_some() {
            self.read();
        }
        self.console.all(Duration::from_secs(1));
        let (console, errors) = (self.console.tail(), self.errors.all(Duration::from_secs(1)));
        panic!("{why}\n--- standard error ---\n{errors}\n--- the console's last lines ---\n{console}\n---");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a VM that has ended left behind.
pub struct Ended {
    /// All that stood on the console.
    pub console: String,
    /// Standard error.
    pub errors: String,
}

impl Ended {
    /// What follows `name=` on the first line that starts so.
    pub fn value(&self, name: &str) -> &str {
        let found = self.console.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no line {name}=... on the console:\n{}", self.console)).trim()
    }

    /// The same as a whole number.
    pub fn number(&self, name: &str) -> u64 {
        let value = self.value(name);
        value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number"))
    }

    /// The line that says why the VM ended: the last of standard error, registers aside.
    pub fn why(&self) -> &str {
        self.errors.lines().rfind(|line| line.starts_with("vmm: ")).unwrap_or_default()
    }
}

/// A file that tools/guest has made.
pub fn guest(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest").join(name);
    assert!(path.exists(), "{} is missing: run `tools/guest all`, or `tools/test guest`", path.display());
    path
}

/// A copy of a file of tools/guest that may be written to.
pub fn copy_of(name: &str, folder: &Path) -> PathBuf {
    let copy = folder.join(Path::new(name).file_name().expect("a file name"));
    // Holes stay holes: the image is far larger than what is in it.
    host("cp", &["--sparse=always".as_ref(), guest(name).as_ref(), copy.as_ref()]);
    copy
}

/// Runs a program of the host to its success and returns what it prints.
pub fn host(program: &str, args: &[&std::ffi::OsStr]) -> String {
    done(Command::new(program).args(args))
}

/// The same of a command.
pub fn done(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{errors}", output.status);
    out.into_owned()
}

/// Waits until this is so; what is seen instead is told when it does not come to that.
pub fn until(what: &str, is_so: impl Fn() -> bool, seen: impl Fn() -> String) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}: {}", seen());
        sleep(Duration::from_millis(50));
    }
}

/// Whether guests can run here.
pub fn able() -> &'static Result<(), String> {
    static ABLE: OnceLock<Result<(), String>> = OnceLock::new();
    ABLE.get_or_init(|| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map_err(|error| format!("guest tests cannot run here: open /dev/kvm: {error}; run `tools/test guest`"))?;
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let assisted = cpu.split_ascii_whitespace().any(|word| word == "vmx" || word == "svm");
        if !assisted && std::env::var_os("LAB").is_none() {
            let why = "/dev/kvm has no hardware assistance (neither vmx nor svm)";
            return Err(format!("guest tests cannot run here: {why}; `tools/test guest` runs them in the lab"));
        }
        Ok(())
    })
}

/// RFC 4648, section 4.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let number =
            group.iter().fold(0_usize, |number, byte| number << 8 | usize::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = char::from(DIGITS[number >> (18 - 6 * place) & 63]);
            text.push(if place <= group.len() { digit } else { '=' });
        }
    }
    text
}

#[test]
fn scripts_travel_as_base64() {
    assert_eq!(
        ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes())),
        ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
    );
}
