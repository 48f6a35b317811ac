//! PostgreSQL: made, started, written to, killed, stopped, refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use baton::clock;
use baton::postgres::{
    self, ControlData, DataDirectory, DataDirectoryError, DatabaseState, End, Instance, NotReady,
    Session, StartError, StopBounds, StopOutcome, StoppedBy,
};
use fencing::Epoch;

use crate::harness::{
    BATON, BOUNDS, LONG, Volume, block_on, label, permit, processes_with, start, started_by,
    unmount,
};
use baton::volume::{Cleanliness, Superblock};

fn controldata(instance: &Instance, key: &str) -> String {
    let program = instance.programs.path("pg_controldata");
    let output = Command::new(program)
        .arg(&instance.data_directory)
        .env("LC_ALL", "C")
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

fn same_as_pg_controldata(instance: &Instance) -> ControlData {
    let control = ControlData::read(&instance.data_directory).unwrap();
    let pairs = [
        (
            "Database system identifier",
            control.system_identifier.to_string(),
        ),
        (
            "pg_control version number",
            control.control_version.to_string(),
        ),
        (
            "Catalog version number",
            control.catalog_version.to_string(),
        ),
        ("Database cluster state", control.state.to_string()),
        ("Latest checkpoint location", control.checkpoint.to_string()),
        (
            "Latest checkpoint's REDO location",
            control.redo.to_string(),
        ),
        (
            "Latest checkpoint's TimeLineID",
            control.timeline.to_string(),
        ),
        (
            "Latest checkpoint's PrevTimeLineID",
            control.previous_timeline.to_string(),
        ),
        (
            "Minimum recovery ending location",
            control.minimum_recovery.to_string(),
        ),
        (
            "Min recovery ending loc's timeline",
            control.minimum_recovery_timeline.to_string(),
        ),
        (
            "Bytes per WAL segment",
            control.wal_segment_size.to_string(),
        ),
        (
            "Data page checksum version",
            control.data_checksum_version.to_string(),
        ),
    ];
    for (key, value) in pairs {
        assert_eq!(controldata(instance, key), value, "{key}");
    }
    control
}

async fn stop_fast(launched: &mut postgres::Launched) {
    let outcome = postgres::stop(&mut launched.postmaster, BOUNDS).await;
    let expected = StopOutcome::Stopped {
        by: StoppedBy::Fast,
        end: End::Exited { code: 0 },
    };
    assert_eq!(outcome, expected, "{}", launched.starting.log_tail());
}

#[test]
fn a_new_database_serves_stops_and_serves_again() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let instance = volume.instance();
    let made = postgres::initdb(&permit(1).licence(), &instance).unwrap();
    assert_eq!(made.state, DatabaseState::ShutDown);
    assert_eq!(made.data_checksum_version, 1);
    assert!(matches!(
        postgres::initdb(&permit(1).licence(), &instance),
        Err(postgres::InitdbError::Exists { .. })
    ));
    block_on(async {
        let (mut launched, session) = start(&instance, 1).await;
        let running = same_as_pg_controldata(&instance);
        assert_eq!(running.state, DatabaseState::InProduction);
        assert!(!session.pulse(LONG).await.unwrap().in_recovery);
        for (name, value) in [
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("data_checksums", "on"),
            ("dynamic_shared_memory_type", "sysv"),
            ("lc_collate", "C"),
            ("cluster_name", "storage-test"),
        ] {
            assert_eq!(session.setting(name, LONG).await.unwrap(), value, "{name}");
        }
        session.checkpoint(LONG).await.unwrap();
        stop_fast(&mut launched).await;
        assert!(session.pulse(LONG).await.unwrap_err().is_disconnected());
        postgres::verify_shut_down(&instance.data_directory, false).unwrap();
        assert_eq!(
            same_as_pg_controldata(&instance).system_identifier,
            made.system_identifier
        );

        let (mut launched, _session) = start(&instance, 2).await;
        stop_fast(&mut launched).await;
    });
    unmount(mounted);
}

/// The phases of a hand-over and how long each took, in milliseconds.
struct Phases(Vec<(&'static str, u64)>, u64);

impl Phases {
    fn begin() -> Self {
        Self(Vec::new(), clock::now().as_millis())
    }

    fn lap(&mut self, name: &'static str) {
        let now = clock::now().as_millis();
        self.0
            .push((name, now - std::mem::replace(&mut self.1, now)));
    }
}

impl std::fmt::Display for Phases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total: u64 = self.0.iter().map(|(_, took)| took).sum();
        for (name, took) in &self.0 {
            write!(f, "{name} {took}, ")?;
        }
        write!(f, "in all {total} ms")
    }
}

