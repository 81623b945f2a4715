//! The boot waterfall: when each phase was reached, as a table for people or JSON for programs.
#![allow(unsafe_code)] // clock_gettime(2)

use std::time::{Duration, Instant};

use machine::timeline::Timeline;

/// How to print the waterfall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TimingsFormat {
    /// A table with bars, on standard error.
    Table,
    /// One JSON document, on standard error.
    Json,
}

/// Time from exec to `main`, by the CPU clock: nothing waits there but the loader.
pub fn before_main(started: Instant) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the out-pointer is to a local.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).saturating_sub(started.elapsed())
}

/// The marks that were reached.
pub fn text(timeline: &Timeline, format: TimingsFormat) -> String {
    let reached = timeline.reached();
    match format {
        TimingsFormat::Table => table(&reached),
        TimingsFormat::Json => json(&reached) + "\n",
    }
}

fn millis(at: Duration) -> f64 {
    at.as_secs_f64() * 1e3
}

fn table(reached: &[(&'static str, Duration)]) -> String {
    const WIDTH: f64 = 40.0;
    let total = reached.last().map_or(0.0, |(_, at)| millis(*at)).max(f64::MIN_POSITIVE);
    let mut text = format!("{:<26} {:>11} {:>11}\n", "phase", "at ms", "took ms");
    let mut before = 0.0;
    for (words, at) in reached {
        let at = millis(*at);
        let (from, to) = ((before / total * WIDTH).round() as usize, (at / total * WIDTH).round() as usize);
        let bar = "#".repeat((to - from).max(1));
        text.push_str(&format!("{words:<26} {at:>11.3} {:>11.3} {:from$}{bar}\n", at - before, ""));
        before = at;
    }
    text
}

fn json(reached: &[(&'static str, Duration)]) -> String {
    let phases: Vec<_> = reached
        .iter()
        .map(|(words, at)| serde_json::json!({ "phase": words, "at_us": at.as_nanos() as f64 / 1e3 }))
        .collect();
    serde_json::json!({ "timings": phases }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACHED: [(&str, Duration); 3] = [
        ("process started", Duration::from_millis(1)),
        ("guest entered", Duration::from_millis(5)),
        ("VM ended", Duration::from_millis(10)),
    ];

    #[test]
    fn the_table_has_a_line_and_a_bar_per_phase() {
        let page = table(&REACHED);
        let lines: Vec<_> = page.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[2], "guest entered                    5.000       4.000     ################");
        assert_eq!(table(&[]).lines().count(), 1);
    }

    #[test]
    fn the_json_is_in_microseconds() {
        let value: serde_json::Value = serde_json::from_str(&json(&REACHED)).unwrap();
        assert_eq!(value["timings"][1]["phase"], "guest entered");
        assert_eq!(value["timings"][1]["at_us"], 5000.0);
    }
}
