//! The API server: the stand-in, or a real one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::{ADMIN, Faults, Options, Server};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::door;
use crate::places;

/// How long a deleted namespace may take to be gone.
const NAMESPACE_GONE: Duration = Duration::from_secs(60);

/// The API server of a run.
pub struct ApiServer {
    /// `None`: a real one.
    stand_in: Option<Server>,
    kubeconfig: Kubeconfig,
    pub client: Client,
    /// The namespace of this run.
    pub namespace: String,
}

impl ApiServer {
    /// The stand-in, or the one of the kubeconfig through the door.
    pub async fn start(kubeconfig: Option<&Path>) -> Result<Self> {
        let (stand_in, kubeconfig) = match kubeconfig {
            None => {
                let options = Options {
                    address: places::api(),
                    ..Options::default()
                };
                let server = Server::start(options).await.context("start the stand-in")?;
                let kubeconfig = server.kubeconfig(ADMIN);
                (Some(server), kubeconfig)
            }
            Some(path) => {
                let socket = std::env::var_os("BATON_KUBE_DOOR").context("no door")?;
                door::inside(places::api(), PathBuf::from(socket)).await?;
                (None, through_the_door(path)?)
            }
        };
        let client = client(kubeconfig.clone()).await?;
        let namespace = format!("baton-test-{}", std::env::var("BATON_KUBE_RUN")?);
        let server = Self {
            stand_in,
            kubeconfig,
            client,
            namespace,
        };
        server.make_namespace(&server.namespace).await?;
        server.make_namespace(places::SYSTEM).await?;
        Ok(server)
    }

    async fn make_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace: Namespace = serde_json::from_value(serde_json::json!({
            "metadata": { "name": name },
        }))?;
        match namespaces.create(&PostParams::default(), &namespace).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("make namespace {name}")),
        }
    }

    /// The stand-in's faults; none of a real server.
    pub fn faults(&self) -> Option<Faults> {
        self.stand_in.as_ref().map(Server::faults)
    }

    /// The stand-in itself.
    pub fn stand_in(&self) -> Option<&Server> {
        self.stand_in.as_ref()
    }

    /// A kubeconfig of a service account, as text.
    pub async fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<String> {
        let own = self.kubeconfig()?;
        kubeconfig_of(&self.client, &own, namespace, account).await
    }

    /// The administrator's kubeconfig, as text: JSON is YAML.
    pub fn kubeconfig(&self) -> Result<String> {
        Ok(serde_json::to_string(&self.kubeconfig)?)
    }

    /// Deletes what this run made in a real server; the stand-in ends with the run.
    pub async fn clean_up(&self) -> Result<()> {
        if self.stand_in.is_some() {
            return Ok(());
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for name in [&self.namespace, places::SYSTEM] {
            namespaces
                .delete(name, &DeleteParams::default())
                .await
                .with_context(|| format!("delete namespace {name}"))?;
        }
        let gone = async {
            for name in [&self.namespace, places::SYSTEM] {
                while namespaces.get_opt(name).await?.is_some() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            Ok::<_, kube::Error>(())
        };
        tokio::time::timeout(NAMESPACE_GONE, gone)
            .await
            .context("the namespaces are not gone")??;
        Ok(())
    }
}

/// A client of a kubeconfig.
async fn client(kubeconfig: Kubeconfig) -> Result<Client> {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    Ok(Client::try_from(config)?)
}

/// The same server under the address at which it is reached from here; its certificate names the other.
fn through_the_door(path: &Path) -> Result<Kubeconfig> {
    let mut config = Kubeconfig::read_from(path)?;
    for cluster in config
        .clusters
        .iter_mut()
        .filter_map(|named| named.cluster.as_mut())
    {
        let server = cluster.server.take().context("no server")?;
        let host = server.split("//").nth(1).unwrap_or_default();
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        cluster
            .tls_server_name
            .get_or_insert_with(|| host.to_owned());
        cluster.server = Some(format!("https://{}", places::api()));
    }
    Ok(config)
}

/// A kubeconfig of a service account, by a token that the API server gives, for the server of `own`.
pub async fn kubeconfig_of(
    client: &Client,
    own: &str,
    namespace: &str,
    account: &str,
) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(24 * 3600),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let token = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("a token of {namespace}/{account}"))?;
    let token = token.status.context("no token")?.token;
    let mut config: serde_json::Value = serde_json::from_str(own)?;
    config["users"] = serde_json::json!([{ "name": account, "user": { "token": token } }]);
    for context in config["contexts"].as_array_mut().into_iter().flatten() {
        context["context"]["user"] = account.into();
        context["context"]["namespace"] = namespace.into();
    }
    Ok(config.to_string())
}