/// The second half of every hand-over: from the unmounted volume to a committed write.
async fn take(
    volume: &Volume,
    instance: &Instance,
    epoch: u32,
    phases: &mut Phases,
) -> (baton::volume::Mounted, postgres::Launched, Session) {
    baton::volume::drop_caches(volume.device()).unwrap();
    Superblock::read(volume.device())
        .unwrap()
        .admit(&label())
        .unwrap();
    phases.lap("look");
    let mounted = volume.mount();
    phases.lap("mount");
    let baton = Path::new(BATON);
    let launched = postgres::launch(&permit(epoch).licence(), instance, started_by(baton))
        .await
        .unwrap();
    phases.lap("launch");
    launched.starting.ready(LONG).await.unwrap();
    phases.lap("ready");
    let session = Session::connect(instance, LONG).await.unwrap();
    phases.lap("connect");
    session
        .commit_ownership(Epoch::new(epoch).unwrap(), "a", LONG)
        .await
        .unwrap();
    phases.lap("commit");
    (mounted, launched, session)
}

/// Prints the figures, for whoever tunes; a bound would fail on a busy machine.
#[test]
fn hand_overs_and_take_overs_one_after_another() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let instance = volume.instance();
    postgres::initdb(&permit(1).licence(), &instance).unwrap();
    unmount(mounted);
    block_on(async {
        let mut phases = Phases::begin();
        for epoch in 1..=5 {
            let taken = take(&volume, &instance, epoch, &mut phases).await;
            let (mounted, mut launched, session) = taken;
            println!("after a hand-over: {phases}");
            load(&instance).await;
            session.checkpoint(LONG).await.unwrap();
            mounted.sync().unwrap();
            phases = Phases::begin();
            stop_fast(&mut launched).await;
            postgres::verify_shut_down(&instance.data_directory, false).unwrap();
            phases.lap("stop");
            mounted.sync().unwrap();
            phases.lap("sync");
            unmount(mounted);
            phases.lap("unmount");
            let superblock = Superblock::read(volume.device()).unwrap();
            assert_eq!(superblock.cleanliness(), Cleanliness::Clean);
        }
        for epoch in 6..=8 {
            let taken = take(&volume, &instance, epoch, &mut phases).await;
            let (mounted, launched, _session) = taken;
            println!(
                "after {}: {phases}",
                if epoch == 6 { "a hand-over" } else { "a crash" }
            );
            load(&instance).await;
            assert_ne!(
                postgres::kill(&launched.postmaster, LONG).await,
                StopOutcome::Stuck
            );
            mounted.shut_down().unwrap();
            unmount(mounted);
            let superblock = Superblock::read(volume.device()).unwrap();
            assert_eq!(superblock.cleanliness(), Cleanliness::NeedsRecovery);
            phases = Phases::begin();
        }
    });
}

/// Some 40 MB of write-ahead log.
async fn load(instance: &Instance) {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(instance.port)
        .user("postgres")
        .dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let sql = "CREATE TABLE IF NOT EXISTS load (id bigint, filler text); \
               INSERT INTO load SELECT n, repeat('x', 100) FROM generate_series(1, 200000) n";
    client.batch_execute(sql).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
}

/// SIGSTOP to every process of the tree: a postmaster that cannot answer is killed all the same.
#[test]
fn a_frozen_tree_is_killed_after_its_bounds() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let instance = volume.instance();
    postgres::initdb(&permit(1).licence(), &instance).unwrap();
    block_on(async {
        let (mut launched, _session) = start(&instance, 1).await;
        for pid in processes_with(instance.data_directory.to_str().unwrap()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        }
        let short = Duration::from_millis(50);
        let bounds = StopBounds {
            fast: short,
            immediate: short,
            kill: LONG,
        };
        let outcome = postgres::stop(&mut launched.postmaster, bounds).await;
        let expected = StopOutcome::Stopped {
            by: StoppedBy::Kill,
            end: End::TreeKilled,
        };
        assert_eq!(outcome, expected);
    });
    unmount(mounted);
}

