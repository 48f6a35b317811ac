//! The program: its line, its kubeconfig, its socket, its end.

use std::process::Stdio;

use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::common::{api, soon};

#[tokio::test]
async fn it_serves_until_it_is_told_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut child = Command::new(env!("CARGO_BIN_EXE_baton-apiserver"))
        .arg("--kubeconfig")
        .arg(path("kubeconfig"))
        .arg("--control")
        .arg(path("control"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = soon(lines.next_line()).await.unwrap().unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    assert!(
        said["address"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{said}"
    );

    let config = Kubeconfig::read_from(path("kubeconfig")).unwrap();
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .unwrap();
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    let maps = api(&client, "", "ConfigMap", "configmaps");
    maps.list(&ListParams::default()).await.unwrap();

    let (read, mut write) = UnixStream::connect(path("control"))
        .await
        .unwrap()
        .into_split();
    let mut answers = BufReader::new(read).lines();
    let mut command = async |text: &str| -> Value {
        write
            .write_all(format!("{text}\n").as_bytes())
            .await
            .unwrap();
        serde_json::from_str(&soon(answers.next_line()).await.unwrap().unwrap()).unwrap()
    };
    assert_eq!(
        command("{\"errors\":{\"code\":503,\"every\":1}}").await,
        json!({ "ok": true })
    );
    assert!(maps.list(&ListParams::default()).await.is_err());
    assert_eq!(command("\"clear\"").await, json!({ "ok": true }));
    maps.list(&ListParams::default()).await.unwrap();
    let log = command("\"requests\"").await;
    let codes: Vec<u64> = log
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["code"].as_u64().unwrap())
        .collect();
    assert_eq!(codes, [200, 503, 200]);
    assert!(command("{\"outrage\":true}").await["error"].is_string());

    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(soon(child.wait()).await.unwrap().success());
    assert!(!path("control").exists());
}
