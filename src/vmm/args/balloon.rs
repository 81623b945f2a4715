//! `--balloon`: a size, then options after commas. Pure.

use serde_json::{Value, json};

use super::vm::mebibytes;

/// Reads `SIZE[,deflate_on_oom][,stats=SECONDS][,no_reporting][,hinting]` into the key `balloon`.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut parts = text.split(',');
    let size = mebibytes(parts.next().unwrap_or_default())?;
    let mut balloon = json!({ "amount_mib": size });
    for option in parts {
        let (key, value) = match option.split_once('=').unwrap_or((option, "")) {
            ("deflate_on_oom", "") => ("deflate_on_oom", true.into()),
            ("no_reporting", "") => ("free_page_reporting", false.into()),
            ("hinting", "") => ("free_page_hinting", true.into()),
            ("stats", seconds) if seconds.parse::<u16>().is_ok() => {
                ("stats_polling_interval_s", json!(seconds.parse::<u16>().unwrap_or(0)))
            }
            _ => {
                return Err(format!(
                    "unknown option `{option}`; deflate_on_oom, stats=SECONDS, no_reporting and hinting are known"
                ));
            }
        };
        if let Some(balloon) = balloon.as_object_mut() {
            balloon.insert(key.to_owned(), value);
        }
    }
    Ok(balloon)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_size() {
        assert_eq!(parse("0").unwrap(), json!({ "amount_mib": 0 }));
        assert_eq!(
            parse("1G,deflate_on_oom,stats=5,no_reporting,hinting").unwrap(),
            json!({
                "amount_mib": 1024, "deflate_on_oom": true, "stats_polling_interval_s": 5, "free_page_reporting": false,
                "free_page_hinting": true
            })
        );
    }

    #[test]
    fn unknown_options_are_named() {
        for (text, word) in
            [("x", "512M"), ("", "512M"), ("1,ro", "`ro`"), ("1,stats=x", "`stats=x`"), ("1,stats", "`stats`")]
        {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}
