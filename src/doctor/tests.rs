//! Recorded trees and answers, with one thing wrong each.

use std::path::Path;
use std::time::Duration;

use fencing::{ClusterTag, Mailbox};
use nvme::reservation::Registrant;
use nvme::{HostId, Identified, ReservationReport, ReservationType};
use tempfile::TempDir;
use uuid::Uuid;

use super::Subject;
use super::{Check, Tree, Verdict, identity, machine, paths, volume};
use crate::config::Config;

const NODE: &str = include_str!("fixtures/node.tree");

const MEMBER: &str = r#"
cluster = "orders"
member = "a"
number = 1
runtime_dir = "/run/baton"
[volume]
transport = "kernel"
address = "10.77.1.10:4420"
subsystem = "nqn.2026-11.dev.baton:vm"
host_nqn = "nqn.2014-08.org.nvmexpress:uuid:8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c0b"
host_id = "8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c0b"
mount_point = "/srv/baton/volume"
[lease]
path = "/srv/lease/orders.lease"
[peer]
listen = "10.77.2.11:7400"
secret_file = "/etc/baton/secret"
[postgres]
bin_dir = "/usr/lib/postgresql/15/bin"
[journal]
path = "/srv/baton/journal.jsonl"
"#;

/// With a watchdog in the settings.
const WATCHED: (&str, &str) = (
    "[lease]",
    "[fencing.watchdog]\ntimeout = \"10s\"\nmax_age = \"2s\"\nmargin = \"1s\"\n[timings]\nfence = \"60s\"\n[lease]",
);

/// Edits of the tree and of the settings, and the one check that is not well then.
type Case = (
    &'static [&'static str],
    (&'static str, &'static str),
    Verdict,
    &'static str,
    &'static [&'static str],
);

fn config(edit: (&str, &str)) -> Subject {
    let text = MEMBER.replace(edit.0, edit.1);
    let config = Config::parse(Path::new("member.toml"), &text).unwrap();
    Subject::of(config).unwrap()
}

/// Makes the recorded tree; each edit is another line of it, or `- path` for one that is missing.
fn tree(edits: &[&str]) -> (TempDir, Tree) {
    let root = tempfile::tempdir().unwrap();
    for line in NODE.lines().chain(edits.iter().copied()) {
        let at = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        if line.starts_with('#') {
        } else if let Some(path) = line.strip_prefix("- ") {
            let path = at(path);
            let removed = std::fs::remove_file(&path);
            removed.or_else(|_| std::fs::remove_dir_all(path)).unwrap();
        } else if let Some((path, target)) = line.split_once(" -> ") {
            std::os::unix::fs::symlink(root.path().join(target), at(path)).unwrap();
        } else {
            let (path, value) = line.split_once(" =").unwrap();
            std::fs::write(at(path), format!("{}\n", value.trim())).unwrap();
        }
    }
    let tree = Tree::at(root.path());
    (root, tree)
}

/// Everything that is judged from the tree alone; what this machine has does not matter.
fn looked(edits: &[&str], config: Option<&Subject>) -> Vec<Check> {
    let (_root, tree) = tree(edits);
    let mut checks = machine::checks(&tree, config);
    checks.retain(|check| !["settings", "wall clock"].contains(&check.name));
    checks.extend(identity::checks(&tree, config));
    checks.extend(paths::checks(&tree, config));
    checks
}

/// The one check that came to something else, and what it must say.
fn only(checks: &[Check], verdict: Verdict, name: &str, words: &[&str]) {
    let other: Vec<_> = checks
        .iter()
        .filter(|check| !matches!(check.verdict, Verdict::Ok | Verdict::NotChecked))
        .collect();
    let [check] = other.as_slice() else {
        panic!("{name}: {other:#?}");
    };
    assert_eq!((check.name, check.verdict), (name, verdict), "{check:#?}");
    let said = format!(
        "{} -> {}",
        check.says,
        check.advice.clone().unwrap_or_default()
    );
    for word in words {
        assert!(said.contains(word), "{word:?} in {said:?}");
    }
}

#[test]
fn a_node_as_it_should_be() {
    let checks = looked(&[], Some(&config(("", ""))));
    let wrong: Vec<_> = checks
        .iter()
        .filter(|check| check.verdict != Verdict::Ok)
        .collect();
    let [watchdog] = wrong.as_slice() else {
        panic!("{wrong:#?}");
    };
    assert_eq!(
        (watchdog.name, watchdog.verdict),
        ("watchdog", Verdict::NotChecked)
    );
    let without = looked(&[], None);
    assert!(
        without
            .iter()
            .all(|check| check.verdict != Verdict::Problem),
        "{without:#?}"
    );
}

