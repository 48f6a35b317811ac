//! `baton bridge` as a process: what it prints, what it refuses, how it ends, and what it leaves.
//! Needs root, /dev/fuse and loop devices. The tests in `by_ublk` are ignored by themselves: they need the
//! kernel's ublk driver (modprobe ublk_drv), and scripts/test runs them where that is.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nvme::bridge::{Announcement, Behind, Left, UblkDevice};

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
        let said: serde_json::Value = serde_json::from_str(&self.line()).ok()?;
        Some(said[member].as_str().expect("a string").to_owned())
    }

    /// The device that a bridge announces; `None` if it ended without a line.
    fn announces(&mut self) -> Option<Announcement> {
        serde_json::from_str(&self.line()).ok()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let output = self.0.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("read");
        line
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

fn bridge(directory: &Path, address: &str, backend: &str) -> Process {
    Process::start(
        Command::new(env!("CARGO_BIN_EXE_baton"))
            .args(["bridge", "--address", address])
            .args(["--subsystem", "nqn.2026-11.dev.baton:lab"])
            .args(["--host-nqn", "nqn.2026-11.dev.baton:host"])
            .args(["--host-id", "5f0c3a52-6f0b-4d0e-9d7e-0c5a4b3f2e1d"])
            .arg("--directory")
            .arg(directory.join("bridge"))
            .args(["--backend", backend])
            .stdin(Stdio::piped()),
    )
}

/// Whether the device of a bridge that has ended is there, or anything that the kernel kept of it.
fn is_there(announced: &Announcement) -> bool {
    match announced.behind {
        Behind::Fuse(_) => {
            let name = announced.device.file_name().expect("a device has a name");
            Path::new("/sys/block").join(name).join("loop").exists()
        }
        Behind::Ublk(device) => device.remove().expect("look at the device") != Left::Nothing,
    }
}

/// Waits for its end.
fn goes(announced: &Announcement) {
    let until = baton::clock::now() + std::time::Duration::from_secs(10);
    while is_there(announced) {
        assert!(baton::clock::now() < until, "{announced:?} is kept");
        std::thread::yield_now();
    }
}

/// Makes two tests of each function, one for each backend.
macro_rules! by_each_backend {
    ($($name:ident),* $(,)?) => {
        mod by_fuse {
            $(#[test] fn $name() { super::$name("fuse"); })*
        }
        mod by_ublk {
            $(
                #[test]
                #[ignore = "needs the kernel's module ublk_drv; see also scripts/test-vm --case ublk"]
                fn $name() { super::$name("ublk"); }
            )*
        }
    };
}

by_each_backend!(
    every_end_takes_the_device_away,
    a_successor_takes_away_what_a_killed_bridge_left,
    a_bridge_that_dies_last_is_not_kept_by_the_mount_of_its_device,
    what_cannot_be_served_is_said,
);

/// What ends a bridge.
enum End {
    EndOfInput,
    Signal(Signal),
}

fn every_end_takes_the_device_away(backend: &str) {
    let directory = tempfile::tempdir().expect("make a directory");
    let (_target, address) = target(directory.path());
    let ends = [
        End::EndOfInput,
        End::Signal(Signal::SIGTERM),
        End::Signal(Signal::SIGINT),
        End::Signal(Signal::SIGKILL),
    ];
    for end in ends {
        let mut bridge = bridge(directory.path(), &address, backend);
        let announced = bridge.announces().expect("it names its device");
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&announced.device);
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
        let of_it = directory.path().join("bridge");
        match (killed, announced.behind) {
            (true, Behind::Ublk(device)) => {
                goes(&announced);
                let recorded = UblkDevice::recorded(&of_it).expect("its record");
                assert_eq!(recorded, Some(device), "for those who do not know of it");
                UblkDevice::forget(&of_it).expect("remove the record");
            }
            _ => assert!(!is_there(&announced), "{errors}"),
        }
        std::fs::remove_dir(of_it).expect("nothing is left in it");
    }
    let namespace = std::fs::read(directory.path().join("namespace")).expect("read the file");
    assert_eq!(namespace[8192..8192 + 4096], [7; 4096]);
}

/// Also when the one that started the bridge is gone too, and forgot what it knew.
fn a_successor_takes_away_what_a_killed_bridge_left(backend: &str) {
    let directory = tempfile::tempdir().expect("make a directory");
    let (_target, address) = target(directory.path());
    let mut killed = bridge(directory.path(), &address, backend);
    let first = killed.announces().expect("it names its device");
    killed.0.kill().expect("kill the bridge");
    killed.0.wait().expect("reap the bridge");
    // The kernel may be at it for a moment yet: whoever starts the bridge again tries again.
    let until = baton::clock::now() + std::time::Duration::from_secs(10);
    let (successor, second) = loop {
        let mut successor = bridge(directory.path(), &address, backend);
        match successor.announces() {
            Some(second) => break (successor, second),
            None => {
                let (_, errors) = successor.ends();
                assert!(baton::clock::now() < until, "{errors}");
            }
        }
    };
    if let Behind::Ublk(device) = first.behind {
        assert_eq!(device.remove().expect("look at the device"), Left::Nothing);
    }
    let (status, errors) = successor.ends();
    assert!(status.success(), "{errors}");
    assert!(!is_there(&second), "{errors}");
}

/// Whether a thread of this process has ended, or waits for the frozen bridge while it does.
fn is_over_or_unmounting(thread: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    stat.map_or(true, |stat| {
        let state = stat.rsplit(") ").next().expect("fields after the name");
        state.starts_with('D')
    })
}

/// Its member and PostgreSQL die with it, so that nobody else is left where the volume is mounted.
fn a_bridge_that_dies_last_is_not_kept_by_the_mount_of_its_device(backend: &str) {
    let directory = tempfile::tempdir().expect("make a directory");
    let (_target, address) = target(directory.path());
    let (told, tell) = std::sync::mpsc::channel();
    let place = directory.path().to_owned();
    let backend = backend.to_owned();
    std::fs::create_dir(place.join("mount")).expect("make the mount point");
    let member = std::thread::spawn(move || {
        baton::mount_namespace::enter_own().expect("a mount namespace");
        let mut bridge = bridge(&place, &address, &backend);
        let announced = bridge.announces().expect("it names its device");
        let device = &announced.device;
        let made = Command::new("mkfs.ext4").arg("-q").arg(device).status();
        assert!(made.expect("run mkfs.ext4").success());
        let none = None::<&str>;
        let mounted = nix::mount::mount(
            Some(device),
            &place.join("mount"),
            Some("ext4"),
            nix::mount::MsFlags::empty(),
            none,
        );
        mounted.expect("mount");
        std::fs::write(place.join("mount/dirty"), [7; 1 << 20]).expect("write");
        let pid = Pid::from_raw(i32::try_from(bridge.0.id()).expect("a process number"));
        kill(pid, Signal::SIGSTOP).expect("freeze the bridge");
        let thread = nix::unistd::gettid();
        told.send((bridge, pid, announced, thread)).expect("tell");
        // The mount namespace ends with this thread, unless the bridge is in it.
    });
    let (mut bridge, pid, announced, thread) = tell.recv().expect("a bridge");
    while !is_over_or_unmounting(thread) {
        std::thread::yield_now();
    }
    kill(pid, Signal::SIGKILL).expect("kill the bridge");
    bridge.0.wait().expect("reap the bridge");
    member.join().expect("the member's end");
    goes(&announced);
}

fn what_cannot_be_served_is_said(backend: &str) {
    let directory = tempfile::tempdir().expect("make a directory");
    let (_target, address) = target(directory.path());
    let mut first = bridge(directory.path(), &address, backend);
    first.announces().expect("it names its device");
    let mut second = bridge(directory.path(), &address, backend);
    assert_eq!(second.announces(), None);
    let (status, errors) = second.ends();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("another bridge has it"), "{errors}");
    let elsewhere = tempfile::tempdir().expect("make a directory");
    // Nobody listens on the discard port of this machine.
    let (status, errors) = first.ends();
    assert!(status.success(), "{errors}");
    let mut nobody = bridge(elsewhere.path(), "127.0.0.1:9", backend);
    assert_eq!(nobody.announces(), None);
    let (status, errors) = nobody.ends();
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("127.0.0.1:9"), "{errors}");
}
