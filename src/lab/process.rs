//! Processes by identity, read from `/proc`: a process id alone may by now be another's.
//!
//! Only `stat` is read: unlike `cmdline` or `environ` it never waits for the process's memory, so
//! a process that hangs on a frozen bridge does not take its observer with it.

use std::collections::HashMap;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process, as long as this machine is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    /// When it began, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub started: u64,
}

/// What `/proc/PID/stat` says.
struct Stat {
    process: Process,
    parent: i32,
    state: char,
}

/// How often a tree is read again until two readings agree. A tree that still grows after this is
/// signalled as it is.
const READINGS: usize = 20;

impl Process {
    /// The process that has this id now; none if there is none or it has ended already.
    pub fn now(pid: i32) -> Option<Self> {
        stat(pid).filter(Stat::lives).map(|stat| stat.process)
    }

    /// Whether it still runs. A zombie does not.
    pub fn lives(self) -> bool {
        Self::now(self.pid) == Some(self)
    }

    /// Whether every one of its threads is stopped by a signal.
    pub fn stopped(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.process == self && stat.state == 'T')
    }

    /// Sends a signal, unless it has ended: false then.
    pub fn signal(self, signal: Signal) -> Result<bool, Errno> {
        if !self.lives() {
            return Ok(false);
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Itself and all its descendants, ancestors first, read until two readings agree.
    pub fn tree(self) -> Vec<Self> {
        let mut last = tree_once(self, &all());
        for _ in 0..READINGS {
            let next = tree_once(self, &all());
            if next == last {
                break;
            }
            last = next;
        }
        last
    }
}

/// Sends a signal to each that still lives; gives those that it reached.
pub fn signal_all(processes: &[Process], signal: Signal) -> Result<Vec<Process>, Errno> {
    let mut reached = Vec::new();
    for process in processes {
        if process.signal(signal)? {
            reached.push(*process);
        }
    }
    Ok(reached)
}

/// The file name of its program; empty if it has ended. Not `comm`: a program that starts itself
/// anew through `/proc/self/exe` is called `exe` there.
pub fn program(process: Process) -> String {
    let exe = std::fs::read_link(format!("/proc/{}/exe", process.pid)).unwrap_or_default();
    let name = exe.file_name().unwrap_or_default().to_string_lossy();
    name.trim_end_matches(" (deleted)").to_owned()
}

/// Its arguments. Waits for the process's memory: not for one that may hang.
pub fn arguments(process: Process) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    let arguments = text.split(|byte| *byte == 0);
    arguments
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// What a lab in `dir` may have left after it was killed: processes whose environment says that
/// they belong there, and PostgreSQLs (which overwrite their environment by their title) whose
/// working directory is there. Nobody's shell, whatever its directory.
pub fn left_of(dir: &Path) -> Vec<Process> {
    let mark = [
        super::MARK.as_bytes(),
        b"=",
        dir.as_os_str().as_encoded_bytes(),
    ]
    .concat();
    let belongs = |process: &Process| {
        let proc = format!("/proc/{}", process.pid);
        let inside =
            || std::fs::read_link(format!("{proc}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        let environ = std::fs::read(format!("{proc}/environ")).unwrap_or_default();
        let marked = environ
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark);
        marked || (program(*process) == "postgres" && inside())
    };
    let all = all()
        .into_iter()
        .filter(Stat::lives)
        .map(|stat| stat.process);
    all.filter(belongs).collect()
}

impl Stat {
    fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Every process of this machine.
fn all() -> Vec<Stat> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pid =
        |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    entries.filter_map(pid).filter_map(stat).collect()
}

fn tree_once(root: Process, all: &[Stat]) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for stat in all.iter().filter(|stat| stat.lives()) {
        children.entry(stat.parent).or_default().push(stat.process);
    }
    let mut tree: Vec<_> = all
        .iter()
        .map(|stat| stat.process)
        .filter(|p| *p == root)
        .collect();
    let mut next = 0;
    while let Some(process) = tree.get(next) {
        tree.extend(children.remove(&process.pid).unwrap_or_default());
        next += 1;
    }
    tree
}

fn stat(pid: i32) -> Option<Stat> {
    parse(
        pid,
        &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?,
    )
}

/// The name (field 2) may hold spaces and parentheses: the fields are counted after its last one.
fn parse(pid: i32, text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        process: Process { pid, started },
        parent,
        state,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Reaped(Child);

    impl Drop for Reaped {
        fn drop(&mut self) {
            if let Some(process) = Process::now(self.0.id().cast_signed()) {
                drop(signal_all(&process.tree(), Signal::SIGKILL));
            }
            drop(self.0.wait());
        }
    }

    #[test]
    fn reads_a_name_with_parentheses() {
        let text = "7 (a) b (c)) S 3 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 100 1";
        let stat = parse(7, text).unwrap();
        assert_eq!(
            (stat.process.started, stat.parent, stat.state),
            (4711, 3, 'S')
        );
        assert!(parse(7, "7 (a) S 3").is_none());
    }

    #[test]
    fn finds_a_tree_stops_it_and_kills_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "sleep 100 & sleep 100 & echo up > up; wait"])
            .current_dir(dir.path());
        let mut child = Reaped(shell.spawn().unwrap());
        let root = Process::now(child.0.id().cast_signed()).unwrap();
        while !dir.path().join("up").exists() {
            std::thread::yield_now();
        }
        let tree = root.tree();
        assert_eq!((tree.len(), tree[0]), (3, root));
        let left = left_of(dir.path());
        assert!(
            left.is_empty(),
            "neither the shell nor its children are a lab's: {left:?}"
        );

        assert_eq!(signal_all(&tree, Signal::SIGSTOP).unwrap(), tree);
        while !tree.iter().all(|process| process.stopped()) {
            std::thread::yield_now();
        }
        assert_eq!(signal_all(&tree, Signal::SIGKILL).unwrap(), tree);
        child.0.wait().unwrap();
        while tree.iter().any(|process| process.lives()) {
            std::thread::yield_now();
        }
        assert!(signal_all(&tree, Signal::SIGKILL).unwrap().is_empty());
    }

    #[test]
    fn another_process_with_the_same_id_is_never_signalled() {
        let own = Process::now(std::process::id().cast_signed()).unwrap();
        assert!(own.lives());
        let older = Process {
            started: own.started - 1,
            ..own
        };
        assert!(!older.lives());
        assert_eq!(older.signal(Signal::SIGKILL), Ok(false));
    }
}
