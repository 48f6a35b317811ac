//! A replica becomes the primary, and the former primary comes back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use baton::postgres::replication::{self, DIVERGED_DIRECTORY, Diverged, RejoinError, Rejoined};
use baton::postgres::{DataDirectory, verify_shut_down};

use crate::harness::{
    LONG, Running, Site, block_on, licence, replica, replication, seeding, started_by,
};

const ROWS: &str = "SELECT string_agg(i::text, ' ' ORDER BY i) FROM t";

/// Site a as the primary with a table, site b following it.
async fn pair(a: &Site, b: &Site) -> (Running, Running) {
    let at_a = a.found(&[b]).await;
    let client = a.client().await;
    client
        .run("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")
        .await;
    let at_b = b.join(a).await;
    let written = at_a.facts().await.flushed;
    at_b.until("everything is there", |facts| facts.replayed >= written)
        .await;
    (at_a, at_b)
}

/// The replica stops following and becomes the primary, with a slot for the other.
async fn promote(site: &Site, running: &Running, other: &Site) {
    assert_eq!(promoted(site, running, &[other], 1).await, 2);
}

/// As [`promote`], where timelines up to `taken` began elsewhere; the new timeline.
async fn promoted(site: &Site, running: &Running, others: &[&Site], taken: u32) -> u32 {
    let instance = &site.instance;
    let end = replication::stop_receiving(instance, &running.session, &replication(), LONG)
        .await
        .unwrap();
    replication::set_names(instance, &running.session, &replication(), "", LONG)
        .await
        .unwrap();
    replication::reserve_timelines(&licence(), instance, end.timeline, taken).unwrap();
    let begins = running.session.promote(LONG).await.unwrap();
    site.offer(running, others).await;
    begins.timeline
}

#[test]
fn what_only_the_former_primary_had_is_kept_and_it_follows() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let (at_a, at_b) = pair(&a, &b).await;
        promote(&b, &at_b, &a).await;
        // Lost to the others: and a crash, so that it has to recover first.
        a.client().await.run("INSERT INTO t VALUES (100)").await;
        let written = at_a.facts().await.flushed;
        at_a.kill().await;
        b.client().await.run("INSERT INTO t VALUES (2)").await;

        let Rejoined::Rewound { diverged, kept } = a.rejoin(&b).await.unwrap() else {
            panic!("it has diverged");
        };
        assert_eq!((diverged.from.timeline, diverged.to.timeline), (1, 1));
        assert!(diverged.from.lsn < written && written <= diverged.to.lsn);
        assert_eq!(diverged.bytes, diverged.to.lsn.0 - diverged.from.lsn.0);
        assert_eq!(
            kept,
            a.instance
                .volume_root
                .join(DIVERGED_DIRECTORY)
                .join("term-2")
        );
        let report: Diverged =
            serde_json::from_slice(&fs::read(kept.join("report.json")).unwrap()).unwrap();
        assert_eq!(report, diverged);
        let lost = inserts(&a, &kept, &diverged);
        assert!(lost.contains("INSERT"), "{lost}");

        let at_a = a.start(&replica(Some(b.source_for(&a)))).await;
        let written = at_b.facts().await.flushed;
        let facts = at_a
            .until("it follows", |facts| {
                facts.replayed >= written && facts.heard.is_some()
            })
            .await;
        assert_eq!(facts.timeline, 2);
        assert_eq!(a.client().await.value(ROWS).await, "1 2");
        at_a.stop().await;
        at_b.stop().await;
    });
}

/// What `pg_waldump` finds in what is kept.
fn inserts(site: &Site, kept: &Path, diverged: &Diverged) -> String {
    let program = site.instance.programs.path("pg_waldump");
    let output = std::process::Command::new(program)
        .arg("--path")
        .arg(kept)
        .args(["--start", &diverged.from.lsn.to_string()])
        .args(["--end", &diverged.to.lsn.to_string(), "--rmgr=Heap"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn after_a_switchover_nothing_has_diverged() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let (at_a, at_b) = pair(&a, &b).await;
        at_a.stop().await;
        let stopped = verify_shut_down(&a.instance.data_directory, false).unwrap();
        at_b.until("the shutdown checkpoint is replayed", |facts| {
            facts.replayed > stopped.checkpoint
        })
        .await;
        promote(&b, &at_b, &a).await;
        assert_eq!(a.rejoin(&b).await.unwrap(), Rejoined::NotNeeded);
        let at_a = a.start(&replica(Some(b.source_for(&a)))).await;
        b.client().await.run("INSERT INTO t VALUES (2)").await;
        let written = at_b.facts().await.flushed;
        at_a.until("it follows", |facts| {
            facts.replayed >= written && facts.timeline == 2
        })
        .await;
        assert_eq!(a.client().await.value(ROWS).await, "1 2");
        assert!(!a.instance.volume_root.join(DIVERGED_DIRECTORY).exists());
        at_a.stop().await;
        at_b.stop().await;
    });
}

