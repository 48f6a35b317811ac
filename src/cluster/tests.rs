use serde_json::json;

use super::*;

fn cluster(members: &serde_json::Value) -> BatonCluster {
    serde_json::from_value(json!({
        "apiVersion": "baton.dev/v1alpha1",
        "kind": "BatonCluster",
        "metadata": {"name": "main", "namespace": "db"},
        "spec": {"image": "baton:1", "volume": {"claimName": "disk"}, "members": members},
    }))
    .unwrap()
}

#[test]
fn members_without_numbers_have_that_of_their_place() {
    let plain = cluster(&json!([{"name": "x"}, {"name": "y"}]));
    let numbers = |cluster: &BatonCluster| -> Vec<u8> {
        let sites = cluster.sites();
        let numbered = sites[0].numbered().into_iter();
        numbered.map(|(number, _)| number.number()).collect()
    };
    assert_eq!(numbers(&plain), [1, 2]);
    let numbered = cluster(&json!([{"name": "x", "number": 7}, {"name": "y", "number": 3}]));
    assert_eq!(numbers(&numbered), [7, 3]);
    let (site, number, member) = numbered.member_of_pod("main-y").unwrap();
    assert_eq!(
        (site.name, number.number(), member.as_str()),
        ("local", 3, "y")
    );
    assert!(numbered.member_of_pod("main-z").is_none());
}

#[test]
fn what_is_left_out_has_its_default() {
    let BatonClusterSpec {
        postgres,
        volume,
        site,
        topology_key,
        termination_grace_period_seconds,
        paused,
        ..
    } = cluster(&json!([{"name": "a"}, {"name": "b"}])).spec;
    assert_eq!(
        (postgres.port, postgres.data_directory.as_str()),
        (5432, "pgdata")
    );
    let volume = volume.unwrap();
    assert!(volume.require_persistence);
    assert_eq!(volume.transport, VolumeTransport::Kernel);
    assert_eq!(
        (site.as_str(), topology_key.as_str()),
        ("local", "kubernetes.io/hostname")
    );
    assert_eq!((termination_grace_period_seconds, paused), (120, false));
}

/// `kubectl explain` shows a field's description; the schema must be one that API servers accept.
#[test]
fn the_schema_is_structural_and_explains_every_field() {
    let definition = serde_json::to_value(BatonCluster::crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let spec = &schema["properties"]["spec"];
    for (name, field) in spec["properties"].as_object().unwrap() {
        assert!(
            field["description"].is_string(),
            "spec.{name} has no description"
        );
    }
    let text = schema.to_string();
    // API servers warn of formats that they do not know.
    for forbidden in [
        "$ref",
        "\"oneOf\"",
        "\"additionalProperties\":false",
        "\"uint",
    ] {
        assert!(
            !text.contains(forbidden),
            "{forbidden} does not belong there"
        );
    }
}
