//! "Did you mean": the known key nearest to an unknown one. Pure.

/// The name nearest to `wrong`, if any is near enough to be meant.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let wrong = plain(wrong);
    known
        .into_iter()
        .map(|name| {
            let name_plain = plain(name);
            // A part of a name is as good as the name: "cpus" for "vcpu_count".
            let stem = wrong.trim_end_matches('s');
            let part = stem.len() >= 3 && (name_plain.contains(stem) || wrong.contains(&name_plain));
            // Of several names with that part the nearest.
            let letters = distance(&wrong, &name_plain);
            (if part { 1 } else { letters }, letters, name)
        })
        .min_by_key(|(distance, letters, _)| (*distance, *letters))
        .filter(|(distance, _, name)| *distance <= name.len().max(wrong.len()) / 3)
        .map(|(.., name)| name)
}

/// How many letters must be put in, taken out or exchanged to turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let exchanged = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = exchanged.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = ["cpu_template", "vcpu_count", "mem_size_mib", "smt", "huge_pages", "track_dirty_pages"];
        for (wrong, meant) in [
            ("vcpus_count", Some("vcpu_count")),
            ("vcpu", Some("vcpu_count")),
            ("VCPU-COUNT", Some("vcpu_count")),
            ("mem_size", Some("mem_size_mib")),
            ("hugepages", Some("huge_pages")),
            ("cpus", Some("vcpu_count")),
            ("st", Some("smt")),
            ("balloon", None),
            ("kernel", None),
            ("", None),
        ] {
            assert_eq!(nearest(wrong, known), meant, "{wrong}");
        }
    }

    #[test]
    fn counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
