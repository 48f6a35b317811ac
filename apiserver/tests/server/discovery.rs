//! Discovery by kube, events under both groups, and kubectl as a whole.

use std::process::Stdio;

use apiserver::{ADMIN, Server};
use kube::api::{Api, ListParams};
use kube::core::DynamicObject;
use kube::discovery::Discovery;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::common::{api, raw, resource, server, soon};

#[tokio::test]
async fn a_client_discovers_what_is_served() {
    let server = server().await;
    let client = server.client(ADMIN).await;
    let version = client.apiserver_version().await.unwrap();
    assert_eq!(
        (version.major.as_str(), version.minor.as_str()),
        ("1", "33")
    );
    let found = Discovery::new(client).run().await.unwrap();
    for (group, kind, plural) in [
        ("", "Pod", "pods"),
        ("coordination.k8s.io", "Lease", "leases"),
        ("discovery.k8s.io", "EndpointSlice", "endpointslices"),
        ("apps", "DaemonSet", "daemonsets"),
    ] {
        let group = found.get(group).unwrap();
        let (resource, capabilities) = group.recommended_kind(kind).unwrap();
        assert_eq!(resource.plural, plural);
        assert_eq!(
            capabilities.subresources.is_empty(),
            matches!(kind, "Lease" | "EndpointSlice")
        );
    }
}

#[tokio::test]
async fn a_recorded_event_is_seen_under_both_groups() {
    let server = server().await;
    let client = server.client(ADMIN).await;
    let recorder = Recorder::new(client.clone(), Reporter::from("baton-controller"));
    let regarding = k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some("main-a".to_owned()),
        namespace: Some("default".to_owned()),
        ..Default::default()
    };
    let event = Event {
        type_: EventType::Normal,
        reason: "HandoverBegins".to_owned(),
        note: Some("to main-b".to_owned()),
        action: "Handover".to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &regarding).await.unwrap();
    let old: Api<DynamicObject> = api(&client, "", "Event", "events");
    let params = ListParams::default().fields("involvedObject.name=main-a,reason=HandoverBegins");
    let seen = old.list(&params).await.unwrap().items;
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].data["message"], "to main-b");
    let new: Api<DynamicObject> =
        Api::all_with(client, &resource("events.k8s.io", "Event", "events"));
    let seen = new.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(
        (&seen[0].data["note"], &seen[0].data["message"]),
        (&json!("to main-b"), &json!(null))
    );
}

#[tokio::test]
async fn metadata_alone_can_be_asked_for() {
    let server = server().await;
    let client = server.client(ADMIN).await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
    let listed = namespaces
        .list_metadata(&ListParams::default())
        .await
        .unwrap();
    assert!(listed.items.len() >= 2);
    assert_eq!(raw(&client, "GET", "/readyz", json!({})).await.ok(), None);
    assert_eq!(
        client
            .request_text(http::Request::get("/readyz").body(vec![]).unwrap())
            .await
            .unwrap(),
        "ok"
    );
}

/// kubectl, as a person or a script uses it. Without kubectl on the machine there is nothing to
/// test.
#[tokio::test]
async fn kubectl_works() {
    if Command::new("kubectl")
        .args(["version", "--client"])
        .output()
        .await
        .is_err()
    {
        eprintln!("skipped: no kubectl");
        return;
    }
    let server = server().await;
    let home = tempfile::tempdir().unwrap();
    let said = kubectl(
        &server,
        &home,
        &["apply", "--server-side", "-f", "-"],
        MANIFEST,
    )
    .await;
    assert!(said.contains("configmap/c serverside-applied"), "{said}");
    let said = kubectl(&server, &home, &["apply", "-f", "-"], MANIFEST).await;
    assert!(said.contains("configmap/c"), "{said}");
    let said = kubectl(
        &server,
        &home,
        &["get", "cm", "c", "-o", "jsonpath={.data.x}"],
        "",
    )
    .await;
    assert_eq!(said, "1");
    let said = kubectl(&server, &home, &["get", "cm", "-A"], "").await;
    assert!(said.contains("default") && said.contains('c'), "{said}");
    let said = kubectl(&server, &home, &["label", "cm", "c", "a=b"], "").await;
    assert!(said.contains("labeled"), "{said}");
    let said = kubectl(&server, &home, &["api-resources", "-o", "name"], "").await;
    assert!(said.contains("endpointslices.discovery.k8s.io"), "{said}");
    let said = kubectl(&server, &home, &["delete", "cm", "c"], "").await;
    assert!(said.contains("deleted"), "{said}");
}

const MANIFEST: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  x: \"1\"\n";

async fn kubectl(
    server: &Server,
    home: &tempfile::TempDir,
    arguments: &[&str],
    input: &str,
) -> String {
    let config = home.path().join("config");
    if !config.exists() {
        std::fs::write(
            &config,
            serde_json::to_string(&server.kubeconfig(ADMIN)).unwrap(),
        )
        .unwrap();
    }
    let mut child = Command::new("kubectl")
        .args(arguments)
        .env("KUBECONFIG", &config)
        .env("HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .await
        .unwrap();
    let output = soon(child.wait_with_output()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "kubectl {arguments:?}: {text}{errors}"
    );
    text
}
