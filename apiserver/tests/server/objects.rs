//! Creating, reading, replacing, patching, listing and deleting.

use apiserver::ADMIN;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::params::{PropagationPolicy, VersionMatch};
use serde_json::{Value, json};

use crate::common::{
    api, config, create, lease, object, raw, refused, resource, server, version, with,
};

fn post() -> PostParams {
    PostParams::default()
}

#[tokio::test]
async fn one_counter_versions_everything() {
    let (server, leases) = with("coordination.k8s.io", "Lease", "leases").await;
    let maps = api(&server.client(ADMIN).await, "", "ConfigMap", "configmaps");
    let first = create(&leases, &lease("main", "a")).await;
    let second = create(&maps, &config("c", json!({}))).await;
    assert!(version(&second) > version(&first));
    assert_ne!(first.metadata.uid, second.metadata.uid);
    assert!(first.metadata.creation_timestamp.is_some());
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let (_server, leases) = with("coordination.k8s.io", "Lease", "leases").await;
    create(&leases, &lease("main", "a")).await;
    let status = refused(leases.create(&post(), &lease("main", "b")).await);
    assert_eq!(
        (status.code, status.reason.as_str()),
        (409, "AlreadyExists")
    );
    assert_eq!(
        status.message,
        "leases.coordination.k8s.io \"main\" already exists"
    );
    let details = status.details.unwrap();
    assert_eq!(
        (details.name.as_str(), details.kind.as_str()),
        ("main", "leases")
    );
}

#[tokio::test]
async fn a_generated_name_is_new_each_time() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    let nameless = object(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "generateName": "c-" },
    }));
    let one = maps
        .create(&post(), &nameless)
        .await
        .unwrap()
        .metadata
        .name
        .unwrap();
    let other = maps
        .create(&post(), &nameless)
        .await
        .unwrap()
        .metadata
        .name
        .unwrap();
    assert!(
        one.starts_with("c-") && one.len() == 7 && one != other,
        "{one} {other}"
    );
    let none = object(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": {} }));
    assert_eq!(refused(maps.create(&post(), &none).await).code, 422);
}

#[tokio::test]
async fn a_stale_write_loses() {
    let (_server, leases) = with("coordination.k8s.io", "Lease", "leases").await;
    let made = create(&leases, &lease("main", "a")).await;
    let mut mine = made.clone();
    mine.data["spec"]["holderIdentity"] = json!("b");
    let won = leases.replace("main", &post(), &mine).await.unwrap();
    assert!(version(&won) > version(&made));
    let status = refused(leases.replace("main", &post(), &mine).await);
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        status.message,
        "Operation cannot be fulfilled on leases.coordination.k8s.io \"main\": the object has \
         been modified; please apply your changes to the latest version and try again"
    );
    let patch = json!({ "metadata": { "resourceVersion": made.metadata.resource_version } });
    let patched = leases
        .patch("main", &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    assert_eq!(refused(patched).code, 409);
}

#[tokio::test]
async fn a_write_without_version_is_refused_or_overwrites_by_kind() {
    let (server, leases) = with("coordination.k8s.io", "Lease", "leases").await;
    create(&leases, &lease("main", "a")).await;
    let status = refused(leases.replace("main", &post(), &lease("main", "b")).await);
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    let maps = api(&server.client(ADMIN).await, "", "ConfigMap", "configmaps");
    create(&maps, &config("c", json!({ "x": "1" }))).await;
    let now = maps
        .replace("c", &post(), &config("c", json!({ "x": "2" })))
        .await
        .unwrap();
    assert_eq!(now.data["data"]["x"], "2");
}

/// A lease may be made by PUT, as on a real server: only its uid keeps a late PUT from making a
/// deleted one anew.
#[tokio::test]
async fn a_put_to_nothing_is_refused_except_for_leases() {
    let (server, leases) = with("coordination.k8s.io", "Lease", "leases").await;
    let maps = api(&server.client(ADMIN).await, "", "ConfigMap", "configmaps");
    assert_eq!(
        refused(maps.replace("c", &post(), &config("c", json!({}))).await).code,
        404
    );
    let made = leases
        .replace("main", &post(), &lease("main", "a"))
        .await
        .unwrap();
    leases
        .delete("main", &DeleteParams::default())
        .await
        .unwrap();
    let status = refused(leases.replace("main", &post(), &made).await);
    assert_eq!(status.code, 409);
    assert!(
        status.message.contains("Precondition failed: UID"),
        "{}",
        status.message
    );
    let mut without_uid = made;
    without_uid.metadata.uid = None;
    leases.replace("main", &post(), &without_uid).await.unwrap();
}

