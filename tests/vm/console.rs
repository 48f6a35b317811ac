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

    /// Where the kernel crashed: the last instruction that it names.
    pub fn crash(&self) -> String {
        let text = self.text();
        let mut lines = text.lines().rev();
        let named = lines.find_map(|line| line.split_once("RIP: 0010:"));
        let place = named.map_or("its console does not say where", |(_, place)| place.trim());
        place.to_owned()
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        tail.iter().map(|line| format!("    {line}\n")).collect()
    }
}
