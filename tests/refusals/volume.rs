//! What is on the volume, or beside it, lets a member wait: the cause is in `baton status`, and not a
//! byte of the volume changes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use baton::clock;
use baton::config::Config;
use baton::decide::{Incarnation, LeaseRecord};
use baton::lease::LeaseStore;
use fencing::{Epoch, MemberId};

use crate::scene::{Process, Scene, add_peer, get, set};

/// Large enough for every filesystem made here.
const VOLUME: u64 = 64 << 20;

/// One thing that is wrong.
struct Case {
    name: &'static str,
    /// Makes it wrong, before anything runs but the target.
    arrange: fn(&mut Scene),
    /// What `baton status` must say, as reason or warning.
    words: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "an XFS filesystem",
        arrange: |scene| write(scene, 0, b"XFSB"),
        words: &["an XFS filesystem (at byte 0)", "attach the right one"],
    },
    Case {
        name: "a partition table",
        arrange: |scene| write(scene, 510, b"\x55\xaa"),
        words: &["a partition table or boot sector", "attach the right one"],
    },
    Case {
        name: "random data",
        arrange: |scene| {
            let random: Vec<u8> = (0..1 << 20).map(|_| rand::random::<u8>() | 1).collect();
            write(scene, 0, &random);
        },
        words: &["unknown data (at byte 0)", "not ours"],
    },
    Case {
        name: "data in the middle",
        arrange: |scene| write(scene, 32 << 20, b"row of a table"),
        words: &["unknown data (at byte 33554432)", "not ours"],
    },
    Case {
        name: "an ext4 of somebody else",
        arrange: |scene| make_ext4(scene, "photos"),
        words: &["its label is \"photos\"", "attach the right volume"],
    },
    Case {
        name: "an ext4 with a damaged superblock",
        arrange: |scene| {
            make_ext4(scene, "photos");
            write(scene, 1024 + 0x20, b"\xff\xff");
        },
        words: &["superblock is damaged", "not ours"],
    },
    Case {
        name: "blank, but the lease tells of a database in service",
        arrange: |scene| write_lease(scene, true),
        words: &[
            "the volume is blank",
            "attach the right volume, or restore the lease",
        ],
    },
    Case {
        name: "blank, and the lease is damaged",
        arrange: |scene| {
            write_lease(scene, false);
            let lease = get(&scene.member, "lease.path");
            fs::write(lease, "{\"format\": 1, \"epo").unwrap();
        },
        words: &[
            "main.lease is damaged",
            "restore it from a copy",
            "the volume is blank",
        ],
    },
    Case {
        name: "blank, and the lease is another cluster's",
        arrange: |scene| {
            set(&mut scene.member, "cluster", "other");
            write_lease(scene, false);
            set(&mut scene.member, "cluster", "main");
        },
        words: &["belongs to cluster other", "correct lease.path"],
    },
    Case {
        name: "blank, and another site's members are registered",
        arrange: |scene| {
            let mut first = beside(scene, "b", 2);
            set(&mut first, "site", "north");
            set(
                &mut first,
                "lease.path",
                scene.path("north.lease").display().to_string(),
            );
            let process = waiting(scene, &mut first);
            scene.kept.push(Box::new(process));
        },
        words: &[
            "hosts of another cluster, another site or another program are registered",
            "remove their registrations",
        ],
    },
    Case {
        name: "a host identity that another node uses",
        arrange: |scene| {
            let mut first = beside(scene, "b", 2);
            let same = get(&first, "volume.host_id");
            set(&mut scene.member, "number", 3);
            set(&mut scene.member, "volume.host_id", same);
            add_peer(&mut scene.member, "bootstrap", 1, "127.0.0.1:1");
            let address = get(&first, "peer.listen");
            add_peer(&mut scene.member, "b", 2, &address);
            let process = waiting(scene, &mut first);
            scene.kept.push(Box::new(process));
        },
        words: &[
            "member 2 uses the same host identity",
            "give each host its own hostid",
        ],
    },
    Case {
        name: "two nodes with members of one name",
        arrange: |scene| {
            let mut one = beside(scene, "b", 2);
            let mut twin = scene.other("b", 2);
            for (setting, file) in [
                ("runtime_dir", "twin-run"),
                ("volume.mount_point", "twin-mount"),
                ("volume.directory", "twin-bridge"),
                ("journal.path", "twin-journal.jsonl"),
                ("control.socket", "twin.sock"),
                ("postgres.socket_directory", "twin-sockets"),
            ] {
                let path = scene.path(file).display().to_string();
                set(&mut twin, setting, path);
            }
            add_peer(&mut scene.member, "bootstrap", 1, "127.0.0.1:1");
            set(&mut scene.member, "number", 3);
            let at_one = get(&one, "peer.listen");
            add_peer(&mut scene.member, "b", 2, &at_one);
            let own = get(&scene.member, "peer.listen");
            add_peer(&mut one, "a", 3, &own);
            add_peer(&mut twin, "bootstrap", 1, "127.0.0.1:1");
            add_peer(&mut twin, "a", 3, &own);
            for member in [&mut one, &mut twin] {
                let process = waiting(scene, member);
                scene.kept.push(Box::new(process));
            }
        },
        words: &["two processes say that they are member b; stop one"],
    },
];

