//! Finding and destroying over trees of sysfs that a test changes. Real devices: `tests/vm`.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::sysfs::tests::tree;
use super::view::View;
use super::{AttachError, DestroyError, Identifier, KernelInitiator, Options, Selector};
use crate::{HostId, HostIdentity};

const HOST: &str = "3b6f2d30-1f6a-4b0e-8f5e-0e6b8c1d2a01";
const MULTIPATH: &str = include_str!("fixtures/multipath.tree");
const SINGLE: &str = include_str!("fixtures/single-path.tree");
/// Long enough for threads of a loaded machine, short enough where it must pass.
const WITHIN: Duration = Duration::from_millis(300);

/// A tree whose disks have numbers, and what an initiator is told to use it.
fn scene(text: &str, disks: &[&str]) -> (TempDir, Options) {
    let root = tree(text);
    for (number, disk) in disks.iter().enumerate() {
        let at = root.path().join("class/block").join(disk);
        std::fs::create_dir_all(&at).expect("make a disk");
        std::fs::write(at.join("diskseq"), format!("{}\n", number + 7)).expect("number it");
    }
    let host = HostIdentity {
        nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{HOST}")
            .parse()
            .expect("an NQN"),
        id: HostId(HOST.parse().expect("a UUID")),
    };
    let subsystem = "nqn.2026-11.dev.baton:lab".parse().expect("an NQN");
    let namespace = Selector {
        nsid: Some(1),
        identifier: None,
    };
    let mut options = Options::new("192.0.2.7:4420".to_owned(), subsystem, namespace, host);
    options.sysfs = root.path().to_owned();
    options.dev = root.path().join("dev");
    options.attach_deadline = WITHIN;
    (root, options)
}

fn write(root: &Path, path: &str, text: &str) {
    std::fs::write(root.join(path), text).expect("write");
}

/// Makes a controller deletable, as the kernel does; it goes, with `also`, once that was asked for.
fn deletable(root: &Path, controller: &str, also: &[&str]) -> std::thread::JoinHandle<()> {
    let at = root.join("class/nvme").join(controller);
    let ask = at.join("delete_controller");
    std::fs::write(&ask, "").expect("make the attribute");
    let also: Vec<_> = also.iter().map(|path| root.join(path)).collect();
    std::thread::spawn(move || {
        while std::fs::read_to_string(&ask).is_ok_and(|text| text.is_empty()) {
            std::thread::yield_now();
        }
        std::fs::remove_dir_all(&at).expect("remove the controller");
        for path in also {
            std::fs::remove_dir_all(path).expect("remove what belongs to it");
        }
    })
}

#[tokio::test]
async fn a_device_is_gone_only_with_its_controllers_and_its_disk() {
    let (root, options) = scene(MULTIPATH, &["nvme0n1"]);
    let initiator = KernelInitiator::detached(options);
    let first = deletable(root.path(), "nvme0", &[]);
    let refused = initiator.destroy(WITHIN).await;
    let Err(DestroyError::Late { left, .. }) = refused else {
        panic!("nvme1 cannot be deleted yet: {refused:?}");
    };
    first.join().expect("the controller went");
    assert!(left.contains("nvme1") && left.contains("nvme0n1"), "{left}");
    let second = deletable(root.path(), "nvme1", &[]);
    let refused = initiator.destroy(WITHIN).await;
    second.join().expect("the controller went");
    assert!(
        matches!(refused, Err(DestroyError::Late { .. })),
        "the disk is there"
    );
    std::fs::remove_dir_all(root.path().join("class/block/nvme0n1")).expect("the disk goes");
    initiator.destroy(WITHIN).await.expect("all is gone");
    let remembered = initiator.work.lock().await.addresses.clone();
    let remembered: Vec<_> = remembered.iter().map(ToString::to_string).collect();
    assert_eq!(
        remembered,
        ["192.0.2.7:4420", "192.0.2.8:4420"],
        "to be made again"
    );
}

