//! The mount table of the calling thread's mount namespace (`/proc/thread-self/mountinfo`,
//! proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The filesystem's type.
    pub fs_type: String,
    /// What is mounted, the block device for ext4.
    pub source: PathBuf,
    /// The options of the filesystem itself, not of the mount.
    pub super_options: String,
}

/// The topmost mount at exactly this path, if any.
pub fn at(mount_point: &Path) -> io::Result<Option<MountEntry>> {
    let mut entries = read()?;
    entries.retain(|entry| entry.mount_point == mount_point);
    Ok(entries.pop())
}

/// Where filesystems are mounted below this path.
pub fn below(mount_point: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = read()?.into_iter().map(|entry| entry.mount_point);
    Ok(paths
        .filter(|path| path != mount_point && path.starts_with(mount_point))
        .collect())
}

/// All mounts, in the order of mounting.
fn read() -> io::Result<Vec<MountEntry>> {
    let text = fs::read("/proc/thread-self/mountinfo")?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mount_point = fields.nth(4)?;
    // Optional fields, however many, end with a dash.
    fields.by_ref().find(|field| *field == b"-")?;
    let (fs_type, source, super_options) = (fields.next()?, fields.next()?, fields.next()?);
    Some(MountEntry {
        mount_point: unescape(mount_point),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        source: unescape(source),
        super_options: String::from_utf8_lossy(super_options).into_owned(),
    })
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| std::str::from_utf8(tail.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let line =
            br"36 35 98:0 / /a\040b rw,noatime shared:1 master:2 - ext4 /dev/loop7 rw,data=ordered";
        let entry = parse(line).unwrap();
        assert_eq!(entry.mount_point, Path::new("/a b"));
        assert_eq!(entry.fs_type, "ext4");
        assert_eq!(entry.source, Path::new("/dev/loop7"));
        assert_eq!(entry.super_options, "rw,data=ordered");
        for bad in [
            "",
            "1 2 3",
            "36 35 98:0 / /a rw - ext4",
            "36 35 98:0 / /a rw shared:1",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert!(!below(Path::new("/")).unwrap().is_empty());
    }
}
