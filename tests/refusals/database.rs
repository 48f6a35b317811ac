//! A volume with a database that this member must not, or cannot, serve.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::scene::{Scene, set};
use crate::volume::says;

/// Room for a database of PostgreSQL, and not much more.
const VOLUME: u64 = 320 << 20;

/// A volume with a database in service until lately, its lease, and the target's reservations.
struct Made {
    directory: TempDir,
    member: toml::Table,
}

/// Made once, by a real member, for all tests of this file.
fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut scene = Scene::new();
        File::create(scene.image())
            .unwrap()
            .set_len(VOLUME)
            .unwrap();
        let state = scene.state_option();
        scene.serve(&[&state]);
        let mut member = scene.run();
        member.until(&scene.member, |_, status| status["serving"] == true);
        member.terminate();
        assert!(member.wait().success(), "{}", member.log());
        scene.stop_target();
        scene.wait_for_devices();
        let directory = tempfile::tempdir().unwrap();
        for (name, path) in files(&scene) {
            copy(&path, &directory.path().join(name));
        }
        Made {
            directory,
            member: scene.member.clone(),
        }
    })
}

/// What makes up the site, by name.
fn files(scene: &Scene) -> [(&'static str, PathBuf); 3] {
    [
        ("volume", scene.image()),
        ("state", scene.path("state.json")),
        ("lease", scene.path("shared/main.lease")),
    ]
}

/// Without writing out the holes.
fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").args([from, to]));
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same host and member comes again, to a copy of the site.
fn again() -> Scene {
    let made = made();
    let mut scene = Scene::new();
    for (name, path) in files(&scene) {
        copy(&made.directory.path().join(name), &path);
    }
    let host = crate::scene::get(&made.member, "volume.host_id");
    set(&mut scene.member, "volume.host_id", host);
    scene
}

/// Runs commands of debugfs on the image, as a person would repair it: without any mount.
fn debugfs(scene: &Scene, commands: &[String]) {
    for command in commands {
        run(Command::new("debugfs")
            .args(["-w", "-R", command])
            .arg(scene.image()));
    }
}

/// All files of the image, with their contents. Mounting alone changes counters in the superblock.
fn contents(scene: &Scene) -> String {
    let directory = tempfile::tempdir().unwrap();
    let dump = format!("rdump / {}", directory.path().display());
    run(Command::new("debugfs")
        .args(["-R", &dump])
        .arg(scene.image()));
    let script = "find . -type f -print0 | sort -z | xargs -0 sha256sum";
    run(Command::new("sh")
        .args(["-c", script])
        .current_dir(directory.path()))
}

/// One thing that is wrong with the volume, or with the one who comes to it.
struct Case {
    name: &'static str,
    /// Makes it wrong, before the target runs.
    arrange: fn(&mut Scene),
    /// What `baton status` must say, as reason or warning.
    words: &'static [&'static str],
    /// Whether even the superblock stays as it was: nothing is mounted.
    untouched: bool,
}

const CASES: &[Case] = &[
    Case {
        name: "another cluster's data",
        arrange: |scene| {
            set(&mut scene.member, "cluster", "other");
            for beside in ["state.json", "shared/main.lease"] {
                fs::remove_file(scene.path(beside)).unwrap();
            }
        },
        words: &[
            "the volume belongs to something else: its label is",
            "attach the right volume",
        ],
        untouched: true,
    },
    Case {
        name: "another cluster's volume, still reserved",
        arrange: |scene| {
            set(&mut scene.member, "cluster", "other");
            let host = uuid::Uuid::new_v4().to_string();
            set(&mut scene.member, "volume.host_id", host);
            fs::remove_file(scene.path("shared/main.lease")).unwrap();
        },
        words: &[
            "the volume is reserved by another cluster, another site or another program",
            "release its reservation",
        ],
        untouched: true,
    },
    Case {
        name: "the volume of another site of this cluster, still reserved",
        arrange: |scene| {
            set(&mut scene.member, "site", "north");
            let host = uuid::Uuid::new_v4().to_string();
            set(&mut scene.member, "volume.host_id", host);
            fs::remove_file(scene.path("shared/main.lease")).unwrap();
        },
        words: &["the volume is reserved by another cluster, another site or another program"],
        untouched: true,
    },
    Case {
        name: "the volume of another site of this cluster, which nobody reserves",
        arrange: |scene| {
            set(&mut scene.member, "site", "north");
            for beside in ["state.json", "shared/main.lease"] {
                fs::remove_file(scene.path(beside)).unwrap();
            }
        },
        words: &[
            "the volume belongs to something else: its label is",
            "attach the right volume",
        ],
        untouched: true,
    },
    Case {
        name: "another cluster's volume, reserved by this very host",
        arrange: |scene| {
            set(&mut scene.member, "cluster", "other");
            fs::remove_file(scene.path("shared/main.lease")).unwrap();
        },
        words: &["which is not of this cluster", "unregister that key"],
        untouched: true,
    },
    Case {
        name: "another version of PostgreSQL",
        arrange: |scene| {
            let version = scene.path("PG_VERSION");
            fs::write(&version, "9\n").unwrap();
            let commands = [
                "rm /pgdata/PG_VERSION".to_owned(),
                format!("write {} /pgdata/PG_VERSION", version.display()),
            ];
            debugfs(scene, &commands);
        },
        words: &[
            "the data is of PostgreSQL 9, the programs are of",
            "install PostgreSQL 9 or run pg_upgrade",
        ],
        untouched: false,
    },
    Case {
        name: "a directory that is no database",
        arrange: |scene| debugfs(scene, &["rm /pgdata/global/pg_control".to_owned()]),
        words: &["is no usable data directory", "pg_control"],
        untouched: false,
    },
];

