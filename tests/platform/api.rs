//! The API server of a run, and kubeconfigs for those who use it.

use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::{ADMIN, Faults, Options, Server};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use super::places;

/// How long a deleted namespace may take to be gone.
const NAMESPACE_GONE: Duration = Duration::from_secs(60);

/// The API server of a run: the stand-in, or a real one.
pub struct ApiServer {
    /// `None`: a real one.
    stand_in: Option<Server>,
    kubeconfig: Kubeconfig,
    pub client: Client,
    /// The namespace of this run.
    pub namespace: String,
}

impl ApiServer {
    /// Starts the stand-in.
    pub async fn stand_in_for(namespace: String) -> Result<Self> {
        let options = Options {
            address: places::api(),
            ..Options::default()
        };
        let server = Server::start(options).await.context("start the stand-in")?;
        let kubeconfig = server.kubeconfig(ADMIN);
        Self::with(Some(server), kubeconfig, namespace).await
    }

    /// A real one.
    pub async fn real(kubeconfig: Kubeconfig, namespace: String) -> Result<Self> {
        Self::with(None, kubeconfig, namespace).await
    }

    async fn with(
        stand_in: Option<Server>,
        kubeconfig: Kubeconfig,
        namespace: String,
    ) -> Result<Self> {
        let client = client(kubeconfig.clone()).await?;
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
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": { "name": name },
        }))?;
        match namespaces.create(&PostParams::default(), &namespace).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("make namespace {name}")),
        }
    }

    /// A claim that is bound, as the storage driver leaves it.
    pub async fn make_claim(&self, name: &str, access: &str, mode: &str) -> Result<()> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &self.namespace);
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "accessModes": [access],
                "volumeMode": mode,
                "storageClassName": "test",
                "volumeName": format!("pv-{name}"),
                "resources": { "requests": { "storage": "1Gi" } },
            },
        }))?;
        claims.create(&PostParams::default(), &claim).await?;
        let bound = Patch::Merge(json!({ "status": { "phase": "Bound" } }));
        claims
            .patch_status(name, &PatchParams::default(), &bound)
            .await?;
        Ok(())
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
pub async fn client(kubeconfig: Kubeconfig) -> Result<Client> {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    Ok(Client::try_from(config)?)
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
    config["users"] = json!([{ "name": account, "user": { "token": token } }]);
    for context in config["contexts"].as_array_mut().into_iter().flatten() {
        context["context"]["user"] = account.into();
        context["context"]["namespace"] = namespace.into();
    }
    Ok(config.to_string())
}
