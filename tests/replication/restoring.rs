//! A replica is made from a backup and its archive, or, where that fails, by copying the primary's database.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use baton::config::SeedCommand;
use baton::postgres::replication::{
    self, CopiedBy, Position, ProgramError, Progress, RestoreError, SeedError, Shown, floor,
    stop_receiving,
};
use baton::postgres::{self, ControlData, DataDirectoryError, Lsn, initdb};
use tempfile::TempDir;

use crate::harness::{
    LONG, Running, Site, block_on, licence, primary, replica, replication, seeding, started_by,
};

const ROWS: &str = "SELECT count(*)::text FROM t";

/// The primary at one site, with an archive; a backup of it; and another site that has nothing yet.
struct Scene {
    a: Site,
    b: Site,
    at_a: Running,
    place: TempDir,
}

impl Scene {
    /// The backup has 1000 rows, the archive has what was written since, and the primary keeps no more than that:
    /// the other site's slot is younger.
    async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (Site::new("a"), Site::new("b"));
        open(place.path());
        for name in ["archive", "backup"] {
            let directory = place.path().join(name);
            fs::create_dir(&directory).unwrap();
            chown(
                &directory,
                Some(a.instance.user.uid),
                Some(a.instance.user.gid),
            )
            .unwrap();
        }
        let archive = place.path().join("archive").display().to_string();
        let set = |site: &mut Site, settings: &[(&str, String)]| {
            let settings = settings.iter();
            let settings = settings.map(|(name, value)| ((*name).to_owned(), value.clone()));
            site.instance.parameters.extend(settings);
        };
        let push = format!("cp %p {archive}/%f");
        set(
            &mut a,
            &[
                ("archive_mode", "on".to_owned()),
                ("archive_command", push),
                ("wal_keep_size", "0".to_owned()),
            ],
        );
        set(
            &mut b,
            &[("restore_command", format!("cp {archive}/%f %p"))],
        );
        let trust = "host replication postgres 127.0.0.1/32 trust".to_owned();
        a.instance.hba.push(trust);
        initdb(&licence(), &a.instance).unwrap();
        let at_a = a.start(&primary("")).await;
        let scene = Self { a, b, at_a, place };
        let client = scene.a.client().await;
        client
            .run("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
            .await;
        scene.back_up();
        for _ in 0..3 {
            client.run("INSERT INTO t VALUES (0)").await;
            client.run("SELECT pg_switch_wal()").await;
        }
        scene.archived().await;
        client.run("CHECKPOINT").await;
        scene.a.offer(&scene.at_a, &[&scene.b]).await;
        scene
    }

    fn back_up(&self) {
        let user = &self.a.instance.user;
        let made = Command::new(self.a.instance.programs.path("pg_basebackup"))
            .args([
                "--host=127.0.0.1",
                "--username=postgres",
                "--checkpoint=fast",
            ])
            .args(["--wal-method=none", "--no-sync"])
            .arg(format!("--port={}", self.a.instance.port))
            .arg("--pgdata")
            .arg(self.backup())
            .uid(user.uid)
            .gid(user.gid)
            .current_dir("/")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
    }

    /// Waits until the primary has seen that nothing receives at the other site any more.
    async fn free_slot(&self) {
        self.at_a
            .until("the slot is free", |facts| !facts.slots["baton_b"].active)
            .await;
    }

