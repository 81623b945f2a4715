//! The work of the subject: arithmetic, system calls, processes, a file written and one read. One thread.
#![allow(unsafe_code)] // fork(2), execve(2), waitpid(2)

use std::ffi::CString;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::ptr;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use subject::facts::facts;
use subject::{CALLS, CHILDREN, DATA, DATA_BYTES, PLACE, STEPS, WRITTEN, Work};

/// Bytes that are read or written by one call.
const PIECE: usize = 64 << 10;

/// Does `percent` percent of what is counted, and reads and writes the files.
pub fn work(percent: u64) -> io::Result<Work> {
    let facts = facts();
    Ok(Work {
        facts,
        cpu_ns: timed(|| {
            black_box(arithmetic(black_box(STEPS * percent)));
            Ok(())
        })?,
        getpid_ns: timed(|| {
            for _ in 0..CALLS * percent {
                black_box(rustix::process::getpid());
            }
            Ok(())
        })?,
        forkexec_ns: timed(|| children(CHILDREN * percent))?,
        write_ns: timed(write)?,
        read_ns: read()?,
    })
}

fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<u64> {
    let began = Instant::now();
    work()?;
    Ok(since(began))
}

fn since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Each step needs the one before (xorshift64*).
fn arithmetic(steps: u64) -> u64 {
    let (mut state, mut sum) = (1_u64, 0_u64);
    for _ in 0..steps {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        sum = sum.wrapping_add(state.wrapping_mul(0x2545_F491_4F6C_DD1D));
    }
    sum
}

fn children(count: u64) -> io::Result<()> {
    let (program, end) = (CString::new(PLACE)?, CString::new("end")?);
    let args = [program.as_ptr(), end.as_ptr(), ptr::null()];
    let env = [ptr::null()];
    for _ in 0..count {
        // SAFETY: this process has one thread, so the child's memory is whole; the child only calls execve and _exit.
        let child = unsafe { libc::fork() };
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        if child == 0 {
            // SAFETY: the strings and the null-terminated arrays of pointers to them live until the program is replaced.
            unsafe {
                libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr());
                libc::_exit(127)
            }
        }
        let mut status = 0;
        // SAFETY: the kernel writes one int, which is there.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } != child || status != 0 {
            return Err(io::Error::other(format!("a child of the fork+exec loop ended with {status:#x}")));
        }
    }
    Ok(())
}

fn write() -> io::Result<()> {
    let mut file = File::create(WRITTEN)?;
    let piece = [0x5a; PIECE];
    for _ in 0..DATA_BYTES / PIECE {
        file.write_all(&piece)?;
    }
    file.sync_all()
}

fn read() -> io::Result<u64> {
    let mut file = File::open(DATA)?;
    // The page cache of this kernel forgets the file; that of a host below, where there is one, does not.
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let (mut piece, mut bytes, began) = (vec![0; PIECE], 0, Instant::now());
    loop {
        match file.read(&mut piece)? {
            0 => break,
            count => bytes += count,
        }
    }
    let took = since(began);
    if bytes == DATA_BYTES { Ok(took) } else { Err(io::Error::other(format!("{DATA} has {bytes} bytes"))) }
}