#[test]
fn each_thing_that_is_wrong_on_a_node_is_named() {
    use Verdict::{Problem, Warning};
    let cases: &[Case] = &[
        (
            &["- dev/nvme-fabrics"],
            ("", ""),
            Problem,
            "kernel's initiator",
            &["not loaded", "modprobe nvme-tcp"],
        ),
        (
            &[
                "- dev/nvme-fabrics",
                "- lib/modules/7.3.4+deb13-amd64/modules.dep",
            ],
            ("", ""),
            Problem,
            "kernel's initiator",
            &["no module nvme-tcp", "\"tcp\""],
        ),
        (
            &["- dev/fuse"],
            ("\"kernel\"", "\"tcp\""),
            Problem,
            "block bridge",
            &["/dev/fuse", "modprobe -a fuse"],
        ),
        (
            &["proc/filesystems = nodev sysfs"],
            ("", ""),
            Warning,
            "ext4",
            &["not loaded", "modules-load.d"],
        ),
        (
            &["proc/filesystems = xfs", "- lib/modules"],
            ("", ""),
            Problem,
            "ext4",
            &["no ext4"],
        ),
        (
            &["- usr/sbin/tune2fs"],
            ("", ""),
            Warning,
            "e2fsprogs",
            &["tune2fs", "install"],
        ),
        (
            &["- etc/nvme/hostid"],
            ("", ""),
            Warning,
            "host identity",
            &["missing", "volume.host_id"],
        ),
        (
            &["etc/nvme/hostid = 8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c99"],
            ("", ""),
            Warning,
            "host identity",
            &["0c0b", "0c99", "second host"],
        ),
        (
            &["etc/nvme/hostid = node-a"],
            ("", ""),
            Problem,
            "host identity",
            &["no UUID", "uuidgen"],
        ),
        (
            &["sys/class/nvme/nvme0/state = connecting"],
            ("", ""),
            Problem,
            "paths",
            &["none is usable", "nvme0 connecting"],
        ),
        (
            &["sys/class/nvme/nvme0/nvme0c0n1/ana_state = inaccessible"],
            ("", ""),
            Problem,
            "paths",
            &["inaccessible"],
        ),
        (
            &["sys/class/nvme-subsystem/nvme-subsys0/nvme0n1/nsid = 2"],
            ("", ""),
            Problem,
            "paths",
            &["no such namespace"],
        ),
        (
            &["sys/class/nvme/nvme0/fast_io_fail_tmo = off"],
            ("", ""),
            Warning,
            "time-outs",
            &["is off", "fast_io_fail_tmo in"],
        ),
        (
            &["sys/class/nvme/nvme0/kato = 30"],
            ("", ""),
            Warning,
            "time-outs",
            &["keep-alive 30 s"],
        ),
        (
            &["sys/class/nvme/nvme0/reconnect_delay = 10"],
            ("", ""),
            Warning,
            "time-outs",
            &["reconnect_delay 10 s"],
        ),
        (
            &["sys/class/nvme/nvme0/nvme0c0n1/queue/io_timeout = 30000"],
            ("", ""),
            Warning,
            "time-outs",
            &["I/O time-out 30 s"],
        ),
        (
            &["- sys/class/nvme/nvme0/admin_timeout"],
            ("", ""),
            Warning,
            "time-outs",
            &["admin time-out 60 s", "nvme_core.admin_timeout=10"],
        ),
        (
            &["sys/class/nvme-subsystem/nvme-subsys0/nvme0n2/nsid = 2"],
            ("", ""),
            Warning,
            "own controllers",
            &["nvme0n2", "subsystem of its own"],
        ),
        (
            &[
                "sys/class/watchdog/watchdog0/state = active",
                "dev/watchdog =",
            ],
            WATCHED,
            Warning,
            "watchdog",
            &["in use already"],
        ),
        (
            &[],
            WATCHED,
            Problem,
            "watchdog",
            &["/dev/watchdog is missing", "softdog"],
        ),
    ];
    for (edits, edit, verdict, name, words) in cases {
        only(&looked(edits, Some(&config(*edit))), *verdict, name, words);
    }
}

