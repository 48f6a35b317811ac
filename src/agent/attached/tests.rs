//! Over trees of sysfs that the test builds: a node with two volumes of one subsystem.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const HOST: &str = "3b6f2d30-1f6a-4b0e-8f5e-0e6b8c1d2a01";
const SUBSYSTEM: &str = "nqn.2026-11.dev.baton:shared";
const VOLUME: &str = "6f1d2c3b-4a59-4687-9704-a5b6c7d8e9f0";

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

/// Two paths: the first controller is lost, the second leads to both namespaces.
fn node() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = root.path();
    let subsystem = "class/nvme-subsystem/nvme-subsys0";
    write(at, &format!("{subsystem}/subsysnqn"), SUBSYSTEM);
    for (number, uuid) in [(1, "b0c1d2e3-f405-4617-8839-4a5b6c7d8e9f"), (2, VOLUME)] {
        write(
            at,
            &format!("{subsystem}/nvme0n{number}/nsid"),
            &number.to_string(),
        );
        write(at, &format!("{subsystem}/nvme0n{number}/uuid"), uuid);
    }
    for (number, state, ana, address) in [
        (0, "connecting", "optimized", "192.0.2.7"),
        (1, "live", "non-optimized", "192.0.2.8"),
        (2, "live", "optimized", "192.0.2.9"),
    ] {
        let controller = format!("class/nvme/nvme{number}");
        let facts = [
            ("state", state),
            ("transport", "tcp"),
            ("address", &format!("traddr={address},trsvcid=4420")),
            (
                "hostnqn",
                &format!("nqn.2014-08.org.nvmexpress:uuid:{HOST}"),
            ),
            ("hostid", HOST),
        ];
        for (name, value) in facts {
            write(at, &format!("{controller}/{name}"), value);
        }
        for disk in [1, 2] {
            let path = format!("{controller}/nvme0c{number}n{disk}/ana_state");
            write(at, &path, ana);
        }
        let link = at.join(format!("{subsystem}/nvme{number}"));
        std::os::unix::fs::symlink(at.join(&controller), link).unwrap();
    }
    for (number, name) in [("259:1", "nvme0n1"), ("259:2", "nvme0n2"), ("7:0", "loop0")] {
        fs::create_dir_all(at.join("dev/block")).unwrap();
        let target = format!("../../devices/{name}");
        std::os::unix::fs::symlink(target, at.join("dev/block").join(number)).unwrap();
    }
    root
}

fn device(root: &TempDir, number: (u64, u64)) -> Result<Attached, Refusal> {
    let path = PathBuf::from("/not/opened");
    of_kernel(root.path(), Published { path, number })
}

fn spec(more: &Value) -> VolumeSpec {
    let mut all = json!({"claimName": "disk", "transport": "tcp"});
    let more = more.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    serde_json::from_value(all).unwrap()
}

#[test]
fn a_volume_beside_others_of_its_subsystem_is_found_whole() {
    let root = node();
    let found = device(&root, (259, 2)).unwrap();
    let volume = found.for_tcp(&spec(&json!({}))).unwrap();
    assert_eq!(volume.transport, Transport::Tcp);
    assert_eq!(
        volume.address.to_string(),
        "192.0.2.9:4420",
        "live, optimized"
    );
    assert_eq!(volume.subsystem.as_str(), SUBSYSTEM);
    assert_eq!(volume.namespace_id, 2);
    assert_eq!(volume.host_id, HostId(HOST.parse().unwrap()));
    assert_eq!(volume.identifier, Some(VOLUME.parse().unwrap()));
    let refused = found.for_kernel(&spec(&json!({}))).unwrap_err();
    assert!(refused.why.contains("nvme0n1"), "{refused}");
    assert!(refused.why.contains("volume.transport tcp"), "{refused}");
}

#[test]
fn what_the_cluster_says_must_be_what_the_claim_has() {
    let root = node();
    let found = device(&root, (259, 2)).unwrap();
    let refused = found
        .for_tcp(&spec(&json!({"namespaceId": 1})))
        .unwrap_err();
    assert!(refused.why.contains("is namespace 2"), "{refused}");
    assert!(!refused.again);
    let mut volume = found.for_tcp(&spec(&json!({}))).unwrap();
    assert!(found.require_same(&volume).is_ok());
    volume.namespace_id = 1;
    assert!(found.require_same(&volume).is_err());
    let refused = device(&root, (7, 0)).unwrap_err();
    assert!(refused.why.contains("loop0 is no NVMe device"), "{refused}");
}

#[test]
fn a_kernel_with_two_identities_is_refused() {
    let root = node();
    let other = "0c8fca0e-90b3-4b0b-a3f0-3a1f3f0e0c0b";
    write(root.path(), "class/nvme/nvme1/hostid", other);
    let found = device(&root, (259, 2)).unwrap();
    let refused = found.for_tcp(&spec(&json!({}))).unwrap_err();
    assert!(refused.why.contains("2 different hosts"), "{refused}");
}

#[test]
fn what_was_found_of_a_pod_holds_when_its_device_was_made_anew() {
    let root = node();
    let at = root.path().to_owned();
    let found = device(&root, (259, 2)).unwrap();
    let found = found.for_tcp(&spec(&json!({}))).unwrap();
    let node = Node {
        name: "node-1".to_owned(),
        host: found.host(),
        members: at.clone(),
        state: at.clone(),
        // The pod's device is not looked at.
        kubelet: at.join("none"),
        control_groups: at.clone(),
        bridges: at.clone(),
        sysfs: at.clone(),
    };
    let refused = again(&node, found.clone(), &spec(&json!({}))).unwrap_err();
    assert!(refused.why.contains("nvme0n1"), "{refused}");
    let subsystem = at.join("class/nvme-subsystem/nvme-subsys0");
    fs::remove_dir_all(subsystem.join("nvme0n1")).unwrap();
    fs::rename(subsystem.join("nvme0n2"), subsystem.join("nvme0n3")).unwrap();
    let volume = again(&node, found.clone(), &spec(&json!({}))).unwrap();
    assert_eq!(volume, found);
    let volatile = spec(&json!({"requirePersistence": false}));
    let volume = again(&node, found.clone(), &volatile).unwrap();
    assert!(!volume.require_persistence, "as the cluster says now");
    let refused = again(&node, found.clone(), &spec(&json!({"namespaceId": 1}))).unwrap_err();
    assert!(refused.why.contains("is namespace 2"), "{refused}");
    fs::remove_dir_all(subsystem).unwrap();
    assert!(
        again(&node, found, &spec(&json!({}))).is_ok(),
        "the session attaches it"
    );
}
