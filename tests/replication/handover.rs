//! Inside a site the volume moves, and with it everything that PostgreSQL keeps there.

use std::fs;

use crate::harness::{Site, block_on, primary, replica};

/// A member of the same site at another place: the volume's files are moved there.
fn moved(from: &Site, name: &'static str) -> Site {
    let to = Site::new(name);
    let (source, target) = (&from.instance.data_directory, &to.instance.data_directory);
    let status = std::process::Command::new("cp")
        .arg("--archive")
        .args([source, target])
        .status();
    assert!(status.unwrap().success());
    fs::remove_dir_all(source).unwrap();
    to
}

#[test]
fn logical_slots_and_their_position_survive_a_handover() {
    block_on(async {
        let (one, b) = (Site::new("a"), Site::new("b"));
        let mut one = one;
        let logical = ("wal_level".to_owned(), "logical".to_owned());
        one.instance.parameters.extend([logical.clone()]);
        let running = one.found(&[&b]).await;
        let client = one.client().await;
        client.run("CREATE TABLE t (i int)").await;
        client
            .run("SELECT pg_create_logical_replication_slot('feed', 'test_decoding')")
            .await;
        client.run("INSERT INTO t VALUES (1)").await;
        let consume = "SELECT coalesce(string_agg(data, ';'), '') FROM pg_logical_slot_get_changes('feed', NULL, NULL)";
        assert!(client.value(consume).await.contains("integer]:1"));
        let position = "SELECT confirmed_flush_lsn::text || restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'feed'";
        client.run("INSERT INTO t VALUES (2)").await;
        let before = client.value(position).await;
        running.stop().await;

        let mut two = moved(&one, "a2");
        two.instance.parameters.extend([logical]);
        let running = two.start(&primary("")).await;
        let facts = running.facts().await;
        assert_eq!(facts.timeline, 1);
        assert!(facts.slots.contains_key("baton_b"));
        let client = two.client().await;
        assert_eq!(client.value(position).await, before);
        let changes = client.value(consume).await;
        assert!(changes.contains("integer]:2") && !changes.contains("integer]:1"));
        running.stop().await;
    });
}

#[test]
fn a_replicas_volume_goes_on_following_elsewhere() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let at_a = a.found(&[&b]).await;
        let client = a.client().await;
        client.run("CREATE TABLE t (i int)").await;
        b.join(&a).await.kill().await;
        client.run("INSERT INTO t VALUES (1)").await;
        let elsewhere = moved(&b, "b");
        let at_b = elsewhere
            .start(&replica(Some(a.source_for(&elsewhere))))
            .await;
        let written = at_a.facts().await.flushed;
        at_b.until("it follows", |facts| facts.replayed >= written)
            .await;
        let count = "SELECT count(*)::text FROM t";
        assert_eq!(elsewhere.client().await.value(count).await, "1");
        at_b.stop().await;
        at_a.stop().await;
    });
}
