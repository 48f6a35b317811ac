//! Reads a journal. A line that was cut by a crash is skipped and said, never an error.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::Entry;

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its entries with their line numbers, from 1.
    pub entries: Vec<(usize, Entry)>,
    /// Lines that make no sense, with the reason: cut by a crash, or of another version.
    pub unreadable: Vec<(usize, String)>,
    /// The last line has no end: the writer is at it, or was killed at it.
    pub cut: bool,
}

/// Reads a whole file.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> io::Result<Contents> {
    let mut contents = Contents::default();
    let mut file = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if file.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let whole = line.ends_with(b"\n");
        match serde_json::from_slice(&line) {
            Ok(entry) => contents.entries.push((number, entry)),
            Err(_) if !whole => contents.cut = true,
            Err(error) => contents.unreadable.push((number, error.to_string())),
        }
    }
    Ok(contents)
}
