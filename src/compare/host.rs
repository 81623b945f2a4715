//! What all instances of a comparison share: the image with the subject, a folder for what instances leave, the programs
//! that are needed, and which worlds this host lacks and why.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use container::kernel::Kernel;
use container::modules::Needs;
use container::parts::{self, Parts};
use container::register::Containers;
use container::spec::{Wishes, spec};
use container::store::{Image, Store};
use serde_json::Value;

use crate::derive::{Derived, PROGRAM};
use crate::ground::{Ground, Root};
use crate::instance::Instance;
use crate::world::World;
use crate::{Doing, Fault, alone, engine, process, runc, shown};

/// Host name in all worlds that have one of their own.
pub const HOSTNAME: &str = "vmm-compare";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The worlds.
    pub worlds: Vec<World>,
    /// Kernel of the VMs.
    pub kernel: Option<PathBuf>,
    /// MiB of a container, and of a VM alone.
    pub memory_mib: u64,
    /// Percent of the work that is counted: 100 is a million calls.
    pub percent: u64,
    /// Longest life of an instance.
    pub limit: Duration,
}

/// The host, prepared.
pub struct Host<'a> {
    /// The image.
    pub derived: Derived<'a>,
    /// What is asked for.
    pub asked: Asked,
    /// This program.
    pub program: PathBuf,
    /// Its initial RAM file system for a VM alone.
    pub initrd: PathBuf,
    /// runc.
    pub runc: Option<PathBuf>,
    /// Files that each world needs once, with their bytes.
    pub files: BTreeMap<World, Vec<(PathBuf, u64)>>,
    /// The worlds that cannot be, and why.
    pub missing: BTreeMap<World, String>,
    /// The image as a process's root.
    root: Option<Root>,
    ground: Option<Ground>,
    layers: Vec<PathBuf>,
    /// The store's directory.
    store: PathBuf,
    folder: tempfile::TempDir,
}

impl<'a> Host<'a> {
    /// Prepares it. What a world lacks is noted, not an error.
    pub fn prepare(store: &'a Store, image: &Image, asked: Asked) -> Result<Self, Fault> {
        let derived = Derived::of(store, image)?;
        let folder = tempfile::Builder::new().prefix("vmm-compare-").tempdir();
        let guest = store.path().join("guest");
        fs::create_dir_all(&guest).doing(|| format!("make {}", shown(&guest)))?;
        let layers = derived.image.config.rootfs.diff_ids.iter().map(|layer| store.layer_path(layer)).collect();
        let mut host = Self {
            derived,
            asked,
            program: std::env::current_exe().doing(|| "find this program".to_owned())?,
            initrd: parts::initrd(PROGRAM, &guest)?,
            runc: find("runc"),
            files: BTreeMap::new(),
            missing: BTreeMap::new(),
            root: None,
            ground: None,
            layers,
            store: store.path().to_owned(),
            folder: folder.doing(|| "make a folder".to_owned())?,
        };
        runc::forget_old();
        host.lay_ground(store);
        host.look();
        let kernel = host.asked.kernel.clone().unwrap_or_default();
        host.count_files(&Parts::ready(&guest, &Kernel { path: kernel, modules: None }, Needs::default())?);
        Ok(host)
    }

    /// The root file systems of those worlds that have the host's kernel.
    fn lay_ground(&mut self, store: &Store) {
        let wanted = |world: &World| self.asked.worlds.contains(world);
        if ![World::Process, World::Container].iter().any(wanted) {
            return;
        }
        let laid = Ground::new(store, &self.derived.image, self.folder.path(), self.writable_bytes());
        let laid = laid.and_then(|ground| {
            let folder = self.folder("process")?;
            let root = ground.join(&folder)?;
            root.show_host()?;
            Ok((ground, root))
        });
        match laid {
            Ok((ground, root)) => (self.ground, self.root) = (Some(ground), Some(root)),
            Err(why) => {
                for world in [World::Process, World::Container] {
                    self.missing.insert(world, why.to_string());
                }
            }
        }
    }

