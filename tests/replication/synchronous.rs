//! Commits that wait for another site: what is acknowledged is there.

use std::time::Duration;

use baton::postgres::replication;

use crate::harness::{LONG, Running, Site, block_on, primary, replica, replication};

const NAMES: &str = r#"ANY 1 ("baton_b")"#;

/// Long enough for a commit that waits for nobody, short enough for a test.
const MOMENT: Duration = Duration::from_millis(700);

#[test]
fn commits_wait_for_the_follower_and_for_nobody_once_it_stops() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let at_a = a.found(&[&b]).await;
        let client = a.client().await;
        client.run("CREATE TABLE t (i int)").await;
        let at_b = b.join(&a).await;
        at_a.until("it streams", |facts| {
            facts
                .followers
                .get("baton_b")
                .is_some_and(|follower| follower.state == "streaming")
        })
        .await;
        replication::set_names(&a.instance, &at_a.session, &replication(), NAMES, LONG)
            .await
            .unwrap();
        let enforced = replication::enforced_from(&at_a.session, LONG)
            .await
            .unwrap();
        client.run("INSERT INTO t VALUES (1)").await;
        let facts = at_a
            .until("it counts", |facts| {
                facts.followers["baton_b"].sync_state == "quorum"
            })
            .await;
        assert!(facts.flushed > enforced && facts.names == NAMES);

        let end = replication::stop_receiving(&b.instance, &at_b.session, &replication(), LONG)
            .await
            .unwrap();
        let at_end = at_b.facts().await;
        assert!(!at_end.receiving && at_end.heard.is_none());
        assert_eq!((end.timeline, end.lsn), (at_end.timeline, at_end.flushed));
        assert!(
            end.lsn
                >= at_a
                    .facts()
                    .await
                    .followers
                    .get("baton_b")
                    .map_or(end.lsn, |f| f.flushed)
        );
        let waiting = client.client.batch_execute("INSERT INTO t VALUES (2)");
        let waited = tokio::time::timeout(MOMENT, waiting).await;
        assert!(waited.is_err(), "nobody can have confirmed it");
        // Nor does it begin again by itself.
        tokio::time::sleep(MOMENT).await;
        assert!(!at_b.facts().await.receiving);
        assert_eq!(at_b.facts().await.flushed, end.lsn);

        let source = a.source_for(&b);
        let client = a.client().await;
        let again = async {
            replication::receive(&b.instance, &at_b.session, &replication(), &source, LONG)
                .await
                .unwrap();
        };
        tokio::join!(client.run("INSERT INTO t VALUES (3)"), again);
        at_b.until("it is there", |facts| facts.replayed > end.lsn)
            .await;

        replication::set_names(&a.instance, &at_a.session, &replication(), "", LONG)
            .await
            .unwrap();
        at_b.stop().await;
        client.run("INSERT INTO t VALUES (4)").await;
        at_a.stop().await;
    });
}

#[test]
fn a_primary_that_starts_with_names_lets_nobody_pass() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let at_a = a.found(&[&b]).await;
        a.client().await.run("CREATE TABLE t (i int)").await;
        let at_b = b.join(&a).await;
        at_a.stop().await;
        at_b.stop().await;
        let at_a = a.start(&primary(NAMES)).await;
        let client = a.client().await;
        let waiting = client.client.batch_execute("INSERT INTO t VALUES (1)");
        assert!(tokio::time::timeout(MOMENT, waiting).await.is_err());
        let at_b = b.start(&replica(Some(a.source_for(&b)))).await;
        let client = a.client().await;
        client.run("INSERT INTO t VALUES (2)").await;
        at_b.stop().await;
        at_a.stop().await;
    });
}

/// A replica that has received a row which its replay does not get to; it stops receiving and is promoted.
async fn stops_and_is_promoted(a: &Site, b: &Site, at_a: Running, at_b: Running) {
    let client = a.client().await;
    client.run("INSERT INTO t VALUES (2)").await;
    let written = at_a.facts().await.flushed;
    let held = at_b
        .until("it receives what it does not replay", |facts| {
            facts.flushed >= written
        })
        .await;
    assert!(held.replayed < written, "{held:?}");
    let soon = Duration::from_secs(10);
    let end = replication::stop_receiving(&b.instance, &at_b.session, &replication(), soon).await;
    let end = end.unwrap_or_else(|error| panic!("{error}: {}", at_b.log()));
    client.run("INSERT INTO t VALUES (3)").await;
    tokio::time::sleep(MOMENT).await;
    let later = at_b.facts().await;
    assert!(!later.receiving && later.flushed == end.lsn && end.lsn >= written);
    at_a.kill().await;
    at_b.session.promote(soon).await.unwrap();
    let rows = "SELECT string_agg(i::text, ',' ORDER BY i) FROM t";
    assert_eq!(b.client().await.value(rows).await, "1,2");
    at_b.stop().await;
}

#[test]
fn a_replica_stops_receiving_although_its_replay_is_paused() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let at_a = a.found(&[&b]).await;
        let client = a.client().await;
        client.run("CREATE TABLE t (i int)").await;
        client.run("INSERT INTO t VALUES (1)").await;
        let at_b = b.join(&a).await;
        b.client().await.run("SELECT pg_wal_replay_pause()").await;
        stops_and_is_promoted(&a, &b, at_a, at_b).await;
    });
}

#[test]
fn a_replica_stops_receiving_although_a_reader_holds_up_its_replay() {
    block_on(async {
        let (a, mut b) = (Site::new("a"), Site::new("b"));
        let forever = ("max_standby_streaming_delay".to_owned(), "-1".to_owned());
        b.instance.parameters.extend([forever]);
        let at_a = a.found(&[&b]).await;
        let client = a.client().await;
        client.run("CREATE TABLE t (i int)").await;
        client.run("INSERT INTO t VALUES (0), (1)").await;
        let at_b = b.join(&a).await;
        let reader = b.client().await;
        reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ").await;
        let count = "SELECT count(*)::text FROM t";
        assert_eq!(reader.value(count).await, "2");
        client.run("DELETE FROM t WHERE i = 0").await;
        client.run("VACUUM t").await;
        stops_and_is_promoted(&a, &b, at_a, at_b).await;
    });
}
