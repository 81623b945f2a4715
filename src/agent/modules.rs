//! Drivers that the guest's kernel has as modules (`protocol::modules`): loaded before anything else is done, while the
//! initial RAM file system is the root, and then gone from it. No other module is ever loaded: there is no modprobe here.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use protocol::modules::{FOLDER, Line, ORDER};
use rustix::io::Errno;
use rustix::system::{finit_module, uname};

use crate::{Doing, Fault};

/// Loads what the host has put there; nothing is there where the kernel has all of it built in.
pub fn load_all() -> Result<(), Fault> {
    let folder = Path::new(FOLDER);
    let list = match fs::read_to_string(folder.join(ORDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        list => list.doing(|| "read the list of modules".to_owned())?,
    };
    for line in Line::all(&list) {
        let file = File::open(folder.join(line.name)).doing(|| format!("open the module {}", line.name))?;
        match finit_module(&file, c"", 0) {
            Err(error) if !line.optional && error != Errno::EXIST => return Err(explained(line.name, error)),
            _ => (),
        }
    }
    // They are in memory twice.
    fs::remove_dir_all(folder).doing(|| format!("remove {FOLDER}"))
}

/// Why a module was not loaded (init_module(2)).
fn explained(name: &str, error: Errno) -> Fault {
    let kernel = uname().release().to_string_lossy().into_owned();
    let why = match error {
        Errno::NOEXEC => "it is of another kernel",
        Errno::NOENT => "it needs what this kernel has not",
        Errno::NOSYS => "this kernel takes no modules (CONFIG_MODULES)",
        Errno::PERM | Errno::NOKEY | Errno::KEYREJECTED | Errno::BADMSG => "this kernel wants modules with a signature",
        _ => "",
    };
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    format!("load the module {name} into kernel {kernel}: {error}{why}")
}
