//! A hundred volumes on one node: what agent and bridges take of it, idle and during a handover.
//!
//! Beside the cluster under test, whose handover is measured, the node has a hundred standbys, each a real
//! member in a pod with an agent's session, a device and a registration at a volume of its own, beating
//! each second. No database runs behind them: PostgreSQL's cost is not the agent's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton::lab::protocol::ask;
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;
use tokio::process::{Child, Command};

use super::moves;
use crate::container::{Mount, Plan, program};
use crate::kubelet::BY_HAND;
use crate::network::ip;
use crate::places;
use crate::report::Outcome;
use crate::usage::{self, Usage};
use crate::world::{CLUSTER, World};

/// How many volumes.
const VOLUMES: usize = 100;

/// Of each volume; only what is written takes room.
const SIZE: &str = "64M";

/// How long is measured.
const IDLE: Duration = Duration::from_secs(60);

/// The same for the node with its one volume, before.
const ALONE: Duration = Duration::from_secs(20);

/// How long a hundred members may take to be registered.
const REGISTERED: Duration = Duration::from_secs(120);

const SETTLED: Duration = Duration::from_secs(90);

/// The crowd's subsystem: volumes are told apart by subsystem and namespace, by the agent too.
const SUBSYSTEM: &str = "nqn.2026-11.dev.baton:crowd";

/// The claim that the crowd's clusters name: the agent asks only what it is.
const CLAIM: &str = "crowd-data";

/// Members that start at the same time: the node's own work is not what is measured.
const AT_ONCE: usize = 10;

/// At most this much of one CPU for an idle agent, in per cent: a program that is not optimised, on any
/// machine. Work that grows faster than the number of sessions is far beyond it.
const AGENT_LOAD_MAX: f64 = 100.0;

/// At most so many threads of the agent: none for each session.
const AGENT_THREADS_MAX: usize = 40;

/// Where the crowd's storage listens.
fn storage() -> std::net::SocketAddr {
    std::net::SocketAddr::new(places::storage().ip(), 4421)
}

pub async fn hundred_volumes(world: &mut World) -> Result<Outcome> {
    // The handover to be measured begins on the crowded node.
    let (active, _) = world.settled(SETTLED).await?;
    if !active.ends_with('a') {
        moves::delete_active(world).await?;
    }
    world.settled(SETTLED).await?;
    // It would make pods of the crowd's clusters.
    world.stop_controller().await?;
    let mut outcome = Outcome::default();
    let alone = idle(world, ALONE).await?;
    outcome.notes.push(format!("1 volume: {}", alone.text()));
    let mut crowd = Crowd::make(world).await?;
    crowd.registered().await?;
    let before = crowd.changes_of_keys().await?;
    let full = idle(world, IDLE).await?;
    let beats = crowd.changes_of_keys().await? - before;
    outcome
        .notes
        .push(format!("{} volumes: {}", VOLUMES + 1, full.text()));
    let each = beats as f64 / VOLUMES as f64 / IDLE.as_secs_f64();
    outcome
        .notes
        .push(format!("{each:.2} beats of each volume in a second"));
    let (measured, gap) = handover(world).await?;
    outcome.gap_ms = gap.gap_ms;
    outcome.acknowledged = gap.acknowledged;
    outcome.notes.push(measured);
    crowd.end(world).await?;
    world.start_controller().await?;
    world.settled(SETTLED).await?;
    ensure!(each > 0.8, "the crowd does not beat each second: {each:.2}");
    ensure!(
        full.agent.0 < AGENT_LOAD_MAX && full.agent.1.threads <= AGENT_THREADS_MAX,
        "the agent takes too much: {}",
        full.text()
    );
    Ok(outcome)
}

/// Agent and bridges over a while, in per cent of one CPU.
struct Idle {
    agent: (f64, Usage),
    bridges: (f64, Usage),
}

impl Idle {
    fn text(&self) -> String {
        let one = |(load, usage): &(f64, Usage)| {
            let Usage {
                memory,
                threads,
                processes,
                ..
            } = usage;
            format!(
                "{load:.1} % of one CPU, {memory:.0} MiB, {threads} threads in {processes} processes"
            )
        };
        format!("agent {}; bridges {}", one(&self.agent), one(&self.bridges))
    }
}

/// Agent and bridges of the crowded node, by their processes.
fn processes(world: &World) -> Result<[BTreeSet<i32>; 2]> {
    let node = &world.nodes[0];
    let agent = usage::only_child(node.agent_pid().context("there is no agent")?)?;
    Ok([
        BTreeSet::from([agent]),
        usage::in_group(&node.places.group.join("bridges")),
    ])
}

