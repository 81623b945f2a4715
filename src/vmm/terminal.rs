//! The user's terminal: raw while the guest's console is on it, and as it was on every way out.
//!
//! The saved settings live in a static, because the panic hook and the handlers of fatal signals restore them too.
#![allow(unsafe_code)] // tcgetattr(3), tcsetattr(3), sigaction(2)

use std::cell::UnsafeCell;
use std::io::{self, IsTerminal, Write};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

const STDIN: libc::c_int = 0;

/// Signals that end the process, with the exit status: Firecracker's where it has one.
const FATAL: [(libc::c_int, libc::c_int, &str); 8] = [
    (libc::SIGABRT, UNEXPECTED, "SIGABRT"),
    (libc::SIGQUIT, 131, "SIGQUIT"),
    (libc::SIGSYS, 148, "SIGSYS"),
    (libc::SIGBUS, 149, "SIGBUS"),
    (libc::SIGSEGV, 150, "SIGSEGV"),
    (libc::SIGXFSZ, 151, "SIGXFSZ"),
    (libc::SIGXCPU, 154, "SIGXCPU"),
    (libc::SIGILL, 157, "SIGILL"),
];
/// Exit status after a bug in the monitor.
const UNEXPECTED: libc::c_int = 2;

struct Saved(UnsafeCell<MaybeUninit<libc::termios>>);

// SAFETY: written once, before IS_RAW is set (release), and only read after IS_RAW was seen set (acquire).
unsafe impl Sync for Saved {}

static SAVED: Saved = Saved(UnsafeCell::new(MaybeUninit::uninit()));
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Standard input is a raw terminal as long as this lives.
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw, if it is a terminal and this process is in its foreground.
    pub fn enter() -> io::Result<Option<Self>> {
        // SAFETY: two calls without pointers.
        let foreground = unsafe { libc::tcgetpgrp(STDIN) == libc::getpgrp() };
        if !io::stdin().is_terminal() || !foreground || IS_RAW.load(Ordering::Acquire) {
            return Ok(None);
        }
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr fills the whole structure when it returns 0; SAVED is written before IS_RAW is set and by
        // this call alone (IS_RAW was clear, and only the main thread comes here).
        unsafe {
            if libc::tcgetattr(STDIN, settings.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut raw = settings.assume_init();
            (*SAVED.0.get()).write(raw);
            libc::cfmakeraw(&mut raw);
            // Output stays cooked: a bare newline of the monitor's own still returns the carriage.
            raw.c_oflag |= libc::OPOST;
            IS_RAW.store(true, Ordering::Release);
            // Restoring it from the background must not stop this process.
            libc::signal(libc::SIGTTOU, libc::SIG_IGN);
            if libc::tcsetattr(STDIN, libc::TCSANOW, &raw) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was. Safe to call from a signal handler.
fn restore() {
    if IS_RAW.swap(false, Ordering::AcqRel) {
        // SAFETY: IS_RAW was set, so SAVED is initialised; tcsetattr is async-signal-safe.
        unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, (*SAVED.0.get()).as_ptr()) };
    }
}

/// From now on a panic or a fatal signal restores the terminal, says what happened and exits with its own status.
pub fn restore_on_every_exit() {
    std::panic::set_hook(Box::new(|panic| {
        restore();
        let _ = writeln!(io::stderr(), "vmm: bug in the monitor: {panic}");
        // SAFETY: _exit takes no pointers; other threads may still run, so no destructors.
        unsafe { libc::_exit(UNEXPECTED) };
    }));
    for (signal, ..) in FATAL {
        // SAFETY: the action is fully initialised; the handler is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fatal as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_ONSTACK; // a stack that overflowed has no room for it
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

extern "C" fn on_fatal(signal: libc::c_int) {
    restore();
    let (_, status, name) = FATAL.iter().find(|(known, ..)| *known == signal).copied().unwrap_or((0, UNEXPECTED, "?"));
    for text in ["vmm: ended by ", name, "\n"] {
        // SAFETY: write(2) from a string that lives across the call; async-signal-safe.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    }
    // SAFETY: _exit is async-signal-safe and does not return.
    unsafe { libc::_exit(status) };
}
