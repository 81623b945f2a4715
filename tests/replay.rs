//! Everything that fuzzing ever found worth keeping, again: `tests/fuzz/corpus/TARGET/NAME.hex`, a file of hexadecimal
//! digits each. A device that panics, hangs or turns a proper driver away fails here.

#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).expect("a byte")).collect()
}

#[test]
fn the_corpus_does_no_harm() {
    for (name, target) in targets::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
        let mut count = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("an entry").path();
            println!("{}", path.display()); // shown when it fails
            target(&unhex(&fs::read_to_string(&path).expect("a text")));
            count += 1;
        }
        assert!(count >= 10, "{} has {count} inputs", folder.display());
    }
}
