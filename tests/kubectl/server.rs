//! An API server that answers just what is asked, and the plugin against it.

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

use crate::several;

/// What was asked of members through the API server: pod and verb, token, body.
pub type Asked = Arc<Mutex<Vec<(String, Option<String>, Value)>>>;

/// An API server with one cluster of one site and one of two, whose members answer what they are told to.
struct Api {
    asked: Asked,
    /// With token and TLS.
    orders: bool,
    /// The member's answer.
    answer: (StatusCode, Value),
}

pub struct Plugin {
    folder: TempDir,
    pub asked: Asked,
    pub runtime: tokio::runtime::Runtime,
}

impl Plugin {
    pub fn new(orders: bool, answer: (StatusCode, Value)) -> Self {
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

    pub fn run(&self, arguments: &[&str]) -> Output {
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
    let of_a_pod = uri.path().strip_prefix("/api/v1/namespaces/db/pods/https:");
    if let Some((pod, verb)) = of_a_pod.and_then(|rest| rest.split_once(":8008/proxy/")) {
        if method == Method::GET {
            return said_by(pod, api.orders);
        }
        let token = headers
            .get("x-baton-token")
            .map(|token| token.to_str().unwrap().to_owned());
        let body = serde_json::from_slice(&body).unwrap();
        let asked = format!("{pod} {verb}");
        api.asked.lock().unwrap().push((asked, token, body));
        let (code, answer) = &api.answer;
        return (*code, axum::Json(answer.clone())).into_response();
    }
    let which = uri.query().unwrap_or_default();
    let found = object(uri.path(), api.orders);
    match several::object(uri.path(), which).or(found) {
        Some(object) => axum::Json(object).into_response(),
        None => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                "reason": "NotFound", "message": "not found", "metadata": {}});
            (StatusCode::NOT_FOUND, axum::Json(status)).into_response()
        }
    }
}

/// How a member of the cluster of two sites sees it, where it can be reached.
fn said_by(pod: &str, reached: bool) -> Response {
    match several::status(pod).filter(|_| reached) {
        Some(status) => axum::Json(status).into_response(),
        None => (StatusCode::BAD_GATEWAY, "no route to host").into_response(),
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

/// All that was printed.
pub fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(text).unwrap()
}
