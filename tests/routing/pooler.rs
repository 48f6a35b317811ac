//! PgBouncer's PAUSE and RESUME around a change of the active.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use baton::clock;
use baton::kubernetes::Access;
use baton::routing::{Leg, Router};
use tokio_postgres::NoTls;

use crate::postgres::{PgBouncer, Postgres, available};
use crate::{config, epoch, serving, standby, until, within};

fn router(pooler: &PgBouncer) -> Router {
    Router::start_as(&config(&pooler.section()), &Access::infer(), None)
}

async fn published(router: &Router, number: u32) {
    let leg = Some(Leg::Published {
        epoch: epoch(number),
    });
    until(router, "published", |state| state.pooler == leg).await;
}

/// Writes one row after the other over one connection, until it is told to stop. Any error ends it.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<Duration, tokio_postgres::Error>>,
}

impl Writer {
    async fn start(dsn: String) -> Self {
        let (stop, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, count) = (stop.clone(), written.clone());
        let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        let task = tokio::spawn(async move {
            let mut gap = Duration::ZERO;
            let mut last = clock::now();
            while !stopped.load(Ordering::Relaxed) {
                client
                    .simple_query("INSERT INTO written VALUES (1)")
                    .await?;
                count.fetch_add(1, Ordering::Relaxed);
                gap = gap.max(clock::now().since(last));
                last = clock::now();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(gap)
        });
        Self {
            stop,
            written,
            task,
        }
    }

    /// The longest time without a write, or the first error.
    async fn finish(self) -> Result<Duration, tokio_postgres::Error> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }

    async fn has_written(&self, more: u64) {
        let goal = self.written.load(Ordering::Relaxed) + more;
        let deadline = within(15_000);
        while self.written.load(Ordering::Relaxed) < goal {
            assert!(clock::now() < deadline, "the writer does not get on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn make_table(database: &Postgres) {
    let dsn = format!("host=127.0.0.1 port={} user=postgres", database.port);
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    let made = client.simple_query("CREATE TABLE written (n int)").await;
    made.unwrap();
}

#[tokio::test]
async fn a_planned_change_shows_writers_no_error() {
    if !available("a planned change behind a pooler") {
        return;
    }
    let mut database = Postgres::start().await;
    make_table(&database).await;
    let pooler = PgBouncer::start(&database, "transaction").await;
    let (old, new) = (router(&pooler), router(&pooler));
    old.want(serving(5));
    published(&old, 5).await;
    let mut writers = Vec::new();
    for _ in 0..4 {
        writers.push(Writer::start(pooler.dsn()).await);
    }
    for writer in &writers {
        writer.has_written(20).await;
    }
    for number in [6, 7] {
        let (from, to) = if number == 6 {
            (&old, &new)
        } else {
            (&new, &old)
        };
        from.withdraw(epoch(number - 1), within(2_000))
            .await
            .unwrap();
        assert!(pooler.paused().await);
        database.stop();
        from.want(standby(number - 1));
        database.go().await;
        assert!(pooler.paused().await, "only whoever serves resumes");
        to.want(serving(number));
        published(to, number).await;
        assert!(!pooler.paused().await);
        for writer in &writers {
            writer.has_written(20).await;
        }
    }
    for writer in writers {
        let gap = writer.finish().await.expect("no error is seen");
        println!("longest time without a write: {gap:?}");
    }
}

#[tokio::test]
async fn a_pause_that_does_not_come_about_is_taken_back_and_holds_nobody_up() {
    if !available("a pause that does not come about") {
        return;
    }
    let database = Postgres::start().await;
    make_table(&database).await;
    // In session mode a client keeps its server connection: the pause would wait for it for ever.
    let pooler = PgBouncer::start(&database, "session").await;
    let writer = Writer::start(pooler.dsn()).await;
    writer.has_written(5).await;
    let active = router(&pooler);
    active.want(serving(5));
    published(&active, 5).await;
    let begin = clock::now();
    let failed = active.withdraw(epoch(5), within(1_000)).await;
    assert!(failed.is_err());
    assert!(clock::now().since(begin) < Duration::from_millis(1_200));
    assert!(!pooler.paused().await, "taken back");
    assert_eq!(active.state().failures().len(), 1);
    writer.has_written(5).await;
    // Another client gets through as well.
    let other = Writer::start(pooler.dsn()).await;
    other.has_written(5).await;
    other.finish().await.unwrap();
    writer.finish().await.unwrap();
    // The handover went on and failed; whoever serves next is led to all the same.
    active.want(serving(6));
    published(&active, 6).await;
}

#[tokio::test]
async fn a_pause_of_a_handover_that_is_given_up_does_not_stay() {
    if !available("a handover that is given up") {
        return;
    }
    let database = Postgres::start().await;
    make_table(&database).await;
    let pooler = PgBouncer::start(&database, "transaction").await;
    let (client, connection) = tokio_postgres::connect(&pooler.dsn(), NoTls).await.unwrap();
    tokio::spawn(connection);
    // An open transaction keeps the pause waiting.
    client.simple_query("BEGIN").await.unwrap();
    let active = router(&pooler);
    active.want(serving(5));
    published(&active, 5).await;
    let given_up = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        active.want(standby(6));
        client.simple_query("COMMIT").await.unwrap();
    };
    let withdraw = active.withdraw(epoch(5), within(4_000));
    let _outcomes = tokio::join!(withdraw, given_up);
    until(&active, "withdrawn", |state| {
        state.pooler == Some(Leg::Withdrawn)
    })
    .await;
    assert!(!pooler.paused().await);
}

#[tokio::test]
async fn a_pooler_that_is_away_is_told_when_it_is_back() {
    if !available("a pooler that is away") {
        return;
    }
    let database = Postgres::start().await;
    make_table(&database).await;
    let pooler = PgBouncer::start(&database, "transaction").await;
    let wrong = pooler
        .section()
        .replace("user = \"baton\"", "user = \"app\"");
    let refused = Router::start_as(&config(&wrong), &Access::infer(), None);
    refused.want(serving(5));
    until(&refused, "failing", |state| state.errors > 1).await;
    let failures = refused.state().failures();
    assert!(failures[0].contains("pooler"), "{failures:?}");

    let section = pooler.section();
    let away = Router::start_as(
        &config(&section.replace(&format!(":{}", pooler.port), ":1")),
        &Access::infer(),
        None,
    );
    away.want(serving(5));
    until(&away, "failing", |state| {
        matches!(state.pooler, Some(Leg::Failing { .. }))
    })
    .await;
    let begin = clock::now();
    assert!(away.withdraw(epoch(5), within(2_000)).await.is_err());
    assert!(
        clock::now().since(begin) < Duration::from_millis(500),
        "at once"
    );
}
