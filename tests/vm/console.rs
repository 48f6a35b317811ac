//! What a machine printed on its serial line.

use std::path::{Path, PathBuf};

/// How many lines of a console help to understand a failure.
const TAIL: usize = 30;

/// A file that QEMU writes.
#[derive(Clone, Debug)]
pub struct Console {
    path: PathBuf,
}

impl Console {
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything, without control characters. Empty if there is nothing yet.
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let shown = |c: &char| *c == '\n' || !c.is_control();
        text.chars().filter(shown).collect()
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        tail.iter().map(|line| format!("    {line}\n")).collect()
    }
}