#[test]
fn each_way_of_stopping_leaves_what_it_should() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let instance = volume.instance();
    postgres::initdb(&permit(1).licence(), &instance).unwrap();
    let directory = &instance.data_directory;
    let zero = Duration::ZERO;
    block_on(async {
        let (mut launched, _session) = start(&instance, 1).await;
        let bounds = StopBounds {
            fast: zero,
            immediate: LONG,
            kill: LONG,
        };
        let outcome = postgres::stop(&mut launched.postmaster, bounds).await;
        let StopOutcome::Stopped {
            by: StoppedBy::Immediate,
            ..
        } = outcome
        else {
            panic!("{outcome:?}");
        };
        let verified = postgres::verify_shut_down(directory, false);
        assert!(
            matches!(verified, Err(postgres::NotShutDown::State { .. })),
            "{verified:?}"
        );

        let (mut launched, session) = start(&instance, 2).await;
        let bounds = StopBounds {
            fast: zero,
            immediate: zero,
            kill: LONG,
        };
        let outcome = postgres::stop(&mut launched.postmaster, bounds).await;
        let expected = StopOutcome::Stopped {
            by: StoppedBy::Kill,
            end: End::TreeKilled,
        };
        assert_eq!(outcome, expected);
        assert!(session.pulse(LONG).await.is_err());

        // It replays after each, and says so in the end.
        let (mut launched, _session) = start(&instance, 3).await;
        stop_fast(&mut launched).await;
        let again = postgres::stop(&mut launched.postmaster, BOUNDS).await;
        let StopOutcome::Stopped {
            by: StoppedBy::Itself,
            ..
        } = again
        else {
            panic!("{again:?}")
        };
    });
    unmount(mounted);
}

#[test]
fn what_must_not_be_started_is_refused() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let instance = volume.instance();
    let directory = &instance.data_directory;
    let read = || DataDirectory::read(&instance.volume_root, directory);
    assert!(matches!(read(), Ok(None)));
    let made = postgres::initdb(&permit(1).licence(), &instance).unwrap();

    let facts = read().unwrap().unwrap();
    assert!(!facts.replica && !facts.from_backup);
    let (major, system) = (instance.programs.major, made.system_identifier);
    facts.admit(major, None).unwrap();
    facts.admit(major, Some(system)).unwrap();
    let other = facts.admit(major, Some(system + 1));
    assert!(
        matches!(other, Err(DataDirectoryError::OtherSystem { .. })),
        "{other:?}"
    );
    let other = facts.admit(major + 1, Some(system));
    assert!(
        matches!(other, Err(DataDirectoryError::OtherVersion { .. })),
        "{other:?}"
    );

    let auto = directory.join("postgresql.auto.conf");
    fs::write(&auto, "fsync = off\n").unwrap();
    assert!(matches!(
        read(),
        Err(DataDirectoryError::UnsafeSetting { name: "fsync", .. })
    ));
    fs::write(&auto, "full_page_writes = 'false'\n").unwrap();
    assert!(matches!(
        read(),
        Err(DataDirectoryError::UnsafeSetting { .. })
    ));
    fs::write(&auto, "").unwrap();

    let outside = volume.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let tablespace = directory.join("pg_tblspc/16384");
    symlink(&outside, &tablespace).unwrap();
    assert!(matches!(
        read(),
        Err(DataDirectoryError::TablespaceElsewhere { .. })
    ));
    fs::remove_file(&tablespace).unwrap();
    let inside = instance.volume_root.join("tablespace");
    fs::create_dir(&inside).unwrap();
    symlink(&inside, &tablespace).unwrap();
    read().unwrap();
    fs::remove_file(&tablespace).unwrap();

    let wal = directory.join("pg_wal");
    fs::rename(&wal, outside.join("pg_wal")).unwrap_err(); // another filesystem
    fs::rename(&wal, instance.volume_root.join("wal")).unwrap();
    symlink(instance.volume_root.join("wal"), &wal).unwrap();
    assert!(matches!(
        read(),
        Err(DataDirectoryError::WalElsewhere { .. })
    ));
    fs::remove_file(&wal).unwrap();
    fs::rename(instance.volume_root.join("wal"), &wal).unwrap();
    read().unwrap();
    refuse_what_is_no_file(directory, &read);
    unmount(mounted);
}

