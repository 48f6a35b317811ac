//! One container of a pod, as a container runtime makes it: own control group, network, processes, root.
//!
//! A shell script does it with util-linux: the root is a read-only tmpfs with the machine's programs in it,
//! the process has no capability and may gain none. Not here: seccomp, images.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};

use super::places;

/// What is bound from the machine, read-only: the "image".
const IMAGE: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ssl"];

/// Runs inside the pod's network namespace. `$1` root, `$2` control group, `$3` user; the rest is the command.
/// Mounts are described in files of the folder `$root.mounts`.
const ENTER: &str = r#"
set -e
root=$1 group=$2 user=$3
shift 3
echo 0 > "$group/cgroup.procs"
mount -t tmpfs -o size=64m,mode=755 pod "$root"
for place in IMAGE; do
    [ -e "$place" ] || continue
    if [ -L "$place" ]; then cp -a "$place" "$root$place"; continue; fi
    mkdir -p "$root$place"
    mount --rbind "$place" "$root$place"
    mount -o remount,bind,ro "$root$place"
done
mkdir -p "$root/proc" "$root/dev" "$root/run" "$root/etc" "$root/opt/baton"
mount --bind /dev "$root/dev"
mount -t tmpfs -o size=64m,mode=1777 shm "$root/dev/shm"
echo "postgres:x:$user:$user::/:/bin/false" > "$root/etc/passwd"
echo "postgres:x:$user:" > "$root/etc/group"
cp "$root.hosts" "$root/etc/hosts"
echo 'hosts: files' > "$root/etc/nsswitch.conf"
touch "$root/opt/baton/baton"
mount --bind "$BATON_PROGRAM" "$root/opt/baton/baton"
while read -r kind from to; do
    mkdir -p "$root$to"
    case $kind in
        memory) mount -t tmpfs -o "mode=777" memory "$root$to" ;;
        bind) mount --bind "$from" "$root$to" ;;
        read-only) mount --bind "$from" "$root$to" && mount -o remount,bind,ro "$root$to" ;;
        propagated) mount --rbind "$from" "$root$to" && mount --make-rslave "$root$to" ;;
    esac
done < "$root.mounts"
mount -t proc proc "$root/proc"
mount -o remount,ro "$root"
exec chroot "$root" /usr/bin/setpriv --reuid "$user" --regid "$user" --clear-groups \
    --bounding-set -all --inh-caps -all --no-new-privs -- "$@"
"#;

/// A mount of a container.
pub enum Mount {
    /// An `emptyDir` of medium Memory.
    Memory { to: String },
    /// A directory of the node.
    Bind { from: PathBuf, to: String },
    /// The same, read-only.
    ReadOnly { from: PathBuf, to: String },
    /// The same, with mountPropagation HostToContainer.
    Propagated { from: PathBuf, to: String },
}

impl Mount {
    fn line(&self) -> String {
        match self {
            Self::Memory { to } => format!("memory - {to}\n"),
            Self::Bind { from, to } => format!("bind {} {to}\n", from.display()),
            Self::ReadOnly { from, to } => format!("read-only {} {to}\n", from.display()),
            Self::Propagated { from, to } => format!("propagated {} {to}\n", from.display()),
        }
    }
}

/// What to run.
pub struct Plan {
    /// A directory of this container's own.
    pub directory: PathBuf,
    pub group: PathBuf,
    /// The name of its network namespace.
    pub network: String,
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    /// Lines of `/etc/hosts`.
    pub hosts: String,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Plan {
    /// Starts it. The child is `unshare`: when it is reaped no process of the container is left.
    pub fn start(&self) -> Result<Child> {
        std::fs::create_dir_all(&self.group).context("make the container's control group")?;
        let root = self.directory.join("root");
        std::fs::create_dir_all(&root).context("make the container's root")?;
        let mounts: String = self.mounts.iter().map(Mount::line).collect();
        std::fs::write(root.with_extension("mounts"), mounts)?;
        std::fs::write(root.with_extension("hosts"), &self.hosts)?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .context("open the container's log")?;
        let script = ENTER.replace("IMAGE", &IMAGE.join(" "));
        // Not `ip netns exec`: that mounts another /sys, without control groups.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.network))
            .arg("--")
            .args([
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--ipc",
                "--uts",
            ])
            .args(["--mount", "--propagation", "slave"])
            .args(["bash", "-c", &script, "container"])
            .arg(&root)
            .arg(&self.group)
            .arg(places::USER.to_string())
            .args(&self.command)
            .env_clear()
            .env(
                "PATH",
                "/opt/baton:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            )
            .env("BATON_PROGRAM", program())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        command.spawn().context("start the container")
    }
}

/// The program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_baton"))
}

/// The first process of the container, by its control group: the one that is 1 in its own namespace.
pub fn first_process(group: &Path) -> Option<i32> {
    let processes = std::fs::read_to_string(group.join("cgroup.procs")).ok()?;
    processes
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .find(|pid: &i32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let names = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            names.is_some_and(|names| names.split_whitespace().next_back() == Some("1"))
        })
}