    /// What is not there.
    fn look(&mut self) {
        if self.runc.is_none() {
            self.missing.insert(World::Container, "runc is not on the PATH (Debian's package runc)".to_owned());
        }
        let kvm = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let why = match (kvm, &self.asked.kernel) {
            (Err(error), _) => format!("/dev/kvm: {error}"),
            (_, None) => "which kernel? --kernel FILE or the variable VMM_KERNEL says it".to_owned(),
            (_, Some(kernel)) if !kernel.is_file() => format!("there is no kernel at {}", shown(kernel)),
            _ => return,
        };
        for world in [World::Vm, World::VmContainer] {
            self.missing.insert(world, why.clone());
        }
    }

    fn count_files(&mut self, parts: &Parts) {
        let kernel = self.asked.kernel.iter().cloned();
        let vm = |own: &[&PathBuf]| -> Vec<PathBuf> {
            let own = own.iter().map(|path| (*path).clone());
            self.layers.iter().cloned().chain([self.program.clone()]).chain(kernel.clone()).chain(own).collect()
        };
        let lists = [
            (World::Process, self.layers.clone()),
            (World::Container, self.layers.iter().chain(&self.runc).cloned().collect()),
            (World::Vm, vm(&[&self.initrd])),
            (World::VmContainer, vm(&[&parts.initrd, &parts.runtime])),
        ];
        let size = |path: PathBuf| {
            let bytes = fs::metadata(&path).map_or(0, |found| found.len());
            (path, bytes)
        };
        self.files = lists.map(|(world, paths)| (world, paths.into_iter().map(size).collect())).into();
    }

    /// Starts `args` in this world.
    pub fn start(&self, world: World, args: &[String], number: usize) -> Result<Instance, Fault> {
        let folder = self.folder(&number.to_string())?;
        match world {
            World::Process => process::start(self, args, folder),
            World::Container => runc::start(self, args, folder),
            World::Vm => alone::start(self, args, folder),
            World::VmContainer => engine::start(self, args, folder),
        }
    }

    /// The image as a process's root directory.
    pub fn root(&self) -> Result<PathBuf, Fault> {
        self.root.as_ref().map(Root::path).ok_or_else(|| Fault::Said("the image is not mounted".to_owned()))
    }

    /// A root file system for a container.
    pub fn own_root(&self, folder: &Path) -> Result<Root, Fault> {
        self.ground.as_ref().ok_or_else(|| Fault::Said("the image is not mounted".to_owned()))?.join(folder)
    }

    /// A name for the container of the instance with this folder.
    pub fn container_name(&self, folder: &Path) -> String {
        format!("{HOSTNAME}-{}-{}", std::process::id(), folder.file_name().unwrap_or_default().display())
    }

    /// Where `vmm run` keeps what is known of a container.
    pub fn record(&self, name: &str) -> PathBuf {
        Containers::of(&self.store).folder(name)
    }

    /// The file systems of the image's layers, the lowest first.
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }

    /// Half of the memory, as `vmm run` has it.
    pub fn writable_bytes(&self) -> u64 {
        self.asked.memory_mib.saturating_mul(1 << 19)
    }

    /// What `vmm run` makes of the image and these arguments: an OCI runtime specification.
    pub fn spec(&self, args: &[String]) -> Result<Value, Fault> {
        let wishes = Wishes {
            args: args.to_vec(),
            entrypoint: Some(String::new()),
            workdir: Some("/".to_owned()),
            hostname: HOSTNAME.to_owned(),
            memory: Some(self.asked.memory_mib.saturating_mul(1 << 20)),
            ..Wishes::default()
        };
        Ok(spec(&self.derived.image.config.config.clone().unwrap_or_default(), &wishes)?)
    }

    /// The variables that a process of the image has: `NAME=VALUE`.
    pub fn env(&self, args: &[String]) -> Result<Vec<String>, Fault> {
        let spec = self.spec(args)?;
        let env = spec["process"]["env"].as_array().cloned().unwrap_or_default();
        Ok(env.iter().filter_map(|entry| entry.as_str().map(str::to_owned)).chain(["HOME=/".to_owned()]).collect())
    }

    fn folder(&self, name: &str) -> Result<PathBuf, Fault> {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder).doing(|| format!("make {}", shown(&folder)))?;
        Ok(folder)
    }
}

/// A program on the PATH.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The first line that a program says of its version.
pub fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}