#[test]
fn a_member_that_cannot_use_the_volume_waits_says_why_and_changes_nothing() {
    for case in CASES {
        println!("case: {}", case.name);
        let mut scene = Scene::new();
        let file = File::create(scene.image()).unwrap();
        file.set_len(VOLUME).unwrap();
        let state = scene.state_option();
        scene.serve(&[&state]);
        (case.arrange)(&mut scene);
        let before = scene.digest();
        let mut member = scene.run();
        member.until(&scene.member, |said, _| says(said, case.words));
        member.terminate();
        assert!(member.wait().success(), "{}: {}", case.name, member.log());
        assert_eq!(scene.digest(), before, "{}: the volume", case.name);
        let steps = steps(&scene);
        let writes = ["\"format\"", "\"mount\"", "\"start-postgres\""];
        assert!(
            steps.contains("\"rebuild-device\"") && !writes.iter().any(|step| steps.contains(step)),
            "{}: {steps}",
            case.name
        );
        scene.kept.clear();
        scene.wait_for_devices();
    }
}

/// Whether a status says all this; in JSON, quotes within a text are escaped.
pub fn says(said: &str, words: &[&str]) -> bool {
    let said = said.replace("\\\"", "\"");
    words.iter().all(|word| said.contains(word))
}

/// The names of the steps that the member took, as its log has them.
fn steps(scene: &Scene) -> String {
    let logs = fs::read_dir(scene.directory.path()).unwrap();
    let own = |path: &std::path::Path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("a-") && name.ends_with(".log")
    };
    logs.map(|entry| entry.unwrap().path())
        .filter(|path| own(path))
        .map(|path| fs::read_to_string(path).unwrap())
        .flat_map(|log| {
            let begun = log.lines().filter(|line| line.contains(" begin "));
            begun.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Another member of the site, which waits for a bootstrap member that is never there.
fn beside(scene: &Scene, name: &str, number: u8) -> toml::Table {
    let mut first = scene.other(name, number);
    add_peer(&mut first, "bootstrap", 1, "127.0.0.1:1");
    first
}

fn waiting(scene: &Scene, member: &mut toml::Table) -> Process {
    let mut process = scene.run_member(member);
    process.until(member, |said, _| says(said, &["waiting for member 1"]));
    process
}

fn write(scene: &Scene, offset: u64, bytes: &[u8]) {
    let image = File::options().write(true).open(scene.image()).unwrap();
    image.write_all_at(bytes, offset).unwrap();
}

fn make_ext4(scene: &Scene, label: &str) {
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", label])
        .arg(scene.image())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The lease of a site that nobody owns.
fn write_lease(scene: &Scene, initialized: bool) {
    let text = scene.member.to_string();
    let config = Config::parse(&scene.path("member.toml"), &text).unwrap();
    let lease = LeaseStore::open(&config, Incarnation(1)).unwrap();
    let record = LeaseRecord {
        epoch: Epoch::new(3).unwrap(),
        newest: Epoch::new(3).unwrap(),
        holder: MemberId::new(1),
        incarnation: Incarnation(1),
        sequence: 7,
        clean: true,
        planned: false,
        initialized,
        paused: false,
        cluster: None,
    };
    let deadline = clock::now() + std::time::Duration::from_secs(60);
    let written = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(lease.write(None, record, deadline));
    assert!(written.is_ok(), "{written:?}");
}
