//! Clients are led to the active and nowhere else: the Service's endpoints and the pods' labels on an
//! API server, and PgBouncer before a PostgreSQL of its own.

#[path = "../api_server/mod.rs"]
mod api_server;
mod endpoints;
mod pooler;
mod postgres;

use std::path::Path;
use std::time::Duration;

use baton::clock;
use baton::config::Config;
use baton::decide::RoleName;
use baton::routing::{RouteState, Router, Wanted};
use fencing::{Epoch, Mono};

/// A member's configuration with these sections more.
fn config(sections: &str) -> Config {
    let text = format!(
        r#"
cluster = "main"
member = "a"
number = 1
runtime_dir = "/run/baton"
[volume]
address = "127.0.0.1:4420"
subsystem = "nqn.2026-11.dev.baton:lab"
host_nqn = "nqn.2014-08.org.nvmexpress:uuid:a"
host_id = "8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c11"
mount_point = "/srv/baton/volume"
[lease]
path = "/srv/shared/main.lease"
[peer]
listen = "127.0.0.1:7401"
secret_file = "/etc/baton/secret"
[postgres]
bin_dir = "/usr/lib/postgresql/15/bin"
[journal]
path = "/srv/baton/journal.jsonl"
{sections}"#
    );
    Config::parse(Path::new("member.toml"), &text).unwrap()
}

fn epoch(number: u32) -> Epoch {
    Epoch::new(number).unwrap()
}

fn serving(number: u32) -> Wanted {
    Wanted {
        role: RoleName::Active,
        epoch: epoch(number),
        term: 0,
        serving: true,
        follows: false,
    }
}

fn standby(number: u32) -> Wanted {
    Wanted {
        role: RoleName::Standby,
        epoch: epoch(number),
        term: 0,
        serving: false,
        follows: false,
    }
}

fn within(millis: u64) -> Mono {
    clock::now() + Duration::from_millis(millis)
}

/// Waits until the router says so.
async fn until(router: &Router, what: &str, holds: impl Fn(&RouteState) -> bool) {
    let deadline = within(15_000);
    while !holds(&router.state()) {
        assert!(clock::now() < deadline, "{what}: {:?}", router.state());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
