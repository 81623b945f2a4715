//! From a prepared process to the program that it shall be. Runs in the container, before its first instruction.
//!
//! The library asks twice: `validate`, before the start is ordered, finds a missing program in time to say so; `exec`
//! becomes the program.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use seccompiler::BpfProgram;

use crate::filter;

/// What stands before the reason when there is no such program. The library passes on nothing but text.
pub const NOT_FOUND: &str = "[not found]";
/// The same for a program that cannot be executed.
pub const NOT_EXECUTABLE: &str = "[not executable]";

/// Programs of containers.
#[derive(Debug, Clone)]
pub struct Workload {
    /// What decides about their system calls, in the order in which it is loaded.
    pub filters: Vec<BpfProgram>,
}

impl Executor for Workload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (name, path) = words(spec).ok_or_else(|| fault("no program is named".to_owned()))?;
        find(&name, &path).map(|_| ()).map_err(fault)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let args = process.args().clone().unwrap_or_default();
        let (name, path) = words(spec).ok_or(ExecutorError::InvalidArg)?;
        let program = find(&name, &path).map_err(ExecutorError::Other)?;
        let mut command = Command::new(&program);
        command.arg0(&name).args(args.iter().skip(1));
        for filter in &self.filters {
            filter::load(filter).map_err(|error| ExecutorError::Other(format!("load a seccomp filter: {error}")))?;
        }
        let error = command.exec();
        let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        eprintln!("exec {name}: {error}");
        std::process::exit(code)
    }
}

fn fault(why: String) -> ExecutorValidationError {
    ExecutorValidationError::ArgValidationError(why)
}

/// The program's name and the PATH to look along.
fn words(spec: &Spec) -> Option<(String, String)> {
    let process: &Process = spec.process().as_ref()?;
    let name = process.args().as_ref()?.first()?.clone();
    let env = process.env().as_ref();
    let path = env.and_then(|env| env.iter().find_map(|entry| entry.strip_prefix("PATH=")));
    Some((name, path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").to_owned()))
}

/// Finds a program as execvp(3) does.
fn find(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.is_empty() || CString::new(name).is_err() {
        return Err(format!("{NOT_FOUND} {name:?} is no program's name"));
    }
    if name.contains('/') {
        return executable(Path::new(name)).map(|()| name.into());
    }
    let mut denied = None;
    for folder in path.split(':') {
        let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(why) if why.starts_with(NOT_EXECUTABLE) => denied = Some(why),
            Err(_) => (),
        }
    }
    Err(denied.unwrap_or_else(|| format!("{NOT_FOUND} {name}: no such program in {path}")))
}

fn executable(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(format!("{NOT_EXECUTABLE} {shown}: {error}"));
        }
        Err(error) => return Err(format!("{NOT_FOUND} {shown}: {error}")),
    };
    if found.is_dir() {
        return Err(format!("{NOT_EXECUTABLE} {shown}: it is a directory"));
    }
    if found.permissions().mode() & 0o111 == 0 || path.as_os_str().as_bytes().contains(&0) {
        return Err(format!("{NOT_EXECUTABLE} {shown}: nobody may execute it (its mode)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_as_a_shell_does() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, mode| {
            let file = folder.path().join(name);
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        };
        place("yes", 0o755);
        place("no", 0o644);
        let path = format!("/missing:{}", folder.path().display());
        assert_eq!(find("yes", &path).unwrap(), folder.path().join("yes"));
        assert!(find("no", &path).unwrap_err().starts_with(NOT_EXECUTABLE));
        assert!(find("none", &path).unwrap_err().starts_with(NOT_FOUND));
        assert!(find("", &path).unwrap_err().starts_with(NOT_FOUND));
        assert!(find("/", &path).unwrap_err().contains("it is a directory"));
        assert!(find("/missing/yes", &path).unwrap_err().starts_with(NOT_FOUND));
    }
}
