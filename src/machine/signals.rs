//! The process's signals as a file: they come to the thread that reads them, in its own time. A monitor's control thread
//! hears those that ask it to end.
#![allow(unsafe_code)] // sigset, signalfd(2)

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};

/// Blocked signals, to be read one after another.
#[derive(Debug)]
pub struct Signals(File);

/// Signals that ask a process to end.
pub const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

impl Signals {
    /// Blocks these signals in this thread. Call it before any thread is started: they inherit it.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` is initialised by sigemptyset before anything reads it, and an all-zero sigaction is a valid one;
        // the calls touch nothing else.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for &signal in signals {
                // What whoever started this process had ignored (nohup, a shell's background job) stays so.
                let mut action = MaybeUninit::<libc::sigaction>::zeroed();
                libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
                if action.assume_init_ref().sa_sigaction != libc::SIG_IGN {
                    libc::sigaddset(set.as_mut_ptr(), signal);
                }
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The next signal that has arrived, if any.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.0).read_exact(&mut info).ok()?;
        // ssi_signo is the first field.
        info.first_chunk().map(|number| i32::from_ne_bytes(*number))
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What people call it.
pub fn name(signal: i32) -> &'static str {
    match signal {
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGHUP => "SIGHUP",
        _ => "a signal",
    }
}
