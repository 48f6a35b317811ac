//! What a drill is doing, for people: a spinner on a terminal, lines elsewhere. On standard error,
//! because standard output is for the report.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::writer::Writer;

/// How often the spinner turns and the count of rows is renewed.
const TICK: Duration = Duration::from_millis(100);

/// Shows steps as they begin.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    name: &'static str,
}

impl Progress {
    /// The progress of one drill.
    pub fn new(name: &'static str) -> Self {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(format!("{name}:"));
        bar.enable_steady_tick(TICK);
        Self { bar, name }
    }

    /// A step begins.
    pub fn step(&self, what: &str) {
        if self.bar.is_hidden() {
            eprintln!("{}: {what}", self.name);
        }
        self.bar.set_message(what.to_owned());
    }

    /// Lets the writer write for a while, and shows how many rows there are.
    pub async fn watch(&self, writer: &Writer, duration: Duration) {
        let what = self.bar.message();
        let count = async {
            loop {
                let (acknowledged, unknown) = writer.progress();
                let text = format!("{what}, {acknowledged} rows acknowledged, {unknown} in doubt");
                self.bar.set_message(text);
                tokio::time::sleep(TICK).await;
            }
        };
        // the time is what is waited for here: writes before and after the fault
        drop(tokio::time::timeout(duration, count).await);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
