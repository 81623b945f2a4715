//! Terminals of containers: the runtime sends the master side over a socket, as OCI runtimes do.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use protocol::message::Window;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::{Doing, Fault};

/// A socket on which one terminal will arrive; gone when dropped.
pub struct Awaited {
    socket: UnixListener,
    path: PathBuf,
}

impl Awaited {
    /// Listens at `path`, for this user.
    pub fn at(path: PathBuf, owner: u32) -> Result<Self, Fault> {
        let listening = || format!("listen at {}", path.display());
        let socket = UnixListener::bind(&path).doing(listening)?;
        chown(&path, Some(owner), Some(owner)).doing(listening)?;
        Ok(Self { socket, path })
    }

    /// Where the runtime shall send it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal, which was sent.
    pub fn receive(self) -> Result<OwnedFd, Fault> {
        let receiving = || "receive a terminal of the runtime".to_owned();
        let (from, _) = self.socket.accept().doing(receiving)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256]; // the message itself names the device, for people
        recvmsg(&from, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).doing(receiving)?;
        let mut received = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        received.next().ok_or_else(|| "the runtime sent no terminal".to_owned())
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives a terminal its size.
pub fn resize(terminal: impl AsFd, size: Window) -> Result<(), Fault> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).doing(|| "resize a terminal".to_owned())
}
