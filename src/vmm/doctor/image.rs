//! `vmm doctor --kernel FILE`: what a kernel image is and whether it can boot here.

use std::fs;
use std::path::{Path, PathBuf};

use machine::boot::inspect::{self, ImageKind, KernelOption, KernelReport, State, Weight};

use super::report::{Check, Report};

const EXPECTED: &str =
    "an x86-64 Linux kernel is expected: an ELF vmlinux or a bzImage (a distribution's /boot/vmlinuz-*)";

/// Looks at the file at `path`.
pub fn look(path: &Path) -> Report {
    match read(path) {
        Ok(image) => of_image(path, &inspect::inspect(&image)),
        Err(why) => {
            let checks = vec![Check::missing("kernel image", format!("{}: {why}", path.display()), EXPECTED).needed()];
            Report { facts: Vec::new(), checks }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let found = path.metadata().map_err(|error| error.to_string())?;
    match () {
        () if found.is_dir() => Err("is a directory".into()),
        () if !found.is_file() => Err("is not a regular file".into()),
        () => fs::read(path).map_err(|error| error.to_string()),
    }
}

fn of_image(path: &Path, report: &KernelReport) -> Report {
    let mut facts = vec![("file", path.display().to_string())];
    if !matches!(report.kind, ImageKind::ElfVmlinux | ImageKind::BzImage) {
        let found = format!("it looks like {}", report.kind);
        return Report { facts, checks: vec![Check::missing("kernel image", found, EXPECTED).needed()] };
    }
    let unknown = || "unknown".to_owned();
    facts.push(("format", report.kind.to_string().split_off(if report.kind == ImageKind::BzImage { 2 } else { 3 })));
    facts.push(("version", report.version.clone().unwrap_or_else(unknown)));
    if let Some((major, minor)) = report.protocol {
        facts.push(("boot protocol", format!("{major}.{minor:02}: {}", report.load_flags.join(", "))));
        facts.push(("compression", report.compression.map_or_else(unknown, str::to_owned)));
    }
    let pvh = match report.pvh {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    };
    facts.push(("PVH entry", pvh.to_owned()));
    facts.extend(report.notes.iter().map(|note| ("note", note.clone())));

    let mut checks = vec![if report.entry_64 {
        let how = if report.kind == ImageKind::ElfVmlinux && report.pvh == Some(true) {
            "PVH"
        } else {
            "the 64-bit boot protocol"
        };
        Check::good("entry point", format!("it will be entered by {how}")).needed()
    } else {
        Check::missing(
            "entry point",
            "it has no 64-bit entry point",
            "a 64-bit kernel with boot protocol 2.12 or later",
        )
        .needed()
    }];
    match configuration(path, report) {
        Some((text, from)) => {
            facts.push(("configuration", from));
            checks.extend(of_options(&inspect::check_options(&text)));
        }
        None => {
            let inside =
                if report.pvh.is_some() { "the kernel carries none" } else { "the kernel could not be looked into" };
            checks.push(Check::limited(
                "configuration",
                format!("unknown: {inside} (CONFIG_IKCONFIG)"),
                "put its config-VERSION beside it, as distributions do",
            ));
        }
    }
    Report { facts, checks }
}

/// The kernel's configuration: the one inside it, or the one that distributions put beside it.
fn configuration(path: &Path, report: &KernelReport) -> Option<(String, String)> {
    if let Some(text) = &report.config {
        return Some((text.clone(), "inside the kernel (CONFIG_IKCONFIG)".into()));
    }
    let release = report.release.as_ref().filter(|release| !release.contains('/'));
    let beside = |name: String| path.with_file_name(name);
    let files: Vec<PathBuf> = release.map(|release| beside(format!("config-{release}"))).into_iter().collect();
    let found = files.into_iter().chain([beside("config".into()), beside(".config".into())]);
    found
        .filter(|file| file.is_file())
        .filter_map(|file| Some((fs::read_to_string(&file).ok()?, file)))
        .find(|(text, _)| text.contains("CONFIG_64BIT"))
        .map(|(text, file)| (text, file.display().to_string()))
}

fn of_options(options: &[KernelOption]) -> Vec<Check> {
    let rebuild = |name: &str| format!("a kernel with {name}=y");
    options
        .iter()
        .map(|KernelOption { name, weight, purpose, state }| match (state, weight) {
            (State::BuiltIn, Weight::Needed) => Check::good(*name, format!("built in: {purpose}")).needed(),
            (State::BuiltIn, Weight::Wanted) => Check::good(*name, format!("built in: {purpose}")),
            (State::Module, Weight::Needed) => {
                let cure = "an initrd with this module in it (--initrd); distributions' initrds have it";
                Check::limited(*name, format!("a module: {purpose}"), cure).needed()
            }
            (State::Module, Weight::Wanted) => Check::good(*name, format!("a module: {purpose}")),
            (State::Missing, Weight::Needed) => Check::missing(*name, format!("no: {purpose}"), rebuild(name)).needed(),
            (State::Missing, Weight::Wanted) => Check::limited(*name, format!("no: {purpose}"), rebuild(name)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::Status;

    #[test]
    fn no_kernel_says_what_it_is() {
        let report = look(Path::new("/dev/null"));
        assert_eq!(report.checks[0].found, "/dev/null: is not a regular file");
        assert!(look(Path::new("/")).checks[0].found.contains("is a directory"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let report = look(file.path());
        assert_eq!(report.checks[0].found, "it looks like an empty file");
        assert!(report.checks[0].needed && report.checks[0].status == Status::Missing);
    }

    #[test]
    fn options_are_as_bad_as_their_weight() {
        let option = |weight, state| KernelOption { name: "CONFIG_X", weight, purpose: "p", state };
        let status = |weight, state| of_options(&[option(weight, state)])[0].status;
        assert_eq!(status(Weight::Needed, State::Missing), Status::Missing);
        assert_eq!(status(Weight::Needed, State::Module), Status::Limited);
        assert_eq!(status(Weight::Wanted, State::Missing), Status::Limited);
        assert_eq!(status(Weight::Wanted, State::Module), Status::Good);
    }

    #[test]
    fn a_configuration_beside_the_kernel_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinuz");
        fs::write(dir.path().join("config-6.1-x"), "CONFIG_64BIT=y\n").unwrap();
        let report = KernelReport { release: Some("6.1-x".into()), ..inspect::inspect(b"") };
        let (text, from) = configuration(&kernel, &report).unwrap();
        assert_eq!(text, "CONFIG_64BIT=y\n");
        assert!(from.ends_with("config-6.1-x"));
        assert!(configuration(&kernel, &KernelReport { release: Some("6.2".into()), ..report }).is_none());
    }
}
