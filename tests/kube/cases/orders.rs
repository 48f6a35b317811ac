//! What people and programs order: through `kubectl baton`, and through a member's HTTP API behind the API
//! server. Token and certificate come with a change of the cluster, by a rolling update of its pods.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::process::Command;

use super::moves;
use crate::container::program;
use crate::pooler::{self, PgBouncer, Writers};
use crate::report::Outcome;
use crate::world::{CLUSTER, World};

const SETTLED: Duration = Duration::from_secs(90);

/// How long both pods may take to be of the new kind.
const ROLLED_OUT: Duration = Duration::from_secs(120);

/// The members' token.
const TOKEN: &str = "token-of-this-test-alone";

/// Between two orders, each writer writes so often.
const BETWEEN: u64 = 100;

/// Whoever wants its database to move without an error: a pooler waits while it is away. A switchover, and
/// PostgreSQL's restart in place, in one run of the same connections.
pub async fn pooler(world: &mut World) -> Result<Outcome> {
    if let Some(why) = cannot(world) {
        return Ok(why);
    }
    if !pooler::available() {
        return Ok(Outcome::skipped("pgbouncer is not installed"));
    }
    let _pooler = PgBouncer::start(&world.scratch.join("pooler")).await?;
    let pooled = json!({
        "address": pooler::address(),
        "user": pooler::ADMINISTRATOR,
        "passwordSecret": { "name": "main-orders", "key": "password" },
    });
    let plain = take_orders(world, Some(pooled)).await?;
    let (active, standby) = world.settled(SETTLED).await?;
    let writers = Writers::start().await?;
    writers.go_on(BETWEEN).await?;
    let began = Instant::now();
    let said = plugin(world, &["switchover", CLUSTER]).await?;
    let took = began.elapsed().as_millis();
    ensure!(said.contains("switched over"), "the plugin says {said:?}");
    writers.go_on(BETWEEN).await?;
    ensure!(
        world.settled(SETTLED).await? == (standby.clone(), active),
        "the members have not changed their roles"
    );
    let epoch = world.epoch().await?;
    let began = Instant::now();
    restart(world, &standby).await?;
    let restarted = began.elapsed().as_millis();
    ensure!(world.epoch().await? == epoch, "a restart changes no owner");
    writers.go_on(BETWEEN).await?;
    let written = writers.finish().await?;
    put_back(world, plain).await?;
    Ok(Outcome {
        gap_ms: Some(u64::try_from(written.pause.as_millis())?),
        acknowledged: Some(written.acknowledged),
        notes: vec![format!(
            "no writer saw an error; kubectl baton switchover {took} ms, POST /restart {restarted} ms"
        )],
        ..Outcome::default()
    })
}

/// A drill under load: its report must agree with what the Lease says, and tell every phase.
pub async fn drill(world: &mut World) -> Result<Outcome> {
    if let Some(why) = cannot(world) {
        return Ok(why);
    }
    let plain = take_orders(world, None).await?;
    let before = world.epoch().await?;
    let mut report = Value::Null;
    let (mut outcome, was, is) = moves::takes_over(world, async |world, _| {
        let said = plugin(world, &["drill", CLUSTER, "--output", "json"]).await?;
        report = serde_json::from_str(&said).context("understand the drill's report")?;
        Ok(())
    })
    .await?;
    let after = world.epoch().await?;
    let expected = [
        ("cluster", json!(CLUSTER)),
        ("namespace", json!(world.api.namespace)),
        ("from", json!(was.replace("main-", ""))),
        ("to", json!(is.replace("main-", ""))),
        ("epoch_before", json!(before)),
        ("epoch_after", json!(after)),
        ("planned", json!(true)),
    ];
    for (key, value) in expected {
        ensure!(report[key] == value, "{key} is not {value}: {report:#}");
    }
    ensure!(report["claimed_at"].is_u64(), "no claim: {report:#}");
    let millis = |key: &str| report[key].as_u64().with_context(|| format!("no {key}"));
    let (switchover, again) = (millis("switchover_ms")?, millis("standby_again_ms")?);
    ensure!(switchover <= again, "{report:#}");
    let events = report["events"].as_array().into_iter().flatten();
    let reasons: Vec<_> = events
        .filter_map(|event| event["reason"].as_str())
        .collect();
    for reason in EVENTS {
        ensure!(reasons.contains(&reason), "no Event {reason}: {report:#}");
    }
    let said = plugin(world, &["status", CLUSTER]).await?;
    ensure!(said.contains("active"), "status says {said:?}");
    put_back(world, plain).await?;
    outcome.notes.push(format!(
        "its report: switchover {switchover} ms, a standby again after {again} ms; {}",
        reasons.join(", ")
    ));
    Ok(outcome)
}

