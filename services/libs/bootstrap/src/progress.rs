//! Progress of long work: a bar or spinner on a terminal, plain lines on standard error elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Least time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Shown while it lives.
#[derive(Debug)]
pub struct Progress {
    what: String,
    bar: ProgressBar,
    lines: Option<Mutex<Lines>>,
}

#[derive(Debug)]
struct Lines {
    last: Option<Instant>,
    text: String,
}

/// Work of unknown length.
pub fn spinner(what: impl Into<String>) -> Progress {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    Progress::new(what.into(), bar)
}

/// Work of `total` steps.
pub fn bar(what: impl Into<String>, total: u64) -> Progress {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    let bar = ProgressBar::new(total).with_style(style.expect("the template is well-formed"));
    Progress::new(what.into(), bar)
}

/// Work of `total` bytes.
pub fn bytes(what: impl Into<String>, total: u64) -> Progress {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}");
    let bar = ProgressBar::new(total).with_style(style.expect("the template is well-formed"));
    Progress::new(what.into(), bar)
}

impl Progress {
    fn new(what: String, bar: ProgressBar) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let lines = (!terminal).then(|| Mutex::new(Lines { last: None, text: String::new() }));
        if lines.is_some() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        bar.set_message(what.clone());
        let progress = Self { what, bar, lines };
        progress.line(false);
        progress
    }

    /// Another text; without a terminal a line, if it is new and not too soon after the last one.
    pub fn set_message(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
        self.line(false);
    }

    /// `n` more steps are done.
    pub fn inc(&self, n: u64) {
        self.bar.inc(n);
        self.line(false);
    }

    /// `n` steps are done in all.
    pub fn set_position(&self, n: u64) {
        self.bar.set_position(n);
        self.line(false);
    }

    /// Done; the bar is removed, without a terminal a last line says so.
    pub fn finish(&self) {
        self.bar.set_message(format!("{}: done", self.what));
        self.line(true);
        self.bar.finish_and_clear();
    }

    fn line(&self, now: bool) {
        let Some(lines) = &self.lines else { return };
        let mut lines = lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !now && lines.last.is_some_and(|t| t.elapsed() < LINE_INTERVAL) {
            return;
        }
        let text = match self.bar.length() {
            Some(total) if total > 0 && !now => {
                format!("{} {} %", self.bar.message(), self.bar.position().saturating_mul(100) / total)
            }
            _ => self.bar.message(),
        };
        if text != lines.text {
            // Nobody to tell when standard error is closed.
            let _ = writeln!(std::io::stderr(), "{text}");
            *lines = Lines { last: Some(Instant::now()), text };
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