async fn idle(world: &World, length: Duration) -> Result<Idle> {
    let processes = processes(world)?;
    let before = processes.each_ref().map(Usage::of);
    tokio::time::sleep(length).await;
    let after = processes.each_ref().map(Usage::of);
    let over = |index: usize| {
        let load = after[index].load_since(&before[index]);
        (load, after[index].clone())
    };
    Ok(Idle {
        agent: over(0),
        bridges: over(1),
    })
}

/// One handover away from the crowded node, from the word to the standby's return.
async fn handover(world: &mut World) -> Result<(String, Outcome)> {
    // Bridges that are made anew meanwhile do not count: those of the crowd stay.
    let processes = processes(world)?;
    let before = processes.each_ref().map(Usage::of);
    let began = std::time::Instant::now();
    let (outcome, _, is) =
        moves::takes_over(world, async |world, active| world.delete_pod(active).await).await?;
    let after = processes.each_ref().map(Usage::of);
    let took = began.elapsed().as_secs_f64();
    // Without the controller the pod is not made again.
    ensure!(is.ends_with('b'), "{is} serves");
    let [agent, bridges] = [0, 1].map(|index| after[index].load_since(&before[index]));
    Ok((
        format!(
            "one handover among them, {took:.1} s under load: agent {agent:.1} % of one CPU, {:.0} MiB; bridges {bridges:.1} %",
            after[0].memory
        ),
        outcome,
    ))
}

/// The standbys with all that is theirs.
struct Crowd {
    control: PathBuf,
    members: Vec<Child>,
    groups: Vec<PathBuf>,
    networks: Vec<String>,
    _target: Child,
}

impl Crowd {
    async fn make(world: &mut World) -> Result<Self> {
        let (target, control) = target(&world.scratch).await?;
        world
            .api
            .make_claim(CLAIM, "ReadWriteMany", "Block")
            .await?;
        let mut crowd = Self {
            control,
            members: Vec::new(),
            groups: Vec::new(),
            networks: Vec::new(),
            _target: target,
        };
        let settings = settings_of_b(world).await?;
        let numbers: Vec<_> = (1..=VOLUMES).collect();
        for some in numbers.chunks(AT_ONCE) {
            let plans = some.iter().map(|number| plan(world, *number, &settings));
            for plan in try_join_all(plans).await? {
                crowd.members.push(plan.start()?);
                crowd.groups.push(plan.group);
                crowd.networks.push(plan.network);
            }
        }
        Ok(crowd)
    }

