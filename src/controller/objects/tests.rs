use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use super::*;

fn cluster(change: impl FnOnce(&mut Value)) -> BatonCluster {
    let mut object = json!({
        "apiVersion": "baton.dev/v1alpha1",
        "kind": "BatonCluster",
        "metadata": {"name": "main", "namespace": "db", "uid": "u-1"},
        "spec": {
            "image": "baton:1",
            "volume": {"claimName": "disk"},
            "members": [{"name": "a"}, {"name": "b"}],
        },
    });
    change(&mut object["spec"]);
    serde_json::from_value(object).unwrap()
}

fn pod_of(cluster: &BatonCluster, place: usize) -> Value {
    let site = cluster.sites()[0];
    let (number, member) = site.numbered()[place];
    serde_json::to_value(pod(&site, number, member).unwrap()).unwrap()
}

fn template_of(cluster: &BatonCluster) -> String {
    let site = cluster.sites()[0];
    let (number, member) = site.numbered()[0];
    template(&site, number, member).unwrap()
}

#[test]
fn a_pod_has_no_privilege_and_never_shares_a_node() {
    let pod = pod_of(&cluster(|_| ()), 0);
    let spec = &pod["spec"];
    let own = &spec["containers"][0]["securityContext"];
    assert_eq!(own["allowPrivilegeEscalation"], false);
    assert_eq!(own["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(own["readOnlyRootFilesystem"], true);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["runAsUser"], 999);
    assert_eq!(
        spec["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    let apart = &spec["affinity"]["podAntiAffinity"];
    let apart = &apart["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(apart[0]["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(
        apart[0]["labelSelector"]["matchLabels"],
        json!({"baton.dev/cluster": "main"})
    );
    assert_eq!(spec["containers"][0]["volumeDevices"][0]["name"], "volume");
    assert_eq!(
        spec["volumes"][0]["persistentVolumeClaim"]["claimName"],
        "disk"
    );
}

#[test]
fn what_the_agent_mounts_reaches_the_pod_by_its_own_directory() {
    let pod = pod_of(&cluster(|_| ()), 1);
    let spec = &pod["spec"];
    let volumes = spec["volumes"].as_array().unwrap();
    let data = volumes
        .iter()
        .find(|volume| volume["name"] == "data")
        .unwrap();
    assert_eq!(data["hostPath"]["path"], "/run/baton/members/db/main-b");
    let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
    let data = mounts.iter().find(|mount| mount["name"] == "data").unwrap();
    assert_eq!(data["mountPropagation"], "HostToContainer");
    assert_eq!(data["mountPath"], "/var/lib/baton/volume");
}

#[test]
fn every_user_s_wish_reaches_the_pod() {
    let wished = cluster(|spec| {
        spec["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
        spec["priorityClassName"] = json!("high");
        spec["resources"] = json!({"requests": {"cpu": "1"}});
        spec["nodeSelector"] = json!({"disk": "fast"});
        spec["members"][0]["node"] = json!("n1");
        spec["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "rack"}]}});
        spec["terminationGracePeriodSeconds"] = json!(90);
        spec["imagePullPolicy"] = json!("Always");
        spec["api"] = json!({"tlsSecret": "tls", "tokenSecret": {"name": "t", "key": "k"}});
        spec["pooler"] =
            json!({"address": "p:6432", "user": "u", "passwordSecret": {"name": "p", "key": "k"}});
    });
    let pod = pod_of(&wished, 0);
    let spec = &pod["spec"];
    assert_eq!(spec["tolerations"][0]["key"], "k");
    assert_eq!(spec["priorityClassName"], "high");
    assert_eq!(
        spec["nodeSelector"],
        json!({"disk": "fast", "kubernetes.io/hostname": "n1"})
    );
    assert_eq!(spec["terminationGracePeriodSeconds"], 90);
    let apart = &spec["affinity"]["podAntiAffinity"];
    let apart = apart["requiredDuringSchedulingIgnoredDuringExecution"]
        .as_array()
        .unwrap();
    assert_eq!(apart.len(), 2, "the user's and ours");
    let container = &spec["containers"][0];
    assert_eq!(container["resources"]["requests"]["cpu"], "1");
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(container["readinessProbe"]["httpGet"]["scheme"], "HTTPS");
    let settings = spec["volumes"].as_array().unwrap();
    let settings = settings
        .iter()
        .find(|volume| volume["name"] == "settings")
        .unwrap();
    let secrets = settings["projected"]["sources"].as_array().unwrap().iter();
    let names: Vec<_> = secrets
        .filter_map(|source| source["secret"]["name"].as_str())
        .collect();
    assert_eq!(names, ["main-peers", "p", "t", "tls"]);
}

#[test]
fn a_change_that_matters_changes_the_template_and_no_other_does() {
    let before = template_of(&cluster(|_| ()));
    assert_eq!(
        before,
        template_of(&cluster(|spec| spec["paused"] = json!(true)))
    );
    for change in [
        |spec: &mut Value| spec["image"] = json!("baton:2"),
        |spec: &mut Value| spec["postgres"] = json!({"parameters": {"work_mem": "8MB"}}),
        |spec: &mut Value| spec["timings"] = json!({"detection": "3s"}),
        |spec: &mut Value| spec["members"] = json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]),
    ] {
        assert_ne!(before, template_of(&cluster(change)));
    }
}

#[test]
fn the_service_for_writers_has_no_selector() {
    let all = services::all(&cluster(|spec| spec["postgres"] = json!({"port": 5433})));
    let selector = |service: &Service| service.spec.as_ref().unwrap().selector.clone();
    let names = all
        .each_ref()
        .map(|service| service.metadata.name.clone().unwrap());
    assert_eq!(names, ["main-members", "main-rw", "main-ro", "main-r"]);
    let [members, write, replicas, read] = &all;
    assert_eq!(selector(write), None);
    assert_eq!(selector(members), Some(super::selector("main")));
    assert_eq!(selector(replicas).unwrap()["role"], "replica");
    assert_eq!(selector(read).unwrap()[names::READABLE], "true");
    let port = &write.spec.as_ref().unwrap().ports.as_ref().unwrap()[0];
    assert_eq!((port.port, port.name.as_deref()), (5433, Some("postgres")));
    assert_eq!(
        members.spec.as_ref().unwrap().publish_not_ready_addresses,
        Some(true)
    );
}

#[test]
fn what_holds_data_has_no_owner() {
    let from_template = cluster(|spec| {
        spec["volume"] = json!({"template": {"storageClassName": "fast", "size": "5Gi"}});
    });
    let claim = volume_claim(&from_template.sites()[0]).unwrap();
    let secret = peer_secret(&from_template, "s".to_owned());
    assert_eq!(claim.metadata.owner_references, None);
    assert_eq!(secret.metadata.owner_references, None);
    assert_eq!(claim.metadata.name.as_deref(), Some("main-volume"));
    assert!(volume_claim(&cluster(|_| ()).sites()[0]).is_none());
    for object in applied(&from_template).unwrap() {
        assert_eq!(
            object["metadata"]["ownerReferences"][0]["uid"], "u-1",
            "{object}"
        );
        assert_eq!(
            object["metadata"]["labels"]["baton.dev/cluster"], "main",
            "{object}"
        );
    }
}

#[test]
fn timings_keep_their_kinds() {
    let cluster = cluster(|spec| {
        spec["timings"] = json!({"detection": "3s", "max_takeovers": "5", "storage_beats": "true"});
    });
    let site = cluster.sites()[0];
    let (number, member) = site.numbered()[0];
    let text = member_toml(&site, number, member).unwrap();
    let file: toml::Table = text.parse().unwrap();
    assert_eq!(file["timings"]["detection"].as_str(), Some("3s"));
    assert_eq!(file["timings"]["max_takeovers"].as_integer(), Some(5));
    assert_eq!(file["timings"]["storage_beats"].as_bool(), Some(true));
    let peer = &file["peer"]["members"][0];
    assert_eq!(
        peer["address"].as_str(),
        Some("main-b.main-members.db.svc:7000")
    );
    assert_eq!(peer["number"].as_integer(), Some(2));
}

#[test]
fn members_take_the_settings_that_are_made_for_them() {
    let full = cluster(|spec| {
        spec["timings"] = json!({"detection": "3s"});
        spec["postgres"] =
            json!({"parameters": {"work_mem": "8MB"}, "hba": ["host all all all reject"]});
        spec["api"] = json!({"tlsSecret": "tls", "tokenSecret": {"name": "t", "key": "k"}});
        spec["pooler"] =
            json!({"address": "p:6432", "user": "u", "passwordSecret": {"name": "p", "key": "k"}});
    });
    for cluster in [cluster(|_| ()), full] {
        assert_eq!(check(&cluster), Vec::<String>::new());
    }
    let wrong = cluster(|spec| {
        spec["timings"] = json!({"detektion": "3s"});
        spec["postgres"] = json!({"parameters": {"fsync": "off"}});
    });
    let said = check(&wrong).join("; ");
    assert!(
        said.contains("detektion") && said.contains("fsync"),
        "{said}"
    );
    assert_eq!(said.matches("detektion").count(), 1, "said once: {said}");
}

fn two_sites(change: impl FnOnce(&mut Value)) -> BatonCluster {
    cluster(|spec| {
        let fields = spec.as_object_mut().unwrap();
        fields.remove("volume");
        fields.remove("members");
        spec["nodeSelector"] = json!({"disk": "fast"});
        spec["sites"] = json!([
            {"name": "east", "volume": {"claimName": "disk-e"}, "members": [{"name": "a"}, {"name": "b"}],
             "nodeSelector": {"topology.kubernetes.io/zone": "east"}},
            {"name": "west", "members": [{"name": "c"}, {"name": "d"}], "failover": "never",
             "volume": {"template": {"storageClassName": "fast", "size": "5Gi"}}},
        ]);
        spec["replication"] = json!({"synchronous": "off"});
        change(spec);
    })
}

#[test]
fn a_site_s_pod_has_its_site_s_volume_nodes_and_settings() {
    let cluster = two_sites(|_| ());
    let [east, west] = cluster.sites()[..] else {
        panic!("two sites");
    };
    let (number, member) = west.numbered()[1];
    assert_eq!((number.number(), member.name.as_str()), (2, "d"));
    let made = serde_json::to_value(pod(&west, number, member).unwrap()).unwrap();
    assert_eq!(made["metadata"]["labels"]["baton.dev/site"], "west");
    let spec = &made["spec"];
    let claim = &spec["volumes"][0]["persistentVolumeClaim"]["claimName"];
    assert_eq!(*claim, "main-west-volume");
    assert_eq!(spec["nodeSelector"], json!({"disk": "fast"}));
    let apart = &spec["affinity"]["podAntiAffinity"];
    let apart = &apart["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"];
    assert_eq!(
        apart["matchLabels"],
        json!({"baton.dev/cluster": "main", "baton.dev/site": "west"})
    );
    assert!(spec["volumes"].to_string().contains("main-replication"));
    let made = pod_of(&cluster, 0);
    let nodes = json!({"disk": "fast", "topology.kubernetes.io/zone": "east"});
    assert_eq!(made["spec"]["nodeSelector"], nodes);
    assert_eq!(volume_claim(&east), None);
    let claim = volume_claim(&west).unwrap();
    assert_eq!(claim.metadata.name.as_deref(), Some("main-west-volume"));
    assert_eq!(claim.metadata.owner_references, None);
}

#[test]
fn members_of_several_sites_know_all_sites_and_only_their_own_peers() {
    let cluster = two_sites(|spec| {
        spec["replication"] =
            json!({"synchronous": "off", "slotWalMax": "1GB", "maxLag": "8MB", "quorum": 1});
    });
    assert_eq!(check(&cluster), Vec::<String>::new());
    let site = cluster.sites()[1];
    let (number, member) = site.numbered()[0];
    let file: toml::Table = member_toml(&site, number, member).unwrap().parse().unwrap();
    assert_eq!(file["site"].as_str(), Some("west"));
    assert_eq!(file["lease"]["name"].as_str(), Some("main-west"));
    let peers = file["peer"]["members"].as_array().unwrap();
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0]["name"].as_str(), Some("d"));
    let replication: Value = file["replication"].clone().try_into().unwrap();
    assert_eq!(
        replication,
        json!({
            "record": "main-cluster", "synchronous": "off", "quorum": 1, "first_primary": "east",
            "password_file": "/etc/baton/replication/password", "slot_wal_max": "1GB", "max_lag": "8MB",
            "sites": [
                {"name": "east", "lease": "main-east", "failover": "allowed", "hosts":
                    ["main-a.main-members.db.svc:5432", "main-b.main-members.db.svc:5432"]},
                {"name": "west", "lease": "main-west", "failover": "never", "hosts":
                    ["main-c.main-members.db.svc:5432", "main-d.main-members.db.svc:5432"]},
            ],
        })
    );
}

#[test]
fn members_of_several_sites_know_what_restores_a_backup_and_need_its_archive() {
    let seed = json!({"program": "/usr/bin/pgbackrest", "arguments": ["{data_directory}"], "timeout": "2h"});
    let with = |parameters: Value| {
        two_sites(|spec| {
            spec["postgres"]["parameters"] = parameters;
            spec["replication"] = json!({"synchronous": "off", "seed": seed});
        })
    };
    let cluster = with(json!({"restore_command": "archive-get %f %p"}));
    assert_eq!(check(&cluster), Vec::<String>::new());
    let site = cluster.sites()[1];
    let (number, member) = site.numbered()[0];
    let file: toml::Table = member_toml(&site, number, member).unwrap().parse().unwrap();
    let written: Value = file["replication"]["seed"].clone().try_into().unwrap();
    assert_eq!(written, seed);
    let said = check(&with(json!({})));
    assert!(
        said.len() == 1 && said[0].contains("restore_command"),
        "{said:?}"
    );
}

#[test]
fn objects_of_several_sites() {
    let objects = applied(&two_sites(|_| ())).unwrap();
    let named = |kind: &str| -> Vec<_> {
        let found = objects.iter().filter(|object| object["kind"] == kind);
        found
            .map(|object| object["metadata"]["name"].clone())
            .collect()
    };
    assert_eq!(named("PodDisruptionBudget"), ["main-east", "main-west"]);
    let role = objects.iter().find(|object| object["kind"] == "Role");
    let rules = &role.unwrap()["rules"];
    let leases = json!(["main-east", "main-west", "main-cluster"]);
    assert_eq!(rules[0]["resourceNames"], leases);
    let pods = json!(["main-a", "main-b", "main-c", "main-d"]);
    assert_eq!(rules[5]["resourceNames"], pods);
    let config = objects.iter().find(|object| object["kind"] == "ConfigMap");
    let files = config.unwrap()["data"].as_object().unwrap();
    assert_eq!(files.len(), 4);
}
