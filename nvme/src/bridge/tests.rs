//! The bridge with a real kernel: these tests need root, /dev/fuse, loop devices and e2fsprogs.
//!
//! The bridge runs in a process of its own (this test program, started again), as it must.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::{Bridge, BridgeOptions};
use crate::block::{self, Usage};
use crate::memory::{Fault, MemoryNamespace};

const CHILD: &str = "BATON_TEST_BRIDGE";
const MIB: u64 = 1 << 20;

/// No test: the bridge process of the other tests. Its variable says how big the namespace is and
/// what is wrong with it.
#[test]
fn bridge_process() {
    let Ok(wish) = std::env::var(CHILD) else {
        return;
    };
    block::die_with_parent(nix::unistd::getppid()).expect("tie to the parent");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("make a runtime");
    runtime.block_on(async {
        let backend = Arc::new(MemoryNamespace::new(256 * MIB / 4096, 4096));
        backend.set_fault(match wish.as_str() {
            "conflict" => Some(Fault::WritesConflict),
            "frozen" => Some(Fault::WritesHang),
            _ => None,
        });
        let options = BridgeOptions {
            path_loss: Duration::from_secs(2),
            name: "bridge-test".to_owned(),
        };
        let mut bridge = Bridge::attach(backend, options).await.expect("attach");
        // Written past the test harness, which would capture it.
        let line = format!("{}\n", bridge.device().display());
        nix::unistd::write(std::io::stdout(), line.as_bytes()).expect("tell the device");
        bridge.ended().await;
    });
}

/// A bridge process; killed at the end of the test.
struct BridgeProcess {
    child: Child,
    device: PathBuf,
}

impl BridgeProcess {
    fn start(wish: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("find myself"))
            .args(["--exact", "bridge::tests::bridge_process", "--nocapture"])
            .env(CHILD, wish)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the bridge");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let device = output
            .lines()
            .map(|line| line.expect("read its output"))
            .find_map(|line| Some(line[line.find("/dev/loop")?..].to_owned()))
            .expect("the bridge names its device");
        Self {
            child,
            device: PathBuf::from(device),
        }
    }

    fn kill(&mut self) {
        self.child.kill().expect("kill the bridge");
        self.child.wait().expect("reap the bridge");
    }

    fn is_attached(&self) -> bool {
        let name = self.device.file_name().expect("a device has a name");
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        std::fs::read_to_string(backing).is_ok_and(|text| text.contains("namespace"))
    }
}

impl Drop for BridgeProcess {
    fn drop(&mut self) {
        // Gone already where the test killed it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory to mount on, in a mount namespace of this test's thread alone: whatever happens,
/// the mount vanishes with the thread.
struct MountPoint(TempDir);

impl MountPoint {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace (the test needs root)");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        Self(TempDir::new().expect("make a directory"))
    }

    fn mount(&self, device: &Path) {
        let data = Some("errors=remount-ro");
        mount(
            Some(device),
            self.0.path(),
            Some("ext4"),
            MsFlags::MS_NOATIME,
            data,
        )
        .expect("mount ext4");
    }

    fn unmount(&self) {
        umount2(self.0.path(), MntFlags::empty()).expect("unmount");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

fn run(program: &str, arguments: &[&str], device: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .arg(device)
        .output()
        .expect("start the program");
    assert!(output.status.success(), "{program}: {output:?}");
}

fn format(device: &Path) {
    run(
        "mkfs.ext4",
        &["-q", "-F", "-E", "lazy_itable_init=1"],
        device,
    );
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
        .collect()
}

#[test]
fn ext4_lives_on_the_bridge() {
    let bridge = BridgeProcess::start("sound");
    let mount_point = MountPoint::new();
    format(&bridge.device);
    mount_point.mount(&bridge.device);
    assert_eq!(block::usage(&bridge.device).expect("probe"), Usage::InUse);
    let content = pattern(32 * MIB as usize + 777, 1);
    let mut file = File::create(mount_point.path("file")).expect("create");
    file.write_all(&content).expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    mount_point.unmount();
    run("e2fsck", &["-f", "-n"], &bridge.device);
    mount_point.mount(&bridge.device);
    let read = std::fs::read(mount_point.path("file")).expect("read");
    assert!(read == content, "what was written is read");
    mount_point.unmount();
    assert_eq!(block::usage(&bridge.device).expect("probe"), Usage::Free);
}

#[test]
fn a_conflict_is_an_error_and_never_success() {
    let bridge = BridgeProcess::start("conflict");
    let device = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&bridge.device)
        .expect("open");
    // Over-allocated, so that an aligned page lies inside.
    let buffer = vec![7_u8; 3 * 4096];
    let shift = buffer.as_ptr().align_offset(4096);
    let refused = device.write_at(&buffer[shift..shift + 4096], 0);
    let errno = refused.expect_err("a fenced write").raw_os_error();
    assert_eq!(
        errno,
        Some(libc::EBADE),
        "the block layer's reservation conflict"
    );
}

#[test]
fn a_killed_bridge_leaves_errors_and_then_nothing() {
    let mut bridge = BridgeProcess::start("sound");
    let mount_point = MountPoint::new();
    format(&bridge.device);
    mount_point.mount(&bridge.device);
    let path = mount_point.path("load");
    let (started, wait) = std::sync::mpsc::channel();
    let load = std::thread::spawn(move || -> std::io::Error {
        let block = pattern(MIB as usize, 2);
        let mut started = Some(started);
        let mut file = File::create(path).expect("create");
        for at in 0.. {
            let written = file.write_all_at(&block, at % 64 * MIB);
            if let Err(e) = written.and_then(|()| file.sync_data()) {
                return e;
            }
            if at == 4
                && let Some(started) = started.take()
            {
                started.send(()).expect("say so");
            }
            file.flush().expect("a file has no buffer");
        }
        unreachable!("an endless loop")
    });
    wait.recv().expect("the load runs");
    bridge.kill();
    let error = load.join().expect("the load ends");
    assert!(error.raw_os_error().is_some(), "{error}");
    mount_point.unmount();
    assert!(
        !bridge.is_attached(),
        "the loop device went with its last user"
    );
}

/// The hard case: requests that nobody answers, dirty pages on the device itself, then SIGKILL.
#[test]
fn a_killed_bridge_with_dirty_pages_and_hanging_writes_ends() {
    let mut bridge = BridgeProcess::start("frozen");
    let device = OpenOptions::new()
        .write(true)
        .open(&bridge.device)
        .expect("open");
    device
        .write_all_at(&pattern(MIB as usize, 3), 0)
        .expect("make pages dirty");
    let writer = {
        let device = device.try_clone().expect("clone");
        std::thread::spawn(move || device.sync_all())
    };
    // Not dropped before the kill: its close would wait for the write-back.
    bridge.kill();
    writer
        .join()
        .expect("join")
        .expect_err("an error and no hang");
    drop(device);
    assert!(!bridge.is_attached());
}

/// Dirty pages and nobody but the bridge has the device open when it is killed.
#[test]
fn a_killed_bridge_that_is_the_last_user_of_dirty_pages_ends() {
    let mut bridge = BridgeProcess::start("frozen");
    let device = OpenOptions::new()
        .write(true)
        .open(&bridge.device)
        .expect("open");
    device
        .write_all_at(&pattern(MIB as usize, 4), 0)
        .expect("make pages dirty");
    drop(device);
    bridge.kill();
    assert!(!bridge.is_attached());
}