#[tokio::test]
async fn a_write_that_changes_nothing_leaves_the_version() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    let made = create(&maps, &config("c", json!({ "x": "1" }))).await;
    let same = maps.replace("c", &post(), &made).await.unwrap();
    assert_eq!(version(&same), version(&made));
    let patch = Patch::Merge(json!({ "data": { "x": "1" } }));
    let same = maps
        .patch("c", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(version(&same), version(&made));
}

#[tokio::test]
async fn the_servers_metadata_cannot_be_changed() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    let made = create(&maps, &config("c", json!({}))).await;
    let patch = Patch::Merge(json!({ "metadata": {
        "creationTimestamp": "2020-01-01T00:00:00Z", "generation": 7,
        "deletionTimestamp": "2020-01-01T00:00:00Z", "labels": { "a": "b" },
    } }));
    let now = maps
        .patch("c", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(
        now.metadata.creation_timestamp,
        made.metadata.creation_timestamp
    );
    assert_eq!(
        (now.metadata.generation, now.metadata.deletion_timestamp),
        (None, None)
    );
    assert_eq!(now.metadata.labels.unwrap()["a"], "b");
    let other_uid = Patch::Merge(json!({ "metadata": { "uid": "other" } }));
    let status = refused(maps.patch("c", &PatchParams::default(), &other_uid).await);
    assert_eq!(status.code, 409);
}

#[tokio::test]
async fn generation_counts_what_is_wished_for() {
    let (_server, budgets) = with("policy", "PodDisruptionBudget", "poddisruptionbudgets").await;
    let made = create(
        &budgets,
        &object(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": { "name": "main" }, "spec": { "minAvailable": 1 },
        })),
    )
    .await;
    assert_eq!(made.metadata.generation, Some(1));
    let params = PatchParams::default();
    let labels = Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } }));
    let now = budgets.patch("main", &params, &labels).await.unwrap();
    assert_eq!(now.metadata.generation, Some(1));
    let spec = Patch::Merge(json!({ "spec": { "minAvailable": 2 }, "status": {
        "currentHealthy": 9, "desiredHealthy": 9, "disruptionsAllowed": 9, "expectedPods": 9,
    } }));
    let now = budgets.patch("main", &params, &spec).await.unwrap();
    assert_eq!(now.metadata.generation, Some(2));
    assert!(
        now.data["status"].is_null(),
        "status comes by its own way: {}",
        now.data
    );
    let both = Patch::Merge(json!({ "spec": { "minAvailable": 3 }, "status": {
        "currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": 0, "expectedPods": 2,
    } }));
    let now = budgets.patch_status("main", &params, &both).await.unwrap();
    assert_eq!(now.metadata.generation, Some(2));
    assert_eq!(now.data["spec"]["minAvailable"], 2);
    assert_eq!(now.data["status"]["expectedPods"], 2);
}

#[tokio::test]
async fn patches_of_each_kind() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    create(&maps, &config("c", json!({ "x": "1", "y": "2" }))).await;
    let params = PatchParams::default();
    let merge = Patch::Merge(json!({ "data": { "x": null, "z": "3" } }));
    let now = maps.patch("c", &params, &merge).await.unwrap();
    assert_eq!(now.data["data"], json!({ "y": "2", "z": "3" }));
    let strategic = Patch::Strategic(json!({ "data": { "z": "4" } }));
    let now = maps.patch("c", &params, &strategic).await.unwrap();
    assert_eq!(now.data["data"]["z"], "4");
    let client = maps.clone().into_client();
    let json_patch = |operations: Value| {
        http::Request::patch("/api/v1/namespaces/default/configmaps/c")
            .header("content-type", "application/json-patch+json")
            .body(operations.to_string().into_bytes())
            .unwrap()
    };
    let good = json!([
        { "op": "test", "path": "/data/z", "value": "4" },
        { "op": "replace", "path": "/data/z", "value": "5" },
    ]);
    let now: Value = client.request(json_patch(good)).await.unwrap();
    assert_eq!(now["data"]["z"], "5");
    let stale = json!([
        { "op": "test", "path": "/data/z", "value": "4" },
        { "op": "remove", "path": "/data/y" },
    ]);
    assert_eq!(
        refused(client.request::<Value>(json_patch(stale)).await).code,
        422
    );
    assert_eq!(maps.get("c").await.unwrap().data["data"]["y"], "2");
}

#[tokio::test]
async fn strategic_patches_merge_lists_by_key() {
    let (_server, services) = with("", "Service", "services").await;
    create(
        &services,
        &object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
            "spec": { "ports": [{ "name": "a", "port": 1 }, { "name": "b", "port": 2 }] },
        })),
    )
    .await;
    let patch = Patch::Strategic(json!({ "spec": { "ports": [
        { "port": 2, "targetPort": 9 }, { "port": 1, "$patch": "delete" },
    ] } }));
    let now = services
        .patch("s", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let expected = json!([{ "name": "b", "port": 2, "protocol": "TCP", "targetPort": 9 }]);
    assert_eq!(now.data["spec"]["ports"], expected);
}

