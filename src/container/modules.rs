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
    /// Disks that it writes to: named volumes, and a container's own.
    pub disks: bool,
    /// Directories of the host.
    pub shares: bool,
    /// Directories that may come later: a kernel that can not see them does as well.
    pub later_shares: bool,
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
const DISKS: Wanted = Wanted { purpose: "named volumes and --storage-opt need", modules: &[("ext4", "EXT4_FS")] };
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
        let shares = self.shares || self.later_shares && SHARES.modules.iter().all(|(name, _)| index.has(name));
        let wanted = [(true, ALWAYS), (self.disks, DISKS), (shares, SHARES), (self.network, NETWORK)];
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
        let letters = [(self.disks, 'd'), (self.shares, 's'), (self.later_shares, 'l'), (self.network, 'n')];
        std::iter::once('c')
            .chain(letters.into_iter().filter_map(|(is_needed, letter)| is_needed.then_some(letter)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What a VM with these needs loads from a folder with these lists.
    fn loaded(needs: Needs, dep: &str, builtin: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("modules.dep"), dep).unwrap();
        fs::write(folder.path().join("modules.builtin"), builtin).unwrap();
        let modules = Index::read(folder.path()).and_then(|index| needs.modules(&index));
        let modules = modules.map_err(|error| error.to_string())?;
        Ok(modules.into_iter().map(|module| module.name).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn only_what_a_vm_is_for_is_loaded() {
        let dep = "fs/overlay.ko:\nfs/erofs.ko: lib/crc.ko\nlib/crc.ko:\nfs/ext4.ko: lib/crc.ko\nfs/virtiofs.ko:\n";
        let builtin = "k/virtio_mmio.ko\nk/virtio_blk.ko\nk/vmw_vsock_virtio_transport.ko\n";
        let of = |needs: Needs| loaded(needs, dep, builtin);
        assert_eq!(of(Needs::default()).unwrap(), "crc erofs overlay");
        let all = Needs { disks: true, shares: true, later_shares: false, network: true };
        assert_eq!(of(Needs { network: false, ..all }).unwrap(), "crc erofs overlay ext4 virtiofs");
        let later = Needs { later_shares: true, ..Needs::default() };
        assert_eq!(of(later).unwrap(), "crc erofs overlay virtiofs");
        assert_eq!(loaded(later, &dep.replace("virtiofs", "9p"), builtin).unwrap(), "crc erofs overlay");
        let missing = of(all).unwrap_err();
        assert!(
            missing.ends_with(
                "has no virtio_net (CONFIG_VIRTIO_NET), which a network needs (--network none does without)"
            ),
            "{missing}"
        );
        let missing = loaded(Needs::default(), dep, "").unwrap_err();
        assert!(missing.ends_with("has no virtio_mmio (CONFIG_VIRTIO_MMIO), which every container needs"), "{missing}");
        assert_eq!([all, later, Needs::default()].map(Needs::letters), ["cdsn", "cl", "c"]);
    }
}