#[test]
fn a_replica_that_had_more_than_the_new_primary_is_rewound_too() {
    block_on(async {
        let (a, b, c) = (Site::new("a"), Site::new("b"), Site::new("c"));
        let (at_a, at_b) = pair(&a, &b).await;
        let none = BTreeSet::new();
        let all = ["baton_b".to_owned(), "baton_c".to_owned()].into();
        at_a.session.ensure_slots(&all, &none, LONG).await.unwrap();
        let at_c = c.join(&a).await;
        let stopped = replication::stop_receiving(&b.instance, &at_b.session, &replication(), LONG)
            .await
            .unwrap();
        a.client().await.run("INSERT INTO t VALUES (100)").await;
        let written = at_a.facts().await.flushed;
        at_c.until("c has more", |facts| facts.replayed >= written)
            .await;
        at_a.kill().await;
        promote(&b, &at_b, &c).await;

        at_c.kill().await;
        let Rejoined::Rewound { diverged, .. } = c.rejoin(&b).await.unwrap() else {
            panic!("it has diverged");
        };
        assert!(diverged.from.lsn >= stopped.lsn && diverged.to.lsn <= written);
        let at_c = c.start(&replica(Some(b.source_for(&c)))).await;
        at_c.until("it follows", |facts| {
            facts.timeline == 2 && facts.heard.is_some()
        })
        .await;
        assert_eq!(c.client().await.value(ROWS).await, "1");
        at_c.stop().await;
        at_b.stop().await;
    });
}

#[test]
fn an_interrupted_rewind_is_no_database_and_another_system_is_refused() {
    block_on(async {
        let (a, b, c) = (Site::new("a"), Site::new("b"), Site::new("c"));
        let (at_a, at_b) = pair(&a, &b).await;
        promote(&b, &at_b, &a).await;
        at_a.kill().await;
        let at_c = c.found(&[&a]).await;
        let refused = a.rejoin(&c).await;
        assert!(
            matches!(
                refused,
                Err(RejoinError::Origin(
                    replication::OriginError::OtherSystem { .. }
                ))
            ),
            "{refused:?}"
        );
        at_c.stop().await;

        let mut away = a.instance.data_directory.clone().into_os_string();
        away.push(".rewinding");
        fs::rename(&a.instance.data_directory, &away).unwrap();
        let found = DataDirectory::read(&a.instance.volume_root, &a.instance.data_directory);
        assert!(matches!(found, Ok(None)), "{found:?}");
        let refused = a.rejoin(&b).await;
        assert!(
            matches!(refused, Err(RejoinError::BaseBackupNeeded { .. })),
            "{refused:?}"
        );
        let source = b.source_for(&a);
        let progress = replication::Shown::new(None);
        let wanted = seeding(&source, &progress);
        let (licence, by) = (licence(), started_by());
        let refused = replication::basebackup(&licence, &a.instance, &by, &wanted).await;
        assert!(
            matches!(refused, Err(replication::SeedError::Interrupted { .. })),
            "{refused:?}"
        );
        let made = replication::reseed(&licence, &a.instance, &by, &wanted, "x").await;
        assert_eq!(made.unwrap().old.len(), 1);
        assert!(!Path::new(&away).exists());
        let at_a = a.start(&replica(Some(source))).await;
        at_a.until("it follows", |facts| {
            facts.timeline == 2 && facts.heard.is_some()
        })
        .await;
        at_a.stop().await;
        at_b.stop().await;
    });
}

/// Site b is promoted, writes, and is lost; site c has not heard of it.
async fn lost_promotion(a: &Site, b: &Site, c: &Site) -> Running {
    let at_a = a.found(&[b, c]).await;
    let client = a.client().await;
    client
        .run("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")
        .await;
    let (at_b, at_c) = (b.join(a).await, c.join(a).await);
    let written = at_a.facts().await.flushed;
    for replica in [&at_b, &at_c] {
        let what = "everything is there";
        replica.until(what, |facts| facts.replayed >= written).await;
    }
    at_a.kill().await;
    promote(b, &at_b, c).await;
    b.client().await.run("INSERT INTO t VALUES (100)").await;
    at_b.kill().await;
    at_c
}

#[test]
fn no_two_promotions_begin_the_same_timeline() {
    block_on(async {
        let (a, b, c) = (Site::new("a"), Site::new("b"), Site::new("c"));
        let at_c = lost_promotion(&a, &b, &c).await;
        // Cut off between the marks and the promotion: it is a replica as before.
        let end = replication::stop_receiving(&c.instance, &at_c.session, &replication(), LONG)
            .await
            .unwrap();
        replication::reserve_timelines(&licence(), &c.instance, end.timeline, 2).unwrap();
        at_c.kill().await;
        let at_c = c.start(&replica(None)).await;
        assert_eq!(at_c.facts().await.timeline, 1);

        assert_eq!(promoted(&c, &at_c, &[&a, &b], 2).await, 3);
        c.client().await.run("INSERT INTO t VALUES (3)").await;
        let written = at_c.facts().await.flushed;
        for former in [&a, &b] {
            let rejoined = former.rejoin(&c).await.unwrap();
            assert!(matches!(rejoined, Rejoined::Rewound { .. }), "{rejoined:?}");
            let running = former.start(&replica(Some(c.source_for(former)))).await;
            running
                .until("it follows", |facts| {
                    facts.replayed >= written && facts.timeline == 3
                })
                .await;
            assert_eq!(former.client().await.value(ROWS).await, "1 3");
            running.stop().await;
        }
        at_c.stop().await;
    });
}

#[test]
fn two_timelines_of_one_number_are_not_taken_for_one() {
    block_on(async {
        let (a, b, c) = (Site::new("a"), Site::new("b"), Site::new("c"));
        let at_c = lost_promotion(&a, &b, &c).await;
        assert_eq!(promoted(&c, &at_c, &[&b], 0).await, 2);
        let refused = b.rejoin(&c).await;
        assert!(
            matches!(refused, Err(RejoinError::BaseBackupNeeded { .. })),
            "{refused:?}"
        );
        at_c.stop().await;
    });
}
