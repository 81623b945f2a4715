//! vhost-net: the host's kernel moves a queue pair's frames between the guest's memory and a TAP device, past this
//! process (Linux, include/uapi/linux/vhost.h and drivers/vhost/net.c). One file for each pair.
//!
//! Opened by the control thread, used by the interface's worker. Rings are the kernel's to check then.
#![allow(unsafe_code)] // the ioctl that the vhost crate has only for a type with guest RAM in it

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::back_end::BackEnd;
use super::config::NetConfig;
use crate::log_limit::LogLimit;
use crate::memory::GuestRam;
use crate::virtio::OpenError;
use crate::virtio::lend::Lent;
use crate::virtio::transport::RING_FEATURES;

/// What the kernel must know of; all Linux of the last ten years does.
const FEATURES: u64 = RING_FEATURES | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// The kernel's half of a pair: queue 0 is its receive queue, queue 1 its transmit queue.
#[derive(Debug)]
pub struct Vhost {
    file: File,
    /// Signalled when the kernel gives a ring up.
    errors: EventFd,
    running: [bool; 2],
}

/// The file with the memory that addresses are looked up in, as the vhost crate wants both.
struct Kernel<'a>(&'a File, &'a GuestRam);

impl AsRawFd for Kernel<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl<'a> VhostKernBackend for Kernel<'a> {
    type AS = &'a GuestRam;

    fn mem(&self) -> &Self::AS {
        &self.1
    }
}

impl Vhost {
    /// What moves the frames of `tap` in our place, where the user wants that.
    pub fn of(config: &NetConfig, back_end: &BackEnd) -> Result<Option<Self>, OpenError> {
        const PATH: &str = "/dev/vhost-net";
        if !config.vhost {
            return Ok(None);
        }
        let id = &config.iface_id;
        if !back_end.is_tap() {
            return Err(OpenError::new(format!(
                "open '{id}': vhost takes a TAP device, and its descriptor is a socket"
            )));
        }
        let opened = Self::open(Path::new(PATH));
        opened.map(Some).map_err(|error| OpenError::new(format!("open {PATH} for '{id}': {}", why(&error))))
    }

    /// Opens `path` (/dev/vhost-net) and makes it this process's.
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let errors = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let no_memory = GuestRam::default();
        let kernel = Kernel(&file, &no_memory);
        kernel.set_owner().map_err(other)?;
        let missing = FEATURES & !kernel.get_features().map_err(other)?;
        if missing != 0 {
            return Err(io::Error::other(format!("this kernel's vhost-net lacks the features {missing:#x}")));
        }
        Ok(Self { file, errors, running: [false; 2] })
    }

    /// Signalled when the kernel gives a ring up.
    pub fn errors(&self) -> &EventFd {
        &self.errors
    }

    /// A driver is up with these features, and its memory is this. To be called while no queue is lent.
    pub fn prepare(&mut self, features: u64, memory: &GuestRam) -> io::Result<()> {
        let _ = self.errors.read(); // of the driver before
        let region = |region: &vm_memory::GuestRegionMmap<_>| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            mmap_offset: 0,
            mmap_handle: -1,
        };
        let regions: Vec<_> = memory.iter().map(region).collect();
        let kernel = Kernel(&self.file, memory);
        kernel.set_features(features & FEATURES).map_err(other)?;
        kernel.set_mem_table(&regions).map(|_| ()).map_err(other)
    }

    /// The kernel serves queue `which` from now on, with `tap`, and is told to look at it.
    pub fn start(&mut self, which: usize, lent: &Lent<'_>, memory: &GuestRam, tap: RawFd) -> io::Result<()> {
        let Some(running) = self.running.get_mut(which).filter(|running| !**running) else { return Ok(()) };
        let kernel = Kernel(&self.file, memory);
        let ring = VringConfigData {
            queue_max_size: lent.max_size,
            queue_size: lent.size,
            flags: 0,
            desc_table_addr: lent.desc_table,
            used_ring_addr: lent.used_ring,
            avail_ring_addr: lent.avail_ring,
            log_addr: None,
        };
        kernel.set_vring_num(which, lent.size).map_err(other)?;
        kernel.set_vring_addr(which, &ring).map_err(other)?;
        kernel.set_vring_base(which, lent.next_avail).map_err(other)?;
        kernel.set_vring_kick(which, lent.kick).map_err(other)?;
        kernel.set_vring_call(which, lent.call).map_err(other)?;
        kernel.set_vring_err(which, &self.errors).map_err(other)?;
        set_backend(&self.file, which, tap)?;
        *running = true;
        lent.kick.write(1) // what came before it listened
    }

    /// The kernel lets go of queue `which`, and has done so when this returns. Where it would go on; nothing where it did
    /// not have the queue.
    pub fn stop(&mut self, which: usize, memory: &GuestRam) -> io::Result<Option<u16>> {
        if !self.let_go(which)? {
            return Ok(None);
        }
        let base = Kernel(&self.file, memory).get_vring_base(which).map_err(other)?;
        u16::try_from(base & u32::from(u16::MAX)).map(Some).map_err(io::Error::other)
    }

    /// As [`Self::stop`], where the queue will not go on. Whether the kernel had it.
    pub fn let_go(&mut self, which: usize) -> io::Result<bool> {
        let Some(running) = self.running.get_mut(which).filter(|running| **running) else { return Ok(false) };
        set_backend(&self.file, which, -1)?;
        *running = false;
        Ok(true)
    }
}

