//! A kubelet as far as these pods need one: runs what is bound to its node, tells how it is, ends what is
//! deleted. It knows the API server only.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Probe, Secret, Volume};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::rustls::pki_types::ServerName;

use super::container::{self, Mount, Plan};
use super::network::Network;
use super::places::{self, NodePlaces};

/// The label of pods whose container a case makes by itself.
pub const BY_HAND: &str = "baton.dev/test-by-hand";

/// Between two looks at `/readiness`.
const PROBE: Duration = Duration::from_millis(200);

/// Before an ended container is started again.
const RESTART: Duration = Duration::from_millis(500);

/// A node's storage driver, and what the kubelet itself does for a block volume.
pub trait Driver: Send + Sync {
    /// Shows the claim's device to the pod with this UID, as often as it is asked, where the node has one.
    fn publish(&self, claim: &str, pod: &str) -> Result<()>;

    /// Takes it away, after the pod's last process.
    fn withdraw(&self, claim: &str, pod: &str) -> Result<()>;
}

/// One node's kubelet.
pub struct Kubelet {
    pub node: String,
    pub places: NodePlaces,
    pub client: Client,
    /// What members reach the API server with.
    pub kubeconfig: String,
    pub logs: PathBuf,
    pub driver: Box<dyn Driver>,
}

impl Kubelet {
    /// Runs until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node));
        let mut changes = watcher(pods, mine)
            .default_backoff()
            .applied_objects()
            .boxed();
        let mut running: HashMap<String, mpsc::UnboundedSender<Pod>> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                change = changes.next() => {
                    let Some(Ok(pod)) = change else { continue };
                    if pod.labels().contains_key(BY_HAND) {
                        continue;
                    }
                    let uid = pod.uid().unwrap_or_default();
                    let known = running.get(&uid).is_some_and(|to| to.send(pod.clone()).is_ok());
                    if !known && pod.metadata.deletion_timestamp.is_none() {
                        let (to, changes) = mpsc::unbounded_channel();
                        running.insert(uid, to);
                        tasks.spawn(self.clone().keep(pod, changes));
                    }
                }
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    /// One pod, from its binding to its end. Its network is there as long: whoever connects while the
    /// container is started again is refused, and does not wait for an address that is gone.
    async fn keep(self: Arc<Self>, pod: Pod, mut changes: mpsc::UnboundedReceiver<Pod>) {
        let name = pod.name_any();
        let network = loop {
            match Network::make(&name, places::pod_address(&name)).await {
                Ok(network) => break network,
                Err(error) => self.complain(&name, &error).await,
            }
        };
        loop {
            match self.run_once(&pod, &network, &mut changes).await {
                Ok(true) => break,
                Ok(false) => tokio::time::sleep(RESTART).await,
                Err(error) => self.complain(&name, &error).await,
            }
        }
        // Before a successor of the same name can be there.
        drop(network);
        self.withdraw(&pod);
        self.bury(&pod).await;
    }

    async fn complain(&self, pod: &str, error: &anyhow::Error) {
        eprintln!("kubelet of {}: pod {pod}: {error:#}", self.node);
        tokio::time::sleep(RESTART).await;
    }

    /// One life of the container; whether the pod is gone.
    async fn run_once(
        &self,
        pod: &Pod,
        network: &Network,
        changes: &mut mpsc::UnboundedReceiver<Pod>,
    ) -> Result<bool> {
        let plan = self.plan(pod, network).await?;
        let mut child = plan.start()?;
        self.tell(
            pod,
            json!({
                "phase": "Running",
                "podIP": network.address.to_string(),
                "podIPs": [{ "ip": network.address.to_string() }],
            }),
        )
        .await?;
        let mut grace = None;
        let mut ready = None;
        let mut probe = tokio::time::interval(PROBE);
        loop {
            tokio::select! {
                _ended = child.wait() => {
                    let _told = self.tell_ready(pod, false).await;
                    return Ok(grace.is_some());
                }
                Some(pod) = changes.recv() => {
                    let deleted = pod.metadata.deletion_timestamp.is_some();
                    if deleted && grace.is_none() {
                        let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
                        let seconds = u64::try_from(seconds).unwrap_or(0);
                        grace = Some(tokio::time::Instant::now() + Duration::from_secs(seconds));
                        terminate(&plan.group);
                    }
                }
                () = until(grace), if grace.is_some() => {
                    std::fs::write(plan.group.join("cgroup.kill"), "1").context("kill the container")?;
                    grace = Some(tokio::time::Instant::now() + Duration::from_secs(3600));
                }
                _ = probe.tick() => {
                    let is = probed(pod, network.address).await;
                    if ready != Some(is) && self.tell_ready(pod, is).await.is_ok() {
                        ready = Some(is);
                    }
                }
            }
        }
    }

