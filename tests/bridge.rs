//! `baton bridge` as a process: what it prints, what it refuses, how it ends, and what it leaves.
//! Needs root, /dev/fuse and loop devices.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that is killed when the test ends, however it ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail on one that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("start baton"))
    }

    /// The member of its first line's JSON; `None` if it ended without a line.
    fn says(&mut self, member: &str) -> Option<String> {
        let mut line = String::new();
        let output = self.0.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("read");
        let said: serde_json::Value = serde_json::from_str(&line).ok()?;
        Some(said[member].as_str().expect("a string").to_owned())
    }

    fn ends(mut self) -> (ExitStatus, String) {
        drop(self.0.stdin.take());
        let mut errors = String::new();
        let mut pipe = self.0.stderr.take().expect("its errors");
        pipe.read_to_string(&mut errors).expect("read");
        (self.0.wait().expect("reap"), errors)
    }
}

fn target(directory: &Path) -> (Process, String) {
    let mut target = Process::start(
        Command::new(env!("CARGO_BIN_EXE_baton"))
            .args(["target", "--listen", "127.0.0.1:0", "--namespace"])
            .arg(format!(
                "{},size=64M",
                directory.join("namespace").display()
            )),
    );
    let address = target.says("listen").expect("the target listens");
    (target, address)
}

fn bridge(directory: &Path, address: &str) -> Process {
    Process::start(
        Command::new(env!("CARGO_BIN_EXE_baton"))
            .args(["bridge", "--address", address])
            .args(["--subsystem", "nqn.2026-11.dev.baton:lab"])
            .args(["--host-nqn", "nqn.2026-11.dev.baton:host"])
            .args(["--host-id", "5f0c3a52-6f0b-4d0e-9d7e-0c5a4b3f2e1d"])
            .arg("--directory")
            .arg(directory.join("bridge"))
            .stdin(Stdio::piped()),
    )
}

fn is_attached(device: &Path) -> bool {
    let name = device.file_name().expect("a device has a name");
    Path::new("/sys/block").join(name).join("loop").exists()
}

/// What ends a bridge.
enum End {
    EndOfInput,
    Signal(Signal),
}

#[test]
fn every_end_takes_the_device_away() {
    let directory = tempfile::tempdir().expect("make a directory");
    let (_target, address) = target(directory.path());
    let ends = [
        End::EndOfInput,
        End::Signal(Signal::SIGTERM),
        End::Signal(Signal::SIGINT),
        End::Signal(Signal::SIGKILL),
    ];
    for end in ends {
        let mut bridge = bridge(directory.path(), &address);
        let device = PathBuf::from(bridge.says("device").expect("it names its device"));
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&device);
        let opened = opened.expect("open the device");
        opened.write_all_at(&[7; 4096], 8192).expect("write");
        opened.sync_all().expect("fsync");
        drop(opened);
        if let End::Signal(signal) = end {
            let pid = i32::try_from(bridge.0.id()).expect("a process number");
            kill(Pid::from_raw(pid), signal).expect("signal");
        }
        let killed = matches!(end, End::Signal(Signal::SIGKILL));
        let (status, errors) = bridge.ends();
        assert_eq!(status.success(), !killed, "{errors}");
        assert!(!is_attached(&device), "{errors}");
        std::fs::remove_dir(directory.path().join("bridge")).expect("nothing is left in it");
    }
    let namespace = std::fs::read(directory.path().join("namespace")).expect("read the file");
    assert_eq!(namespace[8192..8192 + 4096], [7; 4096]);
}

#[test]
fn what_cannot_be_served_is_said() {
    let directory = tempfile::tempdir().expect("make a directory");
    let (_target, address) = target(directory.path());
    let mut first = bridge(directory.path(), &address);
    first.says("device").expect("it names its device");
    let mut second = bridge(directory.path(), &address);
    assert_eq!(second.says("device"), None);
    let (status, errors) = second.ends();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("another bridge has it"), "{errors}");
    let elsewhere = tempfile::tempdir().expect("make a directory");
    // Nobody listens on the discard port of this machine.
    let nobody = bridge(elsewhere.path(), "127.0.0.1:9");
    let (status, errors) = nobody.ends();
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("127.0.0.1:9"), "{errors}");
}
