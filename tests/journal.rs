//! The journal replays, survives being cut, stays bounded; and the locks of a node.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use baton::decide::{Finished, Incarnation, Memory, Outcome, decide};
use baton::journal::{self, Entry, Journal};
use baton::node_lock::{NodeLock, NodeLockError, Owner};
use common::{Site, observation};
use fencing::Mono;

/// Lets `decide` run for `seconds` on a member that sees nothing and whose steps succeed; all of
/// it goes through the journal.
fn live(site: &Site, seconds: u64) -> usize {
    let core = site.config.for_decisions();
    let mut journal = Journal::open(&site.config, Incarnation(u64::MAX)).unwrap();
    let mut memory = Memory::default();
    let mut seen = observation(&site.config, Mono::from_millis(1_000));
    let mut steps = 0;
    for tick in 0..seconds * 4 {
        let now = Mono::from_millis(1_000 + tick * 250);
        let decision = decide(&core, &memory, &seen, now);
        journal.record(&memory, &seen, now, &decision);
        if let Some(issued) = decision.memory.issued.as_ref() {
            if memory.issued.as_ref().map(|before| before.id) != Some(issued.id) {
                steps += 1;
            }
            let outcome = Outcome::Failed {
                cause: "as the test wants".to_owned(),
            };
            seen.finished = Some(Finished {
                id: issued.id,
                at: now,
                outcome,
            });
        }
        memory = decision.memory;
    }
    steps
}

fn replay(path: &std::path::Path) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_baton"))
        .arg("replay")
        .arg(path)
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[test]
fn what_was_decided_comes_out_again() {
    let site = Site::new();
    assert!(live(&site, 30) > 0);
    let path = &site.config.journal.path;
    let (code, out) = replay(path);
    assert_eq!(code, 0, "{out}");
    let contents = journal::read(path).unwrap();
    let replayed = journal::replay(&contents);
    assert!(replayed.decisions > 1 && replayed.without_config == 0);
    assert!(!journal::steps(path).is_empty());
    assert!(
        journal::steps(path)
            .iter()
            .any(|step| step.outcome.is_some())
    );
}

#[test]
fn a_decision_that_comes_out_otherwise_is_shown() {
    let site = Site::new();
    live(&site, 10);
    let path = &site.config.journal.path;
    let text = fs::read_to_string(path).unwrap();
    let line = text
        .lines()
        .find(|line| line.contains("\"decision\""))
        .unwrap();
    let mut entry: serde_json::Value = serde_json::from_str(line).unwrap();
    let wake = entry["decision"]["decision"]["wake"].as_u64().unwrap();
    entry["decision"]["decision"]["wake"] = (wake + 1).into();
    fs::write(path, text.replacen(line, &entry.to_string(), 1)).unwrap();
    let (code, out) = replay(path);
    assert_eq!(code, 1);
    assert!(
        out.contains(&format!("wake: recorded {}, now {wake}", wake + 1)),
        "{out}"
    );
}

#[test]
fn a_cut_line_harms_no_other() {
    let mut site = Site::new();
    site.config.journal.max_bytes = 1 << 30;
    live(&site, 10);
    let path = &site.config.journal.path;
    let text = fs::read_to_string(path).unwrap();
    let whole = journal::read(path).unwrap().entries.len();
    fs::write(path, &text[..text.len() - 10]).unwrap();
    let cut = journal::read(path).unwrap();
    assert!(cut.cut && cut.unreadable.is_empty());
    assert_eq!(cut.entries.len(), whole - 1);
    assert_eq!(replay(path).0, 0);
    // The next run begins a new line.
    live(&site, 10);
    let after = journal::read(path).unwrap();
    assert_eq!((after.unreadable.len(), after.cut), (1, false));
    assert_eq!(after.entries.len(), 2 * whole - 1);
    assert_eq!(replay(path).0, 0);
}

#[test]
fn the_journal_stays_bounded_and_each_file_replays() {
    let site = Site::new();
    for _ in 0..20 {
        live(&site, 30);
    }
    let path = &site.config.journal.path;
    let older = site.file("journal.jsonl.1");
    for file in [path, &older] {
        let size = fs::metadata(file).unwrap().len();
        assert!(size <= site.config.journal.max_bytes + 16_384, "{size}");
        let contents = journal::read(file).unwrap();
        assert!(matches!(contents.entries[0].1, Entry::Start { .. }));
        assert_eq!(replay(file).0, 0);
    }
}

#[test]
fn nothing_to_replay_is_no_success() {
    let site = Site::new();
    fs::write(site.file("empty"), "").unwrap();
    assert_eq!(replay(&site.file("empty")).0, 1);
    assert_eq!(replay(&site.file("none")).0, 1);
}

fn take(site: &Site) -> Result<NodeLock, NodeLockError> {
    let patience = Duration::from_millis(50);
    NodeLock::take_within(owner(&site.config), patience, patience)
}

#[test]
fn a_second_member_of_the_same_name_or_host_is_told_who_has_it() {
    let mut site = Site::new();
    let first = take(&site).unwrap();
    let refused = take(&site).unwrap_err().to_string();
    let owner = format!("member a of main, process {}", std::process::id());
    assert!(
        refused.contains("member a of cluster main is in use"),
        "{refused}"
    );
    assert!(refused.contains(&owner), "{refused}");
    site.config.member = "c".to_owned();
    let refused = take(&site).unwrap_err().to_string();
    assert!(
        refused.contains("host identity") && refused.contains("volume.host_id"),
        "{refused}"
    );
    drop(first);
    take(&site).unwrap();
}

#[test]
fn the_host_stays_locked_while_a_child_lives_and_is_free_soon_after() {
    let site = Site::new();
    let lock = take(&site).unwrap();
    let host = lock.as_fd().try_clone_to_owned().unwrap();
    let mut child = Command::new("sleep")
        .arg("30")
        .stdin(Stdio::from(host))
        .spawn()
        .unwrap();
    drop(lock);
    let refused = take(&site);
    let (config, later) = (&site.config, Duration::from_secs(10));
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(move || NodeLock::take_within(owner(config), later, later));
        child.kill().unwrap();
        child.wait().unwrap();
        waiting.join().unwrap()
    });
    assert!(matches!(refused, Err(NodeLockError::Taken { .. })));
    waiting.unwrap();
}

fn owner(config: &baton::config::Config) -> Owner<'_> {
    let volume = config.volume().expect("a member that attaches by itself");
    Owner::of(config, volume)
}