/// What a superuser of PostgreSQL can make of a file that the mounting process reads.
fn refuse_what_is_no_file(
    directory: &Path,
    read: &impl Fn() -> Result<Option<DataDirectory>, DataDirectoryError>,
) {
    type Make = fn(&Path);
    let make: [(&str, Make); 4] = [
        ("a link", |path| symlink("/etc/passwd", path).unwrap()),
        ("a magic link", |path| {
            symlink("/proc/self/environ", path).unwrap()
        }),
        ("a FIFO", |path| {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("/dev/zero", |path| {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
        }),
    ];
    for name in ["PG_VERSION", "global/pg_control", "postgresql.auto.conf"] {
        let (path, aside) = (directory.join(name), directory.join("aside"));
        fs::rename(&path, &aside).unwrap();
        for (what, make) in make {
            make(&path);
            let error = read().expect_err(what);
            let text = baton::attachment::whole(error);
            assert!(!text.contains("root:"), "{name} as {what}: {text}");
            fs::remove_file(&path).unwrap();
        }
        fs::rename(&aside, &path).unwrap();
    }
    read().unwrap().unwrap();
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_left() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let mut instance = volume.instance();
    postgres::initdb(&permit(1).licence(), &instance).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    instance.port = taken.local_addr().unwrap().port();
    block_on(async {
        let baton = Path::new(BATON);
        let launched = postgres::launch(&permit(1).licence(), &instance, started_by(baton))
            .await
            .unwrap();
        let error = launched.starting.ready(LONG).await.unwrap_err();
        let NotReady::Ended {
            end: End::Exited { code: 1 },
            log,
        } = &error
        else {
            panic!("{error}");
        };
        assert!(log.contains("Address already in use"), "{log}");
    });
    unmount(mounted);
}

#[test]
fn another_servers_socket_is_left_alone() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let instance = volume.instance();
    postgres::initdb(&permit(1).licence(), &instance).unwrap();
    fs::create_dir(&instance.socket_directory).unwrap();
    let path = instance
        .socket_directory
        .join(format!(".s.PGSQL.{}", instance.port));
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    block_on(async {
        let launched = postgres::launch(
            &permit(1).licence(),
            &instance,
            started_by(Path::new(BATON)),
        )
        .await;
        assert!(
            matches!(launched, Err(StartError::SocketInUse { .. })),
            "{launched:?}"
        );
    });
    assert!(path.exists());
    unmount(mounted);
}

#[test]
fn programs_that_cannot_be_run_are_reported() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let mut instance = volume.instance();
    postgres::initdb(&permit(1).licence(), &instance).unwrap();
    instance.programs.bin_dir = "/nonexistent".into();
    block_on(async {
        let baton = Path::new(BATON);
        let launched = postgres::launch(&permit(1).licence(), &instance, started_by(baton))
            .await
            .unwrap();
        let error = launched.starting.ready(LONG).await.unwrap_err();
        let NotReady::Ended {
            end: End::NotStarted,
            log,
        } = &error
        else {
            panic!("{error}")
        };
        assert!(log.contains("/nonexistent/postgres"), "{log}");
    });
    unmount(mounted);
}

#[test]
fn a_crash_of_the_postmaster_ends_the_tree_and_the_next_start_recovers() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let instance = volume.instance();
    postgres::initdb(&permit(1).licence(), &instance).unwrap();
    block_on(async {
        let (launched, _session) = start(&instance, 1).await;
        let root = launched.postmaster.pid().unwrap();
        let children = fs::read_to_string(format!("/proc/{root}/task/{root}/children")).unwrap();
        let postmaster: i32 = children.trim().parse().unwrap();
        let signal = nix::sys::signal::Signal::SIGKILL;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), signal).unwrap();
        let end = launched.postmaster.wait_within(LONG).await;
        assert_eq!(end, Some(End::Signaled { signal: 9 }));
        assert_eq!(
            processes_with(instance.data_directory.to_str().unwrap()),
            [0_i32; 0]
        );
        assert!(instance.data_directory.join("postmaster.pid").exists());
        assert_eq!(
            same_as_pg_controldata(&instance).state,
            DatabaseState::InProduction
        );

        let (mut launched, _session) = start(&instance, 1).await;
        assert!(
            launched
                .starting
                .log_tail()
                .contains("ready to accept connections")
        );
        stop_fast(&mut launched).await;
    });
    unmount(mounted);
}
