//! Server-side apply: owners, conflicts, what falls away.

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::common::{config, create, object, refused, version, with};

async fn apply(
    api: &Api<DynamicObject>,
    manager: &str,
    config: &Value,
) -> Result<DynamicObject, kube::Error> {
    let name = config["metadata"]["name"].as_str().unwrap();
    api.patch(name, &PatchParams::apply(manager), &Patch::Apply(config))
        .await
}

fn map(data: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": data,
    })
}

fn owned(object: &DynamicObject, manager: &str) -> Value {
    let fields = object.metadata.managed_fields.as_ref().unwrap();
    let entry = fields
        .iter()
        .find(|entry| entry.manager.as_deref() == Some(manager));
    entry.map_or(Value::Null, |entry| {
        serde_json::to_value(&entry.fields_v1).unwrap()
    })
}

#[tokio::test]
async fn an_apply_makes_and_owns() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    let made = apply(&maps, "one", &map(json!({ "x": "1" })))
        .await
        .unwrap();
    assert_eq!(owned(&made, "one"), json!({ "f:data": { "f:x": {} } }));
    let again = apply(&maps, "one", &map(json!({ "x": "1" })))
        .await
        .unwrap();
    assert_eq!(
        version(&again),
        version(&made),
        "nothing new, nothing written"
    );
    let codes: Vec<u16> = server
        .requests()
        .iter()
        .map(|request| request.code)
        .collect();
    assert_eq!(codes, [201, 200]);
}

#[tokio::test]
async fn a_field_of_another_owner_is_a_conflict_unless_forced() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    apply(&maps, "one", &map(json!({ "x": "1", "y": "1" })))
        .await
        .unwrap();
    // The same value: both own it from now on.
    let both = apply(&maps, "two", &map(json!({ "x": "1" })))
        .await
        .unwrap();
    assert_eq!(owned(&both, "two"), json!({ "f:data": { "f:x": {} } }));
    let status = refused(apply(&maps, "three", &map(json!({ "x": "2", "z": "2" }))).await);
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert!(
        status
            .message
            .starts_with("Apply failed with 2 conflicts: "),
        "{}",
        status.message
    );
    let causes = status.details.unwrap().causes;
    let named: Vec<&str> = causes.iter().map(|cause| cause.message.as_str()).collect();
    assert_eq!(
        named,
        [
            "conflict with \"one\" using v1",
            "conflict with \"two\" using v1"
        ]
    );
    assert!(causes.iter().all(|cause| cause.field == ".data.x"));
    assert!(
        causes
            .iter()
            .all(|cause| cause.reason == "FieldManagerConflict")
    );

    let params = PatchParams::apply("three").force();
    let patch = Patch::Apply(map(json!({ "x": "2" })));
    let taken = maps.patch("c", &params, &patch).await.unwrap();
    assert_eq!(taken.data["data"], json!({ "x": "2", "y": "1" }));
    assert_eq!(owned(&taken, "one"), json!({ "f:data": { "f:y": {} } }));
    assert_eq!(owned(&taken, "two"), Value::Null);
}

#[tokio::test]
async fn what_an_owner_drops_goes_unless_others_own_it() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    apply(&maps, "one", &map(json!({ "x": "1", "y": "1" })))
        .await
        .unwrap();
    apply(&maps, "two", &map(json!({ "y": "1" })))
        .await
        .unwrap();
    let left = apply(&maps, "one", &map(json!({ "z": "1" })))
        .await
        .unwrap();
    assert_eq!(left.data["data"], json!({ "y": "1", "z": "1" }));
}

#[tokio::test]
async fn other_writes_own_what_they_change() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    apply(&maps, "one", &map(json!({ "x": "1", "y": "1" })))
        .await
        .unwrap();
    let params = PatchParams {
        field_manager: Some("editor".to_owned()),
        ..Default::default()
    };
    let patch = Patch::Merge(json!({ "data": { "x": "2" } }));
    let edited = maps.patch("c", &params, &patch).await.unwrap();
    assert_eq!(owned(&edited, "one"), json!({ "f:data": { "f:y": {} } }));
    assert_eq!(owned(&edited, "editor"), json!({ "f:data": { "f:x": {} } }));
    let status = refused(apply(&maps, "one", &map(json!({ "x": "1", "y": "1" }))).await);
    assert!(
        status
            .message
            .contains("conflict with \"editor\" using v1 at "),
        "{status:?}"
    );
    let left = apply(&maps, "one", &map(json!({ "x": "2" })))
        .await
        .unwrap();
    assert_eq!(left.data["data"], json!({ "x": "2" }));
    // Without a name the client's own counts, up to the slash.
    let made = create(&maps, &config("d", json!({ "x": "1" }))).await;
    let managers = made.metadata.managed_fields.unwrap();
    assert_eq!(managers.len(), 1);
    assert_eq!(managers[0].operation.as_deref(), Some("Update"));
}

