//! Tables on standard output: columns as wide as what is in them, two spaces between them.

use std::fmt::Write as _;

/// Rows as text; the first is the head. Columns in `right` stand right, as numbers do.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max();
    let widths: Vec<_> = (0..rows.first().map_or(0, Vec::len)).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            // Writing to a String can not fail.
            let _ = match right.contains(&column) {
                true => write!(line, "{gap}{cell:>width$}"),
                false => write!(line, "{gap}{cell:width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Text of others for a terminal: what would move its cursor or change its colours is shown as what it is.
pub fn shown(text: &str) -> String {
    let plain = |character: char| !character.is_control() || character == '\t';
    text.chars().map(|one| if plain(one) { one.to_string() } else { one.escape_default().to_string() }).collect()
}

/// Bytes as Docker writes them: three digits, powers of 1000.
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut number, mut unit) = (bytes as f64, 0);
    while number >= 999.5 && unit + 1 < units.len() {
        number /= 1000.0;
        unit += 1;
    }
    let digits = match number {
        _ if unit == 0 => 0,
        number if number >= 99.95 => 0,
        number if number >= 9.995 => 1,
        _ => 2,
    };
    format!("{number:.digits$}{}", units.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["NAME", "SIZE", "STATE"]), row(["a-long-name", "7", "up"]), row(["ü", "123456", ""])];
        let wanted = "\
NAME           SIZE  STATE
a-long-name       7  up
ü            123456
";
        assert_eq!(table(&rows, &[1]), wanted);
        assert_eq!(table(&[], &[]), "");
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (187_300_000, "187MB"),
            (4_264_000, "4.26MB"),
            (12_340, "12.3kB"),
            (999_600, "1.00MB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn text_of_others_does_not_reach_the_terminal() {
        assert_eq!(shown("RUN a\tb \u{1b}[2J\n"), "RUN a\tb \\u{1b}[2J\\n");
    }
}