/// Gives queue `which` a TAP device, or takes it away (-1) and waits until the kernel has let go of it.
fn set_backend(file: &File, which: usize, tap: RawFd) -> io::Result<()> {
    let backend = vhost_vring_file { index: u32::try_from(which).unwrap_or(u32::MAX), fd: tap };
    // SAFETY: VHOST_NET_SET_BACKEND reads a struct vhost_vring_file, which the reference leads to. What the kernel then
    // does to guest RAM it does by the table of `prepare`, whose memory outlives the worker and so this file; no Rust
    // reference into guest RAM exists.
    match unsafe { ioctl_with_ref(file, VHOST_NET_SET_BACKEND(), &backend) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Says that the kernel refused something of a running queue.
pub fn complain(error: &io::Error) {
    static LIMIT: LogLimit = LogLimit::new();
    if let Some(suppressed) = LIMIT.check() {
        tracing::error!(%error, suppressed, "the host's kernel does not take or give back a queue (vhost-net)");
    }
}

fn other(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::IoctlError(error) | vhost::Error::IOError(error) => error,
        error => io::Error::other(error.to_string()),
    }
}

/// An error of [`Vhost::open`] in words, with its cure where one is known.
fn why(error: &io::Error) -> String {
    let cure = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "it does not exist (modprobe vhost_net; in a container, pass the device in; or do without vhost)"
        }
        Some(libc::EACCES | libc::EPERM) => "no permission (whoever may open it moves frames in the host's kernel)",
        _ => return error.to_string(),
    };
    cure.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_no_tap_device() {
        let (ours, _theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let config =
            NetConfig { iface_id: "e".into(), host_fd: Some(ours.as_raw_fd()), vhost: true, ..NetConfig::default() };
        let end = BackEnd::open(&config).unwrap().pop().unwrap();
        assert!(Vhost::of(&config, &end).unwrap_err().to_string().contains("takes a TAP device"));
        assert!(Vhost::of(&NetConfig { vhost: false, ..config }, &end).unwrap().is_none());
    }

    #[test]
    fn a_host_without_it_is_told_what_to_do() {
        let error = Vhost::open(Path::new("/nowhere/vhost-net")).unwrap_err();
        assert!(why(&error).contains("modprobe vhost_net"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Vhost::open(file.path()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "a file that is no vhost device");
    }
}
