//! The thin path.
use apiserver::{ADMIN, Options, Server};
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use serde_json::json;

fn lease(name: &str) -> Lease {
    serde_json::from_value(json!({"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata": {"name": name}, "spec": {"holderIdentity": "a"}})).unwrap()
}

#[tokio::test]
async fn thin_path() {
    let server = Server::start(Options::default()).await.unwrap();
    let client = server.client(ADMIN).await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    let made = leases
        .create(&PostParams::default(), &lease("main"))
        .await
        .unwrap();
    assert!(made.metadata.uid.is_some());
    let err = leases
        .create(&PostParams::default(), &lease("main"))
        .await
        .unwrap_err();
    assert!(matches!(err, kube::Error::Api(s) if s.reason == "AlreadyExists"));
    let mut next = made.clone();
    next.spec.as_mut().unwrap().holder_identity = Some("b".into());
    let second = leases
        .replace("main", &PostParams::default(), &next)
        .await
        .unwrap();
    assert_ne!(
        second.metadata.resource_version,
        made.metadata.resource_version
    );
    let err = leases
        .replace("main", &PostParams::default(), &next)
        .await
        .unwrap_err();
    assert!(matches!(err, kube::Error::Api(s) if s.is_conflict()));
    let list = leases.list(&ListParams::default()).await.unwrap();
    let rv = list.metadata.resource_version.unwrap();
    let mut watch = leases
        .watch(&WatchParams::default(), &rv)
        .await
        .unwrap()
        .boxed();
    leases
        .patch(
            "main",
            &PatchParams::default(),
            &Patch::Merge(json!({"metadata":{"labels":{"a":"b"}}})),
        )
        .await
        .unwrap();
    let event = watch.try_next().await.unwrap().unwrap();
    assert!(
        matches!(event, WatchEvent::Modified(l) if l.metadata.labels.as_ref().unwrap()["a"] == "b")
    );
    server.faults().bookmark_now();
    assert!(matches!(
        watch.try_next().await.unwrap().unwrap(),
        WatchEvent::Bookmark(_)
    ));
    server.faults().expire_history();
    assert!(
        matches!(watch.try_next().await.unwrap().unwrap(), WatchEvent::Error(s) if s.code == 410)
    );

    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let apply = json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"x":"1","y":"2"}});
    maps.patch("c", &PatchParams::apply("one"), &Patch::Apply(&apply))
        .await
        .unwrap();
    let apply =
        json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"x":"3"}});
    let err = maps
        .patch("c", &PatchParams::apply("two"), &Patch::Apply(&apply))
        .await
        .unwrap_err();
    let owner = "Apply failed with 1 conflict: conflict with \"one\" using v1: .data.x";
    assert!(matches!(err, kube::Error::Api(s) if s.is_conflict() && s.message == owner));
    let two = maps
        .patch(
            "c",
            &PatchParams::apply("two").force(),
            &Patch::Apply(&apply),
        )
        .await
        .unwrap();
    assert_eq!(two.data.unwrap()["x"], "3");
    let apply = json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}});
    let one = maps
        .patch("c", &PatchParams::apply("one"), &Patch::Apply(&apply))
        .await
        .unwrap();
    assert_eq!(one.data.unwrap().len(), 1);
    maps.delete("c", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn strangers_are_refused() {
    let server = Server::start(Options::default()).await.unwrap();
    let leases: Api<Lease> = Api::namespaced(server.client("nobody").await, "default");
    let err = leases.get("main").await.unwrap_err();
    assert!(matches!(err, kube::Error::Api(s) if s.code == 403));
}

#[tokio::test]
async fn an_outage_ends() {
    let server = Server::start(Options::default()).await.unwrap();
    let leases: Api<Lease> = Api::namespaced(server.client(ADMIN).await, "default");
    leases.list(&ListParams::default()).await.unwrap();
    server.faults().outage(true);
    println!(
        "{:?}",
        leases.list(&ListParams::default()).await.unwrap_err()
    );
    server.faults().outage(false);
    leases.list(&ListParams::default()).await.unwrap();
}
