//! What deploy/ brings: it renders, every manifest is what its type says, the definition is that of the
//! code, and alerts and dashboard name metrics that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use baton::cluster::{self, BatonCluster};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const FOLDERS: [&str; 5] = [
    "base",
    "overlays/example",
    "overlays/lightbits",
    "overlays/any-csi",
    "overlays/zones",
];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

fn read(path: &str) -> String {
    let path = deploy(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn rendered(folder: &str) -> Vec<Value> {
    let text = run(Command::new("kubectl").arg("kustomize").arg(deploy(folder)));
    serde_saphyr::from_multiple(&text).unwrap()
}

/// A manifest must say nothing that its type does not know: a field that is written wrong is lost on the
/// way through the type.
fn kept_by<T: Serialize + DeserializeOwned>(manifest: &Value) {
    let typed: T = serde_json::from_value(manifest.clone()).unwrap();
    let mut again = serde_json::to_value(&typed).unwrap();
    lost(manifest, &mut again, &manifest["kind"].to_string());
}

fn lost(written: &Value, read: &mut Value, place: &str) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (field, value) in written {
                let place = format!("{place}.{field}");
                let found = read.get_mut(field);
                lost(
                    value,
                    found.unwrap_or_else(|| panic!("{place} is unknown")),
                    &place,
                );
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            assert_eq!(written.len(), read.len(), "{place}");
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                lost(written, read, &format!("{place}[{index}]"));
            }
        }
        // JSON has one kind of number only.
        (Value::Number(written), Value::Number(read)) => {
            assert_eq!(written.as_f64(), read.as_f64(), "{place}");
        }
        (written, read) => assert_eq!(written, read, "{place}"),
    }
}

#[test]
fn every_manifest_renders_and_is_what_its_type_says() {
    for folder in FOLDERS {
        let manifests = rendered(folder);
        assert!(manifests.len() > 1, "{folder}");
        for manifest in &manifests {
            match manifest["kind"].as_str().unwrap() {
                "Namespace" => kept_by::<Namespace>(manifest),
                "CustomResourceDefinition" => kept_by::<CustomResourceDefinition>(manifest),
                "DaemonSet" => kept_by::<DaemonSet>(manifest),
                "Deployment" => kept_by::<Deployment>(manifest),
                "ServiceAccount" => kept_by::<ServiceAccount>(manifest),
                "ClusterRole" => kept_by::<ClusterRole>(manifest),
                "ClusterRoleBinding" => kept_by::<ClusterRoleBinding>(manifest),
                "Role" => kept_by::<Role>(manifest),
                "RoleBinding" => kept_by::<RoleBinding>(manifest),
                "StorageClass" => kept_by::<StorageClass>(manifest),
                "PersistentVolumeClaim" => kept_by::<PersistentVolumeClaim>(manifest),
                "BatonCluster" => kept_by::<BatonCluster>(manifest),
                other => panic!("{folder} has a {other} that no type checks"),
            }
        }
    }
}

#[test]
fn base_has_everything_in_it_and_one_image() {
    let kinds: Vec<_> = rendered("base")
        .iter()
        .map(|manifest| manifest["kind"].as_str().unwrap().to_owned())
        .collect();
    for kind in [
        "CustomResourceDefinition",
        "DaemonSet",
        "Deployment",
        "Namespace",
    ] {
        assert!(kinds.iter().any(|found| found == kind), "{kind} is missing");
    }
    let text = run(Command::new("kubectl").arg("kustomize").arg(deploy("base")));
    let images: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.trim_start_matches(['-', ' ']).strip_prefix("image: "))
        .collect();
    assert_eq!(
        images.into_iter().collect::<Vec<_>>(),
        ["registry.example/baton:0.1.0"]
    );
}

#[test]
fn the_definition_is_that_of_the_code() {
    let expected = cluster::definition().unwrap();
    let path = deploy("base/crd.yaml");
    if std::env::var_os("BATON_WRITE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "deploy/base/crd.yaml is not that of the code: run  baton crd > deploy/base/crd.yaml"
    );
}

#[test]
fn the_operator_s_rules_are_the_plain_ones() {
    let plain: Value = serde_saphyr::from_str(&read("monitoring/alerts.yaml")).unwrap();
    let operator: Value = serde_saphyr::from_str(&read("monitoring/prometheus-rule.yaml")).unwrap();
    assert_eq!(operator["kind"], "PrometheusRule");
    assert_eq!(operator["spec"], plain);
    assert_eq!(rendered("monitoring").len(), 2);
}

#[test]
fn prometheus_takes_the_rules() {
    run(Command::new("promtool")
        .args(["check", "rules"])
        .arg(deploy("monitoring/alerts.yaml")));
    run(Command::new("promtool")
        .args(["test", "rules"])
        .arg(deploy("monitoring/alerts-test.yaml")));
}

/// All metric names in a text: words that begin as ours do.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|word| word.starts_with("baton_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist() {
    let known: BTreeSet<_> = baton::api::metrics::names().into_iter().collect();
    let dashboard: Value = serde_json::from_str(&read("monitoring/dashboard.json")).unwrap();
    for (place, text) in [
        ("alerts.yaml", read("monitoring/alerts.yaml")),
        ("dashboard.json", dashboard.to_string()),
    ] {
        let named = named(&text);
        assert!(named.len() > 5, "{place} names {named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(
            unknown.is_empty(),
            "{place} names what no member has: {unknown:?}"
        );
    }
}

#[test]
fn panels_have_places_and_numbers_of_their_own() {
    let dashboard: Value = serde_json::from_str(&read("monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len());
    let places: BTreeSet<_> = panels
        .iter()
        .map(|panel| {
            (
                panel["gridPos"]["y"].as_u64().unwrap(),
                panel["gridPos"]["x"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(places.len(), panels.len());
    for panel in panels {
        assert!(
            !panel["targets"].as_array().unwrap().is_empty(),
            "{}",
            panel["title"]
        );
    }
}

/// The image cannot be built here, but what it copies must be there.
#[test]
fn the_container_file_copies_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = read("Containerfile");
    let copies = text.lines().filter_map(|line| line.strip_prefix("COPY "));
    let mut sources: Vec<_> = copies.filter(|line| !line.starts_with("--from")).collect();
    assert!(!sources.is_empty());
    for line in sources.drain(..) {
        let mut words: Vec<_> = line.split_whitespace().collect();
        words.pop();
        for word in words {
            assert!(root.join(word).exists(), "{word} is not there");
        }
    }
    let ignored = std::fs::read_to_string(root.join(".dockerignore")).unwrap();
    for line in ignored.lines().filter_map(|line| line.strip_prefix('!')) {
        assert!(root.join(line).exists(), "{line} is not there");
    }
}
