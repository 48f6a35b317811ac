//! Custom resources: from definition to validated objects.

use apiserver::{ADMIN, Server};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::common::{api, create, object, refused, resource, server};

fn definition(schema: &Value) -> DynamicObject {
    object(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "things.example.dev" },
        "spec": {
            "group": "example.dev", "scope": "Namespaced",
            "names": { "plural": "things", "singular": "thing", "kind": "Thing",
                       "shortNames": ["th"] },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": schema }, "subresources": { "status": {} },
            }],
        },
    }))
}

fn schema() -> Value {
    json!({
        "type": "object", "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object", "required": ["members"],
                "properties": {
                    "members": {
                        "type": "array", "minItems": 2,
                        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                        "items": { "type": "object", "required": ["name"], "properties": {
                            "name": { "type": "string", "pattern": "^[a-z]+$" },
                            "weight": { "type": "integer", "minimum": 1, "default": 5 },
                        } },
                    },
                    "mode": { "type": "string", "enum": ["fast", "safe"], "default": "safe" },
                    "size": { "type": "integer" },
                    "free": { "type": "object", "additionalProperties": { "type": "string" } },
                    "open": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                },
                "x-kubernetes-validations": [
                    { "rule": "!has(oldSelf.size) || self.size >= oldSelf.size",
                      "message": "size never shrinks" },
                    { "rule": "self.members.all(m, m.weight < 100)" },
                ],
            },
            "status": { "type": "object", "properties": { "phase": { "type": "string" } } },
        },
    })
}

fn thing(spec: &Value) -> DynamicObject {
    object(json!({
        "apiVersion": "example.dev/v1", "kind": "Thing", "metadata": { "name": "t" },
        "spec": spec,
    }))
}

fn definitions(client: &kube::Client) -> Api<DynamicObject> {
    let kind = (
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    );
    Api::all_with(client.clone(), &resource(kind.0, kind.1, kind.2))
}

async fn things() -> (Server, Api<DynamicObject>) {
    let server = server().await;
    let client = server.client(ADMIN).await;
    create(&definitions(&client), &definition(&schema())).await;
    let things = api(&client, "example.dev", "Thing", "things");
    (server, things)
}

fn two() -> Value {
    json!({ "members": [{ "name": "a" }, { "name": "b" }] })
}