    /// Waits until every volume has its registrant.
    async fn registered(&mut self) -> Result<()> {
        let until = tokio::time::Instant::now() + REGISTERED;
        loop {
            let reports = self.reports().await?;
            let there = |report: &&Value| {
                let registrants = report["registrants"].as_array();
                registrants.is_some_and(|registrants| !registrants.is_empty())
            };
            let count = reports.iter().filter(there).count();
            if count == VOLUMES {
                // What their start took is over.
                tokio::time::sleep(Duration::from_secs(5)).await;
                return Ok(());
            }
            for member in &mut self.members {
                let ended = member.try_wait()?;
                ensure!(
                    ended.is_none(),
                    "a member of the crowd has ended: {ended:?}"
                );
            }
            ensure!(
                tokio::time::Instant::now() < until,
                "{count} of {VOLUMES} volumes are registered: {:?}",
                reports.first()
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// How often any key of the crowd's volumes was changed.
    async fn changes_of_keys(&self) -> Result<u64> {
        let reports = self.reports().await?;
        let generations = reports.iter().map(|report| report["generation"].as_u64());
        generations
            .map(|generation| generation.context("a report without its generation"))
            .sum()
    }

    async fn reports(&self) -> Result<Vec<Value>> {
        let question = json!({ "do": "status" });
        let status: Value = ask(&self.control, &question, Duration::from_secs(10)).await?;
        let namespaces = status["namespaces"].as_array().into_iter().flatten();
        Ok(namespaces
            .map(|namespace| namespace["reservation"].clone())
            .collect())
    }

    /// Ends them in any way, and takes their objects away.
    async fn end(&mut self, world: &World) -> Result<()> {
        for group in &self.groups {
            let _killed = std::fs::write(group.join("cgroup.kill"), "1");
        }
        for member in &mut self.members {
            let _reaped = member.wait().await;
        }
        for network in &self.networks {
            let _gone = ip(&format!("netns del {network}")).await;
        }
        let (clusters, pods) = (world.clusters(), world.pods());
        let now = DeleteParams::default().grace_period(0);
        for number in 1..=VOLUMES {
            pods.delete(&format!("{}-b", name(number)), &now).await?;
            clusters
                .delete(&name(number), &DeleteParams::default())
                .await?;
        }
        Ok(())
    }
}

fn name(number: usize) -> String {
    format!("v{number}")
}

/// A target with a namespace for each.
async fn target(scratch: &Path) -> Result<(Child, PathBuf)> {
    let directory = scratch.join("crowd");
    std::fs::create_dir_all(&directory)?;
    let control = directory.join("control");
    let mut command = Command::new(program());
    command
        .arg("target")
        .args(["--listen", &storage().to_string()])
        .args(["--subsystem", SUBSYSTEM])
        .arg("--state")
        .arg(directory.join("state"))
        .arg("--control")
        .arg(&control);
    for number in 1..=VOLUMES {
        let file = directory.join(number.to_string());
        command
            .arg("--namespace")
            .arg(format!("{},size={SIZE}", file.display()));
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(scratch.join("logs/crowd.log"))?)
        .kill_on_drop(true)
        .spawn()
        .context("start the crowd's storage")?;
    let said = child.stdout.take().context("no output")?;
    let line = tokio::io::BufReader::new(said).lines().next_line().await?;
    line.context("the crowd's storage did not start: see crowd.log")?;
    Ok((child, control))
}

/// The settings of the second member of the cluster under test.
async fn settings_of_b(world: &World) -> Result<String> {
    let maps: kube::Api<ConfigMap> =
        kube::Api::namespaced(world.api.client.clone(), &world.api.namespace);
    let map = maps.get(&format!("{CLUSTER}-config")).await?;
    let text = map.data.and_then(|data| data.get("b.toml").cloned());
    text.context("no settings of b")
}

/// The objects of one cluster as far as the agent asks for them, and its second member's container.
async fn plan(world: &World, number: usize, settings: &str) -> Result<Plan> {
    let name = name(number);
    let mut cluster = world.cluster(Path::new("/nowhere"));
    cluster["metadata"]["name"] = json!(name);
    cluster["spec"]["volume"]["claimName"] = json!(CLAIM);
    cluster["spec"]["volume"]["address"] = json!(storage().to_string());
    cluster["spec"]["volume"]["subsystem"] = json!(SUBSYSTEM);
    cluster["spec"]["volume"]["namespaceId"] = json!(number);
    world.apply(&cluster).await?;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": format!("{name}-b"),
            "labels": { "baton.dev/cluster": name, BY_HAND: "true" },
        },
        "spec": {
            "nodeName": places::NODES[0],
            "containers": [{ "name": "postgres", "image": "baton:test" }],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": CLAIM } }],
        },
    }))?;
    let pod = world.pods().create(&PostParams::default(), &pod).await?;
    let uid = pod.uid().context("no uid")?;
    let settings = settings
        .replace(&format!("\"{CLUSTER}\""), &format!("\"{name}\""))
        .replace(&format!("{CLUSTER}-"), &format!("{name}-"));
    let places = &world.nodes[0].places;
    let directory = places.root.join("crowd").join(&name);
    write_settings(&directory.join("settings"), &settings)?;
    ip(&format!("netns add {name}")).await?;
    ip(&format!("-n {name} link set lo up")).await?;
    let pod_name = pod.name_any();
    let facts = [
        ("POD_NAME", pod_name.as_str()),
        ("POD_NAMESPACE", &world.api.namespace),
        ("POD_UID", &uid),
        ("POD_IP", "127.0.0.1"),
        ("NODE_NAME", places::NODES[0]),
    ];
    let memory = |to: &str| Mount::Memory { to: to.to_owned() };
    Ok(Plan {
        group: places.group.join(format!("kubepods/pod{uid}/crowd")),
        network: name.clone(),
        command: ["baton", "run", "--config", "/etc/baton/member.toml"]
            .map(str::to_owned)
            .into(),
        environment: facts
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        mounts: vec![
            Mount::ReadOnly {
                from: directory.join("settings"),
                to: "/etc/baton".to_owned(),
            },
            memory("/run/baton/member"),
            memory("/var/lib/baton/volume"),
            memory("/tmp"),
            Mount::Bind {
                from: places.run.join("agent"),
                to: "/run/baton/agent".to_owned(),
            },
        ],
        hosts: String::new(),
        log: directory.join("log"),
        directory,
    })
}

fn write_settings(to: &Path, settings: &str) -> Result<()> {
    std::fs::create_dir_all(to.join("peers"))?;
    for (name, text) in [
        ("member.toml", settings),
        ("peers/secret", "a secret of this crowd alone"),
    ] {
        let path = to.join(name);
        std::fs::write(&path, text)?;
        std::os::unix::fs::chown(&path, Some(0), Some(places::USER))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o440);
        std::fs::set_permissions(&path, mode)?;
    }
    Ok(())
}
