//! `kubectl baton`: the program by another name, against an API server that answers just what is asked.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// What was asked of the member through the API server: path, token, body.
type Asked = Arc<Mutex<Vec<(String, Option<String>, Value)>>>;

/// An API server with one cluster, whose member answers what it is told to.
struct Api {
    asked: Asked,
    /// With token and TLS.
    orders: bool,
    /// The member's answer.
    answer: (StatusCode, Value),
}

struct Plugin {
    folder: TempDir,
    asked: Asked,
    runtime: tokio::runtime::Runtime,
}

impl Plugin {
    fn new(orders: bool, answer: (StatusCode, Value)) -> Self {
        let folder = TempDir::new().unwrap();
        symlink(
            env!("CARGO_BIN_EXE_baton"),
            folder.path().join("kubectl-baton"),
        )
        .unwrap();
        let asked = Asked::default();
        let api = Arc::new(Api {
            asked: Arc::clone(&asked),
            orders,
            answer,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(serve).with_state(api);
        runtime.spawn(accept(listener, router));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "test", "user": {"token": "of-the-user"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "db"}}],
        });
        std::fs::write(folder.path().join("config"), config.to_string()).unwrap();
        Self {
            folder,
            asked,
            runtime,
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let path: &Path = self.folder.path();
        Command::new(path.join("kubectl-baton"))
            .args(arguments)
            .env("KUBECONFIG", path.join("config"))
            .output()
            .unwrap()
    }
}

async fn accept(listener: TcpListener, router: Router) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn serve(
    State(api): State<Arc<Api>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let prefix = "/api/v1/namespaces/db/pods/https:main-a:8008/proxy/";
    if method == Method::POST && uri.path().starts_with(prefix) {
        let token = headers
            .get("x-baton-token")
            .map(|token| token.to_str().unwrap().to_owned());
        let body = serde_json::from_slice(&body).unwrap();
        let verb = uri.path()[prefix.len()..].to_owned();
        api.asked.lock().unwrap().push((verb, token, body));
        let (code, answer) = &api.answer;
        return (*code, axum::Json(answer.clone())).into_response();
    }
    match object(uri.path(), api.orders) {
        Some(object) => axum::Json(object).into_response(),
        None => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                "reason": "NotFound", "message": "not found", "metadata": {}});
            (StatusCode::NOT_FOUND, axum::Json(status)).into_response()
        }
    }
}

fn object(path: &str, orders: bool) -> Option<Value> {
    let pod = |member: &str, role: &str| {
        json!({
            "metadata": {"name": format!("main-{member}"), "namespace": "db", "uid": member,
                "labels": {"baton.dev/cluster": "main", "baton.dev/role": role,
                    "baton.dev/serving": if role == "active" { "true" } else { "false" }}},
            "spec": {"containers": [], "nodeName": format!("node-{member}")},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    let record = json!({"epoch": 7, "newest": 7, "holder": 1, "incarnation": 1, "sequence": 1,
        "clean": false, "planned": true, "initialized": true, "paused": false});
    let history = json!([{"epoch": 7, "holder": 1, "incarnation": 1, "name": "a", "planned": true,
        "at": 1_700_000_000_000_u64}]);
    let api = json!({"tokenSecret": {"name": "token", "key": "word"}, "tlsSecret": "tls"});
    match path {
        "/apis/baton.dev/v1alpha1/namespaces/db/batonclusters/main" => Some(json!({
            "apiVersion": "baton.dev/v1alpha1", "kind": "BatonCluster",
            "metadata": {"name": "main", "namespace": "db", "uid": "u"},
            "spec": {"image": "i", "volume": {"claimName": "d"}, "members": [{"name": "a"}, {"name": "b"}],
                "api": if orders { api } else { Value::Null }},
        })),
        "/apis/coordination.k8s.io/v1/namespaces/db/leases/main-local" => Some(json!({
            "metadata": {"name": "main-local", "namespace": "db", "annotations": {
                "baton.dev/record": record.to_string(), "baton.dev/history": history.to_string()}},
            "spec": {},
        })),
        "/api/v1/namespaces/db/pods" => Some(json!({
            "apiVersion": "v1", "kind": "PodList", "metadata": {},
            "items": [pod("a", "active"), pod("b", "standby")],
        })),
        "/api/v1/namespaces/db/secrets/token" => Some(json!({
            "metadata": {"name": "token", "namespace": "db"},
            // "of-the-member" and a line's end
            "data": {"word": "b2YtdGhlLW1lbWJlcgo="},
        })),
        _ => None,
    }
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(text).unwrap()
}

#[test]
fn status_and_history_come_from_the_kubernetes_api() {
    let plugin = Plugin::new(false, (StatusCode::OK, Value::Null));
    let output = plugin.run(&["status", "main", "-o", "json"]);
    assert!(output.status.success(), "{}", said(&output));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&status["active"], &status["standby"]),
        (&json!("a"), &json!("b"))
    );
    assert_eq!(
        (&status["epoch"], &status["serving"]),
        (&json!(7), &json!(true))
    );
    let text = said(&plugin.run(&["status", "main", "--namespace", "db"]));
    assert!(
        text.contains("Cluster db/main: active a, epoch 7"),
        "{text}"
    );
    let text = said(&plugin.run(&["history", "main"]));
    assert!(
        text.contains("planned") && text.contains("2023-11-14"),
        "{text}"
    );
    let absent = plugin.run(&["status", "other"]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(said(&absent).contains("there is no BatonCluster other in namespace db"));
}

#[test]
fn orders_go_to_the_active_with_its_token() {
    let done = json!({"message": "Successfully switched over to \"b\""});
    let plugin = Plugin::new(true, (StatusCode::OK, done));
    let output = plugin.run(&["switchover", "main", "--to", "b"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("switched over to"));
    assert!(plugin.run(&["pause", "main"]).status.success());
    assert!(plugin.run(&["resume", "main"]).status.success());
    let token = Some("of-the-member".to_owned());
    let asked = plugin.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [
            (
                "switchover".to_owned(),
                token.clone(),
                json!({"leader": "a", "candidate": "b"})
            ),
            ("pause".to_owned(), token.clone(), json!({})),
            ("resume".to_owned(), token, json!({})),
        ]
    );
    drop(plugin.runtime);
}

#[test]
fn a_refusal_is_told_in_the_member_s_words() {
    let refused = json!({"error": "no standby is ready", "reason": "NoReadyStandby"});
    let plugin = Plugin::new(true, (StatusCode::PRECONDITION_FAILED, refused));
    let output = plugin.run(&["switchover", "main"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("no standby is ready"),
        "{}",
        said(&output)
    );
}

#[test]
fn without_a_token_nothing_is_asked_and_the_way_out_is_told() {
    let plugin = Plugin::new(false, (StatusCode::OK, Value::Null));
    let output = plugin.run(&["switchover", "main"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("set spec.api.tokenSecret"),
        "{}",
        said(&output)
    );
    assert!(plugin.asked.lock().unwrap().is_empty());
}