/// Another disk of the name is another disk, and another controller of the name another controller.
#[tokio::test]
async fn a_disk_that_was_made_anew_is_not_the_old_one() {
    let (root, options) = scene(MULTIPATH, &["nvme0n1"]);
    let view = View::of(&options).expect("read");
    let (disks, controllers) = (view.meant(), view.incarnations());
    let [disk] = disks.as_slice() else {
        panic!("one disk: {disks:?}");
    };
    assert!(disk.is_there());
    write(root.path(), "class/block/nvme0n1/diskseq", "8\n");
    assert!(!disk.is_there());
    let at = root.path().join("class/nvme/nvme0");
    let aside = root.path().join("class/nvme/aside");
    std::fs::rename(&at, &aside).expect("the old one goes");
    std::fs::create_dir(&at).expect("another one comes");
    assert!(!controllers[0].is_there(&options));
    assert!(controllers[1].is_there(&options));
}

#[tokio::test]
async fn another_host_s_controllers_and_other_namespaces_in_use_are_not_touched() {
    let (root, options) = scene(MULTIPATH, &["nvme0n1"]);
    write(
        root.path(),
        "class/nvme/nvme1/hostid",
        "00000000-0000-0000-0000-000000000002\n",
    );
    let initiator = KernelInitiator::detached(options);
    let refused = initiator.destroy(WITHIN).await;
    assert!(
        matches!(refused, Err(DestroyError::OtherHost { controller }) if controller == "nvme1")
    );
    let refused = initiator.attach().await;
    assert!(
        matches!(refused, Err(AttachError::OtherHost { controller, .. }) if controller == "nvme1")
    );

    let other = "class/nvme-subsystem/nvme-subsys0/nvme0n2/nsid = 2\n";
    let (root, options) = scene(&format!("{MULTIPATH}{other}"), &["nvme0n1", "nvme0n2"]);
    write(root.path(), "class/nvme/nvme0/delete_controller", "");
    let initiator = KernelInitiator::detached(options);
    // Its node cannot be opened: that it is not in use is unknown.
    let refused = initiator.destroy(WITHIN).await;
    assert!(matches!(refused, Err(DestroyError::Shared { path }) if path.ends_with("nvme0n2")));
    let asked = std::fs::read_to_string(root.path().join("class/nvme/nvme0/delete_controller"));
    assert_eq!(asked.expect("read"), "");
}

#[tokio::test]
async fn without_a_path_the_error_says_what_there_is() {
    let (root, options) = scene(MULTIPATH, &["nvme0n1"]);
    write(root.path(), "class/nvme/nvme0/state", "connecting\n");
    let initiator = KernelInitiator::detached(options);
    let paths = initiator.paths().expect("read");
    assert!(paths.iter().all(|path| !path.is_usable()));
    let error = initiator.attach().await.expect_err("no path").to_string();
    for word in [
        "namespace 1",
        "nvme0 connecting",
        "nvme1 connecting",
        "nvme0n1",
    ] {
        assert!(error.contains(word), "{word} in {error}");
    }
}

/// With a path the disk is found; its node must then be the one that sysfs names.
#[tokio::test]
async fn a_device_node_that_is_another_device_is_refused() {
    let (root, options) = scene(MULTIPATH, &["nvme0n1"]);
    write(root.path(), "class/block/nvme0n1/dev", "259:0\n");
    std::fs::create_dir(root.path().join("dev")).expect("make it");
    write(root.path(), "dev/nvme0n1", "");
    let refused = KernelInitiator::connect(options).await.err();
    assert!(matches!(refused, Some(AttachError::Node { path }) if path.ends_with("nvme0n1")));
}

#[test]
fn a_namespace_is_chosen_by_number_and_identifier() {
    let (_root, mut options) = scene(SINGLE, &["nvme2n1", "nvme3n1"]);
    let nguid = "6f1d2c3b-4a59-4687-9704-a5b6c7d8e9f0".parse::<Identifier>();
    let other = "6f1d2c3b-4a59-4687-9704-a5b6c7d8e9f1".parse::<Identifier>();
    let cases = [
        (Some(1), None, Some("nvme2n1")),
        (None, Some(nguid.expect("an NGUID")), Some("nvme2n1")),
        (Some(2), None, None),
        (Some(1), Some(other.expect("an NGUID")), None),
    ];
    for (nsid, identifier, expected) in cases {
        options.namespace = Selector { nsid, identifier };
        let view = View::of(&options).expect("read");
        let found = view.disk().map(|(_, disk)| disk.name.as_str());
        assert_eq!(found, expected, "{}", options.namespace);
    }
}
