//! The volume and the database at rest, by the tools of their own makers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::report::{Check, Checks};
use crate::lab::configure::DATA_DIRECTORY;
use crate::mount_namespace;

/// How long one tool may take. Drills write some hundred thousand rows at most.
const TOOL_WITHIN: Duration = Duration::from_secs(120);

/// A check's result, and what it found in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The result.
    pub result: Check,
    /// What the tool said, if it is not clean.
    pub finding: Option<String>,
}

/// `e2fsck -fn` on the namespace's file, with every member stopped. It changes nothing, and exits
/// with 0 only if it has nothing to repair (e2fsck(8)).
pub async fn e2fsck(image: &Path) -> Checked {
    let mut command = Command::new("e2fsck");
    command.arg("-fn").arg(image);
    judge("e2fsck", command).await
}

/// `pg_checksums --check` on the cleanly stopped data directory, through a mount that nobody else
/// sees: it ends with the command, its loop device too. `noload`: no journal is replayed, because
/// the check must change nothing. The loop device is attached by itself, because `mount -o loop`
/// looks at all others first, and hangs where one of them does.
pub async fn checksums(image: &Path, mount_point: &Path, bin_dir: &Path) -> Checked {
    let script = r#"device=$(losetup --read-only --find --show "$1") || exit
        mount -t ext4 -o ro,noload "$device" "$2"; mounted=$?
        losetup --detach "$device" && [ "$mounted" = 0 ] && shift 2 && exec "$@""#;
    let mut command = Command::from(mount_namespace::script(script));
    command
        .arg(image)
        .arg(mount_point)
        .arg(bin_dir.join("pg_checksums"));
    command
        .args(["--check", "--pgdata"])
        .arg(mount_point.join(DATA_DIRECTORY));
    judge("pg_checksums", command).await
}

/// Removes all log from the data directory on the namespace's file, which nobody may have in use.
pub async fn without_log(image: &Path, mount_point: &Path) -> Checked {
    let script = r#"device=$(losetup --find --show "$1") || exit
        mount -t ext4 "$device" "$2"; mounted=$?
        losetup --detach "$device" && [ "$mounted" = 0 ] &&
        find "$2/$3/pg_wal" -type f -name '????????????????????????' -delete && sync -f "$2""#;
    let mut command = Command::from(mount_namespace::script(script));
    command.arg(image).arg(mount_point).arg(DATA_DIRECTORY);
    judge("removing the log", command).await
}

/// `pg_amcheck` on the running database: every table, and every index compared with its table.
pub async fn amcheck(server: &Server, bin_dir: &Path) -> Checked {
    run_amcheck(server, bin_dir, &["--install-missing"]).await
}

/// The same on a replica. It has the functions for it once [`amcheck`] ran on its primary; a database
/// without them would be left out.
pub async fn amcheck_replica(server: &Server, bin_dir: &Path) -> Checked {
    run_amcheck(server, bin_dir, &[]).await
}

async fn run_amcheck(server: &Server, bin_dir: &Path, more: &[&str]) -> Checked {
    let mut command = Command::new(bin_dir.join("pg_amcheck"));
    command.args(["--all", "--heapallindexed", "--no-password"]);
    command.args(more);
    command.args(["--host", &server.host, "--port", &server.port.to_string()]);
    command.args(["--username", &server.user]);
    judge("pg_amcheck", command).await
}

/// Where PostgreSQL accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
    /// A superuser.
    pub user: String,
}

impl Server {
    /// The PostgreSQL of a member that clients reach here.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
            user: "postgres".to_owned(),
        }
    }
}

impl Checks {
    /// The results of `e2fsck`, `pg_checksums` and `pg_amcheck`, and what they found.
    pub fn of(all: [Checked; 3]) -> (Self, Vec<String>) {
        let [e2fsck, checksums, amcheck] = all.each_ref().map(|checked| checked.result);
        let findings = all.into_iter().filter_map(|checked| checked.finding);
        let checks = Self {
            e2fsck,
            checksums,
            amcheck,
        };
        (checks, findings.collect())
    }
}

/// Runs the tool; anything but exit code 0 is a finding.
async fn judge(name: &str, mut command: Command) -> Checked {
    command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .current_dir("/");
    match timeout(TOOL_WITHIN, command.output()).await {
        Ok(Ok(output)) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            judged(
                name,
                output.status.success(),
                &output.status.to_string(),
                &said,
            )
        }
        Ok(Err(error)) => not_run(format!("{name} could not run: {error}")),
        Err(_) => not_run(format!("{name} took longer than {TOOL_WITHIN:?}")),
    }
}

/// The result of a tool that ran: how it ended, and what it said.
pub fn judged(name: &str, succeeded: bool, ended: &str, said: &str) -> Checked {
    if succeeded {
        return Checked {
            result: Check::Clean,
            finding: None,
        };
    }
    let lines: Vec<_> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(5)..].join("; ");
    Checked {
        result: Check::Damaged,
        finding: Some(format!("{name}: {ended}: {last}")),
    }
}

/// A check that could not run, and why.
pub fn not_run(why: String) -> Checked {
    Checked {
        result: Check::NotRun,
        finding: Some(why),
    }
}

/// A directory for [`checksums`] to mount on, made if it is missing.
pub fn mount_point(dir: &Path) -> std::io::Result<PathBuf> {
    let path = dir.join("inspect");
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clean_filesystem_is_clean_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        let made = std::process::Command::new("mkfs.ext4")
            .arg("-q")
            .arg(&image)
            .status()
            .unwrap();
        assert!(made.success());
        assert_eq!(
            e2fsck(&image).await,
            Checked {
                result: Check::Clean,
                finding: None
            }
        );

        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&image)
            .unwrap();
        // the inode and block bitmaps lie behind the superblock and the group descriptors
        file.write_all_at(&[0; 64 << 10], 8 << 10).unwrap();
        let checked = e2fsck(&image).await;
        assert_eq!(checked.result, Check::Damaged);
        assert!(checked.finding.unwrap().contains("e2fsck"));

        let nowhere = e2fsck(&dir.path().join("missing")).await;
        assert_ne!(nowhere.result, Check::Clean);
    }
}