    /// Waits until all segments that were switched away from are in the archive.
    async fn archived(&self) {
        let client = self.a.client().await;
        let sql = "SELECT (last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 16777216))::text \
                   FROM pg_stat_archiver";
        let waiting = async {
            while client.value(sql).await != "true" {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, waiting).await.unwrap();
    }

    fn backup(&self) -> PathBuf {
        self.place.path().join("backup")
    }

    /// A backup tool: this script, with the directory as its first argument.
    fn tool(&self, script: &str) -> SeedCommand {
        let program = self.place.path().join("restore");
        fs::write(&program, format!("#!/bin/sh\nset -e\n{script}\n")).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        SeedCommand {
            program,
            arguments: vec![SeedCommand::PLACE.to_owned()],
            timeout: LONG,
            fallback: false,
        }
    }

    /// A tool that does what it should, and then this.
    fn restores_and(&self, then: &str) -> SeedCommand {
        let backup = self.backup().display().to_string();
        self.tool(&format!("cp -a {backup}/. \"$1\"\n{then}"))
    }

    async fn seed(&self, command: &SeedCommand, shown: &Shown) -> Result<ControlData, SeedError> {
        let source = self.a.source_for(&self.b);
        let wanted = replication::Seeding {
            command: Some(command),
            ..seeding(&source, shown)
        };
        replication::basebackup(&licence(), &self.b.instance, &started_by(), &wanted).await
    }

    /// Replaces the database at the other site.
    async fn seed_anew(&self, command: &SeedCommand, patience: Duration) -> Result<(), SeedError> {
        let (source, shown) = (self.a.source_for(&self.b), Shown::new(None));
        let wanted = replication::Seeding {
            command: Some(command),
            connect: patience,
            ..seeding(&source, &shown)
        };
        let (licence, by) = (licence(), started_by());
        let made = replication::reseed(&licence, &self.b.instance, &by, &wanted, "1").await;
        made.map(drop)
    }

    /// What the other site has received where nobody sends anything.
    async fn received(&self) -> Position {
        let at_b = self.b.start(&replica(None)).await;
        let left = stop_receiving(&self.b.instance, &at_b.session, &replication(), LONG).await;
        at_b.stop().await;
        left.unwrap()
    }

    /// As it is refused where nothing else may be tried.
    async fn refused(&self, command: &SeedCommand) -> RestoreError {
        let made = self.seed(command, &Shown::new(None)).await;
        assert!(!self.b.instance.data_directory.exists());
        match made {
            Err(SeedError::Restore(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    /// What was made follows the primary, and has all of it.
    async fn follows(self) {
        let at_b = self
            .b
            .start(&replica(Some(self.a.source_for(&self.b))))
            .await;
        at_b.until("it receives", |facts| facts.heard.is_some())
            .await;
        self.a.client().await.run("INSERT INTO t VALUES (1)").await;
        let written = self.at_a.facts().await.flushed;
        at_b.until("all is replayed", |facts| facts.replayed >= written)
            .await;
        assert_eq!(self.b.client().await.value(ROWS).await, "1004");
        at_b.stop().await;
        self.at_a.stop().await;
    }
}

/// Where a primary has this place of its first timeline.
fn segment(lsn: Lsn) -> String {
    let number = lsn.0 >> 24;
    format!("pg_wal/{:08X}{:08X}{:08X}", 1, number >> 8, number & 0xff)
}

fn open(directory: &Path) {
    fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
}

/// Runs it, and waits meanwhile until such a progress was shown.
async fn while_shown<T>(
    shown: &Shown,
    fits: impl Fn(&Progress) -> bool,
    seeding: impl Future<Output = T>,
) -> (T, Progress) {
    let mut watch = shown.subscribe();
    let looking = async {
        let seen = watch
            .wait_for(|copy| copy.as_ref().is_some_and(&fits))
            .await;
        seen.unwrap().clone().unwrap()
    };
    let both = async { tokio::join!(seeding, looking) };
    let found = tokio::time::timeout(LONG, both).await.expect("never shown");
    assert_eq!(*shown.borrow(), None, "it is shown after its end");
    found
}

#[test]
fn a_replica_is_made_from_a_backup_and_its_archive() {
    block_on(async {
        let scene = Scene::new().await;
        // What tools leave: here, how to recover to another time, as something else than a replica.
        let command = scene.restores_and(
            "echo \"restore_command = 'false'\" >> \"$1/postgresql.auto.conf\"\n\
             echo \"recovery_target_time = '2001-01-01'\" >> \"$1/postgresql.auto.conf\"\n\
             touch \"$1/recovery.signal\" \"$1/restored\"\nchmod 755 \"$1\"\nsleep 1.5",
        );
        let shown = Shown::new(None);
        let of_tool = |copy: &Progress| copy.by == CopiedBy::BackupTool && copy.total > 0;
        let (made, _) = while_shown(&shown, of_tool, scene.seed(&command, &shown)).await;
        let needs = scene
            .a
            .instance
            .data_directory
            .join(segment(made.unwrap().redo));
        assert!(!needs.exists(), "the primary alone could do");
        let made = &scene.b.instance.data_directory;
        assert!(made.join("restored").exists() && made.join("standby.signal").exists());
        assert!(!made.join("recovery.signal").exists());
        let mode = fs::metadata(made).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        scene.follows().await;
    });
}

#[test]
fn where_the_backup_tool_fails_the_primary_s_database_is_copied() {
    block_on(async {
        let scene = Scene::new().await;
        let fails = "touch \"$1/half\"\necho 'unable to find a backup set' >&2\nexit 55";
        let command = SeedCommand {
            fallback: true,
            ..scene.tool(fails)
        };
        let shown = Shown::new(None);
        let instead = |copy: &Progress| copy.instead.is_some();
        let (made, copy) = while_shown(&shown, instead, scene.seed(&command, &shown)).await;
        made.unwrap();
        assert_eq!(copy.by, CopiedBy::BaseBackup);
        let why = copy.instead.unwrap();
        assert!(
            why.contains("exited with code 55: unable to find a backup set"),
            "{why}"
        );
        assert!(!scene.b.instance.data_directory.join("half").exists());
        scene.follows().await;
    });
}

#[test]
fn a_backup_tool_that_hangs_is_ended() {
    block_on(async {
        let scene = Scene::new().await;
        let command = SeedCommand {
            timeout: Duration::from_millis(300),
            ..scene.tool("echo waiting for a lock >&2\nsleep 3601.25 & wait")
        };
        let refused = scene.refused(&command).await;
        assert!(
            matches!(&refused, RestoreError::Program(ProgramError::Overdue { said, .. }) if said == "waiting for a lock"),
            "{refused:?}"
        );
        let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let mut lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let left = lines.any(|line| String::from_utf8_lossy(&line).contains("3601.25"));
        assert!(!left, "what it had started lives");
        scene.at_a.stop().await;
    });
}

#[test]
fn what_is_no_backup_of_this_database_is_refused() {
    block_on(async {
        let scene = Scene::new().await;
        let other = Site::new("c");
        initdb(&licence(), &other.instance).unwrap();
        let theirs = other.instance.data_directory.display();
        let command = SeedCommand {
            // Even so: the archive is another database's too.
            fallback: true,
            ..scene.tool(&format!("cp -r {theirs}/. \"$1\""))
        };
        let refused = scene.refused(&command).await;
        assert!(
            matches!(
                refused,
                RestoreError::Data(DataDirectoryError::OtherSystem { .. })
            ),
            "{refused:?}"
        );

        let refused = scene.refused(&scene.tool("true")).await;
        assert!(
            matches!(refused, RestoreError::Nothing { .. }),
            "{refused:?}"
        );

        let running = scene.a.instance.data_directory.display();
        let copies = format!("cp -a {running}/. \"$1\" || true");
        let refused = scene.refused(&scene.tool(&copies)).await;
        assert!(
            matches!(refused, RestoreError::NoBackup { .. }),
            "{refused:?}"
        );

        let elsewhere = "mv \"$1/pg_wal\" \"$1/elsewhere\"\nln -s \"$1/elsewhere\" \"$1/pg_wal\"";
        let refused = scene.refused(&scene.restores_and(elsewhere)).await;
        assert!(
            matches!(
                refused,
                RestoreError::Data(DataDirectoryError::WalElsewhere { .. })
            ),
            "{refused:?}"
        );
        scene.at_a.stop().await;
    });
}

#[test]
fn an_older_backup_does_not_stand_for_the_copy_that_it_replaced() {
    block_on(async {
        let scene = Scene::new().await;
        let Scene { a, b, .. } = &scene;
        // Commits wait for b, and the archive has not got the last of them.
        b.join(a).await.stop().await;
        assert!(floor(&b.instance).unwrap().is_some(), "a base backup too");
        let at_b = b.start(&replica(Some(a.source_for(b)))).await;
        let (session, names) = (&scene.at_a.session, "ANY 1 (baton_b)");
        let settings = replication();
        let named = replication::set_names(&a.instance, session, &settings, names, LONG);
        named.await.unwrap();
        replication::enforced_from(session, LONG).await.unwrap();
        a.client().await.run("INSERT INTO t VALUES (7)").await;
        let acknowledged = scene.at_a.facts().await.followers["baton_b"].flushed;
        at_b.stop().await;
        scene.free_slot().await;

        let command = scene.restores_and("true");
        scene.seed_anew(&command, LONG).await.unwrap();
        let floor = floor(&b.instance).unwrap().unwrap();
        assert!(floor.timeline == 1 && floor.lsn >= acknowledged, "{floor}");
        let received = scene.received().await;
        assert!(received < floor, "{received} of {floor}");
        // The primary has it.
        let at_b = b.start(&replica(Some(a.source_for(b)))).await;
        at_b.until("all is there again", |facts| {
            facts.timeline == floor.timeline && facts.flushed >= floor.lsn
        })
        .await;
        at_b.stop().await;
        assert!(scene.received().await >= floor);
        scene.at_a.stop().await;
    });
}

#[test]
fn where_the_primary_is_lost_meanwhile_the_copy_that_is_there_stays() {
    block_on(async {
        let scene = Scene::new().await;
        let b = &scene.b;
        b.join(&scene.a).await.stop().await;
        scene.free_slot().await;
        let before = scene.received().await;
        let begun = scene.place.path().join("begun");
        let lost = scene.place.path().join("lost");
        let (shown_begun, shown_lost) = (begun.display(), lost.display());
        let wait =
            format!("touch {shown_begun}\nwhile ! test -e {shown_lost}; do sleep 0.05; done");
        fs::set_permissions(scene.place.path(), Permissions::from_mode(0o777)).unwrap();
        let command = SeedCommand {
            fallback: true,
            ..scene.restores_and(&wait)
        };
        let losing = async {
            while !begun.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _stopped = postgres::kill(&scene.at_a.launched.postmaster, LONG).await;
            fs::write(&lost, "").unwrap();
        };
        let patience = Duration::from_secs(3);
        let (made, ()) = tokio::join!(scene.seed_anew(&command, patience), losing);
        assert!(
            matches!(made, Err(SeedError::Restore(RestoreError::PrimaryGone(_)))),
            "{made:?}"
        );
        assert_eq!(scene.received().await, before);
    });
}
