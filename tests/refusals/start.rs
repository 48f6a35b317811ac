//! What keeps a member from starting: it ends at once, with the exit code that says whose fault it is.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::scene::{BATON, Scene, add_peer, free_port, get, set};

/// Small, and sparse: nothing is ever made on it here.
const VOLUME: u64 = 64 << 20;

/// The user `nobody` of every Linux.
const NOBODY: u32 = 65534;

/// One thing that is wrong.
struct Case {
    name: &'static str,
    /// Options of the target besides the file it serves.
    target: &'static [&'static str],
    /// Makes it wrong.
    arrange: fn(&mut Scene),
    /// How the member ends: 2 for a bad configuration.
    code: i32,
    /// What it must say.
    words: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "no initiator of the kernel",
        target: &[],
        arrange: |scene| set(&mut scene.member, "volume.transport", "kernel"),
        code: 2,
        words: &[
            "volume.transport:",
            "/dev/nvme-fabrics is missing",
            "modprobe nvme-tcp",
            "write \"tcp\"",
        ],
    },
    Case {
        name: "no root",
        target: &[],
        arrange: |scene| scene.user = Some(NOBODY),
        code: 2,
        words: &["must run as root", "peer.secret_file:"],
    },
    Case {
        name: "nothing answers at the address",
        target: &[],
        arrange: |scene| {
            let nowhere = format!("127.0.0.1:{}", free_port());
            set(&mut scene.member, "volume.address", nowhere);
        },
        code: 1,
        words: &[
            "connect to namespace 1 of nqn.2026-11.dev.baton:lab at 127.0.0.1:",
            "Connection refused",
            "start the target, or correct volume.address",
        ],
    },
    Case {
        name: "something silent at the address",
        target: &[],
        arrange: |scene| {
            let silent = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = silent.local_addr().unwrap().to_string();
            set(&mut scene.member, "volume.address", address);
            scene.kept.push(Box::new(silent));
        },
        code: 1,
        words: &["no connection to 127.0.0.1:", "correct volume.address"],
    },
    Case {
        name: "no NVMe target at the address",
        target: &[],
        arrange: |scene| {
            let web = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = web.local_addr().unwrap().to_string();
            set(&mut scene.member, "volume.address", address);
            // Ends with the first connection, which this very case makes.
            std::thread::spawn(move || {
                let (mut client, _) = web.accept().unwrap();
                let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 200\r\n\r\n";
                let _gone = client.write_all(answer);
                let _gone = client.write_all(&[b'x'; 200]);
                let _closed = std::io::copy(&mut client, &mut std::io::sink());
            });
        },
        code: 1,
        words: &["initialize the connection", "correct volume.address"],
    },
    Case {
        name: "another subsystem",
        target: &["--subsystem=nqn.2026-11.dev.baton:other"],
        arrange: |_| {},
        code: 1,
        words: &["Connect was refused", "volume.subsystem"],
    },
    Case {
        name: "no such namespace",
        target: &[],
        arrange: |scene| set(&mut scene.member, "volume.namespace_id", 7),
        code: 1,
        words: &["connect to namespace 7", "volume.namespace_id"],
    },
    Case {
        name: "no reservations",
        target: &["--no-reservations"],
        arrange: |_| {},
        code: 1,
        words: &[
            "the volume has no reservations (RESCAP 0x00)",
            "cannot be fenced",
            "use a target and namespace that support",
        ],
    },
    Case {
        name: "reservations that do not persist",
        target: &[],
        arrange: |_| {},
        code: 1,
        words: &[
            "do not survive a power loss of the target",
            "enable their persistence",
            "volume.require_persistence = false",
        ],
    },
    Case {
        name: "PostgreSQL's port in use",
        target: &["state"],
        arrange: |scene| {
            let taken = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = taken.local_addr().unwrap().port();
            set(&mut scene.member, "postgres.port", i64::from(port));
            scene.kept.push(Box::new(taken));
        },
        code: 1,
        words: &["another program listens on port", "another postgres.port"],
    },
    Case {
        name: "the peers' port in use",
        target: &["state"],
        arrange: |scene| {
            let taken = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = taken.local_addr().unwrap().to_string();
            set(&mut scene.member, "peer.listen", address);
            scene.kept.push(Box::new(taken));
        },
        code: 1,
        words: &[
            "listen for peers at 127.0.0.1:",
            "set peer.listen to a free port",
            "in use",
        ],
    },
    Case {
        name: "the control socket taken",
        target: &["state"],
        arrange: |scene| {
            let socket = get(&scene.member, "control.socket");
            scene
                .kept
                .push(Box::new(UnixListener::bind(socket).unwrap()));
        },
        code: 1,
        words: &[
            "a member already answers at",
            "stop it, or set another control.socket",
        ],
    },
    Case {
        name: "a control socket that cannot be made",
        target: &["state"],
        arrange: |scene| {
            let file = scene.path("file");
            std::fs::write(&file, "").unwrap();
            let below = file.join("control.sock").display().to_string();
            set(&mut scene.member, "control.socket", below);
        },
        code: 1,
        words: &[
            "listen at the control socket",
            "a path that can be made (control.socket)",
        ],
    },
    Case {
        name: "a journal that cannot be written",
        target: &["state"],
        arrange: |scene| {
            let directory = scene.path("shared").display().to_string();
            set(&mut scene.member, "journal.path", directory);
        },
        code: 1,
        words: &["open the journal", "(journal.path)"],
    },
    Case {
        name: "a second member with the same name on the node",
        target: &["state"],
        arrange: |scene| {
            let first = waiting_member(scene, "a", 2);
            for setting in ["runtime_dir", "volume.host_id"] {
                let same = get(&first, setting);
                set(&mut scene.member, setting, same);
            }
            let other = uuid::Uuid::new_v4().to_string();
            set(&mut scene.member, "volume.host_id", other);
        },
        code: 1,
        words: &[
            "member a of cluster main is in use on this node by member a of main, process",
            "stop that one first, or correct member",
        ],
    },
    Case {
        name: "a second member with the same host identity on the node",
        target: &["state"],
        arrange: |scene| {
            let first = waiting_member(scene, "b", 2);
            for setting in ["runtime_dir", "volume.host_id"] {
                let same = get(&first, setting);
                set(&mut scene.member, setting, same);
            }
        },
        code: 1,
        words: &[
            "host identity",
            "is in use on this node by member b of main",
            "stop that one first, or correct volume.host_id",
        ],
    },
];

