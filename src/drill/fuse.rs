//! How many requests wait in a FUSE connection: those that its server has not answered.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::lab::process::Process;

/// One mount's connection in the kernel's FUSE control filesystem.
#[derive(Clone, Debug)]
pub struct Connection {
    number: u32,
}

impl Connection {
    /// The connection of the FUSE mount at `mount_point` in the mount namespace of `process`.
    pub fn of(process: Process, mount_point: &Path) -> io::Result<Self> {
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", process.pid))?;
        let number = mounts.lines().find_map(|line| number(line, mount_point));
        let none = || io::Error::other("the process has no FUSE mount there");
        number.map(|number| Self { number }).ok_or_else(none)
    }

    /// Whether at least one request waits. Reads the control filesystem through a mount of its own
    /// that ends with the command: few machines have it mounted, and nothing shall be left.
    pub fn waits(&self) -> io::Result<bool> {
        let script = r#"mount -t fusectl none /sys/fs/fuse/connections 2>/dev/null; cat "$1""#;
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ]);
        let output = command.arg(self.path()).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.trim().parse::<u64>() {
            Ok(waiting) => Ok(waiting > 0),
            Err(_) => Err(io::Error::other(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            )),
        }
    }

    /// Where the number is read.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/sys/fs/fuse/connections/{}/waiting", self.number))
    }
}

/// The minor number of the mount's device, which names the connection: field 3 of a line of
/// `mountinfo`, where field 5 is the mount point and the type follows the separator `-`
/// (proc_pid_mountinfo(5)).
fn number(line: &str, mount_point: &Path) -> Option<u32> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let fields: Vec<_> = mount.split(' ').collect();
    let here = Path::new(fields.get(4)?) == mount_point && filesystem.starts_with("fuse");
    here.then(|| fields.get(2)?.split_once(':')?.1.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_s_minor_number_names_the_connection() {
        let line = "412 300 0:57 / /var/tmp/lab/a/bridge rw,nosuid - fuse baton rw,user_id=0";
        assert_eq!(number(line, Path::new("/var/tmp/lab/a/bridge")), Some(57));
        assert_eq!(number(line, Path::new("/var/tmp/lab/b/bridge")), None);
        let ext4 = "412 300 7:1 / /var/tmp/lab/a/bridge rw - ext4 /dev/loop1 rw";
        assert_eq!(number(ext4, Path::new("/var/tmp/lab/a/bridge")), None);
    }
}
