//! A replica is made from another site, or not at all.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use baton::postgres::replication::{
    self, CopiedBy, OriginError, ProbeError, Progress, SeedError, Shown, WalStatus, old_copies,
};
use baton::postgres::{self, DataDirectory};

use crate::harness::{
    LONG, PASSWORD, Site, USER, block_on, licence, replica, replication, seeding, started_by,
};
use crate::line::SlowLine;

const ROWS: &str = "SELECT count(*)::text FROM t";

/// The arguments of every process of the machine, as anybody can read them.
fn command_lines() -> String {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .collect()
}

fn beside(site: &Site, ending: &str) -> PathBuf {
    let mut name = site.instance.data_directory.clone().into_os_string();
    name.push(ending);
    name.into()
}

#[test]
fn a_replica_is_made_and_follows_and_no_password_is_seen() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let at_a = a.found(&[&b]).await;
        let client = a.client().await;
        client
            .run("CREATE TABLE t AS SELECT i, repeat('x', 900) FROM generate_series(1, 50000) i")
            .await;
        let source = a.source_for(&b);
        let progress = Shown::new(None);
        let mut watch = progress.subscribe();
        let line = SlowLine::to(a.instance.port).await;
        let slow = replication::Source {
            hosts: vec![line.at.clone()],
            ..source.clone()
        };
        let wanted = seeding(&slow, &progress);
        let (licence, by) = (licence(), started_by());
        let made = replication::basebackup(&licence, &b.instance, &by, &wanted);
        let mut seen = String::new();
        let looking = async {
            let halfway = |copy: &Option<Progress>| {
                copy.as_ref()
                    .is_some_and(|copy| copy.done > 0 && copy.total > copy.done)
            };
            let copy = watch.wait_for(halfway).await.unwrap().clone().unwrap();
            assert!(copy.by == CopiedBy::BaseBackup && copy.total > 40 << 20);
            seen.push_str(&command_lines());
            line.be_fast();
        };
        let (made, ()) = tokio::join!(made, looking);
        let control = made.unwrap();
        assert!(seen.contains("pg_basebackup") && !seen.contains("sesame"));
        assert_eq!(*watch.borrow(), None, "it is shown after its end");
        let found = DataDirectory::read(&b.instance.volume_root, &b.instance.data_directory);
        let found = found.unwrap().unwrap();
        assert!(found.replica && found.from_backup);

        let at_b = b.start(&replica(Some(source.clone()))).await;
        client.run("INSERT INTO t SELECT 0, 'last'").await;
        let written = at_a.facts().await;
        assert_eq!(written.system, control.system_identifier);
        let facts = at_b
            .until("everything is replayed", |facts| {
                facts.replayed >= written.flushed && facts.heard.is_some()
            })
            .await;
        assert!(facts.in_recovery && facts.receiving && facts.replay_delay.is_none());
        assert!(facts.heard.unwrap() < LONG && facts.timeline == 1);
        assert_eq!(b.client().await.value(ROWS).await, "50001");

        let facts = at_a
            .until("the follower has everything", |facts| {
                let follower = facts.followers.get("baton_b");
                follower.is_some_and(|follower| follower.replayed >= written.flushed)
            })
            .await;
        let follower = &facts.followers["baton_b"];
        assert_eq!(
            (follower.state.as_str(), follower.sync_state.as_str()),
            ("streaming", "async")
        );
        assert!(follower.flushed >= follower.replayed && follower.started > 0);
        assert!(facts.slots["baton_b"].active && facts.strangers(USER).is_empty());
        assert!(!command_lines().contains("sesame"));
        for logs in [a.logs(), b.logs()] {
            assert!(
                !logs.contains(PASSWORD) && !logs.contains("sesame"),
                "{logs}"
            );
        }
        at_b.stop().await;
        at_a.stop().await;
    });
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_changed() {
    block_on(async {
        let (a, b, c) = (Site::new("a"), Site::new("b"), Site::new("c"));
        let at_a = a.found(&[&b]).await;
        let progress = Shown::new(None);
        let (licence, by) = (licence(), started_by());
        let source = a.source_for(&b);
        let other = replication::Source {
            slot: "baton_c".to_owned(),
            ..source.clone()
        };
        let no_slot =
            replication::basebackup(&licence, &c.instance, &by, &seeding(&other, &progress)).await;
        assert!(
            matches!(no_slot, Err(SeedError::Origin(OriginError::Slot { .. }))),
            "{no_slot:?}"
        );

        let wanted = replication::Seeding {
            system: Some(1),
            ..seeding(&source, &progress)
        };
        let refused = replication::basebackup(&licence, &b.instance, &by, &wanted).await;
        assert!(
            matches!(
                refused,
                Err(SeedError::Origin(OriginError::OtherSystem {
                    expected: 1,
                    ..
                }))
            ),
            "{refused:?}"
        );

        let mut newer = b.instance.clone();
        newer.programs.major += 1;
        let wanted = seeding(&source, &progress);
        let refused = replication::basebackup(&licence, &newer, &by, &wanted).await;
        assert!(
            matches!(
                refused,
                Err(SeedError::Origin(OriginError::OtherVersion { .. }))
            ),
            "{refused:?}"
        );

        fs::write(b.password_file(), "wrong\n").unwrap();
        let refused = replication::basebackup(&licence, &b.instance, &by, &wanted).await;
        assert!(
            matches!(
                refused,
                Err(SeedError::Origin(OriginError::Probe(
                    ProbeError::Rejected { .. }
                )))
            ),
            "{refused:?}"
        );
        assert!(!b.instance.data_directory.exists() && !beside(&b, ".seeding").exists());
        at_a.stop().await;
    });
}