#[tokio::test]
async fn a_definition_is_established_and_served_until_it_goes() {
    let (_server, things) = things().await;
    let definitions = definitions(&things.clone().into_client());
    let stored = definitions.get("things.example.dev").await.unwrap();
    let conditions = stored.data["status"]["conditions"].as_array().unwrap();
    let established = conditions
        .iter()
        .find(|one| one["type"] == "Established")
        .unwrap();
    assert_eq!(established["status"], "True");
    create(&things, &thing(&two())).await;
    definitions
        .delete("things.example.dev", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(
        refused(definitions.get("things.example.dev").await).code,
        404
    );
    let status = refused(things.list(&ListParams::default()).await);
    assert_eq!(
        status.message,
        "the server could not find the requested resource"
    );
    create(&definitions, &definition(&schema())).await;
    let left = things.list(&ListParams::default()).await.unwrap().items;
    assert!(left.is_empty(), "the objects went with their definition");
}

#[tokio::test]
async fn defaults_are_filled_in_and_unknown_fields_fall_away() {
    let (_server, things) = things().await;
    let mut spec = two();
    spec["unknown"] = json!(1);
    spec["free"] = json!({ "any": "text" });
    spec["open"] = json!({ "what": { "ever": 1 } });
    let made = create(&things, &thing(&spec)).await;
    assert_eq!(made.data["spec"]["mode"], "safe");
    assert_eq!(
        made.data["spec"]["members"][0],
        json!({ "name": "a", "weight": 5 })
    );
    assert!(made.data["spec"].get("unknown").is_none());
    assert_eq!(made.data["spec"]["free"]["any"], "text");
    assert_eq!(made.data["spec"]["open"]["what"]["ever"], 1);
}

#[tokio::test]
async fn the_schema_refuses() {
    let (_server, things) = things().await;
    let cases = [
        (json!({}), "spec.members", "FieldValueRequired"),
        (
            json!({ "members": "text" }),
            "spec.members",
            "FieldValueTypeInvalid",
        ),
        (
            json!({ "members": [{ "name": "a" }] }),
            "spec.members",
            "FieldValueInvalid",
        ),
        (
            json!({ "members": [{ "name": "a" }, { "name": "a" }] }),
            "spec.members[1]",
            "FieldValueDuplicate",
        ),
        (
            json!({ "members": [{ "name": "a" }, { "name": "B" }] }),
            "spec.members[1].name",
            "FieldValueInvalid",
        ),
        (
            json!({ "members": [{ "name": "a" }, { "name": "b", "weight": 0 }] }),
            "spec.members[1].weight",
            "FieldValueInvalid",
        ),
        (
            json!({ "members": [{ "name": "a" }, { "name": "b" }], "mode": "other" }),
            "spec.mode",
            "FieldValueNotSupported",
        ),
        (
            json!({ "members": [{ "name": "a" }, { "name": "b", "weight": 100 }] }),
            "spec",
            "FieldValueInvalid",
        ),
    ];
    for (spec, field, reason) in cases {
        let status = refused(things.create(&PostParams::default(), &thing(&spec)).await);
        assert_eq!(
            (status.code, status.reason.as_str()),
            (422, "Invalid"),
            "{spec}"
        );
        let causes = status.details.unwrap().causes;
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert_eq!(
            (causes[0].field.as_str(), causes[0].reason.as_str()),
            (field, reason)
        );
    }
}

#[tokio::test]
async fn rules_compare_with_what_was() {
    let (_server, things) = things().await;
    let mut spec = two();
    spec["size"] = json!(5);
    create(&things, &thing(&spec)).await;
    let size = |size: u32| Patch::Merge(json!({ "spec": { "size": size } }));
    let params = PatchParams::default();
    let grown = things.patch("t", &params, &size(6)).await.unwrap();
    assert_eq!(grown.metadata.generation, Some(2));
    let status = refused(things.patch("t", &params, &size(4)).await);
    assert_eq!(status.code, 422);
    assert!(
        status.message.contains("size never shrinks"),
        "{}",
        status.message
    );
}

#[tokio::test]
async fn status_is_apart() {
    let (_server, things) = things().await;
    create(&things, &thing(&two())).await;
    let both = json!({
        "spec": { "size": 9 }, "status": { "phase": "Ready", "more": 1 },
        "metadata": { "labels": { "a": "b" } },
    });
    let params = PatchParams::default();
    let now = things
        .patch_status("t", &params, &Patch::Merge(&both))
        .await
        .unwrap();
    assert_eq!(now.data["status"], json!({ "phase": "Ready" }));
    assert!(now.data["spec"].get("size").is_none() && now.metadata.labels.is_none());
    assert_eq!(now.metadata.generation, Some(1));
    let now = things
        .patch("t", &params, &Patch::Merge(&both))
        .await
        .unwrap();
    assert_eq!(
        (&now.data["spec"]["size"], now.metadata.generation),
        (&json!(9), Some(2))
    );
    assert_eq!(now.data["status"], json!({ "phase": "Ready" }));
    let put = refused(
        things
            .replace("t", &PostParams::default(), &thing(&two()))
            .await,
    );
    assert_eq!(
        put.code, 422,
        "a custom resource is never replaced without a version"
    );
}

#[tokio::test]
async fn an_apply_merges_by_the_schemas_keys() {
    let (_server, things) = things().await;
    let config = |members: Value| {
        Patch::Apply(json!({
            "apiVersion": "example.dev/v1", "kind": "Thing", "spec": { "members": members },
        }))
    };
    let one = config(json!([{ "name": "a" }, { "name": "b" }]));
    things
        .patch("t", &PatchParams::apply("one"), &one)
        .await
        .unwrap();
    let two = config(json!([{ "name": "c", "weight": 7 }]));
    let now = things
        .patch("t", &PatchParams::apply("two"), &two)
        .await
        .unwrap();
    assert_eq!(now.data["spec"]["members"].as_array().unwrap().len(), 3);
    let now = things
        .patch("t", &PatchParams::apply("two"), &config(json!([])))
        .await
        .unwrap();
    assert_eq!(now.data["spec"]["members"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn bad_definitions_are_refused() {
    let server = server().await;
    let definitions = definitions(&server.client(ADMIN).await);
    let typeless = json!({ "type": "object", "properties": { "spec": { "properties": {} } } });
    let reference = json!({ "type": "object", "$ref": "#/x" });
    let rule = json!({ "type": "object", "x-kubernetes-validations": [{ "rule": "self.+" }] });
    let endless = json!({ "type": "object", "properties": { "a": { "type": "array" } } });
    for bad in [typeless, reference, rule, endless] {
        let made = definitions
            .create(&PostParams::default(), &definition(&bad))
            .await;
        assert_eq!(refused(made).code, 422, "{bad}");
    }
    let mut misnamed = definition(&schema());
    misnamed.metadata.name = Some("others.example.dev".to_owned());
    let made = definitions.create(&PostParams::default(), &misnamed).await;
    assert_eq!(refused(made).code, 422);
}
