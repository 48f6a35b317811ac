//! The lease file under concurrency, damage and outage: it never says "no lease" when it means
//! "unknown", and no two writers win the same version.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use baton::clock;
use baton::decide::{Incarnation, Lease, LeaseRecord, LeaseVersion};
use baton::lease::{FileStore, LeaseError, Writer, Written};
use fencing::{Epoch, MemberId, Mono};
use fs2::FileExt;
use tempfile::TempDir;

fn store(path: &Path, number: u8) -> FileStore {
    let member = MemberId::new(number).unwrap();
    let writer = Writer {
        name: format!("m{number}"),
        member,
        incarnation: Incarnation(7),
    };
    FileStore::open(path, "main", "local", writer).unwrap()
}

fn record(epoch: u32, number: u8, sequence: u64) -> LeaseRecord {
    LeaseRecord {
        epoch: Epoch::new(epoch).unwrap(),
        newest: Epoch::new(epoch).unwrap(),
        holder: MemberId::new(number),
        incarnation: Incarnation(7),
        sequence,
        clean: false,
        planned: false,
        initialized: true,
        paused: false,
        cluster: None,
    }
}

fn soon() -> Mono {
    clock::now() + Duration::from_secs(10)
}

async fn put(
    store: &FileStore,
    expected: Option<LeaseVersion>,
    record: LeaseRecord,
) -> Option<LeaseVersion> {
    match store.write(expected, record, soon()).await.unwrap() {
        Written::Done(version) => Some(version),
        Written::Conflict(_) => None,
    }
}

#[tokio::test]
async fn a_record_is_read_back_and_only_the_named_version_is_replaced() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("main.lease");
    let (a, b) = (store(&path, 1), store(&path, 2));
    assert_eq!(a.read(soon()).await.unwrap().lease, None);
    let first = put(&a, None, record(1, 1, 0)).await.unwrap();
    assert_eq!(put(&b, None, record(1, 2, 0)).await, None);
    let second = put(&b, Some(first.clone()), record(2, 2, 0)).await.unwrap();
    assert_eq!(put(&a, Some(first), record(1, 1, 1)).await, None);
    let found = Lease {
        version: second,
        record: record(2, 2, 0),
    };
    assert_eq!(a.read(soon()).await.unwrap().lease, Some(found.clone()));
    let conflict = a.write(None, record(3, 1, 0), soon()).await.unwrap();
    assert_eq!(conflict, Written::Conflict(Some(found)));
}

#[tokio::test]
async fn the_history_has_each_change_of_ownership_and_whether_it_was_planned() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("main.lease");
    let (a, b) = (store(&path, 1), store(&path, 2));
    let mut version = put(&a, None, record(1, 1, 0)).await;
    version = put(&a, version, record(1, 1, 1)).await;
    version = put(
        &a,
        version,
        LeaseRecord {
            clean: true,
            ..record(1, 1, 2)
        },
    )
    .await;
    let planned = LeaseRecord {
        planned: true,
        ..record(2, 2, 0)
    };
    version = put(&b, version, planned).await;
    put(&a, version, record(3, 1, 0)).await.unwrap();
    let history = b.history(soon()).await.unwrap();
    let told: Vec<_> = history
        .iter()
        .map(|h| (h.epoch.number(), h.name.as_str(), h.planned))
        .collect();
    assert_eq!(told, [(1, "m1", false), (2, "m2", true), (3, "m1", false)]);
}

/// Takes part in the race below when started as a process of its own.
#[tokio::test]
async fn racer() {
    let Ok(path) = std::env::var("BATON_TEST_RACE") else {
        return;
    };
    race(&store(Path::new(&path), 1), 50).await;
}

/// Adds one to the sequence `times` times, against all others.
async fn race(store: &FileStore, times: u32) {
    let mut won = 0;
    while won < times {
        let lease = store.read(soon()).await.unwrap().lease;
        let sequence = lease.as_ref().map_or(0, |lease| lease.record.sequence);
        let expected = lease.map(|lease| lease.version);
        if put(store, expected, record(1, 1, sequence + 1))
            .await
            .is_some()
        {
            won += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_write_is_lost_among_threads_and_processes() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("main.lease");
    let start = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "racer"])
            .env("BATON_TEST_RACE", &path)
            .spawn()
            .unwrap()
    };
    let mut processes = [start(), start(), start()];
    let tasks: Vec<_> = (1..=3)
        .map(|number| {
            let store = store(&path, number);
            tokio::spawn(async move { race(&store, 50).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for process in &mut processes {
        assert!(process.wait().unwrap().success());
    }
    let lease = store(&path, 1).read(soon()).await.unwrap().lease.unwrap();
    assert_eq!(lease.record.sequence, 6 * 50);
}

#[tokio::test]
async fn a_missing_directory_is_an_outage_and_a_missing_file_is_no_lease() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("shared/main.lease");
    let a = store(&path, 1);
    assert!(matches!(
        a.read(soon()).await,
        Err(LeaseError::Unreachable { .. })
    ));
    let written = a.write(None, record(1, 1, 0), soon()).await;
    assert!(matches!(written, Err(LeaseError::Unreachable { .. })));
    fs::create_dir(directory.path().join("shared")).unwrap();
    assert_eq!(a.read(soon()).await.unwrap().lease, None);
    put(&a, None, record(1, 1, 0)).await.unwrap();
    fs::rename(
        directory.path().join("shared"),
        directory.path().join("away"),
    )
    .unwrap();
    assert!(matches!(
        a.read(soon()).await,
        Err(LeaseError::Unreachable { .. })
    ));
    fs::rename(
        directory.path().join("away"),
        directory.path().join("shared"),
    )
    .unwrap();
    assert!(a.read(soon()).await.unwrap().lease.is_some());
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        a.read(soon()).await,
        Err(LeaseError::Vanished { .. })
    ));
    assert!(matches!(
        a.write(None, record(1, 1, 0), soon()).await,
        Err(LeaseError::Vanished { .. })
    ));
}

