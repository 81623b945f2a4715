//! Which line of a JSON text holds which place, and which keys are given twice. Pure.
//!
//! serde_json checks the text first: this scanner only ever sees well-formed JSON, and gives up quietly on anything else.

use std::borrow::Cow;

use super::fault::Problem;
use super::path::{JsonPath, Step};

/// Lines of the places of a document.
#[derive(Debug, Default)]
pub(super) struct Lines<'t> {
    /// Every value, each after the one that it is in. Cheap to make: looking up is for faults only.
    nodes: Vec<Node<'t>>,
    /// Keys that an object has twice.
    pub repeated: Vec<Problem>,
}

#[derive(Debug)]
struct Node<'t> {
    parent: usize,
    name: Name<'t>,
    line: usize,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name<'t> {
    Root,
    Index(usize),
    Key(Cow<'t, str>),
}

impl<'t> Lines<'t> {
    /// Scans a well-formed JSON text.
    pub(super) fn of(text: &'t str) -> Self {
        let mut scanner = Scanner { text, at: 0, line: 1, found: Self::default() };
        scanner.value(0, Name::Root, 1);
        scanner.found
    }

    /// The line, from 1, on which a place begins: that of its key, for a member of an object.
    pub(super) fn of_place(&self, path: &JsonPath) -> Option<usize> {
        let mut here = 0;
        for step in &path.0 {
            let name = match step {
                Step::Key(key) => Name::Key(Cow::Borrowed(key)),
                Step::Index(index) => Name::Index(*index),
                Step::Next | Step::Where(..) => return None,
            };
            // The root is its own parent. Of a key given twice the last one counts, as it does for serde_json.
            here = self.nodes.iter().rposition(|node| node.parent == here && node.name == name)?;
        }
        self.nodes.get(here).map(|node| node.line)
    }

    fn path_of(&self, mut node: usize) -> JsonPath {
        let mut steps = Vec::new();
        while let Some(Node { parent, name, .. }) = self.nodes.get(node) {
            steps.push(match name {
                Name::Root => break,
                Name::Index(index) => Step::Index(*index),
                Name::Key(key) => Step::Key(key.clone().into_owned()),
            });
            node = *parent;
        }
        steps.reverse();
        JsonPath(steps)
    }
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
    line: usize,
    found: Lines<'t>,
}

impl<'t> Scanner<'t> {
    fn space(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            match byte {
                b'\n' => self.line += 1,
                b' ' | b'\t' | b'\r' => {}
                _ => return Some(byte),
            }
            self.at += 1;
        }
    }

    fn value(&mut self, parent: usize, name: Name<'t>, line: usize) -> Option<()> {
        let first = self.space()?;
        let line = if matches!(name, Name::Key(_)) { line } else { self.line };
        let node = self.found.nodes.len();
        self.found.nodes.push(Node { parent, name, line });
        match first {
            b'{' => self.object(node),
            b'[' => self.array(node),
            b'"' => self.string().map(|_| ()),
            _ => {
                let rest = self.text.as_bytes().get(self.at..)?;
                self.at += rest.iter().take_while(|byte| !b",]} \t\r\n".contains(byte)).count();
                Some(())
            }
        }
    }

    fn object(&mut self, node: usize) -> Option<()> {
        self.at += 1;
        let mut members = Vec::new();
        while self.space()? != b'}' {
            if self.space()? == b',' {
                self.at += 1;
                self.space()?;
            }
            let line = self.line;
            let key = self.string()?;
            if self.space()? == b':' {
                self.at += 1;
            }
            members.push(self.found.nodes.len());
            self.value(node, Name::Key(key), line)?;
        }
        self.at += 1;
        self.find_repeated(members);
        Some(())
    }

    fn find_repeated(&mut self, mut members: Vec<usize>) {
        let nodes = &self.found.nodes;
        members.sort_by(|a, b| nodes.get(*a).map(|node| &node.name).cmp(&nodes.get(*b).map(|node| &node.name)));
        let same = |two: &&[usize]| match two {
            [a, b] => nodes.get(*a).map(|node| &node.name) == nodes.get(*b).map(|node| &node.name),
            _ => false,
        };
        for two in members.windows(2).filter(same) {
            if let [first, second] = two {
                let line = nodes.get(*first).map_or(0, |node| node.line);
                let text = format!("given twice; first on line {line}");
                self.found.repeated.push(Problem::new(self.found.path_of(*second), text));
            }
        }
    }

    fn array(&mut self, node: usize) -> Option<()> {
        self.at += 1;
        let mut index = 0;
        while self.space()? != b']' {
            if self.space()? == b',' {
                self.at += 1;
            }
            self.value(node, Name::Index(index), 0)?;
            index += 1;
        }
        self.at += 1;
        Some(())
    }

    fn string(&mut self) -> Option<Cow<'t, str>> {
        let start = self.at;
        let mut escaped = false;
        self.at += 1;
        loop {
            match *self.text.as_bytes().get(self.at)? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
        self.at += 1;
        let quoted = self.text.get(start..self.at)?;
        match escaped {
            true => serde_json::from_str(quoted).ok().map(Cow::Owned),
            false => quoted.get(1..quoted.len() - 1).map(Cow::Borrowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_line_of_every_place() {
        let text =
            "{\n \"a\": {\"b\": 1,\n\n \"c\" : [ true ,\n\"x\\\"}\", {\"d\"\n: null}\n] },\n \"e\\u0041\": -1.5e3}";
        let lines = Lines::of(text);
        for (path, line) in [("a", 2), ("a.b", 2), ("a.c", 4), ("a.c[0]", 4), ("a.c[1]", 5), ("a.c[2].d", 5), ("eA", 8)]
        {
            assert_eq!(lines.of_place(&path.parse().unwrap()), Some(line), "{path}");
        }
        assert_eq!(lines.of_place(&JsonPath::ROOT), Some(1));
        assert_eq!(lines.of_place(&"a.x".parse().unwrap()), None);
        assert_eq!(lines.repeated, []);
    }

    #[test]
    fn finds_keys_that_are_given_twice() {
        let lines = Lines::of("{\"a\": 1,\n\"b\": {\"a\": 2},\n\"a\": 3}");
        assert_eq!(lines.repeated.len(), 1);
        assert_eq!(lines.repeated[0].text, "given twice; first on line 1");
        assert_eq!(lines.of_place(&"a".parse().unwrap()), Some(3));
    }

    #[test]
    fn ends_on_anything() {
        for text in
            ["", "{", "[", "{\"a", "{\"a\"", "{\"a\":", "[1,", "{\"a\\", "\"", "{,}", "[,", "{]", "{1:2}", "nonsense"]
        {
            Lines::of(text);
        }
    }
}
