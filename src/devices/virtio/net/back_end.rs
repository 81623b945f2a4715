//! The host's end of an interface, of whatever kind. Opened by the control thread, used by the interface's worker.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::config::NetConfig;
use super::passt;
use super::stream::Stream;
use super::tap::{self, Tap};
use crate::virtio::pieces::{Direction, Pieces};
use crate::virtio::{Chain, OpenError};

/// An open back end, or one queue of it.
pub enum BackEnd {
    /// A TAP device, or a socket that keeps frames apart.
    Tap(Tap),
    /// A stream of frames with their lengths.
    Stream(Stream),
}

impl BackEnd {
    /// Opens what `config` names: one for each queue pair. The first is in use, the others are detached.
    pub fn open(config: &NetConfig) -> Result<Vec<Self>, OpenError> {
        let id = &config.iface_id;
        match (&config.user, &config.host_dev_name, config.host_fd) {
            (Some(user), ..) => passt::start(user, config.mtu)
                .and_then(Stream::new)
                .map(|stream| vec![Self::Stream(stream)])
                .map_err(|error| OpenError::new(format!("connect '{id}' by passt: {error}"))),
            (None, Some(name), _) => Tap::by_name(name, config.queue_pairs())
                .map(|taps| taps.into_iter().map(Self::Tap).collect())
                .map_err(|error| OpenError::new(format!("open TAP device {name} for '{id}': {}", tap::why(&error)))),
            (None, None, Some(fd)) => Self::inherited(fd)
                .map(|end| vec![end])
                .map_err(|error| OpenError::new(format!("use file descriptor {fd} for '{id}': {}", tap::why(&error)))),
            (None, None, None) => {
                Err(OpenError::new(format!("open '{id}': it has no host_dev_name, no host_fd and no user")))
            }
        }
    }

    fn inherited(fd: RawFd) -> io::Result<Self> {
        let file = tap::duplicate(fd)?;
        match socket_type(&file) {
            Ok(SocketType::STREAM) => Stream::new(UnixStream::from(OwnedFd::from(file))).map(Self::Stream),
            _ => Tap::of(file).map(Self::Tap),
        }
    }

    /// Whether it is a TAP device.
    pub fn is_tap(&self) -> bool {
        self.tap().is_some_and(Tap::is_tap)
    }

    /// The TAP device, or what is like one.
    fn tap(&self) -> Option<&Tap> {
        match self {
            Self::Tap(tap) => Some(tap),
            Self::Stream(_) => None,
        }
    }

    /// The features (virtio 1.2, 5.1.3) that leave checksums and segments to the other side.
    pub fn features(&self) -> u64 {
        self.tap().map_or(0, Tap::features)
    }

    /// What the driver of these features can take is left to it.
    pub fn leave_to_guest(&self, features: u64) -> io::Result<()> {
        self.tap().map_or(Ok(()), |tap| tap.leave_to_guest(features))
    }

    /// Takes this queue of a TAP device with several into use, or out of it.
    pub fn attach(&self, on: bool) -> io::Result<()> {
        self.tap().map_or(Ok(()), |tap| tap.attach(on))
    }

    /// The descriptor, to wait for frames, and for room where it was missing.
    pub fn fd(&self) -> RawFd {
        match self {
            Self::Tap(tap) => tap.fd(),
            Self::Stream(stream) => stream.fd(),
        }
    }

    /// Whether a frame of the guest would be sent or dropped, and not have to wait.
    pub fn has_room(&self) -> bool {
        match self {
            Self::Tap(_) => true,
            Self::Stream(stream) => stream.has_room(),
        }
    }

    /// Goes on with what waits for room; whether there is room again after a wait.
    pub fn flush(&mut self) -> bool {
        match self {
            Self::Tap(_) => false,
            Self::Stream(stream) => stream.flush(),
        }
    }

    /// Sends the frame in `chain`, header and all, whole or not at all. `pieces` is room for it.
    pub fn send(&mut self, chain: &Chain<'_>, pieces: &mut Pieces) -> io::Result<()> {
        match self {
            Self::Tap(tap) => {
                pieces.clear();
                let sent = pieces
                    .add(Direction::Write, chain.memory(), chain.readable_part(0..chain.readable_len()))
                    .and_then(|()| tap.send(pieces.as_mut_slice()));
                pieces.clear();
                sent
            }
            Self::Stream(stream) => stream.send(chain),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::virtio::net::user::UserConfig;

    fn refusal(config: &NetConfig) -> String {
        BackEnd::open(config).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn what_can_not_be_used_is_refused_in_words() {
        let fd = |host_fd| NetConfig { iface_id: "eth0".into(), host_fd: Some(host_fd), ..NetConfig::default() };
        assert_eq!(refusal(&fd(999)), "use file descriptor 999 for 'eth0': no such descriptor is open");
        let file = tempfile::tempfile().unwrap();
        assert!(refusal(&fd(file.as_raw_fd())).ends_with("neither a TAP device nor a socket of frames"));
        assert!(refusal(&NetConfig::default()).contains("no host_fd"));
        let user = Some(UserConfig { passt: Some("/none/passt".into()), ..UserConfig::default() });
        let config = NetConfig { iface_id: "eth0".into(), user, ..NetConfig::default() };
        assert!(refusal(&config).starts_with("connect 'eth0' by passt: start /none/passt: No such file"));
        assert!(tap::why(&io::Error::from_raw_os_error(libc::EBUSY)).contains("another process"));
        assert!(tap::why(&io::Error::from_raw_os_error(libc::EPERM)).contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn the_descriptor_stays_open() {
        let (one, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let config = NetConfig { host_fd: Some(one.as_raw_fd()), ..NetConfig::default() };
        drop(BackEnd::open(&config).unwrap());
        assert!(one.send(b"still there").is_ok());
    }
}
