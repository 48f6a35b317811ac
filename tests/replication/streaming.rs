//! A primary for other sites: who comes in, what is told.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use baton::postgres::StartError;
use baton::postgres::replication::{
    self, ConfigureError, ProbeError, ReloadError, WalStatus, name_of,
};
use baton::postgres::{self};

use crate::harness::{
    LONG, PASSWORD, Site, USER, block_on, licence, primary, replica, replication, started_by,
};

#[test]
fn a_primary_lets_another_site_look_with_the_password_alone() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let running = a.found(&[&b]).await;
        let source = a.source_for(&b);
        let facts = running.facts().await;
        assert!(!facts.in_recovery && !facts.receiving && facts.followers.is_empty());
        assert_eq!((facts.timeline, facts.names.as_str()), (1, ""));

        let probe = replication::probe(&source, "baton_b", LONG).await.unwrap();
        assert_eq!(probe.system, facts.system);
        assert_eq!(probe.major, a.instance.programs.major);
        assert_eq!((probe.in_recovery, probe.timeline), (false, 1));
        assert!(probe.position >= facts.flushed);
        let slot = probe.slot.unwrap();
        assert_eq!(slot.wal_status, Some(WalStatus::Reserved));
        assert!(!slot.active && slot.restart.is_some());

        fs::write(b.password_file(), "wrong").unwrap();
        let refused = replication::probe(&source, "baton_b", LONG).await;
        assert!(
            matches!(&refused, Err(ProbeError::Rejected { user, .. }) if user == USER),
            "{refused:?}"
        );
        running.stop().await;
        let gone = replication::probe(&source, "baton_b", Duration::from_secs(2)).await;
        assert!(matches!(
            gone,
            Err(ProbeError::Rejected { .. } | ProbeError::Unreachable { .. })
        ));
        assert!(!a.logs().contains(PASSWORD) && !a.logs().contains("SCRAM-SHA-256$"));
    });
}

#[test]
fn slots_are_those_of_the_configured_sites() {
    block_on(async {
        let (a, b, c) = (Site::new("a"), Site::new("b"), Site::new("c"));
        let running = a.found(&[&b, &c]).await;
        let names = |names: &[&str]| -> BTreeSet<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let client = a.client().await;
        client
            .run("SELECT pg_create_physical_replication_slot('somebodys')")
            .await;
        let none = BTreeSet::new();
        let changes = running
            .session
            .ensure_slots(&names(&["baton_b", "baton_d"]), &none, LONG)
            .await
            .unwrap();
        assert_eq!(changes.created, names(&["baton_d"]));
        assert_eq!(changes.dropped, names(&["baton_c"]));
        let facts = running.facts().await;
        let known: Vec<&String> = facts.slots.keys().collect();
        assert_eq!(known, ["baton_b", "baton_d"]);
        let count = "SELECT count(*)::text FROM pg_replication_slots";
        assert_eq!(client.value(count).await, "3");
        running.stop().await;
    });
}

#[test]
fn what_is_batons_wins_over_alter_system() {
    block_on(async {
        let a = Site::new("a");
        postgres::initdb(&licence(), &a.instance).unwrap();
        let auto = a.instance.data_directory.join("postgresql.auto.conf");
        fs::write(
            &auto,
            "work_mem = '5MB'\nsynchronous_standby_names = 'nobody'\nprimary_conninfo = 'host=x'\n",
        )
        .unwrap();
        let running = a.start(&primary("")).await;
        let setting = async |name| running.session.setting(name, LONG).await.unwrap();
        assert_eq!(setting("synchronous_standby_names").await, "");
        assert_eq!(setting("primary_conninfo").await, "");
        assert_eq!(setting("work_mem").await, "5MB");

        // While it runs: taken back by the next change.
        let client = a.client().await;
        client
            .run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            .await;
        client.run("SELECT pg_reload_conf()").await;
        running
            .until("the user's name is in force", |facts| {
                facts.names == "nobody"
            })
            .await;
        let names = r#"ANY 1 ("baton_b")"#;
        replication::set_names(&a.instance, &running.session, &replication(), names, LONG)
            .await
            .unwrap();
        assert_eq!(running.facts().await.names, names);
        assert!(!fs::read_to_string(&auto).unwrap().contains("nobody"));
        // What commits wait for is no file's to say.
        client
            .run("ALTER SYSTEM SET synchronous_commit = 'off'")
            .await;
        client.run("SELECT pg_reload_conf()").await;
        client.run("ALTER SYSTEM SET work_mem = '7MB'").await;
        client.run("SELECT pg_reload_conf()").await;
        let fresh = async |name| a.client().await.value(&format!("SHOW {name}")).await;
        while fresh("work_mem").await != "7MB" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(fresh("synchronous_commit").await, "on");
        running.stop().await;
        let mut further = a;
        let apply = ("synchronous_commit".to_owned(), "remote_apply".to_owned());
        further.instance.parameters.extend([apply]);
        let running = further.start(&primary("")).await;
        let shown = further
            .client()
            .await
            .value("SHOW synchronous_commit")
            .await;
        assert_eq!(shown, "remote_apply");
        running.stop().await;
    });
}

