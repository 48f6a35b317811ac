//! The control socket: faults are set and the record is read, one JSON request and one JSON answer a
//! line. Whoever can open the socket may do everything: it belongs into a private directory.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::audit::{AuditView, Operation};
use super::faults::{Delay, Failure, HostSelector};
use super::subsystem::Subsystem;
use crate::HostIdentity;

/// Longest request line, in bytes.
const REQUEST_MAX: u64 = 64 * 1024;

/// A request. `host` is an NQN or `*`, which is the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Hosts, controllers, reservations, faults.
    Status,
    /// The record of fences and writes.
    Audit,
    /// Cut the path: nothing passes, nothing is closed.
    Blackhole {
        /// Whose path.
        #[serde(default)]
        host: HostSelector,
    },
    /// Close the connections once.
    Disconnect {
        /// Whose.
        #[serde(default)]
        host: HostSelector,
    },
    /// Let nobody connect anew.
    Refuse {
        /// Whom not.
        #[serde(default)]
        host: HostSelector,
    },
    /// End the faults set for this selector; `*` ends all faults.
    Heal {
        /// Whose.
        #[serde(default)]
        host: HostSelector,
    },
    /// Hold commands back between their reservation check and their effect.
    Delay {
        /// Whose commands.
        #[serde(default)]
        host: HostSelector,
        /// For how long.
        ms: u64,
        /// Only these; all I/O commands by default.
        #[serde(default)]
        operation: Option<Operation>,
    },
    /// Media errors on blocks.
    Fail {
        /// Whose commands.
        #[serde(default)]
        host: HostSelector,
        /// First logical block and number of blocks.
        range: (u64, u64),
        /// Only these; all by default.
        #[serde(default)]
        operation: Option<Operation>,
    },
    /// Lose all reservations and registrations, persistent ones too.
    ForgetReservations,
    /// Lose unflushed writes, reservations that are not persistent, and all connections.
    PowerLoss,
}

/// Carries a request out; the answer has `"ok"`, and `"error"` if it is false.
pub(super) async fn handle(subsystem: &Subsystem, request: Request) -> Value {
    let faults = &subsystem.faults;
    match request {
        Request::Status => status(subsystem),
        Request::Audit => audit(subsystem),
        Request::Blackhole { host } => {
            faults.send_modify(|f| f.blackholed.push(host));
            json!({"ok": true})
        }
        Request::Disconnect { host } => {
            json!({"ok": true, "controllers": subsystem.disconnect(&host)})
        }
        Request::Refuse { host } => {
            faults.send_modify(|f| f.refused.push(host));
            json!({"ok": true})
        }
        Request::Heal { host } => {
            faults.send_modify(|f| f.heal(&host));
            json!({"ok": true})
        }
        Request::Delay {
            host,
            ms,
            operation,
        } => {
            let delay = Delay {
                host,
                ms,
                operation,
            };
            faults.send_modify(|f| f.delays.push(delay));
            json!({"ok": true})
        }
        Request::Fail {
            host,
            range: (first, blocks),
            operation,
        } => {
            let failure = Failure {
                host,
                first,
                blocks,
                operation,
            };
            faults.send_modify(|f| f.failures.push(failure));
            json!({"ok": true})
        }
        Request::ForgetReservations => forget(subsystem).await,
        Request::PowerLoss => {
            // The connections first: nothing is acknowledged that is about to be lost.
            subsystem.disconnect(&HostSelector::All);
            for namespace in subsystem.namespaces.values() {
                namespace.power_loss().await;
            }
            json!({"ok": true})
        }
    }
}

async fn forget(subsystem: &Subsystem) -> Value {
    for namespace in subsystem.namespaces.values() {
        if let Err(status) = namespace.forget_reservations().await {
            return json!({"ok": false, "error": format!("the state was not saved: {status}")});
        }
    }
    json!({"ok": true})
}

fn status(subsystem: &Subsystem) -> Value {
    let namespaces: Vec<Value> = subsystem
        .namespaces
        .values()
        .map(|ns| {
            json!({
                    "namespace_id": ns.nsid,
                    "blocks": ns.blocks(),
                    "block_size": ns.block_size,
                    "uuid": ns.uuid,
                    "nguid": ns.nguid,
                    "dirty_bytes": ns.dirty_bytes(),
                    "in_flight": ns.in_flight(),
            "reservation": ns.report(),
                })
        })
        .collect();
    let controllers: Vec<Value> = subsystem
        .controllers()
        .iter()
        .map(|c| {
            json!({
                "id": c.id,
                "host": c.host,
                "discovery": c.discovery,
                "ready": c.is_ready(),
                "io_queues": c.queues(),
                "keep_alive_ms": c.keep_alive().map(|t| t.as_millis() as u64),
            })
        })
        .collect();
    json!({
        "ok": true,
        "subsystem": subsystem.nqn,
        "listen": subsystem.address,
        "namespaces": namespaces,
        "controllers": controllers,
        "hosts": hosts(subsystem),
        "faults": *subsystem.faults.borrow(),
    })
}

/// Each host with its counters by namespace.
fn hosts(subsystem: &Subsystem) -> Vec<Value> {
    let views: Vec<(u32, AuditView)> = views(subsystem);
    let of_host = |host: &HostIdentity| {
        let counters = views.iter().filter_map(|(nsid, view)| {
            let counters = view.hosts.get(&host.id)?;
            Some(json!({"namespace_id": nsid, "counters": counters}))
        });
        json!({"nqn": host.nqn, "id": host.id, "namespaces": counters.collect::<Vec<_>>()})
    };
    subsystem.hosts().iter().map(of_host).collect()
}

fn views(subsystem: &Subsystem) -> Vec<(u32, AuditView)> {
    let namespaces = subsystem.namespaces.values();
    namespaces.map(|ns| (ns.nsid, ns.audit())).collect()
}

fn audit(subsystem: &Subsystem) -> Value {
    let views = views(subsystem);
    let violations: u64 = views.iter().map(|(_, view)| view.violations).sum();
    let fences: Vec<_> = views.iter().flat_map(|(_, view)| &view.fences).collect();
    let runs: Vec<_> = views.iter().flat_map(|(_, view)| &view.runs).collect();
    json!({
        "ok": true,
        "violations": violations,
        "fences": fences,
        "runs": runs,
        "hosts": hosts(subsystem),
    })
}

/// Serves the socket until the task is ended.
pub(super) async fn serve(listener: UnixListener, subsystem: Arc<Subsystem>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let subsystem = Arc::clone(&subsystem);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &subsystem).await {
                        tracing::debug!(%error, "control connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "the control socket failed");
                return;
            }
        }
    }
}

async fn converse(stream: UnixStream, subsystem: &Subsystem) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader)
            .take(REQUEST_MAX)
            .read_until(b'\n', &mut line)
            .await?;
        if read == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => handle(subsystem, request).await,
            Err(error) => json!({"ok": false, "error": format!("no valid request: {error}")}),
        };
        let mut answer = answer.to_string();
        answer.push('\n');
        write.write_all(answer.as_bytes()).await?;
    }
}
