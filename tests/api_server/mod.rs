//! An API server for a test: the one that `KUBECONFIG` names, else the stand-in in memory. The test has
//! a namespace of its own, which goes with it.

use apiserver::{Faults, Identity, MASTERS, Options, RequestLog, Server};
use baton::kubernetes::Access;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, PostParams};
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};
use serde_json::json;

/// A namespace on a server.
pub struct Site {
    server: Option<Server>,
    /// The namespace.
    pub namespace: String,
    admin: Client,
}

#[allow(dead_code, reason = "each suite uses its part")]
impl Site {
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options) -> Self {
        let (server, admin) = match std::env::var_os("KUBECONFIG") {
            Some(_) => {
                let config = Config::infer().await.expect("KUBECONFIG is good");
                let client = Client::try_from(config).expect("KUBECONFIG is good");
                (None, client)
            }
            None => {
                let server = Server::start(options).await.expect("the stand-in starts");
                let client = server.client(apiserver::ADMIN).await;
                (Some(server), client)
            }
        };
        let namespace = format!("baton-test-{:08x}", rand::random::<u32>());
        let object = json!({"metadata": {"name": namespace}});
        let object: Namespace = serde_json::from_value(object).expect("a namespace");
        let made = Api::all(admin.clone())
            .create(&PostParams::default(), &object)
            .await;
        made.expect("the namespace is made");
        Self {
            server,
            namespace,
            admin,
        }
    }

    /// A client that may do everything.
    pub fn admin(&self) -> Client {
        self.admin.clone()
    }

    /// The way of a member of this name, that may do everything.
    pub async fn access(&self, name: &str) -> Access {
        Access::given(self.config(Identity::user(name, &[MASTERS])).await)
    }

    /// The way of somebody to whom nothing is granted; on the stand-in only.
    pub async fn stranger(&self, name: &str) -> Access {
        Access::given(self.config(Identity::user(name, &[])).await)
    }

    async fn config(&self, identity: Identity) -> Config {
        match &self.server {
            None => Config::infer().await.expect("KUBECONFIG is good"),
            Some(server) => {
                let kubeconfig = server.kubeconfig_of(&identity, &self.namespace);
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
                config.expect("a kubeconfig made here is good")
            }
        }
    }

    /// The faults of the stand-in; none on a real server, where a test that needs them says so.
    pub fn faults(&self, test: &str) -> Option<Faults> {
        let faults = self.server.as_ref().map(Server::faults);
        if faults.is_none() {
            println!("skipped on a real API server, which has no faults to switch on: {test}");
        }
        faults
    }

    /// The requests of this user since the last time they were forgotten; none on a real server.
    pub fn requests(&self, user: &str) -> Vec<RequestLog> {
        let all = self.server.iter().flat_map(Server::requests);
        all.filter(|request| request.user == user).collect()
    }

    pub fn forget_requests(&self) {
        if let Some(server) = &self.server {
            server.forget_requests();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.server.is_some() {
            return;
        }
        // The runtime of the test cannot be waited for here.
        let namespace = self.namespace.clone();
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let config = Config::infer().await.expect("KUBECONFIG is good");
                let client = Client::try_from(config).expect("KUBECONFIG is good");
                let namespaces: Api<Namespace> = Api::all(client);
                let _gone = namespaces
                    .delete(&namespace, &DeleteParams::default())
                    .await;
            });
        });
        let _panicked = cleaned.join();
    }
}