    /// As the kubelet does when nothing of the pod is left.
    async fn bury(&self, pod: &Pod) {
        let pods: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let this_one = kube::api::Preconditions {
            uid: pod.uid(),
            resource_version: None,
        };
        let now = DeleteParams::default()
            .grace_period(0)
            .preconditions(this_one);
        let _gone = pods.delete(&pod.name_any(), &now).await;
    }

    async fn tell(&self, pod: &Pod, status: serde_json::Value) -> Result<()> {
        let pods: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({ "status": status }));
        pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    async fn tell_ready(&self, pod: &Pod, ready: bool) -> Result<()> {
        let is = if ready { "True" } else { "False" };
        self.tell(
            pod,
            json!({ "conditions": [
            { "type": "Ready", "status": is },
            { "type": "ContainersReady", "status": is },
        ] }),
        )
        .await
    }

    async fn plan(&self, pod: &Pod, network: &Network) -> Result<Plan> {
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        let spec = pod.spec.as_ref().context("the pod has no spec")?;
        let container = spec
            .containers
            .first()
            .context("the pod has no container")?;
        let run = uuid::Uuid::new_v4().simple().to_string();
        let directory = self.places.root.join("containers").join(&run);
        std::fs::create_dir_all(&directory)?;
        let mut mounts = vec![self.service_account(pod, &directory).await?];
        for mount in container.volume_mounts.iter().flatten() {
            let volume = spec
                .volumes
                .iter()
                .flatten()
                .find(|volume| volume.name == mount.name);
            let volume = volume.with_context(|| format!("there is no volume {}", mount.name))?;
            let propagated = mount.mount_propagation.as_deref() == Some("HostToContainer");
            let to = mount.mount_path.clone();
            mounts.push(self.mount(pod, volume, to, propagated, &directory).await?);
        }
        self.publish(pod)?;
        let environment = self.environment(pod, container, network)?;
        let command = container
            .command
            .iter()
            .chain(&container.args)
            .flatten()
            .cloned();
        Ok(Plan {
            group: self
                .places
                .group
                .join("kubepods")
                .join(format!("pod{uid}"))
                .join(run),
            network: network.name.clone(),
            command: command.collect(),
            environment,
            mounts,
            hosts: hosts(pod),
            log: self.logs.join(format!("{name}.log")),
            directory,
        })
    }

    /// Has the pod's claims published.
    fn publish(&self, pod: &Pod) -> Result<()> {
        let uid = pod.uid().unwrap_or_default();
        for claim in claims(pod) {
            let published = self.driver.publish(claim, &uid);
            published.with_context(|| format!("publish claim {claim}"))?;
        }
        Ok(())
    }

    /// The end of [`Kubelet::publish`].
    fn withdraw(&self, pod: &Pod) {
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        for claim in claims(pod) {
            if let Err(error) = self.driver.withdraw(claim, &uid) {
                eprintln!(
                    "kubelet of {}: pod {name}: withdraw claim {claim}: {error:#}",
                    self.node
                );
            }
        }
    }

    /// The variables of the container, those of the downward API among them.
    fn environment(
        &self,
        pod: &Pod,
        container: &Container,
        network: &Network,
    ) -> Result<Vec<(String, String)>> {
        let mut all = vec![("KUBECONFIG".to_owned(), "/run/api/kubeconfig".to_owned())];
        for variable in container.env.iter().flatten() {
            let from = variable.value_from.as_ref();
            let field = from.and_then(|from| from.field_ref.as_ref());
            let value = match field.map(|field| field.field_path.as_str()) {
                Some("metadata.name") => pod.name_any(),
                Some("metadata.namespace") => pod.namespace().unwrap_or_default(),
                Some("metadata.uid") => pod.uid().unwrap_or_default(),
                Some("status.podIP") => network.address.to_string(),
                Some("spec.nodeName") => self.node.clone(),
                Some(other) => anyhow::bail!("field {other} is not known"),
                None => variable.value.clone().unwrap_or_default(),
            };
            all.push((variable.name.clone(), value));
        }
        Ok(all)
    }

