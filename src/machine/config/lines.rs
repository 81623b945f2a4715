//! Which line of a JSON text holds which place, and which keys are given twice. Pure.
//!
//! serde_json checks the text first: this scanner only ever sees well-formed JSON, and gives up quietly on anything else.

use std::collections::HashMap;

use super::fault::Problem;
use super::path::JsonPath;

/// Lines of the places of a document.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: HashMap<JsonPath, usize>,
    /// Keys that an object has twice.
    pub repeated: Vec<Problem>,
}

impl Lines {
    /// Scans a well-formed JSON text.
    pub(super) fn of(text: &str) -> Self {
        let mut scanner = Scanner { text: text.as_bytes(), at: 0, line: 1, found: Self::default() };
        scanner.value(&JsonPath::ROOT);
        scanner.found
    }

    /// The line, from 1, on which a place begins: that of its key, for a member of an object.
    pub(super) fn of_place(&self, path: &JsonPath) -> Option<usize> {
        self.lines.get(path).copied()
    }
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
    found: Lines,
}

impl Scanner<'_> {
    fn space(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.get(self.at)?;
            match byte {
                b'\n' => self.line += 1,
                b' ' | b'\t' | b'\r' => {}
                _ => return Some(byte),
            }
            self.at += 1;
        }
    }

    fn value(&mut self, path: &JsonPath) -> Option<()> {
        let first = self.space()?;
        self.found.lines.entry(path.clone()).or_insert(self.line);
        match first {
            b'{' => self.object(path),
            b'[' => self.array(path),
            b'"' => self.string().map(|_| ()),
            _ => {
                let rest = self.text.get(self.at..)?;
                self.at += rest.iter().take_while(|byte| !b",]} \t\r\n".contains(byte)).count();
                Some(())
            }
        }
    }

    fn object(&mut self, path: &JsonPath) -> Option<()> {
        self.at += 1;
        while self.space()? != b'}' {
            if self.space()? == b',' {
                self.at += 1;
                self.space()?;
            }
            let line = self.line;
            let key = self.string()?;
            let place = path.key(&key);
            if let Some(first) = self.found.lines.insert(place.clone(), line) {
                self.found.repeated.push(Problem::new(place.clone(), format!("given twice; first on line {first}")));
            }
            if self.space()? == b':' {
                self.at += 1;
            }
            self.value(&place)?;
        }
        self.at += 1;
        Some(())
    }

    fn array(&mut self, path: &JsonPath) -> Option<()> {
        self.at += 1;
        let mut index = 0;
        while self.space()? != b']' {
            if self.space()? == b',' {
                self.at += 1;
            }
            self.value(&path.index(index))?;
            index += 1;
        }
        self.at += 1;
        Some(())
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        self.at += 1;
        loop {
            match *self.text.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        let text = self.text.get(start..self.at)?;
        match text.contains(&b'\\') {
            true => serde_json::from_slice(text).ok(),
            false => std::str::from_utf8(text.get(1..text.len() - 1)?).ok().map(str::to_owned),
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
