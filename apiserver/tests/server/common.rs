//! What the tests share.

use std::future::Future;
use std::time::Duration;

use apiserver::{ADMIN, Options, Server};
use kube::api::{Api, PostParams};
use kube::core::Status;
use kube::core::dynamic::{ApiResource, DynamicObject};
use serde_json::{Value, json};

/// Long enough for anything that is awaited here; only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn server() -> Server {
    Server::start(Options::default()).await.unwrap()
}

/// A server, and the admin's view of a resource in `default`.
pub async fn with(group: &str, kind: &str, plural: &str) -> (Server, Api<DynamicObject>) {
    let server = server().await;
    let api = api(&server.client(ADMIN).await, group, kind, plural);
    (server, api)
}

pub fn api(client: &kube::Client, group: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), "default", &resource(group, kind, plural))
}

pub fn resource(group: &str, kind: &str, plural: &str) -> ApiResource {
    let api_version = if group.is_empty() {
        "v1".to_owned()
    } else {
        format!("{group}/v1")
    };
    ApiResource {
        group: group.to_owned(),
        version: "v1".to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

pub fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

pub fn lease(name: &str, holder: &str) -> DynamicObject {
    object(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": name }, "spec": { "holderIdentity": holder },
    }))
}

pub fn config(name: &str, data: Value) -> DynamicObject {
    object(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data,
    }))
}

pub async fn create(api: &Api<DynamicObject>, object: &DynamicObject) -> DynamicObject {
    api.create(&PostParams::default(), object).await.unwrap()
}

pub fn version(object: &DynamicObject) -> u64 {
    object
        .metadata
        .resource_version
        .as_deref()
        .unwrap()
        .parse()
        .unwrap()
}

/// The status that a refused request was answered with.
pub fn refused<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> Status {
    match result {
        Err(kube::Error::Api(status)) => *status,
        other => panic!("not refused by the server: {other:?}"),
    }
}

/// Awaits something that has to come.
pub async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("did not happen in time")
}

/// A raw request: for what the client library does not offer.
pub async fn raw(
    client: &kube::Client,
    method: &str,
    path: &str,
    body: Value,
) -> Result<Value, kube::Error> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body.to_string().into_bytes())
        .unwrap();
    client.request(request).await
}