#[test]
fn half_a_base_backup_is_no_database() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let at_a = a.found(&[&b]).await;
        a.client()
            .await
            .run("CREATE TABLE t AS SELECT i, repeat('x', 900) FROM generate_series(1, 50000) i")
            .await;
        let source = a.source_for(&b);
        let progress = Shown::new(None);
        let wanted = seeding(&source, &progress);
        let (licence, by) = (licence(), started_by());
        let half = beside(&b, ".seeding").join("base");
        let interrupted = async {
            while !half.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            made = replication::basebackup(&licence, &b.instance, &by, &wanted) => panic!("{made:?}"),
            () = interrupted => {}
        }
        let found = DataDirectory::read(&b.instance.volume_root, &b.instance.data_directory);
        assert!(matches!(found, Ok(None)), "{found:?}");
        // The program is dead: nothing holds the slot any more.
        at_a.until("the slot is free", |facts| !facts.slots["baton_b"].active)
            .await;
        let at_b = b.join(&a).await;
        assert_eq!(b.client().await.value(ROWS).await, "50000");
        assert!(!beside(&b, ".seeding").exists());
        let again = replication::basebackup(&licence, &b.instance, &by, &wanted).await;
        assert!(matches!(again, Err(SeedError::Exists { .. })), "{again:?}");
        at_b.stop().await;
        at_a.stop().await;
    });
}

#[test]
fn a_lost_slot_is_told_and_the_replica_is_made_anew() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        postgres::initdb(&licence(), &a.instance).unwrap();
        let small = replication::Replication {
            slot_wal_max: "32MB".to_owned(),
            ..replication()
        };
        let mut a = a;
        let sizes = [("min_wal_size", "32MB"), ("max_wal_size", "32MB")];
        let sizes = sizes.map(|(name, value)| (name.to_owned(), value.to_owned()));
        a.instance.parameters.extend(sizes);
        let serving = replication::Serving::Primary {
            names: String::new(),
            replication: small,
        };
        let at_a = a.start(&serving).await;
        a.offer(&at_a, &[&b]).await;
        let client = a.client().await;
        client.run("CREATE TABLE t (i int)").await;
        b.join(&a).await.stop().await;

        for _ in 0..8 {
            client
                .run("INSERT INTO t VALUES (1); SELECT pg_switch_wal(); CHECKPOINT")
                .await;
        }
        let facts = at_a
            .until("the slot is lost", |facts| {
                facts.slots["baton_b"].wal_status == Some(WalStatus::Lost)
            })
            .await;
        assert_eq!(facts.slots["baton_b"].safe, None);

        let progress = Shown::new(None);
        let (licence, by) = (licence(), started_by());
        let source = a.source_for(&b);
        let wanted = seeding(&source, &progress);
        let refused = replication::reseed(&licence, &b.instance, &by, &wanted, "1").await;
        assert!(
            matches!(refused, Err(SeedError::Origin(OriginError::Slot { .. }))),
            "{refused:?}"
        );
        let names = ["baton_b".to_owned()].into();
        let renewed = at_a.session.ensure_slots(&names, &names, LONG).await;
        let renewed = renewed.unwrap();
        assert_eq!((&renewed.dropped, &renewed.created), (&names, &names));

        let before = fs::read(b.instance.data_directory.join("PG_VERSION")).unwrap();
        let made = replication::reseed(&licence, &b.instance, &by, &wanted, "1").await;
        let made = made.unwrap();
        assert_eq!(made.old, [beside(&b, ".old-1")]);
        assert_eq!(old_copies(&b.instance).unwrap(), made.old);
        assert_eq!(fs::read(made.old[0].join("PG_VERSION")).unwrap(), before);
        let at_b = b.start(&replica(Some(source))).await;
        at_b.until("it receives", |facts| facts.heard.is_some())
            .await;
        assert_eq!(b.client().await.value(ROWS).await, "8");
        at_b.stop().await;
        at_a.stop().await;
    });
}

#[test]
fn without_room_for_two_the_old_copy_stays() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let at_a = a.found(&[&b]).await;
        b.join(&a).await.stop().await;
        // A small volume: a few megabytes less than a base backup needs.
        let volume = b.directory.path().join("small");
        fs::create_dir(&volume).unwrap();
        let small = SmallVolume::mount(&volume);
        let mut instance = b.instance.clone();
        instance.volume_root = volume.clone();
        instance.data_directory = volume.join("pgdata");
        fs::create_dir(&instance.data_directory).unwrap();
        fs::write(instance.data_directory.join("precious"), "rows").unwrap();
        let progress = Shown::new(None);
        let (licence, by) = (licence(), started_by());
        let source = a.source_for(&b);
        let wanted = seeding(&source, &progress);
        let refused = replication::reseed(&licence, &instance, &by, &wanted, "1").await;
        assert!(
            matches!(refused, Err(SeedError::NoSpace { needed, free }) if needed > free),
            "{refused:?}"
        );
        let kept = fs::read(instance.data_directory.join("precious")).unwrap();
        assert_eq!(kept, b"rows");
        drop(small);
        at_a.stop().await;
    });
}

/// A filesystem in memory of 32 MiB.
struct SmallVolume(PathBuf);

impl SmallVolume {
    fn mount(at: &std::path::Path) -> Self {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            flags,
            Some("size=32m,mode=755"),
        )
        .unwrap();
        Self(at.to_owned())
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}