#[test]
fn a_replica_is_never_started_as_a_primary() {
    block_on(async {
        let a = Site::new("a");
        postgres::initdb(&licence(), &a.instance).unwrap();
        let running = a.start(&replica(None)).await;
        let facts = running.facts().await;
        assert!(facts.in_recovery && !facts.receiving);
        assert_eq!((facts.timeline, facts.flushed), (1, facts.replayed));
        let position =
            replication::stop_receiving(&a.instance, &running.session, &replication(), LONG)
                .await
                .unwrap();
        assert_eq!((position.timeline, position.lsn), (1, facts.replayed));
        running.stop().await;
        let refused =
            postgres::launch_as(&licence(), &a.instance, &primary(""), started_by()).await;
        assert!(
            matches!(
                refused,
                Err(StartError::Role(ConfigureError::NotPromoted { .. }))
            ),
            "{refused:?}"
        );

        // As a promotion leaves it that was cut off.
        fs::remove_file(a.instance.data_directory.join("standby.signal")).unwrap();
        let refused =
            postgres::launch_as(&licence(), &a.instance, &primary(""), started_by()).await;
        assert!(
            matches!(
                refused,
                Err(StartError::Role(ConfigureError::NotPromoted { .. }))
            ),
            "{refused:?}"
        );

        let running = a.start(&replica(None)).await;
        let names = r#"ANY 1 ("baton_b")"#;
        replication::set_names(&a.instance, &running.session, &replication(), names, LONG)
            .await
            .unwrap();
        let promoted = running.session.promote(LONG).await.unwrap();
        assert_eq!(promoted.timeline, 2);
        let again = running.session.promote(LONG).await.unwrap();
        assert_eq!(again.timeline, 2);
        let facts = running.facts().await;
        assert_eq!(
            (facts.in_recovery, facts.timeline, facts.names.as_str()),
            (false, 2, names)
        );
        running.stop().await;
        let running = a.start(&primary("")).await;
        assert_eq!(running.facts().await.timeline, 2);
        running.stop().await;
    });
}

#[test]
fn a_replica_replays_beyond_the_target_of_an_old_restore() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let at_a = a.found(&[&b]).await;
        let client = a.client().await;
        client.run("CREATE TABLE t (i int)").await;
        client.run("INSERT INTO t VALUES (1)").await;
        // As a restore leaves it: in both files on the volume, of which the base backup is a copy.
        let target = client.value("SELECT clock_timestamp()::text").await;
        let line = format!("recovery_target_time = '{target}'\nrecovery_min_apply_delay = '1h'\n");
        for file in ["postgresql.conf", "postgresql.auto.conf"] {
            let path = a.instance.data_directory.join(file);
            let text = fs::read_to_string(&path).unwrap() + &line;
            fs::write(&path, text).unwrap();
        }
        let at_b = b.join(&a).await;
        for i in 2..=20 {
            client.run(&format!("INSERT INTO t VALUES ({i})")).await;
        }
        let written = at_a.facts().await.flushed;
        let replays = |facts: &replication::Facts| facts.replayed >= written;
        at_b.until("it replays beyond the target", replays).await;
        at_a.kill().await;
        replication::stop_receiving(&b.instance, &at_b.session, &replication(), LONG)
            .await
            .unwrap();
        at_b.session.promote(LONG).await.unwrap();
        let count = "SELECT count(*)::text FROM t";
        assert_eq!(b.client().await.value(count).await, "20");
        at_b.stop().await;
    });
}

#[test]
fn a_restore_to_a_point_in_time_still_ends_there() {
    block_on(async {
        let a = Site::new("a");
        postgres::initdb(&licence(), &a.instance).unwrap();
        let running = a.start(&primary("")).await;
        let client = a.client().await;
        client.run("CREATE TABLE t (i int)").await;
        running.stop().await;
        let directory = &a.instance.data_directory;
        let newer = a.instance.volume_root.join("newer");
        let copy = |from: &Path, to: &Path| {
            let mut command = Command::new("cp");
            let done = command.arg("-a").arg("-T").args([from, to]).status();
            assert!(done.unwrap().success());
        };
        copy(directory, &newer);
        let running = a.start(&primary("")).await;
        let client = a.client().await;
        client.run("INSERT INTO t VALUES (1)").await;
        let target = client.value("SELECT clock_timestamp()::text").await;
        client.run("INSERT INTO t VALUES (2)").await;
        running.stop().await;
        copy(&directory.join("pg_wal"), &newer.join("pg_wal"));
        fs::remove_dir_all(directory).unwrap();
        fs::rename(&newer, directory).unwrap();
        let restore = format!(
            "restore_command = 'false'\nrecovery_target_time = '{target}'\nrecovery_target_action = 'promote'\n"
        );
        fs::write(directory.join("postgresql.auto.conf"), restore).unwrap();
        fs::write(directory.join("recovery.signal"), "").unwrap();
        let running = a.start(&primary("")).await;
        let count = "SELECT count(*)::text FROM t";
        running
            .until("it is restored", |facts| !facts.in_recovery)
            .await;
        assert_eq!(a.client().await.value(count).await, "1");
        // What stays in force of the restore until the next start is no obstacle to a change of names.
        replication::set_names(&a.instance, &running.session, &replication(), "", LONG)
            .await
            .unwrap();
        running.stop().await;
        a.start(&primary("")).await.stop().await;
    });
}

#[test]
fn what_cannot_come_into_force_is_an_error() {
    block_on(async {
        let a = Site::new("a");
        postgres::initdb(&licence(), &a.instance).unwrap();
        let running = a.start(&primary("")).await;
        let bad = "ANY 1 (";
        let second = Duration::from_secs(1);
        let refused =
            replication::set_names(&a.instance, &running.session, &replication(), bad, second)
                .await;
        assert!(
            matches!(&refused, Err(ReloadError::NotInForce { name, .. }) if name == "synchronous_standby_names"),
            "{refused:?}"
        );
        assert_eq!(running.facts().await.names, "");
        assert_eq!(name_of("x"), "baton_x");
        running.stop().await;
    });
}
