//! Who is not a member gets nothing from an agent, whatever it says.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::container::{Mount, Plan};
use crate::network::ip;
use crate::places;
use crate::report::Outcome;
use crate::world::{CLUSTER, World};

const SETTLED: Duration = Duration::from_secs(90);

/// How many connections talk nonsense.
const GARBAGE: usize = 10_000;

/// A network namespace in which nobody listens.
const NETWORK: &str = "forger";

/// How long a forger is given to be refused.
const REFUSED: Duration = Duration::from_secs(20);

pub async fn isolation(world: &mut World) -> Result<Outcome> {
    let (active, _) = world.settled(SETTLED).await?;
    let epoch = world.epoch().await?;
    let node = world.node_of(&active)?;
    let (socket, agent) = (node.places.run.join("agent/agent.sock"), node.agent_pid());
    let mounts = mounts(agent)?;
    garbage(&socket)
        .await
        .context("10,000 connections of garbage")?;
    outside(&socket)
        .await
        .context("a process that is in no pod")?;
    let foreign = uuid::Uuid::new_v4().to_string();
    let said = forged(world, &active, &foreign, "a").await?;
    ensure!(
        said.contains("has not named a pod"),
        "a foreign pod UID: {said}"
    );
    another_s_name(world, &active).await?;
    let node = world.node_of(&active)?;
    ensure!(node.agent_pid() == agent, "the agent is another process");
    ensure!(self::mounts(agent)? == mounts, "something was mounted");
    let (still, _) = world.settled(SETTLED).await?;
    ensure!(
        still == active && world.epoch().await? == epoch,
        "the owner has changed"
    );
    Ok(Outcome::default())
}

/// A container of the pod itself says that it is another member.
pub async fn another_s_name(world: &mut World, pod: &str) -> Result<()> {
    let own = world.pods().get(pod).await?.uid().context("no uid")?;
    let other = if pod.ends_with('a') { "b" } else { "a" };
    let said = forged(world, pod, &own, other).await?;
    let refused = said.contains("refused the session");
    ensure!(refused, "another's name: {said}");
    Ok(())
}

/// What the agent's mount namespace has of filesystems on block devices.
fn mounts(agent: Option<u32>) -> Result<Vec<String>> {
    let pid = agent.context("there is no agent")?;
    let table = std::fs::read_to_string(format!("/proc/{pid}/mounts"))?;
    let ext4 = table
        .lines()
        .filter(|line| line.contains(" ext4 ") && line.starts_with("/dev/loop"));
    Ok(ext4.map(str::to_owned).collect())
}

/// Bytes of chance, some of them behind a right beginning.
async fn garbage(socket: &Path) -> Result<()> {
    for round in 0..GARBAGE {
        let mut bytes: Vec<u8> = (0..rand::rng().random_range(0..64))
            .map(|_| rand::random())
            .collect();
        if round % 2 == 0 {
            bytes.splice(..0, *b"L");
        }
        if round % 4 == 0 {
            let text = b"{\"protocol\":1,\"resume\":true}";
            let length = u32::try_from(text.len())?.to_le_bytes();
            bytes.splice(1.., length.into_iter().chain(*text));
        }
        let mut stream = connect(socket).await?;
        // An agent that has heard enough closes; that is no failure.
        let _written = stream.write_all(&bytes).await;
        let _closed = stream.shutdown().await;
    }
    Ok(())
}

/// Waits where the agent's queue is full, as a blocking connect(2) does.
async fn connect(socket: &Path) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            connected => return Ok(connected?),
        }
    }
}

/// This program itself: the first words are right, the process is not in a pod.
async fn outside(socket: &Path) -> Result<()> {
    let hello = serde_json::json!({
        "protocol": 1, "cluster": CLUSTER, "site": "local", "member": "a", "number": 1, "major": 15,
        "data_directory": "pgdata", "timings": {}, "resume": false,
    })
    .to_string();
    let mut stream = UnixStream::connect(socket).await?;
    let mut words = b"L".to_vec();
    words.extend(u32::try_from(hello.len())?.to_le_bytes());
    words.extend(hello.as_bytes());
    stream.write_all(&words).await?;
    let mut answer = String::new();
    tokio::time::timeout(REFUSED, stream.read_to_string(&mut answer))
        .await
        .ok();
    ensure!(answer.contains("Refused"), "it was answered {answer:?}");
    Ok(())
}

/// The program itself as the first process of a container in the control group of pod `uid`, with the
/// settings of `member`, on the node of `pod`. What it logged.
async fn forged(world: &mut World, pod: &str, uid: &str, member: &str) -> Result<String> {
    let places = world.node_of(pod)?.places.clone();
    let directory = places.root.join("forged");
    let settings = directory.join("settings");
    write_settings(world, member, &settings).await?;
    let log = directory.join("log");
    let _former = std::fs::remove_file(&log);
    let _former = ip(&format!("netns del {NETWORK}")).await;
    ip(&format!("netns add {NETWORK}")).await?;
    ip(&format!("-n {NETWORK} link set lo up")).await?;
    let facts = [
        ("POD_NAME", pod),
        ("POD_NAMESPACE", &world.api.namespace),
        ("POD_UID", uid),
        ("POD_IP", "127.0.0.1"),
        ("NODE_NAME", "node"),
    ];
    let memory = |to: &str| Mount::Memory { to: to.to_owned() };
    let plan = Plan {
        group: places.group.join(format!("kubepods/pod{uid}/forged")),
        network: NETWORK.to_owned(),
        command: ["baton", "run", "--config", "/etc/baton/member.toml"]
            .map(str::to_owned)
            .into(),
        environment: facts
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        mounts: vec![
            Mount::ReadOnly {
                from: settings,
                to: "/etc/baton".to_owned(),
            },
            memory("/run/baton/member"),
            memory("/tmp"),
            Mount::Bind {
                from: places.run.join("agent"),
                to: "/run/baton/agent".to_owned(),
            },
        ],
        hosts: String::new(),
        log,
        directory,
    };
    let said = refusal(&plan).await;
    ip(&format!("netns del {NETWORK}")).await?;
    said
}

/// A member's own settings, with a secret of the forger's.
async fn write_settings(world: &World, member: &str, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.join("peers"))?;
    let maps: kube::Api<ConfigMap> =
        kube::Api::namespaced(world.api.client.clone(), &world.api.namespace);
    let map = maps.get(&format!("{CLUSTER}-config")).await?;
    let file = format!("{member}.toml");
    let text = map.data.and_then(|data| data.get(&file).cloned());
    let files = [
        ("member.toml", text.context("no such settings")?),
        ("peers/secret", "a secret that is none of theirs".to_owned()),
    ];
    for (name, text) in files {
        let path = to.join(name);
        std::fs::write(&path, text)?;
        std::os::unix::fs::chown(&path, Some(0), Some(places::USER))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o440);
        std::fs::set_permissions(&path, mode)?;
    }
    Ok(())
}

/// Starts it and waits until it has ended or was put off. What it logged.
async fn refusal(plan: &Plan) -> Result<String> {
    let mut child = plan.start()?;
    let heard = async {
        loop {
            let ended = child.try_wait()?.is_some();
            let text = std::fs::read_to_string(&plan.log).unwrap_or_default();
            if ended || text.contains("no session yet") {
                return Ok::<_, anyhow::Error>(text);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let said = tokio::time::timeout(REFUSED, heard).await;
    let _killed = std::fs::write(plan.group.join("cgroup.kill"), "1");
    let _reaped = child.wait().await;
    said.context("it was neither refused nor put off")?
}
