//! The numbers of timelines: no two promotions may use the same one.
//!
//! PostgreSQL numbers a new timeline by what it finds on its own disk. A site that never heard of another
//! site's promotion would give its own the same number, and `pg_rewind` takes two histories that end on the
//! same timeline for one. So the numbers that are taken are marked by history files that say nothing else. They
//! stay on the new primary: its followers ask for the history of every number up to its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fencing::Licence;

use super::configure::{ConfigureError, replace, step, sync_directory};
use crate::postgres::Instance;

/// All that such a file says: a comment, so that it descends from no timeline and nobody follows it.
const RESERVED: &str = "# reserved by Baton: this timeline began at another site\n";

fn path_of(directory: &Path, timeline: u32) -> PathBuf {
    directory.join(format!("{timeline:08X}.history"))
}

/// Marks the timelines after `own`, up to and with `taken`, as taken, where nothing is known of them: a promotion
/// right after this begins a later one. For a replica that does not receive; a start as a replica takes the
/// marks away again.
pub fn reserve_timelines(
    _licence: &Licence,
    instance: &Instance,
    own: u32,
    taken: u32,
) -> Result<(), ConfigureError> {
    let directory = instance.data_directory.join("pg_wal");
    for timeline in own.saturating_add(1)..=taken {
        let path = path_of(&directory, timeline);
        if !path.exists() {
            replace(&path, RESERVED.as_bytes(), 0o600, Some(instance))?;
        }
    }
    sync_directory(&directory)
}

/// Takes the marks beyond the data directory's own timeline away: PostgreSQL would try to follow the last of
/// them, and not start.
pub(super) fn release(instance: &Instance, own: u32) -> Result<(), ConfigureError> {
    let directory = instance.data_directory.join("pg_wal");
    let entries = fs::read_dir(&directory).map_err(step("listing", &directory))?;
    for entry in entries {
        let path = entry.map_err(step("listing", &directory))?.path();
        let number = path.file_name().and_then(|name| {
            let digits = name.to_str()?.strip_suffix(".history")?;
            u32::from_str_radix(digits, 16).ok()
        });
        if number.is_some_and(|number| number > own) && is_mark(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn is_mark(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| text == RESERVED.as_bytes())
}

fn remove(path: &Path) -> Result<(), ConfigureError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(step("removing", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