/// Its record says by itself how old it is, and an operator may have it made anew without a restart.
#[tokio::test]
async fn the_clusters_record_may_go_and_be_made_anew() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cluster.lease");
    let writer = Writer {
        name: "member-1".to_owned(),
        member: MemberId::new(1).unwrap(),
        incarnation: Incarnation(7),
    };
    let every_site = FileStore::open(&path, "main", "*", writer).unwrap();
    put(&every_site, None, record(1, 1, 0)).await.unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(every_site.read(soon()).await.unwrap().lease, None);
    put(&every_site, None, record(2, 1, 0)).await.unwrap();
}

#[tokio::test]
async fn any_damage_is_an_error_and_is_never_written_over() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("main.lease");
    put(&store(&path, 1), None, record(1, 1, 0)).await.unwrap();
    let good = fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut cases: Vec<Vec<u8>> = (0..good.len()).step_by(7).map(flipped).collect();
    cases.extend(
        (0..good.len())
            .step_by(13)
            .map(|length| good[..length].to_vec()),
    );
    cases.push([good.clone(), b"x".to_vec()].concat());
    let reader = store(&path, 2);
    for bytes in cases {
        fs::write(&path, &bytes).unwrap();
        let read = reader.read(soon()).await;
        assert!(matches!(read, Err(LeaseError::Damaged { .. })), "{read:?}");
        let written = reader.write(None, record(2, 2, 0), soon()).await;
        assert!(
            matches!(written, Err(LeaseError::Damaged { .. })),
            "{written:?}"
        );
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[tokio::test]
async fn the_lease_of_another_cluster_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("main.lease");
    put(&store(&path, 1), None, record(1, 1, 0)).await.unwrap();
    let writer = Writer {
        name: "x".to_owned(),
        member: MemberId::new(1).unwrap(),
        incarnation: Incarnation(1),
    };
    let other = FileStore::open(&path, "other", "local", writer).unwrap();
    assert!(matches!(
        other.read(soon()).await,
        Err(LeaseError::Foreign { .. })
    ));
}

#[tokio::test]
async fn a_lock_that_does_not_come_is_overdue_and_the_late_write_is_not_done() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("main.lease");
    let a = store(&path, 1);
    let version = put(&a, None, record(1, 1, 0)).await;
    let lock = fs::File::open(directory.path().join("main.lease.lock")).unwrap();
    lock.lock_exclusive().unwrap();
    let deadline = clock::now() + Duration::from_millis(100);
    let result = a.write(version.clone(), record(2, 1, 0), deadline).await;
    assert!(result.is_err_and(|error| error.may_have_written()));
    drop(lock);
    // The next request waits behind the late one: when it is answered, that one is over.
    let lease = a.read(soon()).await.unwrap().lease.unwrap();
    assert_eq!(
        (Some(lease.version), lease.record),
        (version, record(1, 1, 0))
    );
}

#[tokio::test]
async fn a_full_disk_leaves_the_old_record() {
    // A directory in the way of the new file fails it just as a full disk does.
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("main.lease");
    let a = store(&path, 1);
    let version = put(&a, None, record(1, 1, 0)).await;
    fs::create_dir(directory.path().join("main.lease.new")).unwrap();
    let result = a.write(version, record(2, 1, 0), soon()).await;
    assert!(result.is_err_and(|error| !error.may_have_written()));
    assert_eq!(
        a.read(soon()).await.unwrap().lease.unwrap().record,
        record(1, 1, 0)
    );
}

#[tokio::test]
async fn a_change_by_another_is_an_event() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("main.lease");
    let (a, b) = (store(&path, 1), store(&path, 2));
    let mut watch = b.watch();
    watch.changed().await;
    let before = clock::now();
    put(&a, None, record(1, 1, 0)).await.unwrap();
    watch.changed().await;
    assert!(
        clock::now().since(before) < Duration::from_millis(900),
        "only the poll saw it"
    );
}