#[tokio::test]
async fn lists_are_merged_by_their_keys() {
    let (_server, pods) = with("", "Pod", "pods").await;
    let pod = |containers: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
            "spec": { "containers": containers },
        })
    };
    let main = json!({
        "name": "main", "image": "a:1", "env": [{ "name": "X", "value": "1" }],
        "ports": [{ "containerPort": 5432 }],
    });
    let made = apply(&pods, "one", &pod(json!([main]))).await.unwrap();
    let fields = owned(&made, "one");
    let container = &fields["f:spec"]["f:containers"]["k:{\"name\":\"main\"}"];
    assert_eq!(container["."], json!({}));
    assert_eq!(
        container["f:env"]["k:{\"name\":\"X\"}"]["f:value"],
        json!({})
    );
    let port = "k:{\"containerPort\":5432,\"protocol\":\"TCP\"}";
    assert!(container["f:ports"][port].is_object(), "{container}");

    let image = json!([{ "name": "main", "image": "a:2" }]);
    let status = refused(apply(&pods, "two", &pod(image.clone())).await);
    let field = status.details.unwrap().causes[0].field.clone();
    assert_eq!(field, ".spec.containers[name=\"main\"].image");
    let params = PatchParams::apply("two").force();
    let now = pods
        .patch("p", &params, &Patch::Apply(pod(image)))
        .await
        .unwrap();
    assert_eq!(now.data["spec"]["containers"][0]["image"], "a:2");
    assert_eq!(now.data["spec"]["containers"][0]["env"][0]["value"], "1");
}

#[tokio::test]
async fn owner_references_finalizers_and_conditions_are_merged() {
    let (_server, pods) = with("", "Pod", "pods").await;
    let bare = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "containers": [{ "name": "main", "image": "a" }] },
    });
    create(&pods, &object(bare)).await;
    let finalizer = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "p", "finalizers": [name] },
        })
    };
    apply(&pods, "one", &finalizer("a.b/one")).await.unwrap();
    let now = apply(&pods, "two", &finalizer("a.b/two")).await.unwrap();
    assert_eq!(now.metadata.finalizers.unwrap(), ["a.b/one", "a.b/two"]);
    let none = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" } });
    let now = apply(&pods, "one", &none).await.unwrap();
    assert_eq!(now.metadata.finalizers.unwrap(), ["a.b/two"]);

    for (manager, kind) in [("one", "Ready"), ("two", "baton.dev/Fenced")] {
        let status = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
            "status": { "conditions": [{ "type": kind, "status": "True" }] },
        });
        let params = PatchParams::apply(manager);
        pods.patch_status("p", &params, &Patch::Apply(&status))
            .await
            .unwrap();
    }
    let now = pods.get("p").await.unwrap();
    assert_eq!(
        now.data["status"]["conditions"].as_array().unwrap().len(),
        2
    );
    let entries = now.metadata.managed_fields.unwrap();
    assert!(
        entries
            .iter()
            .any(|entry| entry.subresource.as_deref() == Some("status"))
    );
}

#[tokio::test]
async fn an_apply_says_who_and_leaves_status_alone() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    let nameless = PatchParams::default();
    let client = maps.clone().into_client();
    let request = http::Request::patch("/api/v1/namespaces/default/configmaps/c")
        .header("content-type", "application/apply-patch+yaml")
        .body(map(json!({})).to_string().into_bytes())
        .unwrap();
    assert_eq!(refused(client.request::<Value>(request).await).code, 400);
    assert!(nameless.field_manager.is_none());
    let mut managed = map(json!({}));
    managed["metadata"]["managedFields"] = json!([{ "manager": "x" }]);
    assert_eq!(refused(apply(&maps, "one", &managed).await).code, 400);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  x: \"1\"\n";
    let path = "/api/v1/namespaces/default/configmaps/c?fieldManager=one";
    let request = http::Request::patch(path)
        .header("content-type", "application/apply-patch+yaml")
        .body(yaml.as_bytes().to_vec())
        .unwrap();
    let made: Value = client.request(request).await.unwrap();
    assert_eq!(made["data"]["x"], "1");
    // A stale version loses, a right one wins.
    let mut versioned = map(json!({ "x": "2" }));
    versioned["metadata"]["resourceVersion"] = json!("1");
    assert_eq!(refused(apply(&maps, "one", &versioned).await).code, 409);
    versioned["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    apply(&maps, "one", &versioned).await.unwrap();
}
