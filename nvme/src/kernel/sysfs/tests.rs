//! Recorded and made-up trees of sysfs.

use super::*;

/// Makes a directory tree of a fixture: `path = value` for a file, `path -> target` for a link.
pub(in crate::kernel) fn tree(text: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("make a directory");
    for line in text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.trim().is_empty())
    {
        if let Some((path, target)) = line.split_once(" -> ") {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("make it");
            std::os::unix::fs::symlink(root.path().join(target), path).expect("link");
        } else {
            let (path, value) = line.split_once(" = ").expect("a line of the fixture");
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("make it");
            fs::write(path, format!("{value}\n")).expect("write");
        }
    }
    root
}

#[test]
fn a_multipath_disk_with_two_paths() {
    let root = tree(include_str!("../fixtures/multipath.tree"));
    let found = subsystems(root.path()).expect("read");
    let [subsystem] = found.as_slice() else {
        panic!("one subsystem: {found:?}");
    };
    assert_eq!(subsystem.nqn, "nqn.2026-11.dev.baton:lab");
    let states: Vec<_> = subsystem.controllers.iter().map(|c| &c.state).collect();
    assert_eq!(
        states,
        [&ControllerState::Live, &ControllerState::Connecting]
    );
    assert_eq!(subsystem.controllers[0].keep_alive, Some(5));
    assert_eq!(subsystem.controllers[0].fast_io_fail, Some(5));
    assert_eq!(subsystem.controllers[1].fast_io_fail, None, "off");
    assert_eq!(subsystem.host_identities().len(), 1);
    let [disk] = subsystem.disks.as_slice() else {
        panic!("one disk: {:?}", subsystem.disks);
    };
    assert_eq!(
        (disk.name.as_str(), disk.nsid, disk.multipath),
        ("nvme0n1", Some(1), true)
    );
    assert!(disk.is(uuid::uuid!("6f1d2c3b-4a59-4687-9704-a5b6c7d8e9f0")));
    assert!(disk.is(uuid::uuid!("b0c1d2e3-f405-4617-8839-4a5b6c7d8e9f")));
    assert!(!disk.is(Uuid::nil()));
    assert_eq!(disk.eui64, Some(0x0025_385b_7150_1f2a));
    let paths: Vec<_> = disk
        .paths
        .iter()
        .map(|p| (p.controller.as_str(), p.ana_state.as_deref()))
        .collect();
    assert_eq!(
        paths,
        [
            ("nvme0", Some("optimized")),
            ("nvme1", Some("inaccessible"))
        ]
    );
}

#[test]
fn disks_without_multipath_and_a_local_one() {
    let root = tree(include_str!("../fixtures/single-path.tree"));
    let found = subsystems(root.path()).expect("read");
    let names: Vec<_> = found.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["nvme-subsys0", "nvme-subsys2"]);
    let local = &found[0].controllers[0];
    assert_eq!((local.transport.as_str(), local.host_id), ("pcie", None));
    assert_eq!(found[0].disks[0].nguid, None, "all zeros are no identifier");
    let [first, second] = found[1].disks.as_slice() else {
        panic!("a disk for each controller: {:?}", found[1].disks);
    };
    assert!(!first.multipath && !second.multipath);
    assert_eq!(
        (first.name.as_str(), second.name.as_str()),
        ("nvme2n1", "nvme3n1")
    );
    assert_eq!(first.nguid, second.nguid);
    assert_eq!(
        found[1].host_identities().len(),
        2,
        "two hosts on one kernel: refuse"
    );
}

#[test]
fn no_modules_no_subsystems() {
    let root = tempfile::tempdir().expect("make a directory");
    assert_eq!(subsystems(root.path()).expect("read"), []);
}

#[test]
fn device_names() {
    let path = DeviceName::Path {
        disk: "nvme0n12".to_owned(),
    };
    assert_eq!(DeviceName::parse("nvme0c3n12"), Some(path));
    assert_eq!(DeviceName::parse("nvme10"), Some(DeviceName::Controller));
    assert_eq!(DeviceName::parse("nvme10n2"), Some(DeviceName::Disk));
    for other in [
        "nvme",
        "nvme0n1p1",
        "nvme-subsys0",
        "ng0n1",
        "nvme0c1",
        "nvmen1",
    ] {
        assert_eq!(DeviceName::parse(other), None, "{other}");
    }
}