    /// What the pod reaches the API server with, as its service account.
    async fn service_account(&self, pod: &Pod, directory: &std::path::Path) -> Result<Mount> {
        let account = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.clone());
        let account = account.unwrap_or_else(|| "default".to_owned());
        let from = directory.join("api");
        std::fs::create_dir_all(&from)?;
        let namespace = pod.namespace().unwrap_or_default();
        let config =
            super::api::kubeconfig_of(&self.client, &self.kubeconfig, &namespace, &account);
        std::fs::write(from.join("kubeconfig"), config.await?)?;
        Ok(Mount::ReadOnly {
            from,
            to: "/run/api".to_owned(),
        })
    }

    async fn mount(
        &self,
        pod: &Pod,
        volume: &Volume,
        to: String,
        propagated: bool,
        directory: &std::path::Path,
    ) -> Result<Mount> {
        if volume.empty_dir.is_some() {
            return Ok(Mount::Memory { to });
        }
        if let Some(path) = &volume.host_path {
            let from = self.places.host_path(&path.path);
            if path.type_.as_deref() == Some("DirectoryOrCreate") {
                std::fs::create_dir_all(&from)?;
            }
            return Ok(match propagated {
                true => Mount::Propagated { from, to },
                false => Mount::Bind { from, to },
            });
        }
        let from = directory.join(&volume.name);
        self.project(pod, volume, &from).await?;
        Ok(Mount::ReadOnly { from, to })
    }

    /// Writes the files of a projected volume, for the pod's group.
    async fn project(&self, pod: &Pod, volume: &Volume, to: &std::path::Path) -> Result<()> {
        let namespace = pod.namespace().unwrap_or_default();
        let projected = volume
            .projected
            .as_ref()
            .context("a volume of another kind")?;
        for source in projected.sources.iter().flatten() {
            let mut files: HashMap<String, Vec<u8>> = HashMap::new();
            let mut items = Vec::new();
            if let Some(map) = &source.config_map {
                let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
                let found = maps.get(&map.name).await?;
                let data = found.data.into_iter().flatten();
                files.extend(data.map(|(key, text)| (key, text.into_bytes())));
                items.extend(map.items.iter().flatten().cloned());
            }
            if let Some(secret) = &source.secret {
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
                let found = secrets.get(&secret.name).await?;
                let data = found.data.into_iter().flatten();
                files.extend(data.map(|(key, bytes)| (key, bytes.0)));
                items.extend(secret.items.iter().flatten().cloned());
            }
            for item in items {
                let bytes = files
                    .get(&item.key)
                    .with_context(|| format!("no key {}", item.key))?;
                let path = to.join(&item.path);
                std::fs::create_dir_all(path.parent().context("a file without a directory")?)?;
                std::fs::write(&path, bytes)?;
                std::os::unix::fs::chown(&path, Some(0), Some(places::USER))?;
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o440);
                std::fs::set_permissions(&path, mode)?;
            }
        }
        Ok(())
    }
}

fn claims(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(&*volume.persistent_volume_claim.as_ref()?.claim_name))
}

async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// SIGTERM to the first process of the container.
fn terminate(group: &std::path::Path) {
    if let Some(pid) = container::first_process(group) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ended = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
}

/// What DNS would say: every member of the cluster by its name in the headless Service.
fn hosts(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let service = spec
        .and_then(|spec| spec.subdomain.clone())
        .unwrap_or_default();
    let namespace = pod.namespace().unwrap_or_default();
    let cluster = pod
        .labels()
        .get("baton.dev/cluster")
        .cloned()
        .unwrap_or_default();
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for member in places::members() {
        let name = format!("{cluster}-{member}");
        let address = places::pod_address(&name);
        text.push_str(&format!("{address} {name}.{service}.{namespace}.svc\n"));
    }
    text
}

/// GET /readiness, as the kubelet's HTTP probe: over TLS where the pod says so, with whoever answers.
async fn probed(pod: &Pod, address: Ipv4Addr) -> bool {
    let ask = async {
        let stream = TcpStream::connect((address, 8008)).await.ok()?;
        if !probed_over_tls(pod) {
            return answers(stream).await;
        }
        let name = ServerName::from(std::net::IpAddr::from(address));
        answers(apiserver::anybody().connect(name, stream).await.ok()?).await
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(1), ask).await,
        Ok(Some(true))
    )
}

fn probed_over_tls(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut probes = containers.filter_map(|container| container.readiness_probe.as_ref());
    let https = |probe: &Probe| Some(probe.http_get.as_ref()?.scheme.as_ref()? == "HTTPS");
    probes.any(|probe| https(probe) == Some(true))
}

async fn answers(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<bool> {
    let request = b"GET /readiness HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.ok()?;
    Some(head.ends_with(b"200"))
}
