//! Who this host is to the volume: reservations belong to that identity.

use nvme::kernel::sysfs;
use uuid::Uuid;

use super::Subject;
use super::{Check, Tree};
use crate::config::Transport;

/// Where NVMe programs look for this host's identity.
const HOST_ID: &str = "etc/nvme/hostid";
const HOST_NQN: &str = "etc/nvme/hostnqn";

const MAKE: &str = "make it once per node: uuidgen >/etc/nvme/hostid; \
    echo nqn.2014-08.org.nvmexpress:uuid:$(cat /etc/nvme/hostid) >/etc/nvme/hostnqn";

/// The files, and the identities that are in use.
pub(super) fn checks(tree: &Tree, subject: Option<&Subject>) -> Vec<Check> {
    let mut checks = vec![files(tree, subject)];
    checks.extend(subject.map(|subject| kernels(tree, subject)));
    checks
}

fn files(tree: &Tree, subject: Option<&Subject>) -> Check {
    let name = "host identity";
    let (id, nqn) = (tree.read(HOST_ID), tree.read(HOST_NQN));
    let (Some(id), Some(nqn)) = (id, nqn) else {
        let says = "/etc/nvme/hostid or /etc/nvme/hostnqn is missing";
        return match subject {
            None => Check::problem(name, says, MAKE),
            Some(_) => Check::warning(
                name,
                format!("{says}: the settings have one, which other NVMe programs do not know"),
                "write volume.host_id and volume.host_nqn there",
            ),
        };
    };
    let parsed = id.parse::<Uuid>().ok().filter(|id| !id.is_nil());
    let Some(parsed) = parsed else {
        return Check::problem(
            name,
            format!("/etc/nvme/hostid holds {id:?}, no UUID"),
            MAKE,
        );
    };
    match subject.map(|subject| &subject.volume) {
        None => Check::ok(name, format!("{parsed}, {nqn}")),
        Some(volume) if volume.host_id.0 == parsed && volume.host_nqn.as_str() == nqn => {
            Check::ok(name, format!("{parsed}, in the settings and in /etc/nvme"))
        }
        Some(volume) => {
            let says = format!(
                "the settings have {}, {}; /etc/nvme has {parsed}, {nqn}",
                volume.host_id, volume.host_nqn
            );
            match volume.transport {
                // Baton's own initiator may have an identity of its own.
                Transport::Tcp => Check::ok(name, says),
                Transport::Kernel => Check::warning(
                    name,
                    format!(
                        "{says}: whoever connects by /etc/nvme would make a second host of this kernel, which a member refuses"
                    ),
                    "set volume.host_id and volume.host_nqn to what /etc/nvme has",
                ),
            }
        }
    }
}

/// As which hosts the kernel is connected to the volume's subsystem.
fn kernels(tree: &Tree, subject: &Subject) -> Check {
    let name = "one host per kernel";
    let volume = &subject.volume;
    let found = match sysfs::subsystems(&tree.path("sys")) {
        Ok(found) => found,
        Err(error) => return Check::not_checked(name, format!("{:#}", anyhow::Error::from(error))),
    };
    let host = volume.host();
    let controllers = found
        .iter()
        .filter(|subsystem| subsystem.nqn == volume.subsystem.as_str())
        .flat_map(|subsystem| &subsystem.controllers)
        .filter(|controller| !controller.state.is_ending());
    let others: Vec<_> = controllers
        .filter(|controller| !controller.is_of(&host))
        .map(|controller| {
            let nqn = controller.host_nqn.as_deref().unwrap_or("unknown");
            format!("{} as {nqn}", controller.name)
        })
        .collect();
    match (others.as_slice(), volume.transport) {
        ([], _) => Check::ok(name, "the kernel has no connection to it as another host"),
        // Two kernels, as it were: Baton's initiator is not merged with the kernel's.
        (_, Transport::Tcp) => {
            Check::ok(name, format!("{}, beside Baton's own", others.join(", ")))
        }
        (_, Transport::Kernel) => Check::problem(
            name,
            format!("connected as another host: {}", others.join(", ")),
            "disconnect it (nvme disconnect -d …), or take its identity into the settings",
        ),
    }
}