/// What the controller must have told of a planned handover.
const EVENTS: [&str; 3] = ["HandoverStarted", "TakingOver", "ServiceRestored"];

/// A real API server does not reach this test's pods.
fn cannot(world: &World) -> Option<Outcome> {
    let real = world.api.stand_in().is_none();
    real.then(|| Outcome::skipped("a real API server does not reach the pods of this test"))
}

/// Gives the members a token, a certificate, and perhaps a pooler. Returns the cluster as it was.
async fn take_orders(world: &mut World, pooler: Option<Value>) -> Result<Value> {
    let plain = world.cluster(&world.postgres);
    let mut cluster = plain.clone();
    cluster["spec"]["api"] = door_for_orders(world, CLUSTER).await?;
    if let Some(pooler) = pooler {
        cluster["spec"]["pooler"] = pooler;
    }
    roll_out(world, &cluster).await?;
    Ok(plain)
}

/// Makes a cluster's Secrets with token and certificate; its `spec.api` with them.
pub async fn door_for_orders(world: &World, cluster: &str) -> Result<Value> {
    let (orders, tls) = (format!("{cluster}-orders"), format!("{cluster}-tls"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let secrets = [
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": orders },
            "stringData": { "token": TOKEN, "password": pooler::PASSWORD },
        }),
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": tls },
            "type": "kubernetes.io/tls",
            "stringData": { "tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem() },
        }),
    ];
    let api: Api<Secret> = Api::namespaced(world.api.client.clone(), &world.api.namespace);
    for secret in &secrets {
        let name = secret["metadata"]["name"].as_str().context("no name")?;
        let apply = PatchParams::apply("baton-test").force();
        api.patch(name, &apply, &Patch::Apply(secret)).await?;
    }
    Ok(json!({ "tokenSecret": { "name": orders, "key": "token" }, "tlsSecret": tls }))
}

/// The cluster as the other cases have it.
async fn put_back(world: &mut World, plain: Value) -> Result<()> {
    roll_out(world, &plain).await
}

/// Applies the cluster and waits until all pods are new ones and one serves.
async fn roll_out(world: &mut World, cluster: &Value) -> Result<()> {
    let (active, standby) = world.settled(SETTLED).await?;
    let mut old = Vec::new();
    for pod in [&active, &standby] {
        old.push(world.pods().get(pod).await?.uid());
    }
    world.apply(cluster).await?;
    let until = tokio::time::Instant::now() + ROLLED_OUT;
    loop {
        let mut new = 0;
        for pod in [&active, &standby] {
            let found = world.pods().get_opt(pod).await?;
            new += usize::from(found.is_some_and(|pod| !old.contains(&pod.uid())));
        }
        if new == old.len() {
            break;
        }
        ensure!(
            tokio::time::Instant::now() < until,
            "{new} of {} pods are replaced",
            old.len()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.settled(SETTLED).await?;
    Ok(())
}

/// `kubectl baton` as an administrator. What it printed.
pub async fn plugin(world: &World, arguments: &[&str]) -> Result<String> {
    let folder = world.scratch.join("plugin");
    std::fs::create_dir_all(&folder)?;
    let kubeconfig = folder.join("kubeconfig");
    std::fs::write(&kubeconfig, world.api.kubeconfig()?)?;
    let name = folder.join("kubectl-baton");
    if !name.exists() {
        symlink(program(), &name)?;
    }
    let output = Command::new(name)
        .args(arguments)
        .args(["--namespace", &world.api.namespace])
        .env("KUBECONFIG", kubeconfig)
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "kubectl baton {}: {said}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// `POST /restart` to the active, through the API server, with the token in its own header.
async fn restart(world: &World, pod: &str) -> Result<()> {
    let namespace = &world.api.namespace;
    let path = format!("/api/v1/namespaces/{namespace}/pods/https:{pod}:8008/proxy/restart");
    let request = axum::http::Request::post(path)
        .header(baton::api::TOKEN_HEADER, TOKEN)
        .body(Vec::new())?;
    let said = world.api.client.request_text(request).await?;
    ensure!(said.contains("restarted"), "the member says {said:?}");
    Ok(())
}