/// One kernel, two host identities: the connection of the other one also spoils nothing else.
#[test]
fn a_kernel_that_is_two_hosts_is_a_problem() {
    let other = [
        "sys/class/nvme/nvme0/hostid = 8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c99",
        "sys/class/nvme/nvme0/hostnqn = nqn.2014-08.org.nvmexpress:uuid:other",
    ];
    let checks = looked(&other, Some(&config(("", ""))));
    only(
        &checks,
        Verdict::Problem,
        "one host per kernel",
        &["nvme0 as nqn", "nvme disconnect"],
    );
    let own = looked(&other, Some(&config(("\"kernel\"", "\"tcp\""))));
    assert!(
        own.iter().all(|check| check.verdict != Verdict::Problem),
        "{own:#?}"
    );
}

fn host(number: u8) -> HostId {
    HostId(Uuid::from_u128(
        0x8e6f_ca0e_90b3_4b0b_a3f0_3a1f_3f0e_0c00 + u128::from(number),
    ))
}

/// A registration of a member of this cluster, or of something else.
fn registrant(of: u8, member: Option<u8>, holder: bool) -> Registrant {
    let tag = u64::from(ClusterTag::of("orders").number());
    let key = match member {
        Some(member) => tag << 48 | u64::from(member) << 40 | 7 << 20,
        None => 0xa1,
    };
    Registrant {
        controller: 0xffff,
        holder,
        host: host(of),
        key,
    }
}

fn answers(rescap: u8, persistent: bool, registrants: Vec<Registrant>) -> (Identified, Mailbox) {
    let identified = Identified {
        nsid: 1,
        nguid: Uuid::from_u128(1),
        uuid: Uuid::from_u128(2),
        blocks: 2_097_152,
        block_size: 512,
        reservation_capabilities: rescap,
        volatile_write_cache: true,
        max_transfer: 524_288,
        quiesce_time: Duration::from_secs(10),
        keep_alive_timeout: Duration::from_secs(5),
        serial: String::new(),
        model: String::new(),
        firmware: String::new(),
    };
    let report = ReservationReport {
        generation: 1,
        reservation: registrants
            .iter()
            .any(|registrant| registrant.holder)
            .then_some(ReservationType::WriteExclusive),
        persistent,
        registrants,
    };
    (identified, Mailbox::read(&report, ClusterTag::of("orders")))
}

#[test]
fn what_the_volume_says_is_judged() {
    use Verdict::{Ok, Problem, Warning};
    const ALL: u8 = 0xff;
    let two = || {
        vec![
            registrant(11, Some(1), true),
            registrant(12, Some(2), false),
        ]
    };
    let volatile = ("[lease]", "require_persistence = false\n[lease]");
    let other = (
        "[lease]",
        "identifier = \"5f0c6a52-6f7e-4d0c-9f6a-2d6f3c1e7a10\"\n[lease]",
    );
    type Answer = (
        u8,
        bool,
        Vec<Registrant>,
        (&'static str, &'static str),
        Verdict,
        &'static str,
        &'static str,
    );
    let cases: Vec<Answer> = vec![
        (ALL, true, two(), ("", ""), Ok, "", ""),
        (ALL, false, vec![], ("", ""), Ok, "", ""),
        (ALL, true, two(), other, Problem, "volume", "not the one"),
        (
            0xfd,
            true,
            two(),
            ("", ""),
            Problem,
            "reservations",
            "resv_enable",
        ),
        (
            0xfe,
            false,
            two(),
            ("", ""),
            Problem,
            "persistence",
            "no PTPL",
        ),
        (
            0xfe,
            false,
            two(),
            volatile,
            Warning,
            "persistence",
            "confirm-stopped",
        ),
        (
            ALL,
            false,
            two(),
            ("", ""),
            Problem,
            "persistence",
            "PTPLS 0",
        ),
        (
            ALL,
            true,
            vec![registrant(11, Some(2), true)],
            ("", ""),
            Problem,
            "registrants",
            "host_id",
        ),
        (
            ALL,
            true,
            vec![registrant(12, Some(1), true)],
            ("", ""),
            Problem,
            "registrants",
            "number 1",
        ),
        (
            ALL,
            true,
            vec![registrant(11, None, true)],
            ("", ""),
            Problem,
            "registrants",
            "0x00000000000000a1",
        ),
        (
            ALL,
            true,
            vec![registrant(13, None, true)],
            ("", ""),
            Warning,
            "registrants",
            "something else",
        ),
    ];
    for (rescap, persistent, registrants, edit, verdict, name, word) in cases {
        let (identified, mailbox) = answers(rescap, persistent, registrants);
        let checks = volume::judge(&config(edit), &identified, Some(&mailbox));
        if verdict == Ok {
            assert!(
                checks.iter().all(|check| check.verdict == Ok),
                "{checks:#?}"
            );
        } else {
            only(&checks, verdict, name, &[word]);
        }
    }
}
