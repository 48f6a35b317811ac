//! A member without a volume, with control socket and API: its loop is the test.

use baton::api::Api;
use baton::clock;
use baton::config::{self, Config};
use baton::control::status::Facts;
use baton::control::{Server, Status, Tally};
use baton::decide::{Incarnation, Memory, Postgres, Reason, RoleName};
use baton::lease::LeaseStore;
use baton::peer::PeerChannel;
use baton::routing::RouteState;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::client::{Client, TOKEN, certificate, secret};
use crate::common::{Site, observation};

/// A member without a volume.
pub struct Fake {
    pub site: Site,
    pub server: Server,
    pub peers: PeerChannel,
    pub api: Api,
    pub tls: Option<CertificateDer<'static>>,
}

/// What is on the API.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Plain,
    Tls,
    TlsWithToken,
}

impl Fake {
    pub async fn start(door: Door) -> Self {
        Self::start_as(door, |_| {}).await
    }

    /// With other settings.
    pub async fn start_as(door: Door, change: impl FnOnce(&mut Config)) -> Self {
        let mut site = Site::new();
        change(&mut site.config);
        let tls = (door != Door::Plain).then(|| certificate(&site));
        let settings = config::Api {
            listen: "127.0.0.1:0".parse().unwrap(),
            certificate_file: tls.is_some().then(|| site.file("api.crt")),
            key_file: tls.is_some().then(|| site.file("api.key")),
            token_file: (door == Door::TlsWithToken).then(|| secret(&site, "api.token", TOKEN)),
        };
        let lease = LeaseStore::open(&site.config, Incarnation(1)).unwrap();
        let server = Server::start(&site.config, lease).await.unwrap();
        let peers = PeerChannel::start(&site.config, Incarnation(1))
            .await
            .unwrap();
        let api = Api::start(&settings, server.desk()).unwrap();
        Self {
            site,
            server,
            peers,
            api,
            tls,
        }
    }

    pub fn publish(&self, change: impl FnOnce(&mut Status)) {
        let now = clock::now();
        let mut status = Status::of(&Facts {
            config: &self.site.config,
            memory: &Memory::default(),
            observation: &observation(&self.site.config, now),
            reason: &Reason::CleaningUp,
            peers: &self.peers,
            tally: &Tally::default(),
            route: RouteState::default(),
            copying: None,
            now,
        });
        change(&mut status);
        self.server.publish(status);
    }

    /// The member is what a healthy one of this role is.
    pub fn be(&self, role: RoleName) {
        self.publish(|status| become_role(status, role));
    }

    pub fn client(&self) -> Client {
        Client {
            at: self.api.address(),
            tls: self.tls.clone(),
        }
    }

    pub async fn code(&self, method: &str, path: &str) -> u16 {
        self.client().ask(method, path, "", "").await.code
    }
}

pub fn become_role(status: &mut Status, role: RoleName) {
    let active = role == RoleName::Active;
    status.members[0].role = Some(role);
    status.members[0].ready = role == RoleName::Standby;
    status.serving = active;
    status.postgres = match active {
        true => Postgres::Running,
        false => Postgres::Stopped,
    };
    status.owner = active.then(|| "a".to_owned());
}
