//! What depmod(8) says of a kernel's modules: modules.dep, modules.builtin, modules.softdep and modules.alias in their folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use super::{Module, ModulesError};
use crate::kernel::LIST;

/// Most bytes of a list: far more than any kernel's.
const MOST: u64 = 64 << 20;
/// How many modules may need one another in a row.
const DEEPEST: usize = 64;

/// The lists.
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    modules: BTreeMap<String, Listed>,
    builtin: BTreeSet<String>,
    /// What modules would like to have been loaded before them.
    soft: BTreeMap<String, Vec<String>>,
    /// Other names of modules, those without wildcards.
    aliases: BTreeMap<String, Vec<String>>,
}

/// A module as modules.dep has it.
#[derive(Debug)]
struct Listed {
    /// Below the folder.
    path: PathBuf,
    /// Names of those that must be loaded before it, and before whichever of them stands earlier.
    needs: Vec<String>,
}

impl Index {
    /// Reads the lists in `folder`. Only modules.dep must be there.
    pub fn read(folder: &Path) -> Result<Self, ModulesError> {
        let list = folder.join(LIST);
        let text = read(&list)?.ok_or_else(|| folder_error(&list, io::ErrorKind::NotFound.into()))?;
        let optional = |name: &str| Ok::<_, ModulesError>(read(&folder.join(name))?.unwrap_or_default());
        let modules = listed(&text).map_err(|why| ModulesError::List { path: list, why })?;
        let builtin = optional("modules.builtin")?.lines().filter_map(|line| name_of(line.trim())).collect();
        let soft = softdeps(&optional("modules.softdep")?);
        let aliases = aliases(&optional("modules.alias")?);
        Ok(Self { folder: folder.to_owned(), modules, builtin, soft, aliases })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the kernel has this module, in itself or in the folder.
    pub fn has(&self, name: &str) -> bool {
        self.builtin.contains(name) || self.modules.contains_key(name)
    }

    /// These modules and those that they need, in an order in which they can be loaded; none that is built in.
    pub fn order(&self, names: &[&str]) -> Result<Vec<Module>, ModulesError> {
        let walk = |likes: bool| {
            let mut walk = Walk { index: self, order: Vec::new(), way: Vec::new() };
            names.iter().try_for_each(|name| walk.visit(name, likes)).map(|()| walk.order)
        };
        let needed: BTreeSet<&str> = walk(false)?.into_iter().collect();
        let all = walk(true)?.into_iter().filter_map(|name| {
            let path = self.folder.join(&self.modules.get(name)?.path);
            Some(Module { name: name.to_owned(), path, optional: !needed.contains(name) })
        });
        Ok(all.collect())
    }

    /// The modules that a module would like to have before it.
    fn likes(&self, name: &str) -> impl Iterator<Item = &str> {
        let wanted = self.soft.get(name).into_iter().flatten();
        wanted.flat_map(|wanted| {
            let other = if self.has(wanted) { None } else { self.aliases.get(wanted) };
            let itself = self.has(wanted).then_some(wanted);
            itself.into_iter().chain(other.into_iter().flatten()).map(String::as_str)
        })
    }
}

/// A way through what modules need.
struct Walk<'a> {
    index: &'a Index,
    /// Those that have been reached, each after what it needs.
    order: Vec<&'a str>,
    /// Those that need one another and are not there yet.
    way: Vec<&'a str>,
}

impl<'a> Walk<'a> {
    /// Puts a module into the order, after what it needs and, with `likes`, what it would like to have.
    fn visit(&mut self, name: &str, likes: bool) -> Result<(), ModulesError> {
        if self.order.contains(&name) || self.index.builtin.contains(name) {
            return Ok(());
        }
        let (name, listed) = self.index.modules.get_key_value(name).ok_or_else(|| {
            let who = self.way.last().copied().unwrap_or_default();
            self.wrong(format!("{who} needs {name}, which has no line"))
        })?;
        if self.way.contains(&name.as_str()) {
            return Err(self.wrong(format!("{name} needs itself")));
        }
        if self.way.len() >= DEEPEST {
            return Err(self.wrong(format!("more than {DEEPEST} modules need one another in a row, up to {name}")));
        }
        self.way.push(name);
        if likes {
            for liked in self.index.likes(name) {
                // What it does not get, it does without.
                let len = self.way.len();
                let _ = self.visit(liked, false);
                self.way.truncate(len);
            }
        }
        // The last one is needed by those before it (modules.dep(5) leaves it open, depmod does so).
        for need in listed.needs.iter().rev() {
            self.visit(need, likes)?;
        }
        self.way.pop();
        self.order.push(name);
        Ok(())
    }

    fn wrong(&self, why: String) -> ModulesError {
        ModulesError::List { path: self.index.folder.join(LIST), why }
    }
}

/// A list; nothing where it is not there.
fn read(path: &Path) -> Result<Option<String>, ModulesError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| folder_error(path, error))?,
    };
    let mut bytes = Vec::new();
    let len = file.take(MOST).read_to_end(&mut bytes).map_err(|error| folder_error(path, error))?;
    let wrong = |why: &str| ModulesError::List { path: path.to_owned(), why: why.to_owned() };
    if len as u64 == MOST {
        return Err(wrong("it is too long"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| wrong("it is no text"))
}

fn folder_error(path: &Path, error: io::Error) -> ModulesError {
    ModulesError::Folder { path: path.to_owned(), error }
}

/// The name of the module in this file, as the kernel writes it; nothing where that is no module's.
fn name_of(path: &str) -> Option<String> {
    let (name, suffix) = path.rsplit('/').next()?.split_once(".ko")?;
    let is_known = matches!(suffix, "" | ".gz" | ".xz" | ".zst");
    (is_known && !name.is_empty()).then(|| with_underscores(name))
}

fn with_underscores(name: &str) -> String {
    name.replace('-', "_")
}

/// modules.dep: a module on a line, with those that it needs.
fn listed(text: &str) -> Result<BTreeMap<String, Listed>, String> {
    let mut modules = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let (path, needs) = line.split_once(':').ok_or_else(|| format!("line {number} has no colon"))?;
        let name = |path: &str| {
            let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
            let name = name_of(path).filter(|_| inside);
            name.ok_or_else(|| format!("line {number}: {path:?} is no module's file in this folder"))
        };
        let needs = needs.split_whitespace().map(name).collect::<Result<_, _>>()?;
        modules.insert(name(path)?, Listed { path: path.into(), needs });
    }
    Ok(modules)
}