#[tokio::test]
async fn wrong_input_is_refused() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    let client = server.client(ADMIN).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let send = |body: Value| raw(&client, "POST", path, body);
    let named = |name: &str| json!({ "metadata": { "name": name } });
    assert_eq!(refused(send(json!("text")).await).code, 400);
    let other_kind = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "c" } });
    assert_eq!(refused(send(other_kind).await).code, 400);
    let elsewhere = json!({ "metadata": { "name": "c", "namespace": "kube-system" } });
    assert_eq!(refused(send(elsewhere).await).code, 400);
    assert_eq!(refused(send(named("Upper")).await).code, 422);
    assert_eq!(
        refused(send(json!({ "metadata": { "name": "c" }, "data": 5 })).await).code,
        400
    );
    let labelled = json!({ "metadata": { "name": "c", "labels": { "a": "no spaces" } } });
    assert_eq!(refused(send(labelled).await).reason, "Invalid");
    let versioned = json!({ "metadata": { "name": "c", "resourceVersion": "5" } });
    assert_eq!(refused(send(versioned).await).code, 500);
    let long = "x".repeat(262_145);
    let annotated = json!({ "metadata": { "name": "c", "annotations": { "a": long } } });
    assert_eq!(refused(send(annotated).await).code, 422);
    let nowhere = "/api/v1/namespaces/nowhere/configmaps";
    let status = refused(raw(&client, "POST", nowhere, named("c")).await);
    assert_eq!(
        (status.code, status.message.as_str()),
        (404, "namespaces \"nowhere\" not found")
    );
    let unknown = json!({ "metadata": { "name": "c" }, "dat": { "x": "1" } });
    let strict = format!("{path}?fieldValidation=Strict");
    assert_eq!(
        refused(raw(&client, "POST", &strict, unknown.clone()).await).code,
        400
    );
    assert!(send(unknown).await.unwrap()["dat"].is_null());
    assert_eq!(
        refused(raw(&client, "GET", "/api/v1/nothing", json!({})).await).code,
        404
    );
    assert_eq!(
        refused(raw(&client, "PUT", path, json!({})).await).code,
        405
    );
    assert_eq!(
        refused(maps.get("missing").await).message,
        "configmaps \"missing\" not found"
    );
    let tried = PostParams {
        dry_run: true,
        ..post()
    };
    maps.create(&tried, &config("tried", json!({})))
        .await
        .unwrap();
    assert_eq!(refused(maps.get("tried").await).code, 404);
}

#[tokio::test]
async fn lists_select_and_come_in_pieces() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    for (name, tier) in [("a", "x"), ("b", "y"), ("c", "x"), ("d", "z")] {
        let mut map = config(name, json!({}));
        map.metadata.labels = Some([("tier".to_owned(), tier.to_owned())].into());
        create(&maps, &map).await;
    }
    let names = async |params: ListParams| -> Vec<String> {
        let list = maps.list(&params).await.unwrap();
        list.items
            .into_iter()
            .filter_map(|item| item.metadata.name)
            .collect()
    };
    let labels = |text: &str| ListParams::default().labels(text);
    assert_eq!(names(labels("tier=x")).await, ["a", "c"]);
    assert_eq!(names(labels("tier!=x")).await, ["b", "d"]);
    assert_eq!(names(labels("tier in (y, z)")).await, ["b", "d"]);
    assert_eq!(names(labels("tier notin (y,z),tier")).await, ["a", "c"]);
    assert_eq!(names(labels("!tier")).await, [""; 0]);
    let fields = ListParams::default().fields("metadata.name=b");
    assert_eq!(names(fields).await, ["b"]);
    let unknown = maps.list(&ListParams::default().fields("data.x=1")).await;
    assert_eq!(refused(unknown).code, 400);

    // The second piece is of the same moment as the first.
    let first = maps.list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!(
        (first.items.len(), first.metadata.remaining_item_count),
        (3, Some(1))
    );
    maps.delete("d", &DeleteParams::default()).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    let rest = ListParams::default().limit(3).continue_token(&token);
    assert_eq!(names(rest.clone()).await, ["d"]);
    server.faults().expire_history();
    assert_eq!(refused(maps.list(&rest).await).code, 410);

    let everywhere: Api<kube::core::DynamicObject> = Api::all_with(
        maps.clone().into_client(),
        &resource("", "ConfigMap", "configmaps"),
    );
    let all = everywhere.list(&ListParams::default()).await.unwrap();
    assert_eq!(all.items.len(), 3);
}

