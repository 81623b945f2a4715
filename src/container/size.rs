//! Sizes as Docker's flags have them: a number of bytes, or of units, which are powers of 1024. And numbers of any units.

/// What is wrong with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It is none.
    Form,
    /// It is too large.
    Much,
}

/// How much a number of units is, with a part of one after a dot. It is of digits and dots; `unit` is below 2^53.
pub fn times(number: &str, unit: u64) -> Result<u64, Wrong> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && part.is_empty()) || part.contains('.') {
        return Err(Wrong::Form);
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| Wrong::Much)? };
    let part: f64 = format!("0.{part}0").parse().map_err(|_| Wrong::Form)?;
    // Below 2^53; what is left of the smallest unit is dropped.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let part = (part * unit as f64) as u64;
    whole.checked_mul(unit).and_then(|whole| whole.checked_add(part)).ok_or(Wrong::Much)
}

/// `65536`, `512m`, `1.5g`, `64KiB`, in bytes.
pub fn bytes(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "a size is a number of bytes, or one with a unit: k, m, g or t, as 512m";
    const MUCH: &str = "is more than addresses can name";
    let end = text.find(|sign: char| !sign.is_ascii_digit() && sign != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(FORM),
    };
    times(number, 1 << shift).map_err(|wrong| match wrong {
        Wrong::Form => FORM,
        Wrong::Much => MUCH,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_have_units() {
        for (text, wanted) in [
            ("0", 0),
            ("65536", 65_536),
            ("7b", 7),
            ("7B", 7),
            ("64k", 64 << 10),
            ("64Kb", 64 << 10),
            ("512m", 512 << 20),
            ("512MiB", 512 << 20),
            ("2G", 2 << 30),
            ("1.5g", 3 << 29),
            ("0.5k", 512),
            ("1.5", 1),
            (".5g", 1 << 29),
            ("1.g", 1 << 30),
            ("32 mb", 32 << 20),
            ("16t", 16 << 40),
            ("1.25P", 5 << 48),
        ] {
            assert_eq!(bytes(text), Ok(wanted), "{text}");
        }
        for wrong in ["", "m", ".", ".g", "1.2.3g", "-1", "-1m", "+1", "1x", "1bb", "1m ", "1  m", "0x10", "1e3", "inf"]
        {
            assert!(bytes(wrong).unwrap_err().contains("as 512m"), "{wrong}");
        }
        for much in ["16384p", "99999999999999999999"] {
            assert!(bytes(much).unwrap_err().contains("addresses"), "{much}");
        }
    }
}
