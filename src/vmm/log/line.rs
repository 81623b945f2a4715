//! Lines of the log: as Firecracker writes them, or as JSON. Pure; the thread that has something to say makes its line.

use std::fmt::{Debug, Write as _};
use std::time::Duration;

use machine::config::{LogFormat, LoggerConfig};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata};

/// Longest line, bytes: PIPE_BUF, up to which a write to a pipe is whole or is not at all (pipe(7)).
pub const LINE_MAX: usize = 4096;
/// Longest message in a line of JSON, bytes with its quotes: fields still fit behind it.
const MESSAGE_MAX: usize = 3072;
/// What stands where a text was cut.
const CUT: char = '…';

/// What is known of a message besides its event.
pub struct Context<'a> {
    /// What is asked for.
    pub config: &'a LoggerConfig,
    /// The VM's name.
    pub id: &'a str,
    /// Since the epoch.
    pub now: Duration,
}

impl Context<'_> {
    /// The line, with its end.
    pub fn line(&self, event: &Event<'_>) -> String {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("?");
        match self.config.format {
            LogFormat::Text => self.text(thread, event),
            LogFormat::Json => self.json(thread, event),
        }
    }

    /// `2026-01-31T12:00:00.123456789 [id:thread:LEVEL:file:line] message key=value`
    fn text(&self, thread: &str, event: &Event<'_>) -> String {
        let metadata = event.metadata();
        let mut line = format!("{} [{}:{thread}", timestamp(self.now), self.id);
        if self.config.show_level {
            let _ = write!(line, ":{}", metadata.level());
        }
        if let Some((file, number)) = self.origin(metadata) {
            let _ = write!(line, ":{file}:{number}");
        }
        line.push(']');
        event.record(&mut Words(&mut line));
        // A message must not be able to look like two, nor to speak to a terminal.
        let mut line = line.replace(char::is_control, " ");
        cut(&mut line, LINE_MAX - 1);
        line.push('\n');
        line
    }

    /// `{"timestamp":"…","id":"…","thread":"…","level":"WARN","module":"…","message":"…","fields":{…}}`
    fn json(&self, thread: &str, event: &Event<'_>) -> String {
        let metadata = event.metadata();
        let mut seen = Fields::default();
        event.record(&mut seen);
        let mut line = format!(
            "{{\"timestamp\":\"{}Z\",\"id\":{},\"thread\":{},\"level\":\"{}\",\"module\":{}",
            timestamp(self.now),
            quoted(self.id, 256),
            quoted(thread, 64),
            metadata.level(),
            quoted(metadata.target(), 128),
        );
        if let Some((file, number)) = self.origin(metadata) {
            let _ = write!(line, ",\"file\":{},\"line\":{number}", quoted(file, 256));
        }
        let _ = write!(line, ",\"message\":{},\"fields\":{{", quoted(&seen.message, MESSAGE_MAX));
        const END: &str = "}}\n";
        let mut comma = "";
        for (name, value) in &seen.rest {
            let key = format!("{comma}\"{name}\":");
            let room = LINE_MAX.saturating_sub(line.len() + key.len() + END.len());
            let value = match value {
                Value::Plain(value) => value.clone(),
                Value::Text(text) => quoted(text, room),
            };
            if value.len() <= room {
                line.push_str(&key);
                line.push_str(&value);
                comma = ",";
            }
        }
        line.push_str(END);
        line
    }

    fn origin(&self, metadata: &Metadata<'static>) -> Option<(&'static str, u32)> {
        metadata.file().filter(|_| self.config.show_log_origin).map(|file| (file, metadata.line().unwrap_or(0)))
    }
}

/// Fields as words behind each other.
struct Words<'a>(&'a mut String);

impl Visit for Words<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

/// Fields one by one.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

enum Value {
    /// As it stands in JSON.
    Plain(String),
    Text(String),
}

impl Fields {
    fn plain(&mut self, field: &Field, value: impl ToString) {
        self.rest.push((field.name(), Value::Plain(value.to_string())));
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.rest.push((field.name(), Value::Text(value.to_owned())));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.rest.push((name, Value::Text(format!("{value:?}")))),
        }
    }
}

/// Shortens a text to at most `most` bytes.
fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most.saturating_sub(CUT.len_utf8())));
        text.push(CUT);
    }
}

/// A text in JSON, shortened to at most `most` bytes, but never to less than a few.
fn quoted(text: &str, most: usize) -> String {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let (mut whole, mut len) = (quote(text), text.len());
    while whole.len() > most && len > 0 {
        // Escapes can make six bytes of one, so how much fits is tried.
        len = len.min(most) * 3 / 4;
        whole = quote(&format!("{}{CUT}", &text[..text.floor_char_boundary(len)]));
    }
    whole
}

/// UTC by the civil calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
pub fn timestamp(now: Duration) -> String {
    let (days, seconds) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march = (5 * day_of_year + 2) / 153;
    let (month, day) = (if march < 10 { march + 3 } else { march - 9 }, day_of_year - (153 * march + 2) / 5 + 1);
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}", now.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_is_right() {
        for (seconds, wanted) in [
            (0, "1970-01-01T00:00:00.000000007"),
            (951_782_399, "2000-02-28T23:59:59.000000007"),
            (951_782_400, "2000-02-29T00:00:00.000000007"),
            (1_772_323_199, "2026-02-28T23:59:59.000000007"),
            (1_772_323_200, "2026-03-01T00:00:00.000000007"),
            (4_102_444_800, "2100-01-01T00:00:00.000000007"),
        ] {
            assert_eq!(timestamp(Duration::new(seconds, 7)), wanted);
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let mut text = "äöü".repeat(10);
        cut(&mut text, 20);
        assert!(text.len() <= 20 && text.ends_with("äö…"), "{text}");
        for text in ["\u{1}".repeat(1000), "ä\"".repeat(500), "x".repeat(4000), String::new()] {
            for most in [16, 100, 3000] {
                let short = quoted(&text, most);
                assert!(short.len() <= most, "{} bytes of {most}", short.len());
                let read: String = serde_json::from_str(&short).unwrap();
                assert!(text.starts_with(read.trim_end_matches(CUT)));
            }
        }
    }
}