/// Starts a member that waits for another one to make the database.
fn waiting_member(scene: &mut Scene, name: &str, number: u8) -> toml::Table {
    let mut first = scene.other(name, number);
    add_peer(&mut first, "bootstrap", 1, "127.0.0.1:1");
    let mut process = scene.run_member(&first);
    process.until(&first, |said, _| {
        said.contains("waiting for member 1 to make the database")
    });
    scene.kept.push(Box::new(process));
    first
}

#[test]
fn a_member_that_cannot_start_says_why_and_changes_nothing() {
    for case in CASES {
        println!("case: {}", case.name);
        let mut scene = Scene::new();
        let file = std::fs::File::create(scene.image()).unwrap();
        file.set_len(VOLUME).unwrap();
        let state = scene.state_option();
        let options: Vec<&str> = case
            .target
            .iter()
            .map(|option| if *option == "state" { &state } else { *option })
            .collect();
        scene.serve(&options);
        (case.arrange)(&mut scene);
        let before = scene.digest();
        let mut member = scene.run();
        let code = member.wait().code();
        let log = member.log();
        println!("{log}");
        assert_eq!(code, Some(case.code), "{}: {log}", case.name);
        for word in case.words {
            assert!(log.contains(word), "{}: {word:?} in {log}", case.name);
        }
        assert_eq!(scene.digest(), before, "{}: the volume", case.name);
        scene.kept.clear();
        scene.wait_for_devices();
    }
}

/// Everything that is wrong with the settings and with the machine comes in one answer.
#[test]
fn wrong_settings_and_what_the_machine_lacks_are_named_together() {
    let mut scene = Scene::new();
    set(&mut scene.member, "volume.transport", "kernel");
    set(&mut scene.member, "postgres.os_user", "root");
    set(&mut scene.member, "postgres.parameters.fsync", "off");
    let same = get(&scene.member, "peer.listen");
    add_peer(&mut scene.member, "a", 1, &same);
    std::fs::write(scene.path("secret"), "short").unwrap();
    let mut member = scene.run();
    let code = member.wait().code();
    let log = member.log();
    assert_eq!(code, Some(2), "{log}");
    for setting in [
        "volume.transport:",
        "postgres.os_user:",
        "postgres.parameters.fsync:",
        "peer.members[0].name:",
        "peer.members[0].number:",
        "peer.members[0].address:",
        "peer.secret_file:",
    ] {
        assert!(log.contains(setting), "{setting} in {log}");
    }
    for made in ["run", "journal.jsonl", "control.sock", "bridge"] {
        assert!(!scene.path(made).exists(), "{made} was made");
    }
}

#[test]
fn unknown_commands_and_scenarios_are_answered_with_what_there_is() {
    let cases: [(&[&str], &[&str]); 3] = [
        (&["serve"], &["unrecognized subcommand 'serve'", "--help"]),
        (
            &["drill", "run", "earthquake"],
            &["'earthquake'", "planned", "crash", "power-loss"],
        ),
        (
            &["lab", "sideways"],
            &["unrecognized subcommand 'sideways'"],
        ),
    ];
    for (arguments, words) in cases {
        let output = Command::new(BATON).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        for word in words {
            assert!(err.contains(word), "{arguments:?}: {word:?} in {err}");
        }
    }
}
