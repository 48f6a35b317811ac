//! The bridge with a real kernel: these tests need root, /dev/fuse, loop devices and e2fsprogs. Those
//! in `ublk` are left out, and say so, where the kernel's ublk driver is not there (modprobe ublk_drv).
//!
//! The bridge runs in a process of its own (this test program, started again), as it must.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use uuid::Uuid;

use super::{Announcement, Behind, Bridge, BridgeOptions, Driver, Left};
use crate::block::{self, Usage};
use crate::initiator::{Initiator, Options};
use crate::memory::{Fault, MemoryNamespace};
use crate::reservation::{Acquire, ChangePersistence, Register};
use crate::target::{NamespaceConfig, StartError, Target, TargetConfig, default_subsystem};
use crate::{HostId, HostIdentity, Namespace, ReservationType};

const CHILD: &str = "BATON_TEST_BRIDGE";
const MIB: u64 = 1 << 20;

/// No test: the bridge process of the other tests. Its variable says how big the namespace is and
/// what is wrong with it.
#[test]
fn bridge_process() {
    let Ok(wish) = std::env::var(CHILD) else {
        return;
    };
    let (driver, wish) = wish.split_once(' ').expect("a driver and a wish");
    block::die_with_parent(nix::unistd::getppid()).expect("tie to the parent");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("make a runtime");
    runtime.block_on(async {
        let options = BridgeOptions {
            path_loss: Duration::from_secs(10),
            name: "bridge-test".to_owned(),
            driver: match driver {
                "ublk" => Driver::Ublk,
                _ => Driver::Fuse,
            },
            directory: None,
        };
        let bridge = match wish.strip_prefix("target ") {
            Some(address) => {
                let initiator = Initiator::connect(host(address, 0xa)).await;
                Bridge::attach(Arc::new(initiator.expect("connect")), options).await
            }
            None => {
                let backend = Arc::new(MemoryNamespace::new(256 * MIB / 4096, 4096));
                backend.set_fault(match wish {
                    "conflict" => Some(Fault::WritesConflict),
                    "frozen" => Some(Fault::WritesHang),
                    _ => None,
                });
                Bridge::attach(backend, options).await
            }
        };
        let mut bridge = bridge.expect("attach");
        // Written past the test harness, which would capture it.
        let line = serde_json::to_string(&bridge.announcement()).expect("write") + "\n";
        nix::unistd::write(std::io::stdout(), line.as_bytes()).expect("tell the device");
        bridge.ended().await;
    });
}

fn host(address: &str, number: u128) -> Options {
    let identity = HostIdentity {
        nqn: format!("nqn.2026-11.dev.baton:{number:x}")
            .parse()
            .expect("an NQN"),
        id: HostId(Uuid::from_u128(number)),
    };
    Options::new(address.to_owned(), default_subsystem(), 1, identity)
}

/// A target of this crate, on a runtime of its own: this thread waits for file systems.
struct Served {
    runtime: tokio::runtime::Runtime,
    target: Option<Target>,
    directory: TempDir,
    address: SocketAddr,
    volatile_cache: Option<usize>,
}

impl Served {
    fn new(volatile_cache: Option<usize>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("make a runtime");
        let mut served = Self {
            runtime,
            target: None,
            directory: TempDir::new().expect("make a directory"),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            volatile_cache,
        };
        served.start();
        served
    }

    /// Starts the target, at the same port where it had one. Reservations are kept.
    fn start(&mut self) {
        let path = |name| self.directory.path().join(name);
        let mut namespace = NamespaceConfig::new(path("namespace"), Some(256 * MIB));
        namespace.block_size = 4096;
        namespace.volatile_cache = self.volatile_cache;
        let mut config = TargetConfig::local(namespace);
        config.listen = self.address;
        config.state = Some(path("state"));
        let target = self.runtime.block_on(async {
            for _ in 0..200 {
                match Target::start(config.clone()).await {
                    // The predecessor's connections may not be gone yet.
                    Err(StartError::Namespace { .. } | StartError::Listen { .. }) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    started => return started.expect("start the target"),
                }
            }
            panic!("the predecessor does not go away");
        });
        self.address = target.address();
        self.target = Some(target);
    }

    fn stop(&mut self) {
        let target = self.target.take().expect("a running target");
        self.runtime
            .block_on(target.shutdown())
            .expect("stop the target");
    }

    fn bridge(&self, driver: Driver) -> BridgeProcess {
        BridgeProcess::start(driver, &format!("target {}", self.address))
    }

