//! Modules of the guest's kernel that the host puts into the initial RAM file system, beside the agent: a folder of files
//! called as the modules are, and a list of them in the order in which the agent is to load them.

/// The folder.
pub const FOLDER: &str = "/modules";

/// The list in the folder: one module on each line.
pub const ORDER: &str = "order";

/// What stands before the name of a module that may fail to load: on this CPU it may be of no use.
const OPTIONAL: char = '?';

/// A line of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// The module, and its file.
    pub name: &'a str,
    /// It may fail to load.
    pub optional: bool,
}

impl<'a> Line<'a> {
    /// Reads the list.
    pub fn all(list: &'a str) -> impl Iterator<Item = Self> {
        list.lines().filter(|line| !line.is_empty()).map(|line| match line.strip_prefix(OPTIONAL) {
            Some(name) => Self { name, optional: true },
            None => Self { name: line, optional: false },
        })
    }

    /// Adds it to the list.
    pub fn add(self, list: &mut String) {
        if self.optional {
            list.push(OPTIONAL);
        }
        list.push_str(self.name);
        list.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let lines = [Line { name: "crc32c_intel", optional: true }, Line { name: "erofs", optional: false }];
        let mut list = String::new();
        lines.iter().for_each(|line| line.add(&mut list));
        assert_eq!(list, "?crc32c_intel\nerofs\n");
        assert_eq!(Line::all(&list).collect::<Vec<_>>(), lines);
        assert_eq!(Line::all("").count(), 0);
    }
}
