//! Converts one layer to an EROFS image, and says how long it took: for measurements.
//!
//!     cargo run --release -p container --example layer -- LAYER IMAGE

use std::fs::File;
use std::io::Read;
use std::time::Instant;

use container::layer::{Compression, Limits, convert};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut names = std::env::args().skip(1);
    let (Some(layer), Some(image), None) = (names.next(), names.next(), names.next()) else {
        return Err("usage: layer LAYER IMAGE".into());
    };
    let mut first = [0; 4];
    File::open(&layer)?.read_exact(&mut first)?;
    let start = Instant::now();
    let kind = Compression::of_first_bytes(&first);
    let converted = convert(File::open(&layer)?, kind, File::create(&image)?, &Limits::default())?;
    println!("{} entries, {} bytes, {:.3} s", converted.entries, converted.bytes, start.elapsed().as_secs_f64());
    Ok(())
}
