//! What a former primary wrote that nobody else has: kept before it is rewound.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::facts::Position;
use super::place::{self, PlaceError, failed};
use crate::clock;
use crate::postgres::{ControlData, Instance, Lsn};

/// The directory on the volume in which it is kept.
pub const DIVERGED_DIRECTORY: &str = "baton-diverged";

const REPORT: &str = "report.json";
const PARTIAL: &str = ".partial";

/// What is kept, told to whoever looks for lost rows. `pg_waldump` reads the segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diverged {
    /// The system identifier.
    pub system: u64,
    /// Up to here the two histories are the same; the timeline is the last common one.
    pub from: Position,
    /// The former primary's last record begins here, on its own timeline.
    pub to: Position,
    /// How many bytes of write-ahead log lie between the two.
    pub bytes: u64,
    /// The files that are kept.
    pub files: Vec<String>,
    /// When, by this machine's clock.
    pub kept_at: String,
}

/// Copies the write-ahead log from the divergence on to `baton-diverged/<label>` on the volume, durably.
/// Returns the report and the directory.
pub(super) fn keep(
    instance: &Instance,
    control: &ControlData,
    from: Position,
    label: &str,
) -> Result<(Diverged, PathBuf), PlaceError> {
    let to = Position {
        timeline: control.timeline.max(control.minimum_recovery_timeline),
        lsn: control.checkpoint.max(control.minimum_recovery),
    };
    let parent = instance.volume_root.join(DIVERGED_DIRECTORY);
    let target = place::free_name(&parent.join(label));
    let mut partial = target.clone().into_os_string();
    partial.push(PARTIAL);
    let partial = PathBuf::from(partial);
    place::make_afresh(instance, &partial)?;
    let source = instance.data_directory.join("pg_wal");
    let files = diverging(&source, from, to.timeline, control.wal_segment_size)?;
    for name in &files {
        let copy = partial.join(name);
        fs::copy(source.join(name), &copy).map_err(failed("copying", &copy))?;
    }
    let report = Diverged {
        system: control.system_identifier,
        from,
        to,
        bytes: to.lsn.0.saturating_sub(from.lsn.0),
        files,
        kept_at: clock::wall().to_string(),
    };
    write_report(&partial.join(REPORT), &report)?;
    place::rename(instance, &partial, &target)?;
    Ok((report, target))
}

fn write_report(path: &Path, report: &Diverged) -> Result<(), PlaceError> {
    let text = serde_json::to_vec_pretty(report)
        .map_err(io::Error::from)
        .map_err(failed("describing", path))?;
    fs::write(path, text).map_err(failed("writing", path))
}

/// How many bytes [`keep`] will copy.
pub(super) fn size(
    instance: &Instance,
    control: &ControlData,
    from: Position,
) -> Result<u64, PlaceError> {
    let source = instance.data_directory.join("pg_wal");
    let newest = control.timeline.max(control.minimum_recovery_timeline);
    let files = diverging(&source, from, newest, control.wal_segment_size)?;
    let segments = u64::try_from(files.len()).unwrap_or(u64::MAX);
    Ok(segments.saturating_mul(control.wal_segment_size.into()))
}

/// The segments that hold anything from `from` on, of its timeline up to the `newest`, and those timelines' histories.
fn diverging(
    directory: &Path,
    from: Position,
    newest: u32,
    segment_size: u32,
) -> Result<Vec<String>, PlaceError> {
    let size = u64::from(segment_size.max(1));
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("listing", directory))? {
        let entry = entry.map_err(failed("listing", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let wanted = match parse(&name, size) {
            Some((timeline, None)) => from.timeline < timeline && timeline <= newest,
            Some((timeline, Some(start))) => {
                from.timeline <= timeline
                    && timeline <= newest
                    && start.0.saturating_add(size) > from.lsn.0
                    && begins_at(&entry.path(), start).map_err(failed("reading", &entry.path()))?
            }
            None => false,
        };
        if wanted {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

/// The timeline of a segment or of a history file, and where the segment begins.
fn parse(name: &str, size: u64) -> Option<(u32, Option<Lsn>)> {
    let hex = |part: &str| u32::from_str_radix(part, 16).ok();
    if let Some(timeline) = name.strip_suffix(".history") {
        return (timeline.len() == 8).then_some((hex(timeline)?, None));
    }
    if name.len() != 24 || !name.is_ascii() {
        return None;
    }
    let (high, low) = (hex(&name[8..16])?, hex(&name[16..])?);
    let per_file = (1_u64 << 32) / size;
    let segment = u64::from(high) * per_file + u64::from(low);
    Some((hex(&name[..8])?, Some(Lsn(segment.checked_mul(size)?))))
}

/// Whether the segment's first page says that it begins where its name does. One that is recycled for later use
/// says something else. `xlp_pageaddr` is at offset 8 in PostgreSQL 14 to 18 (`xlog_internal.h`).
fn begins_at(path: &Path, start: Lsn) -> io::Result<bool> {
    let mut header = [0_u8; 16];
    fs::File::open(path)?.read_exact(&mut header)?;
    let (_, address) = header.split_at(8);
    Ok(address == start.0.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    #[test]
    fn names_are_places() {
        let at = |text: &str| Some(text.parse::<Lsn>().unwrap());
        let cases = [
            ("000000010000000000000003", Some((1, at("0/3000000")))),
            ("0000000A00000002000000FF", Some((10, at("2/FF000000")))),
            ("00000002.history", Some((2, None))),
            ("000000010000000000000003.partial", None),
            ("archive_status", None),
        ];
        for (name, expected) in cases {
            assert_eq!(parse(name, SIZE), expected, "{name}");
        }
    }

    #[test]
    fn only_what_lies_beyond_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let segment = |name: &str, begins: u64| {
            let mut bytes = vec![0_u8; 32];
            bytes[8..16].copy_from_slice(&begins.to_le_bytes());
            fs::write(directory.path().join(name), bytes).unwrap();
        };
        segment("000000010000000000000001", SIZE);
        segment("000000010000000000000002", 2 * SIZE);
        segment("000000020000000000000003", 3 * SIZE);
        // Recycled: still says what it was.
        segment("000000020000000000000004", SIZE);
        segment("000000030000000000000003", 3 * SIZE);
        fs::write(directory.path().join("00000002.history"), "").unwrap();
        let from = Position {
            timeline: 1,
            lsn: Lsn(2 * SIZE + 100),
        };
        let found = diverging(directory.path(), from, 2, 16 << 20).unwrap();
        assert_eq!(
            found,
            [
                "000000010000000000000002",
                "00000002.history",
                "000000020000000000000003"
            ]
        );
    }
}
