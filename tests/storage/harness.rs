//! A shared volume on a loop device, in a mount namespace of the test's own thread: whatever becomes
//! of the test, no mount, loop device or process is left.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton::postgres::{
    self, Instance, Isolation, OsUser, Programs, Session, StartedBy, StopBounds,
};
use baton::volume::{self, Label, Marker, Mounted, UnmountError};
use fencing::model::{Executed, Model, Quirks};
use fencing::{
    AbsenceEvidence, Claim, ClusterTag, Epoch, Expectation, FenceSequence, KeyFlags, Limits,
    MemberId, Mono, Sequence, StartSequence, Step, WritePermit,
};
use fs2::FileExt;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nvme::HostId;
use nvme::block::LoopDevice;

/// Far longer than anything here takes, so that only a hang reaches it.
pub const LONG: Duration = Duration::from_secs(60);

/// The cluster of all tests.
pub const CLUSTER: &str = "storage-test";

/// The site of all tests.
pub const SITE: &str = "here";

/// The label of all tests' volumes.
pub fn label() -> Label {
    Label::of(CLUSTER, SITE)
}

/// A real permit, proven by the real sequence against a reservation in memory.
pub fn permit(epoch: u32) -> WritePermit {
    let host = HostId(uuid::Uuid::from_u128(1));
    let claim = Claim {
        host,
        cluster: ClusterTag::of(CLUSTER),
        member: MemberId::new(1).unwrap(),
        epoch: Epoch::new(epoch).unwrap(),
        flags: KeyFlags::default(),
        former_controllers_gone: None,
    };
    let limits = Limits {
        deadline: Mono::from_millis(1000),
        retry_pause: Duration::ZERO,
        drain_wait: None,
        beat: Duration::ZERO,
        verify_within: LONG,
        require_persistence: false,
    };
    let mut model = Model::new(Quirks::NONE);
    let mut start = StartSequence::new(claim, limits);
    let _registered = end_of(&mut start, &mut model, host);
    let expectation = Expectation::Nobody(AbsenceEvidence::NeverOwned);
    end_of(
        &mut FenceSequence::new(claim, expectation, limits),
        &mut model,
        host,
    )
}

fn end_of<S>(sequence: &mut S, model: &mut Model, host: HostId) -> S::Proof
where
    S: Sequence<Unproven: std::fmt::Debug>,
{
    let mut outcome = None;
    loop {
        match sequence.next(Mono::from_millis(1), outcome.take()) {
            Step::Send(command) => match model.execute(host, &command) {
                Executed::Completed(completed) => outcome = Some(completed),
                Executed::Draining(_) => panic!("there is nothing to drain"),
            },
            Step::WaitUntil(_) => panic!("there is nothing to wait for"),
            Step::Proven(proof) => return proof,
            Step::Unproven(unproven) => panic!("{unproven:?}"),
        }
    }
}

/// A blank volume of 512 MiB.
pub struct Volume {
    pub device: LoopDevice,
    pub directory: tempfile::TempDir,
}

impl Volume {
    pub fn new() -> Self {
        own_mount_namespace();
        let directory = tempfile::tempdir().unwrap();
        // PostgreSQL's user must be able to reach the mount point.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let device = attach(&directory.path().join("volume"), 512 << 20);
        Self { device, directory }
    }

    pub fn device(&self) -> &Path {
        self.device.path()
    }

    pub fn mount_point(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// Formats and mounts it, with its marker.
    pub fn prepare(&self) -> Mounted {
        let permit = permit(1);
        let (contents, formattable) = volume::probe(self.device(), &label()).unwrap();
        let formattable = formattable.unwrap_or_else(|| panic!("not blank: {contents:?}"));
        let uuid = volume::format(&permit, formattable).unwrap();
        let mounted = self.mount();
        let marker = Marker::new(CLUSTER, SITE, uuid, permit.epoch());
        marker.write(&permit, mounted.root()).unwrap();
        mounted.sync().unwrap();
        unmount(mounted);
        volume::finish(&permit, self.device(), &label()).unwrap();
        self.mount()
    }

    pub fn mount(&self) -> Mounted {
        volume::mount(&permit(1), self.device(), &self.mount_point()).unwrap()
    }

    pub fn instance(&self) -> Instance {
        let root = self.mount_point();
        Instance {
            cluster: CLUSTER.to_owned(),
            member: "a".to_owned(),
            programs: Programs::detect(None).unwrap(),
            user: OsUser::look_up("postgres").unwrap(),
            data_directory: root.join("pgdata"),
            volume_root: root,
            runtime_directory: self.directory.path().join("run"),
            socket_directory: self.directory.path().join("socket"),
            port: free_port(),
            listen_addresses: "127.0.0.1".to_owned(),
            parameters: BTreeMap::new(),
            hba: vec!["host all all 127.0.0.1/32 trust".to_owned()],
            synchronous: false,
        }
    }
}

/// Attaches a new sparse file as a loop device, which detaches itself at its last close.
pub fn attach(path: &Path, size: u64) -> LoopDevice {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    file.set_len(size).unwrap();
    LoopDevice::attach(file.as_fd(), 512, "baton-test").unwrap()
}

/// This thread and those it starts get mounts of their own, which vanish with the last of them.
fn own_mount_namespace() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts filesystems: run it as root"
    );
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

pub const BATON: &str = env!("CARGO_BIN_EXE_baton");

/// Starts and waits until a write is committed.
pub async fn start(instance: &Instance, epoch: u32) -> (postgres::Launched, Session) {
    let lock = File::create(instance.runtime_directory.with_extension("lock")).unwrap();
    // Waits: a program that another test starts at the same moment may have inherited it.
    FileExt::lock_exclusive(&lock).unwrap();
    let launched = postgres::launch(
        &permit(epoch).licence(),
        instance,
        StartedBy {
            node_lock: Some(lock.into()),
            ..started_by(Path::new(BATON))
        },
    )
    .await
    .unwrap();
    launched
        .starting
        .ready(LONG)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let session = Session::connect(instance, LONG).await.unwrap();
    let epoch = Epoch::new(epoch).unwrap();
    session
        .commit_ownership(epoch, &instance.member, LONG)
        .await
        .unwrap();
    (launched, session)
}

pub const BOUNDS: StopBounds = StopBounds {
    fast: LONG,
    immediate: LONG,
    kill: LONG,
};

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// As a member starts it that attaches by itself, without a lock.
pub fn started_by(baton: &Path) -> StartedBy<'_> {
    StartedBy {
        baton,
        node_lock: None,
        isolation: Isolation::Namespace,
        witness: None,
    }
}

/// Unmounts; a child that another test is just starting has this process's files open until it becomes another
/// program, so a busy volume is tried again, for a while.
#[allow(clippy::disallowed_methods, reason = "there is no event to wait for")]
pub fn unmount(mut mounted: Mounted) {
    for _ in 0..500 {
        let still = match mounted.unmount() {
            Ok(()) => return,
            Err(still) => *still,
        };
        assert!(
            matches!(still.cause, UnmountError::Busy { .. }),
            "{still:?}"
        );
        mounted = still.mounted.expect("its root can be opened");
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the volume stays busy");
}

/// The processes of one tree, by the user's uid and the data directory of their postmaster.
pub fn processes_with(text: &str) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}