#[test]
fn a_database_that_is_not_to_be_served_is_left_as_it_was() {
    for case in CASES {
        println!("case: {}", case.name);
        let mut scene = again();
        (case.arrange)(&mut scene);
        let (digest, files) = (scene.digest(), contents(&scene));
        let state = scene.state_option();
        scene.serve(&[&state]);
        let mut member = scene.run();
        member.until(&scene.member, |said, _| says(said, case.words));
        member.terminate();
        assert!(member.wait().success(), "{}: {}", case.name, member.log());
        scene.stop_target();
        assert_eq!(contents(&scene), files, "{}: the files", case.name);
        if case.untouched {
            assert_eq!(scene.digest(), digest, "{}: the volume", case.name);
        }
        scene.wait_for_devices();
    }
}

/// Nothing can be written, so nothing is served; when there is room again, it is.
#[test]
fn a_full_filesystem_is_named_and_serves_again_with_room() {
    let mut scene = again();
    let filler = scene.path("filler");
    File::create(&filler).unwrap();
    let stats = run(Command::new("dumpe2fs").arg("-h").arg(scene.image()));
    let number = |name: &str| -> u64 {
        let line = stats.lines().find(|line| line.starts_with(name)).unwrap();
        line.split(':').nth(1).unwrap().trim().parse().unwrap()
    };
    // A hole would take no room.
    let room = number("Free blocks") * number("Block size") - (64 << 10);
    fs::write(&filler, vec![1; usize::try_from(room).unwrap()]).unwrap();
    debugfs(&scene, &[format!("write {} /filler", filler.display())]);
    let state = scene.state_option();
    scene.serve(&[&state]);
    let mut member = scene.run();
    member.until(&scene.member, |said, status| {
        let words = [
            "an operator must look: the volume or PostgreSQL cannot be brought into service",
            "No space left on device",
        ];
        status["serving"] == false && says(said, &words)
    });
    member.terminate();
    assert!(member.wait().success(), "{}", member.log());
    scene.stop_target();
    debugfs(&scene, &["rm /filler".to_owned()]);
    scene.serve(&[&state]);
    let mut member = scene.run();
    member.until(&scene.member, |_, status| status["serving"] == true);
    drop(member);
    scene.wait_for_devices();
}

/// The first start breaks off, is told to a person, and leaves a volume that counts as never used.
#[test]
fn a_volume_too_small_for_a_database_is_said_to_be_so() {
    let mut scene = Scene::new();
    File::create(scene.image())
        .unwrap()
        .set_len(32 << 20)
        .unwrap();
    let state = scene.state_option();
    scene.serve(&[&state]);
    let mut member = scene.run();
    let words = [
        "an operator must look: the database cannot be made",
        "correct what the last step says",
        "No space left on device",
    ];
    member.until(&scene.member, |said, _| says(said, &words));
    member.terminate();
    assert!(member.wait().success(), "{}", member.log());
    scene.wait_for_devices();
}

/// Unmounts at its end, so that the scene's directory can be removed.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _none = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The disk behind the target is full: its writes fail, and so does every step that needs them.
#[test]
fn a_target_without_room_fails_the_writes_and_the_member_says_so() {
    // Mounts of this thread and its children alone, gone with the last of them.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let mut scene = Scene::new();
    let disk = scene.path("disk");
    fs::create_dir(&disk).unwrap();
    let (tmpfs, size) = (Some("tmpfs"), Some("size=1m"));
    mount(tmpfs, &disk, tmpfs, MsFlags::empty(), size).unwrap();
    let _disk = Unmount(disk.clone());
    let state = scene.state_option();
    let namespace = format!("{},size=256M", disk.join("volume").display());
    scene.serve_file(&namespace, &[&state]);
    let mut member = scene.run();
    let words = [
        "an operator must look: the database cannot be made",
        "the last step failed:",
    ];
    member.until(&scene.member, |said, _| says(said, &words));
    member.terminate();
    assert!(member.wait().success(), "{}", member.log());
    let log = fs::read_to_string(scene.path("target.log")).unwrap();
    assert!(log.contains("No space left on device"), "{log}");
    scene.stop_target();
    scene.wait_for_devices();
}
