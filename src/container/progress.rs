//! What users see while an image comes in: a bar for each layer, on a terminal only, and why it takes long. Any thread.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often bars are drawn, per second.
const RATE: u8 = 10;
const RUNNING: &str = "{prefix:12}  {msg:11} {bar:30} {bytes:>10} / {total_bytes:10} {bytes_per_sec}";
const DONE: &str = "{prefix:12}  {msg}";

/// All bars.
#[derive(Debug, Clone)]
pub struct Progress(Option<MultiProgress>);

/// The bar of one blob.
#[derive(Debug)]
pub struct Bar(Option<ProgressBar>);

impl Progress {
    /// On standard error, if that is a terminal.
    pub fn on_terminal() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(RATE));
        Self((!bars.is_hidden()).then_some(bars))
    }

    /// Nowhere.
    pub fn silent() -> Self {
        Self(None)
    }

    /// A bar for `size` bytes.
    pub fn bar(&self, title: String, size: u64) -> Bar {
        Bar(self.0.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(size).with_prefix(title));
            if let Ok(style) = ProgressStyle::with_template(RUNNING) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        }))
    }
}

/// Says on standard error why something takes its time. Some of it may be others' words, which are not for a terminal to obey.
pub fn note(why: &str) {
    let plain: String = why.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
    eprintln!("vmm: {plain}");
}

impl Bar {
    /// As [`note`], beside the bars.
    pub fn note(&self, why: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| note(why)),
            None => note(why),
        }
    }

    /// What is being done.
    pub fn say(&self, doing: &'static str) {
        if let Some(bar) = &self.0 {
            bar.set_message(doing);
        }
    }

    /// So many bytes are there.
    pub fn at(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(bytes);
        }
    }

    /// It is done, and was this.
    pub fn done(&self, what: &'static str) {
        if let Some(bar) = &self.0 {
            if let Ok(style) = ProgressStyle::with_template(DONE) {
                bar.set_style(style);
            }
            bar.finish_with_message(what);
        }
    }
}
