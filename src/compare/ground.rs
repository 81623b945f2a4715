//! File systems of the host for the worlds that use its kernel: the image's layers, mounted, and joined by overlayfs
//! under a writable layer in memory, as the guests of `vmm run` do.
//!
//! All mounts are in a mount namespace of this process's own: they go with it, however it ends. Needs root.
#![allow(unsafe_code)] // unshare(2)

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use container::store::{Image, Store};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use subject::layers::seen;

use crate::{Doing, Fault, shown};

/// The layers of an image, mounted.
#[derive(Debug)]
pub struct Ground {
    /// The lowest first.
    layers: Vec<PathBuf>,
    /// Most bytes of a writable layer.
    writable_bytes: u64,
}

/// A root file system; gone when dropped.
#[derive(Debug)]
pub struct Root {
    folder: PathBuf,
}

impl Ground {
    /// Mounts the layers below `folder`.
    pub fn new(store: &Store, image: &Image, folder: &Path, writable_bytes: u64) -> Result<Self, Fault> {
        if !rustix::process::geteuid().is_root() {
            return Err(Fault::Said("needs root, to mount the image on this host".to_owned()));
        }
        // SAFETY: a new mount namespace and a working directory of this thread's own change nothing that Rust relies on;
        // file descriptors stay shared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.doing(|| "make a mount namespace".to_owned())?;
        let apart = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", apart).doing(|| "keep mounts apart from the host's".to_owned())?;
        let mut ground = Self { layers: Vec::new(), writable_bytes };
        for (number, layer) in image.config.rootfs.diff_ids.iter().enumerate() {
            let at = folder.join("layers").join(number.to_string());
            fs::create_dir_all(&at).doing(|| format!("make {}", shown(&at)))?;
            mount_layer(&store.layer_path(layer), &at)?;
            ground.layers.push(at);
        }
        Ok(ground)
    }

    /// A root file system of its own in `folder`.
    pub fn join(&self, folder: &Path) -> Result<Root, Fault> {
        let (writable, at) = (folder.join("writable"), folder.join("root"));
        for made in [&writable, &at] {
            fs::create_dir_all(made).doing(|| format!("make {}", shown(made)))?;
        }
        let size = text(format!("size={},mode=755", self.writable_bytes))?;
        mount("tmpfs", &writable, "tmpfs", MountFlags::empty(), Some(size.as_c_str()))
            .doing(|| "mount a writable layer".to_owned())?;
        let root = Root { folder: folder.to_owned() };
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        for made in [&upper, &work] {
            fs::create_dir(made).doing(|| format!("make {}", shown(made)))?;
        }
        let lower: Vec<String> = seen(&self.layers).iter().rev().map(|layer| shown(layer)).collect();
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), shown(&upper), shown(&work));
        let options = text(options)?;
        mount("overlay", &at, "overlay", MountFlags::empty(), Some(options.as_c_str()))
            .doing(|| "join the image's layers by overlayfs".to_owned())?;
        Ok(root)
    }
}

fn text(text: String) -> Result<CString, Fault> {
    CString::new(text).map_err(|_| Fault::Said("a path with a NUL".to_owned()))
}

impl Drop for Ground {
    fn drop(&mut self) {
        for layer in &self.layers {
            let _ = unmount(layer, UnmountFlags::DETACH);
        }
    }
}

/// By mount(8), which finds a loop device and has it go with the mount.
fn mount_layer(file: &Path, at: &Path) -> Result<(), Fault> {
    let mut command = Command::new("mount");
    command.args(["-t", "erofs", "-o", "loop,ro"]).arg(file).arg(at).stdin(Stdio::null());
    let output = command.output().doing(|| "run mount(8)".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Fault::Said(format!("mount a layer of the image (EROFS) on this host: {}", why.trim())))
}

impl Root {
    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Shows the host's /proc, /sys and /dev in it, as every process of the host sees them.
    pub fn show_host(&self) -> Result<(), Fault> {
        for name in ["proc", "sys", "dev"] {
            let at = self.path().join(name);
            match fs::create_dir(&at) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => (),
                made => made.doing(|| format!("make {}", shown(&at)))?,
            }
            if !fs::symlink_metadata(&at).doing(|| format!("look at {}", shown(&at)))?.is_dir() {
                return Err(Fault::Said(format!("/{name} of the image is no directory")));
            }
            mount_bind_recursive(Path::new("/").join(name), &at).doing(|| format!("show /{name} in the image"))?;
        }
        Ok(())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for name in ["root", "writable"] {
            let _ = unmount(self.folder.join(name), UnmountFlags::DETACH);
        }
    }
}
