//! A member's process is killed: what it had started, locked and attached goes with it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use baton::clock;
use baton::postgres;
use fs2::FileExt;

use crate::harness::{LONG, Volume, block_on, permit, processes_with, start};

/// The environment variable that makes `as_a_member_that_is_killed` one, with its directory.
const VICTIM: &str = "BATON_TEST_VICTIM";

/// What it says when PostgreSQL serves, before the path of its device.
const STARTED: &str = "PostgreSQL serves on ";

/// Not a test of its own: the body of the process that the next test kills.
#[test]
fn as_a_member_that_is_killed() {
    let Ok(directory) = std::env::var(VICTIM) else {
        return;
    };
    let volume = Volume::new();
    let _mounted = volume.prepare();
    let mut instance = volume.instance();
    instance.runtime_directory = Path::new(&directory).join("run");
    postgres::initdb(&permit(1).licence(), &instance).unwrap();
    block_on(async {
        let (_launched, _session) = start(&instance, 1).await;
        println!("{STARTED}{}", volume.device().display());
        std::future::pending::<()>().await;
    });
}

#[test]
fn postgresql_dies_with_a_killed_member_and_frees_lock_mount_and_device() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let mut member = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "killed_member::as_a_member_that_is_killed",
        ])
        .env(VICTIM, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(member.stdout.take().unwrap()).lines();
    let device = said
        .find_map(|line| Some(line.unwrap().split_once(STARTED)?.1.to_owned()))
        .expect("the member starts");
    let text = directory.path().to_str().unwrap();
    assert!(!processes_with(text).is_empty());
    let lock = File::open(directory.path().join("run.lock")).unwrap();
    assert!(
        lock.try_lock_exclusive().is_err(),
        "PostgreSQL holds the lock"
    );

    member.kill().unwrap();
    member.wait().unwrap();
    eventually("PostgreSQL is gone", || processes_with(text).is_empty());
    eventually("the lock is free", || lock.try_lock_exclusive().is_ok());
    eventually("the device is detached", || {
        let backing = Path::new("/sys/block").join(Path::new(&device).file_name().unwrap());
        !backing.join("loop/backing_file").exists()
    });
}

fn eventually(what: &str, mut true_now: impl FnMut() -> bool) {
    let began = clock::now();
    while !true_now() {
        assert!(began.until(clock::now()) < LONG, "in vain: {what}");
        std::thread::yield_now();
    }
    println!("{what} after {:?}", began.until(clock::now()));
}