/// modules.softdep: `softdep NAME pre: NAME... post: NAME...`. What comes after is left out: nothing here needs it.
fn softdeps(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut soft: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some("softdep"), Some(name)) = (words.next(), words.next()) {
            let before = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| !word.ends_with(':'));
            soft.entry(with_underscores(name)).or_default().extend(before.map(with_underscores));
        }
    }
    soft
}

/// modules.alias: `alias NAME MODULE`.
fn aliases(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["alias", name, module] = words[..]
            && !name.contains(['*', '?', '['])
        {
            aliases.entry(with_underscores(name)).or_default().push(with_underscores(module));
        }
    }
    aliases
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    /// The names in order; a question mark before those that are optional.
    fn order(files: &[(&str, &str)], names: &[&str]) -> Result<String, String> {
        let folder = folder(files);
        let order = Index::read(folder.path()).and_then(|index| index.order(names));
        let order = order.map_err(|error| error.to_string().replace(&folder.path().display().to_string(), "DIR"))?;
        let names = order.iter().map(|module| format!("{}{}", if module.optional { "?" } else { "" }, module.name));
        Ok(names.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_a_module_needs_comes_first_and_once() {
        let dep =
            "k/a-b.ko.xz: k/c.ko.xz k/d_e.ko\nk/c.ko.xz: k/d_e.ko\nk/d_e.ko:\n\nk/f.ko.zst: k/d_e.ko\nk/g.ko.gz:\n";
        let of = |names: &[&str]| order(&[("modules.dep", dep), ("modules.builtin", "kernel/h-i.ko\n")], names);
        assert_eq!(of(&["a_b", "f"]).unwrap(), "d_e c a_b f");
        assert_eq!(of(&["f", "a_b"]).unwrap(), "d_e f c a_b");
        assert_eq!(of(&["h_i", "g"]).unwrap(), "g", "one is built in");
        // Whether a line has all that is needed or only the next.
        let next = "a.ko: b.ko\nb.ko: c.ko\nc.ko:\n";
        assert_eq!(order(&[("modules.dep", next)], &["a"]).unwrap(), "c b a");
    }

    #[test]
    fn what_is_built_in_is_not_loaded() {
        let files = [("modules.dep", "a.ko: b.ko c.ko\nc.ko:\n"), ("modules.builtin", "kernel/b.ko\n")];
        assert_eq!(order(&files, &["a"]).unwrap(), "c a");
        let folder = folder(&files);
        let index = Index::read(folder.path()).unwrap();
        assert!(index.has("a") && index.has("b") && !index.has("d"));
    }

    #[test]
    fn what_is_only_liked_may_be_missing() {
        let dep = "a.ko: b.ko\nb.ko:\nfast-crc.ko: c.ko\nc.ko:\nslow.ko: gone.ko\nround.ko: a.ko\n";
        let soft =
            "# a comment\nsoftdep b pre: crc32c none a post: c\nsoftdep a pre: slow round c\nsoftdep b post: d\n";
        let alias = "alias crc32c fast_crc\nalias crc32c built-in\nalias pci:v* c\nalias of\n";
        let files = [("modules.dep", dep), ("modules.softdep", soft), ("modules.alias", alias)];
        assert_eq!(order(&files, &["a"]).unwrap(), "?c ?fast_crc b a");
        assert_eq!(order(&files, &["a", "c"]).unwrap(), "c ?fast_crc b a");
    }

    #[test]
    fn damaged_lists_are_said_to_be() {
        let of = |dep: &str| order(&[("modules.dep", dep)], &["a"]).unwrap_err();
        assert_eq!(of("a.ko: b.ko\nb.ko: a.ko\n"), "DIR/modules.dep: a needs itself; `depmod VERSION` makes it anew");
        assert!(of("a.ko: a.ko\n").contains("a needs itself"));
        assert!(of("a.ko: b.ko\n").contains("a needs b, which has no line"));
        assert!(of("a.ko:\nnonsense\n").contains("line 2 has no colon"));
        for path in ["../a.ko", "/a.ko", "a/../../b.ko", "a", "a.ko.lzo", ".ko", ""] {
            assert!(of(&format!("a.ko:\n{path}:\n")).contains("line 2: "), "{path}");
            assert!(path.is_empty() || of(&format!("a.ko: {path}\n")).contains("line 1: "), "{path}");
        }
        let chain: String = (0..100).map(|number| format!("m{number}.ko: m{}.ko\n", number + 1)).collect();
        assert!(of(&format!("a.ko: m0.ko\n{chain}")).contains("more than 64 modules"));
        let folder = folder(&[]);
        let missing = Index::read(folder.path()).unwrap_err().to_string();
        assert!(missing.contains("modules.dep: ") && missing.contains("--modules"), "{missing}");
        fs::write(folder.path().join("modules.dep"), [0xff, 0xfe]).unwrap();
        assert!(Index::read(folder.path()).unwrap_err().to_string().contains("it is no text"));
    }
}
