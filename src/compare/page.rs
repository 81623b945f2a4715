//! The report as one HTML page: tables, and a plot of each metric with a dot for every sample, drawn as SVG in the page. It
//! loads nothing and runs nothing.

use std::fmt::Write as _;

use crate::claims::claims;
use crate::measure::{Measured, Metric};
use crate::report::{counted, done, facts, heads, json, missing, rows, text};
use crate::statistics::median;

/// Of a plot: its width, the width of the names, the height of a line, and the room around; pixels.
const WIDTH: f64 = 860.0;
const NAMES: f64 = 130.0;
const LINE: f64 = 26.0;
const EDGE: f64 = 40.0;

const HEAD: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>vmm compare</title><style>\
body{font:15px/1.45 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}\
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}.r{color:#777}h2{margin-top:2em}svg{display:block;margin:.3em 0 1.2em}\
pre{background:#f6f6f6;padding:1em;overflow:auto;font-size:12px}text{font:12px system-ui,sans-serif;fill:#333}</style></head><body>\n";

/// Titles of plots.
fn title(metric: Metric) -> &'static str {
    match metric {
        Metric::StartMs => "Start to first output",
        Metric::ExitMs => "Start to exit",
        Metric::CpuMs => "CPU loop",
        Metric::GetpidMs => "getpid",
        Metric::ForkExecMs => "fork+exec",
        Metric::WriteMs => "Write 8 MiB (to memory)",
        Metric::ReadMs => "Read 8 MiB of the image",
        Metric::MemoryKib => "Memory of an instance",
        Metric::SecondKib => "Memory that a second instance adds",
        Metric::FilesKib => "Files of an instance",
    }
}

/// The page.
pub fn page(measured: &Measured) -> String {
    let mut page = HEAD.to_owned();
    let (image, done) = (escaped(&measured.image), escaped(&done(measured)));
    // Writing to a String can not fail.
    let _ = write!(page, "<h1>{image}</h1><p>{done}</p>");
    for line in missing(measured) {
        let _ = write!(page, "<p><b>{}</b></p>", escaped(&line));
    }
    numbers(&mut page, measured);
    page += "<h2>What the textbooks say</h2><table><tr><th>said<th>measured<th>verdict</tr>";
    for claim in claims(measured) {
        let (seen, verdict) = (escaped(&claim.measured), escaped(&claim.verdict));
        let _ = write!(page, "<tr><td>{}<td>{seen}<td>{verdict}</tr>", escaped(claim.said));
    }
    page += "</table><h2>Seen from inside</h2><table><tr><th>";
    for column in measured.columns.iter().filter(|column| !column.again) {
        let _ = write!(page, "<th>{}", column.world.name());
    }
    page += "</tr>";
    for row in facts(measured) {
        let cells: String = row.iter().map(|cell| format!("<td>{}", escaped(cell))).collect();
        let _ = write!(page, "<tr>{cells}</tr>");
    }
    page += "</table><h2>Every sample</h2><p>A dot is a sample, a bar the median; the scale is logarithmic.</p>";
    for metric in Metric::ALL {
        plot(&mut page, measured, metric);
    }
    let document = json(measured);
    let _ = write!(page, "<h2>Circumstances</h2><pre>{}</pre>", escaped(&format!("{:#}", document["environment"])));
    page += "</body></html>\n";
    page
}

fn numbers(page: &mut String, measured: &Measured) {
    *page += "<table><tr><th>";
    for head in heads(measured) {
        let _ = write!(page, "<th colspan=2>{head}");
    }
    *page += "<th>A/A</tr>";
    for row in rows(measured) {
        let _ = write!(page, "<tr><td>{}", row.title);
        for cell in &row.cells {
            let _ = write!(page, "<td class=n>{}<td class=r>{}", cell.number, cell.ratio);
        }
        let noise = row.noise.map_or_else(String::new, |noise| format!("×{noise:.2}"));
        let _ = write!(page, "<td class=r>{noise}</tr>");
    }
    *page += "</table><p>× by the first column; ≈ no more than noise. A/A: the first column by itself, measured twice. \
              No difference below the noise is claimed.</p>";
}

/// One metric: a line for each column.
fn plot(page: &mut String, measured: &Measured, metric: Metric) {
    let samples = || measured.columns.iter().flat_map(|column| column.of(metric)).copied().filter(|value| *value > 0.0);
    let (low, high) = (samples().fold(f64::INFINITY, f64::min), samples().fold(0.0, f64::max));
    if !low.is_finite() {
        return;
    }
    let (low, high) = (low / 1.1, high * 1.1);
    let place = |value: f64| NAMES + (value / low).ln() / (high / low).ln() * (WIDTH - NAMES - EDGE);
    let height = LINE * (measured.columns.len() as f64 + 1.0);
    let title = counted(metric, title(metric), measured.percent);
    let _ = write!(page, "<h3>{title}</h3><svg width={WIDTH} height={height} role=img>");
    for tick in ticks(low, high) {
        let (x, bottom) = (place(tick), height - LINE);
        let _ = write!(page, "<line x1={x:.1} x2={x:.1} y1=0 y2={bottom} stroke=\"#ddd\"/>");
        let _ = write!(page, "<text x={x:.1} y={} text-anchor=middle>{}</text>", height - 8.0, text(metric, tick));
    }
    for (line, (column, head)) in measured.columns.iter().zip(heads(measured)).enumerate() {
        let y = LINE * (line as f64 + 0.5);
        let _ = write!(page, "<text x=0 y={:.1}>{head}</text>", y + 4.0);
        for sample in column.of(metric).iter().filter(|sample| **sample > 0.0) {
            let x = place(*sample);
            let _ = write!(page, "<circle cx={x:.1} cy={y:.1} r=4 fill=\"#2563eb\" fill-opacity=.45 />");
        }
        if let Some(middle) = median(column.of(metric)).filter(|middle| *middle > 0.0) {
            let (x, top, bottom) = (place(middle), y - 9.0, y + 9.0);
            let _ = write!(
                page,
                "<line x1={x:.1} x2={x:.1} y1={top:.1} y2={bottom:.1} stroke=\"#b91c1c\" stroke-width=2 />"
            );
        }
    }
    *page += "</svg>";
}

/// Round numbers between the two: powers of ten, and where there are few their double and fivefold.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let steps: &[f64] = if high / low > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = (-3..=9).map(|power| 10_f64.powi(power));
    powers
        .flat_map(|power| steps.iter().map(move |step| step * power))
        .filter(|tick| (low..high).contains(tick))
        .collect()
}

/// Text of others, as text.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::measured;

    #[test]
    fn the_page_stands_alone_and_shows_every_sample() {
        let page = page(&measured());
        assert!(page.contains("&lt;b&gt;image") && page.contains("a &amp;&amp; b") && page.contains("&lt;fast&gt;"));
        for foreign in ["<script", "http://", "https://", "<link", "<img", "url(", "<b>image"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        // 5 worlds, 4 rounds, 6 metrics that were measured; a bar for each median.
        assert_eq!(page.matches("<circle").count(), 5 * 4 * 6);
        assert_eq!(page.matches("stroke-width=2").count(), 5 * 6);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn scales_have_a_few_round_numbers() {
        assert_eq!(ticks(0.9, 30.0), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(ticks(0.9, 3000.0), [1.0, 10.0, 100.0, 1000.0]);
        assert!(ticks(1.1, 1.9).is_empty());
    }
}