    fn control(&self, request: serde_json::Value) -> serde_json::Value {
        let target = self.target.as_ref().expect("a running target");
        let request = serde_json::from_value(request).expect("a request");
        self.runtime.block_on(target.control(request))
    }
}

/// A bridge process; killed at the end of the test.
struct BridgeProcess {
    child: Child,
    device: PathBuf,
    behind: Behind,
}

impl BridgeProcess {
    fn start(driver: Driver, wish: &str) -> Self {
        let driver = match driver {
            Driver::Ublk => "ublk",
            Driver::Fuse | Driver::Auto => "fuse",
        };
        let mut child = Command::new(std::env::current_exe().expect("find myself"))
            .args(["--exact", "bridge::tests::bridge_process", "--nocapture"])
            .env(CHILD, format!("{driver} {wish}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the bridge");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let said = output
            .lines()
            .map(|line| line.expect("read its output"))
            .find_map(|line| Some(line[line.find("{\"device\"")?..].to_owned()))
            .expect("the bridge names its device");
        let Announcement { device, behind } = serde_json::from_str(&said).expect("understood");
        Self {
            child,
            device,
            behind,
        }
    }

    fn connection(&self) -> u32 {
        match self.behind {
            Behind::Fuse(connection) => connection,
            Behind::Ublk(device) => panic!("no FUSE connection: {device:?}"),
        }
    }

    fn kill(&mut self) {
        self.child.kill().expect("kill the bridge");
        self.child.wait().expect("reap the bridge");
    }

    /// Of a killed bridge, whose device nobody has open any more: it is gone, with all that the
    /// kernel kept of it.
    fn leaves_nothing(&self) {
        match self.behind {
            Behind::Fuse(_) => assert!(
                soon(|| !self.is_attached()),
                "the loop device went with its last user"
            ),
            Behind::Ublk(_) => {
                let left = self.removed(Left::Nothing);
                assert_eq!(left, Left::Nothing, "{}", self.device.display());
                assert!(!self.device.exists());
            }
        }
    }

    /// Takes away what a killed bridge left of its ublk device, and waits until it is so far gone.
    fn removed(&self, wanted: Left) -> Left {
        let Behind::Ublk(device) = self.behind else {
            return Left::Nothing;
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("make a runtime");
        let left = runtime.block_on(device.remove_within(wanted, Duration::from_secs(10)));
        left.expect("look at the device")
    }

    fn is_attached(&self) -> bool {
        let name = self.device.file_name().expect("a device has a name");
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        std::fs::read_to_string(backing).is_ok_and(|text| text.contains("namespace"))
    }
}

/// Whether it becomes true: a child that another test is just starting has this process's files open
/// until it becomes another program, and nothing tells when that is.
#[allow(clippy::disallowed_methods, reason = "there is no event to wait for")]
fn soon(mut is: impl FnMut() -> bool) -> bool {
    (0..500).any(|_| {
        let is = is();
        if !is {
            std::thread::sleep(Duration::from_millis(10));
        }
        is
    })
}

impl Drop for BridgeProcess {
    fn drop(&mut self) {
        // Gone already where the test killed it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            self.removed(Left::Held);
        }
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
        let mut last = Ok(());
        let unmounted = soon(|| {
            last = umount2(self.0.path(), MntFlags::empty());
            last != Err(nix::errno::Errno::EBUSY)
        });
        assert!(unmounted && last.is_ok(), "unmount: {last:?}");
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

/// Makes two tests of each function, one for each driver.
macro_rules! by_each_driver {
    ($($name:ident),* $(,)?) => {
        mod by_fuse {
            $(#[test] fn $name() { super::$name(super::Driver::Fuse); })*
        }
        mod by_ublk {
            $(
                #[test]
                #[ignore = "needs the kernel's module ublk_drv; see also scripts/test-vm --case ublk"]
                fn $name() { super::$name(super::Driver::Ublk); }
            )*
        }
    };
}

by_each_driver!(
    ext4_lives_on_the_bridge,
    a_conflict_is_an_error_and_never_success,
    a_killed_bridge_leaves_errors_and_then_nothing,
    a_killed_bridge_with_dirty_pages_and_hanging_writes_ends,
    a_killed_bridge_that_is_the_last_user_of_dirty_pages_ends,
    a_target_that_restarts_does_not_hurt_the_file_system,
    what_was_fsynced_survives_power_losses_of_the_target,
    a_fenced_host_gets_errors_and_none_of_its_writes_is_applied,
);

fn ext4_lives_on_the_bridge(driver: Driver) {
    let bridge = BridgeProcess::start(driver, "sound");
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

fn a_conflict_is_an_error_and_never_success(driver: Driver) {
    let bridge = BridgeProcess::start(driver, "conflict");
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

/// Writes and fsyncs in a loop until an error or the end of the test, and tells of each round.
struct Load {
    rounds: Receiver<u64>,
    thread: JoinHandle<std::io::Error>,
}

impl Load {
    /// The thread must be started after the mount namespace was left, which it inherits.
    fn start(path: PathBuf) -> Self {
        let (round, rounds) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let file = File::create(path).expect("create");
            for at in 0.. {
                let written = file.write_all_at(&pattern(MIB as usize, at), at % 64 * MIB);
                if let Err(e) = written.and_then(|()| file.sync_data()) {
                    return e;
                }
                if round.send(at).is_err() {
                    break;
                }
            }
            std::io::Error::other("nobody listens any more")
        });
        let load = Self { rounds, thread };
        load.wait_rounds(3);
        load
    }

    /// Waits for so many further rounds.
    fn wait_rounds(&self, count: u32) {
        for _ in 0..count {
            let round = self.rounds.recv_timeout(Duration::from_secs(60));
            round.expect("the load goes on");
        }
    }

    /// The load's error.
    fn error(self) -> std::io::Error {
        self.thread.join().expect("the load ends")
    }

    /// Ends a load without errors, and gives the number of its last round that was told of.
    fn stop(self) -> u64 {
        let last = self.rounds.recv().expect("the load goes on");
        drop(self.rounds);
        let error = self.thread.join().expect("the load ends");
        assert!(error.raw_os_error().is_none(), "{error}");
        last
    }
}

fn a_killed_bridge_leaves_errors_and_then_nothing(driver: Driver) {
    let mut bridge = BridgeProcess::start(driver, "sound");
    let mount_point = MountPoint::new();
    format(&bridge.device);
    mount_point.mount(&bridge.device);
    let load = Load::start(mount_point.path("load"));
    bridge.kill();
    let error = load.error();
    assert!(error.raw_os_error().is_some(), "{error}");
    if matches!(bridge.behind, Behind::Ublk(_)) {
        assert_eq!(bridge.removed(Left::Held), Left::Held, "its mount is alive");
    }
    mount_point.unmount();
    bridge.leaves_nothing();
}

/// The hard case: requests that nobody answers, dirty pages on the device itself, then SIGKILL.
fn a_killed_bridge_with_dirty_pages_and_hanging_writes_ends(driver: Driver) {
    let mut bridge = BridgeProcess::start(driver, "frozen");
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
    bridge.leaves_nothing();
}

/// Dirty pages and nobody but the bridge has the device open when it is killed.
fn a_killed_bridge_that_is_the_last_user_of_dirty_pages_ends(driver: Driver) {
    let mut bridge = BridgeProcess::start(driver, "frozen");
    let device = OpenOptions::new()
        .write(true)
        .open(&bridge.device)
        .expect("open");
    device
        .write_all_at(&pattern(MIB as usize, 4), 0)
        .expect("make pages dirty");
    let closing = std::thread::spawn(move || drop(device));
    // A loop device is held open by its bridge; the last close of a ublk device writes back itself.
    if driver == Driver::Fuse {
        closing.join().expect("close");
        bridge.kill();
    } else {
        bridge.kill();
        closing.join().expect("close");
    }
    bridge.leaves_nothing();
}

/// What a bridge that hangs in the kernel, half dead, would leave waiting.
#[test]
fn an_aborted_connection_fails_what_waits_in_it_and_no_other() {
    let (mut frozen, sound) = (
        BridgeProcess::start(Driver::Fuse, "frozen"),
        BridgeProcess::start(Driver::Fuse, "sound"),
    );
    let sequence =
        |bridge: &BridgeProcess| block::disk_sequence(&bridge.device).expect("a sequence");
    let device = OpenOptions::new()
        .write(true)
        .open(&frozen.device)
        .expect("open");
    device
        .write_all_at(&pattern(MIB as usize, 5), 0)
        .expect("make pages dirty");
    let waiting = std::thread::spawn(move || device.sync_all());

    let another = sequence(&sound);
    let kept = super::abort(&frozen.device, another, frozen.connection()).expect("look");
    assert!(!kept, "a device of another sequence is not the bridge's");
    let aborted = super::abort(&frozen.device, sequence(&frozen), frozen.connection());
    assert!(aborted.expect("abort"));
    let synced = waiting.join().expect("join");
    synced.expect_err("an error and no hang");
    frozen.kill();
    assert!(!frozen.is_attached());
    let gone = super::abort(&frozen.device, another, frozen.connection()).expect("look");
    assert!(!gone, "nothing is there any more");
    format(&sound.device);
}

fn a_target_that_restarts_does_not_hurt_the_file_system(driver: Driver) {
    let mut served = Served::new(None);
    let bridge = served.bridge(driver);
    let mount_point = MountPoint::new();
    format(&bridge.device);
    mount_point.mount(&bridge.device);
    let load = Load::start(mount_point.path("load"));
    for _ in 0..2 {
        served.stop();
        served.start();
        load.wait_rounds(3);
    }
    load.stop();
    mount_point.unmount();
    run("e2fsck", &["-f", "-n"], &bridge.device);
}

/// The target loses its cache again and again while the file system lives: every fsync that
/// succeeded must hold.
fn what_was_fsynced_survives_power_losses_of_the_target(driver: Driver) {
    let served = Served::new(Some(64 << 20));
    let bridge = served.bridge(driver);
    let mount_point = MountPoint::new();
    format(&bridge.device);
    mount_point.mount(&bridge.device);
    let load = Load::start(mount_point.path("load"));
    // Most of the time then passes between the completion of writes and that of their flush.
    let delay = serde_json::json!({"do": "delay", "ms": 100, "operation": "flush"});
    served.control(delay);
    for _ in 0..4 {
        load.wait_rounds(1);
        let into_a_flush = async { tokio::time::sleep(Duration::from_millis(70)).await };
        served.runtime.block_on(into_a_flush);
        let answer = served.control(serde_json::json!({"do": "power_loss"}));
        assert_eq!(answer["ok"], true, "{answer}");
    }
    served.control(serde_json::json!({"do": "heal"}));
    let last = load.stop();
    // Once more, with nothing under way: what is only in the cache is gone now.
    served.control(serde_json::json!({"do": "power_loss"}));
    mount_point.unmount();
    run("e2fsck", &["-f", "-n"], &bridge.device);
    mount_point.mount(&bridge.device);
    let file = File::open(mount_point.path("load")).expect("open");
    let mut read = vec![0; MIB as usize];
    // The round after the last one told of may have begun: it overwrites what is 64 rounds older.
    for round in last.saturating_sub(60)..=last {
        file.read_exact_at(&mut read, round % 64 * MIB)
            .expect("read");
        assert!(read == pattern(MIB as usize, round), "round {round}");
    }
    drop(file);
    mount_point.unmount();
}

fn a_fenced_host_gets_errors_and_none_of_its_writes_is_applied(driver: Driver) {
    let served = Served::new(None);
    let mut bridge = served.bridge(driver);
    let mount_point = MountPoint::new();
    let address = served.address.to_string();
    let kind = ReservationType::WriteExclusive;
    let (a, b) = served.runtime.block_on(async {
        let a = Initiator::connect(host(&address, 0xa))
            .await
            .expect("connect");
        let b = Initiator::connect(host(&address, 0xb))
            .await
            .expect("connect");
        for (host, key) in [(&a, 1), (&b, 2)] {
            let action = Register::Register { key };
            host.register(action, ChangePersistence::Unchanged)
                .await
                .expect("register");
        }
        a.acquire(Acquire::Acquire, 1, kind).await.expect("acquire");
        (a, b)
    });
    format(&bridge.device);
    mount_point.mount(&bridge.device);
    let load = Load::start(mount_point.path("load"));
    served.runtime.block_on(async {
        let preempt = Acquire::PreemptAndAbort { victim: 1 };
        b.acquire(preempt, 2, kind).await.expect("fence");
    });
    let error = load.error();
    let errno = error.raw_os_error();
    assert!(
        matches!(errno, Some(libc::EBADE | libc::EIO | libc::EROFS)),
        "{error}"
    );
    block::shut_down(mount_point.path("").as_path()).expect("shut down");
    mount_point.unmount();
    let audit = served.control(serde_json::json!({"do": "audit"}));
    assert_eq!(audit["violations"], 0, "{audit}");
    assert_ne!(audit["fences"][0]["refused_writes"], 0, "{audit}");
    bridge.kill();
    bridge.leaves_nothing();
    drop(a);
}
