//! The modules of a kernel that a VM for containers needs, where the kernel has not all of it built in: which they are, what
//! they need themselves, and their contents.
//!
//! Their folder is the host's, made by depmod(8); it is read with limits all the same, as what is in it may be damaged.

mod contents;
mod index;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use contents::contents;
pub use index::Index;

/// What a VM is for, beside running containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Named volumes.
    pub volumes: bool,
    /// Directories of the host.
    pub shares: bool,
    /// A network.
    pub network: bool,
}

/// Modules and the options of a kernel's configuration that make them.
const ALWAYS: Wanted = Wanted {
    purpose: "every container needs",
    modules: &[
        ("virtio_mmio", "VIRTIO_MMIO"),
        ("virtio_blk", "VIRTIO_BLK"),
        ("vmw_vsock_virtio_transport", "VIRTIO_VSOCKETS"),
        ("erofs", "EROFS_FS"),
        ("overlay", "OVERLAY_FS"),
    ],
};
const VOLUMES: Wanted = Wanted { purpose: "named volumes need", modules: &[("ext4", "EXT4_FS")] };
const SHARES: Wanted = Wanted { purpose: "the directories of -v need", modules: &[("virtiofs", "VIRTIO_FS")] };
const NETWORK: Wanted = Wanted {
    purpose: "a network needs (--network none does without)",
    modules: &[
        ("virtio_net", "VIRTIO_NET"),
        ("bridge", "BRIDGE"),
        ("veth", "VETH"),
        ("nf_tables", "NF_TABLES"),
        ("nft_ct", "NFT_CT"),
        ("nft_chain_nat", "NFT_NAT"),
        ("nft_nat", "NFT_NAT"),
        ("nft_masq", "NFT_MASQ"),
    ],
};

struct Wanted {
    /// Who needs them, in the sentence that says that one is missing.
    purpose: &'static str,
    modules: &'static [(&'static str, &'static str)],
}

/// Why a kernel's modules cannot be had.
#[derive(Debug, Error)]
pub enum ModulesError {
    /// The folder is none.
    #[error("{}: {error}: a kernel's modules are in a folder with modules.dep, as /lib/modules/VERSION (--modules)", path.display())]
    Folder {
        /// The file that is not there.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A module is neither there nor built in.
    #[error("the kernel with the modules in {} has no {name} (CONFIG_{option}), which {purpose}", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The module.
        name: &'static str,
        /// The option that makes it.
        option: &'static str,
        /// Who needs it.
        purpose: &'static str,
    },
    /// A list is not as depmod makes it.
    #[error("{}: {why}; `depmod VERSION` makes it anew", path.display())]
    List {
        /// The list.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A module cannot be read.
    #[error("{}: {why}", path.display())]
    Module {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A module to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// What needs it goes without it as well (softdep in modprobe.d(5)).
    pub optional: bool,
}

impl Needs {
    /// The modules, in the order in which they are to be loaded. Those that are built in are left out.
    pub fn modules(self, index: &Index) -> Result<Vec<Module>, ModulesError> {
        let wanted = [(true, ALWAYS), (self.volumes, VOLUMES), (self.shares, SHARES), (self.network, NETWORK)];
        let wanted = wanted.into_iter().filter_map(|(is_needed, wanted)| is_needed.then_some(wanted));
        let mut in_order = Vec::new();
        for Wanted { purpose, modules } in wanted {
            for &(name, option) in modules {
                if !index.has(name) {
                    return Err(ModulesError::Missing { folder: index.folder().to_owned(), name, option, purpose });
                }
                in_order.push(name);
            }
        }
        index.order(&in_order)
    }

    /// A letter for each, for the name of a file.
    pub fn letters(self) -> String {
        let letters = [(self.volumes, 'v'), (self.shares, 's'), (self.network, 'n')];
        std::iter::once('c')
            .chain(letters.into_iter().filter_map(|(is_needed, letter)| is_needed.then_some(letter)))
            .collect()
    }
}