#[tokio::test]
async fn lists_at_a_version() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    let made = create(&maps, &config("a", json!({ "x": "1" }))).await;
    create(&maps, &config("b", json!({}))).await;
    let then = made.metadata.resource_version.unwrap();
    let exact = ListParams::default()
        .at(&then)
        .matching(VersionMatch::Exact);
    let list = maps.list(&exact).await.unwrap();
    assert_eq!(list.items.len(), 1);
    assert_eq!(list.metadata.resource_version.unwrap(), then);
    server.faults().expire_history();
    assert_eq!(refused(maps.list(&exact).await).code, 410);
    let future = ListParams::default()
        .at("999999")
        .matching(VersionMatch::NotOlderThan);
    assert_eq!(refused(maps.list(&future).await).code, 504);
}

#[tokio::test]
async fn deletion_has_preconditions_and_waits_for_finalizers() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    let mut map = config("c", json!({}));
    map.metadata.finalizers = Some(vec!["baton.dev/test".to_owned()]);
    let made = create(&maps, &map).await;
    let wish = |uid: &str| {
        let uid = Some(uid.to_owned());
        DeleteParams::default().preconditions(Preconditions {
            uid,
            resource_version: None,
        })
    };
    assert_eq!(refused(maps.delete("c", &wish("other")).await).code, 409);
    let right = wish(made.metadata.uid.as_deref().unwrap());
    let marked = maps.delete("c", &right).await.unwrap().left().unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    let more = Patch::Merge(json!({ "metadata": { "finalizers": ["baton.dev/test", "x.y/z"] } }));
    assert_eq!(
        refused(maps.patch("c", &PatchParams::default(), &more).await).code,
        422
    );
    assert!(maps.get("c").await.is_ok());
    let release = Patch::Merge(json!({ "metadata": { "finalizers": [] } }));
    maps.patch("c", &PatchParams::default(), &release)
        .await
        .unwrap();
    assert_eq!(refused(maps.get("c").await).code, 404);
    assert_eq!(
        refused(maps.delete("c", &DeleteParams::default()).await).code,
        404
    );
}

#[tokio::test]
async fn dependents_go_with_their_owner_or_are_orphaned() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    for (owner, policy) in [
        ("background", PropagationPolicy::Background),
        ("foreground", PropagationPolicy::Foreground),
        ("orphan", PropagationPolicy::Orphan),
    ] {
        let uid = create(&maps, &config(owner, json!({})))
            .await
            .metadata
            .uid
            .unwrap();
        let dependent = object(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": format!("{owner}-child"), "ownerReferences": [
                { "apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid },
            ] },
        }));
        create(&maps, &dependent).await;
        let params = DeleteParams {
            propagation_policy: Some(policy),
            ..DeleteParams::default()
        };
        maps.delete(owner, &params).await.unwrap();
        assert_eq!(refused(maps.get(owner).await).code, 404, "{owner}");
    }
    assert_eq!(refused(maps.get("background-child").await).code, 404);
    assert_eq!(refused(maps.get("foreground-child").await).code, 404);
    let orphan = maps.get("orphan-child").await.unwrap();
    assert!(
        orphan
            .metadata
            .owner_references
            .unwrap_or_default()
            .is_empty()
    );
}

#[tokio::test]
async fn a_namespace_takes_its_content_along() {
    let server = server().await;
    let client = server.client(ADMIN).await;
    let namespaces = Api::all_with(client.clone(), &resource("", "Namespace", "namespaces"));
    let named = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "db" } });
    create(&namespaces, &object(named)).await;
    let map_resource = resource("", "ConfigMap", "configmaps");
    let maps = Api::namespaced_with(client, "db", &map_resource);
    let mut held = config("held", json!({}));
    held.metadata.finalizers = Some(vec!["baton.dev/test".to_owned()]);
    create(&maps, &held).await;
    create(&maps, &config("free", json!({}))).await;
    namespaces
        .delete("db", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(refused(maps.get("free").await).code, 404);
    let status = refused(maps.create(&post(), &config("late", json!({}))).await);
    assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
    assert_eq!(
        namespaces.get("db").await.unwrap().data["status"]["phase"],
        "Terminating"
    );
    let release = Patch::Merge(json!({ "metadata": { "finalizers": [] } }));
    maps.patch("held", &PatchParams::default(), &release)
        .await
        .unwrap();
    assert_eq!(refused(namespaces.get("db").await).code, 404);
}

#[tokio::test]
async fn a_collection_goes_by_selector() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    for name in ["a", "b"] {
        let mut map = config(name, json!({}));
        map.metadata.labels = Some([("name".to_owned(), name.to_owned())].into());
        create(&maps, &map).await;
    }
    let params = ListParams::default().labels("name=a");
    maps.delete_collection(&DeleteParams::default(), &params)
        .await
        .unwrap();
    let left = maps.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(left.len(), 1);
}
