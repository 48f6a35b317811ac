//! The way to a pod through the server: what is handed on, what stays, who may go it.

use apiserver::{ADMIN, Identity};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::common::{create, object, raw, refused, with};

/// Answers one request with its own text, in small letters.
async fn echo(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"{\"a\":1}") {
        let mut some = [0; 1024];
        let read = stream.read(&mut some).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&heard));
        heard.extend(&some[..read]);
    }
    let heard = String::from_utf8(heard).unwrap().to_lowercase();
    let body = json!({ "heard": heard }).to_string();
    let length = body.len();
    let answer = format!("HTTP/1.1 202 Accepted\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_request_is_handed_on_to_the_pod_and_the_credentials_stay() {
    let (server, pods) = with("", "Pod", "pods").await;
    let pod = object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "containers": [{ "name": "main", "image": "a:1" }] },
    }));
    create(&pods, &pod).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let admin = server.client(ADMIN).await;
    let path = |pod: &str| format!("/api/v1/namespaces/default/pods/{pod}/proxy/restart/now?x=1");
    let body = json!({ "a": 1 });
    let to = path(&format!("http:p:{port}"));

    let homeless = refused(raw(&admin, "POST", &to, body.clone()).await);
    assert_eq!(homeless.code, 503, "{homeless:?}");
    let address = json!({ "status": { "podIP": "127.0.0.1" } });
    pods.patch_status("p", &PatchParams::default(), &Patch::Merge(&address))
        .await
        .unwrap();
    let missing = path(&format!("http:q:{port}"));
    let missing = refused(raw(&admin, "POST", &missing, body.clone()).await);
    assert_eq!(missing.code, 404, "{missing:?}");
    let nobody = server.client_of(&Identity::user("nobody", &[])).await;
    let forbidden = refused(raw(&nobody, "POST", &to, body.clone()).await);
    assert_eq!(forbidden.code, 403, "{forbidden:?}");

    let echo = tokio::spawn(echo(listener));
    let answer = raw(&admin, "POST", &to, body).await.unwrap();
    echo.await.unwrap();
    let heard = answer["heard"].as_str().unwrap();
    assert!(
        heard.starts_with("post /restart/now?x=1 http/1.1"),
        "{heard}"
    );
    assert!(!heard.contains("authorization"), "{heard}");
    assert!(heard.ends_with("{\"a\":1}"), "{heard}");
    let last = server.requests().pop().unwrap();
    assert_eq!((last.code, last.subresource.as_str()), (202, "proxy"));
}
