//! Who says that a site has a commit, and is not that site.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use baton::postgres::replication;

use crate::harness::{LONG, Running, Site, USER, block_on, replication as shared};

const NAMES: &str = r#"ANY 1 ("baton_b")"#;

/// A program that receives from a primary; ends with this.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One of PostgreSQL's programs under a name, as superuser.
fn receive(at: &Site, program: &str, options: &[&str], name: &str, database: &str) -> Program {
    let port = at.instance.port;
    let connection =
        format!("host=127.0.0.1 port={port} user=postgres application_name={name} {database}");
    let mut command = Command::new(at.instance.programs.path(program));
    command.args(options).arg("--no-loop").arg("--dbname");
    let child = command
        .arg(connection)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Program(child.unwrap())
}

fn receive_log(at: &Site, directory: &Path, name: &str) -> Program {
    let directory = directory.to_str().unwrap();
    let options = ["--synchronous", "--directory", directory];
    receive(at, "pg_receivewal", &options, name, "")
}

/// A primary that lets the superuser replicate, and whose commits wait for site b, which is away.
async fn waiting(a: &mut Site, b: &Site) -> Running {
    let allow = "host replication postgres 127.0.0.1/32 trust".to_owned();
    a.instance.hba.push(allow);
    let logical = ("wal_level".to_owned(), "logical".to_owned());
    a.instance.parameters.extend([logical]);
    let running = a.found(&[b]).await;
    a.client().await.run("CREATE TABLE t (i int)").await;
    running
}

async fn wait_for_b(a: &Site, running: &Running) {
    replication::set_names(&a.instance, &running.session, &shared(), NAMES, LONG)
        .await
        .unwrap();
}

#[test]
fn nobody_replicates_whom_no_line_for_replication_lets_in() {
    block_on(async {
        let (a, b) = (Site::new("a"), Site::new("b"));
        let running = a.found(&[&b]).await;
        let Program(receiver) = &mut receive_log(&a, b.directory.path(), "baton_b");
        let ended = receiver.wait().unwrap();
        assert!(!ended.success(), "`host all all` is no word on replication");
        running.stop().await;
    });
}

#[test]
fn who_bears_a_sites_name_without_its_slot_is_ended() {
    block_on(async {
        let (mut a, b) = (Site::new("a"), Site::new("b"));
        let running = waiting(&mut a, &b).await;
        let client = a.client().await;
        client
            .run("SELECT pg_create_logical_replication_slot('feed', 'test_decoding')")
            .await;
        wait_for_b(&a, &running).await;
        let feed = [
            "--start",
            "--slot",
            "feed",
            "--file",
            "-",
            "--fsync-interval",
            "1",
        ];
        let strangers: [&dyn Fn() -> Program; 3] = [
            &|| receive_log(&a, b.directory.path(), "baton_b"),
            &|| receive_log(&a, b.directory.path(), "Baton_B"),
            &|| receive(&a, "pg_recvlogical", &feed, "baton_b", "dbname=postgres"),
        ];
        for stranger in strangers {
            let mut program = stranger();
            // PostgreSQL takes its word: this is what must not last.
            client.run("INSERT INTO t VALUES (1)").await;
            let seen = running
                .until("the stranger is seen", |facts| {
                    facts.strangers(USER).contains("baton_b")
                })
                .await;
            assert!(seen.followers.is_empty(), "{seen:?}");
            let done = running.session.put_right(&seen, USER, LONG).await.unwrap();
            assert_eq!(done.ended.len(), 1, "{done:?}");
            assert!(!program.0.wait().unwrap().success());
            running
                .until("it is gone", |facts| facts.strangers(USER).is_empty())
                .await;
            let lonely = a.client().await;
            let commit = lonely.client.batch_execute("INSERT INTO t VALUES (2)");
            let soon = Duration::from_millis(500);
            assert!(tokio::time::timeout(soon, commit).await.is_err());
        }
        running.stop().await;
    });
}

#[test]
fn another_role_on_a_sites_slot_is_ended_and_the_site_is_not() {
    block_on(async {
        let (mut a, b) = (Site::new("a"), Site::new("b"));
        let running = waiting(&mut a, &b).await;
        let directory = b.directory.path().to_str().unwrap();
        let options = [
            "--synchronous",
            "--slot",
            "baton_b",
            "--directory",
            directory,
        ];
        let mut program = receive(&a, "pg_receivewal", &options, "baton_b", "");
        let seen = running
            .until("it has the slot", |facts| {
                facts.followers.contains_key("baton_b")
            })
            .await;
        assert!(seen.strangers(USER).contains("baton_b"), "{seen:?}");
        running.session.put_right(&seen, USER, LONG).await.unwrap();
        assert!(!program.0.wait().unwrap().success());

        let at_b = b.join(&a).await;
        let streams = running
            .until("the site streams", |facts| {
                let follower = facts.followers.get("baton_b");
                follower.is_some_and(|follower| follower.state == "streaming")
            })
            .await;
        assert!(streams.strangers(USER).is_empty(), "{streams:?}");
        // Beside a stranger the site itself stays.
        let mut program = receive_log(&a, b.directory.path(), "baton_b");
        let both = running
            .until("both are there", |facts| !facts.strangers(USER).is_empty())
            .await;
        running.session.put_right(&both, USER, LONG).await.unwrap();
        assert!(!program.0.wait().unwrap().success());
        let one = running.facts().await;
        assert_eq!(
            one.followers["baton_b"].started,
            streams.followers["baton_b"].started
        );
        at_b.stop().await;
        running.stop().await;
    });
}

#[test]
fn what_alter_system_takes_is_taken_back() {
    block_on(async {
        let (mut a, b) = (Site::new("a"), Site::new("b"));
        let running = waiting(&mut a, &b).await;
        wait_for_b(&a, &running).await;
        let client = a.client().await;
        client
            .run("ALTER SYSTEM SET synchronous_standby_names = ''")
            .await;
        client.run("ALTER SYSTEM SET work_mem = '7MB'").await;
        client.run("SELECT pg_reload_conf()").await;
        let seen = running
            .until("it is in force", |facts| facts.names.is_empty())
            .await;
        let done = running.session.put_right(&seen, USER, LONG).await.unwrap();
        assert_eq!(done.reset, ["synchronous_standby_names"]);
        running
            .until("it is taken back", |facts| facts.names == NAMES)
            .await;
        let other = "SHOW work_mem";
        assert_eq!(a.client().await.value(other).await, "7MB");
        running.stop().await;
    });
}
