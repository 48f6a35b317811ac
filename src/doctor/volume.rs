//! What the volume itself says: which one it is, its reservations, its registrants.
//!
//! It is asked through Baton's own initiator, as this host, with either transport: so it can be asked
//! before a member was ever started.

use std::time::Duration;

use fencing::{ClusterTag, Mailbox};
use nvme::initiator::{Initiator, Options};
use nvme::kernel::Identifier;
use nvme::{Identified, Namespace};

use super::Check;
use super::Subject;
use crate::config::Transport;

/// How long connecting, and each command, may take.
const WITHIN: Duration = Duration::from_secs(5);

/// RESCAP bit 0: reservations can persist through a power loss of the target.
const PERSISTENCE: u8 = 1 << 0;
/// RESCAP bit 1: Write Exclusive reservations.
const WRITE_EXCLUSIVE: u8 = 1 << 1;

/// The volume's checks; without a configuration there is no volume to ask.
pub(super) async fn checks(subject: Option<&Subject>) -> Vec<Check> {
    let Some(subject) = subject else {
        return vec![Check::not_checked("volume", "no --config names one")];
    };
    match ask(subject).await {
        Ok((identified, mailbox)) => judge(subject, &identified, mailbox.as_ref()),
        Err(error) => {
            let volume = &subject.volume;
            let says = format!(
                "{} at {} does not answer: {error:#}",
                volume.subsystem, volume.address
            );
            let advice = "see to the network and the target, or correct volume.address, volume.subsystem and volume.namespace_id";
            vec![Check::problem("volume", says, advice)]
        }
    }
}

async fn ask(subject: &Subject) -> anyhow::Result<(Identified, Option<Mailbox>)> {
    let volume = &subject.volume;
    let mut options = Options::new(
        volume.address.to_string(),
        volume.subsystem.clone(),
        volume.namespace_id,
        volume.host(),
    );
    options.connect_deadline = WITHIN;
    options.command_deadline = WITHIN;
    let initiator = Initiator::connect(options).await?;
    let identified = initiator.identify().await?;
    let cluster = ClusterTag::of_site(&subject.config.cluster, &subject.config.site);
    let report = match identified.reservation_capabilities {
        0 => None,
        _ => Some(initiator.report().await?),
    };
    Ok((
        identified,
        report.map(|report| Mailbox::read(&report, cluster)),
    ))
}

/// What its answers mean for this member; no mailbox where the volume has no reservations.
pub(super) fn judge(
    subject: &Subject,
    identified: &Identified,
    mailbox: Option<&Mailbox>,
) -> Vec<Check> {
    let mut checks = vec![which(subject, identified), reservations(identified)];
    if let Some(mailbox) = mailbox {
        checks.push(persistence(subject, identified, mailbox));
        checks.push(registrants(subject, mailbox));
    }
    checks.push(cache(subject, identified));
    checks
}

fn which(subject: &Subject, identified: &Identified) -> Check {
    let name = "volume";
    let Identified {
        uuid,
        nguid,
        blocks,
        block_size,
        ..
    } = identified;
    let mib = blocks * u64::from(*block_size) / (1 << 20);
    let says = format!("{mib} MiB, UUID {uuid}, NGUID {nguid}");
    match subject.volume.identifier {
        Some(Identifier::Long(wanted)) if ![*uuid, *nguid].contains(&wanted) => Check::problem(
            name,
            format!("{says}: not the one with volume.identifier {wanted}"),
            "correct volume.address, volume.subsystem or volume.namespace_id",
        ),
        Some(Identifier::Long(_) | Identifier::Eui64(_)) | None => Check::ok(name, says),
    }
}

fn reservations(identified: &Identified) -> Check {
    let name = "reservations";
    let rescap = identified.reservation_capabilities;
    if rescap & WRITE_EXCLUSIVE == 0 {
        return Check::problem(
            name,
            format!(
                "the volume has no Write Exclusive reservations (RESCAP {rescap:#04x}): nobody can be fenced"
            ),
            "use a target and namespace that has them (nvmet: resv_enable, Linux 6.13)",
        );
    }
    Check::ok(
        name,
        format!("Write Exclusive is there (RESCAP {rescap:#04x})"),
    )
}

fn persistence(subject: &Subject, identified: &Identified, mailbox: &Mailbox) -> Check {
    let name = "persistence";
    let capable = identified.reservation_capabilities & PERSISTENCE != 0;
    let registered = !mailbox.members.is_empty();
    let says = match (capable, mailbox.persistent, registered) {
        (true, true, _) => {
            return Check::ok(
                name,
                "reservations survive a power loss of the target (PTPL)",
            );
        }
        (true, false, false) => {
            return Check::ok(
                name,
                "reservations can survive a power loss of the target (PTPL); nobody is registered yet",
            );
        }
        (true, false, true) => {
            "registrations do not survive a power loss of the target (PTPLS 0), though they could"
        }
        (false, ..) => "reservations do not survive a power loss of the target (no PTPL)",
    };
    if subject.volume.require_persistence {
        Check::problem(
            name,
            says,
            "enable persistence on the target, or set volume.require_persistence = false and decide yourself after each of its restarts",
        )
    } else {
        Check::warning(
            name,
            says,
            "after a restart of the target an operator decides (baton confirm-stopped)",
        )
    }
}

/// Whether somebody else has this host's identity, or this member's number.
fn registrants(subject: &Subject, mailbox: &Mailbox) -> Check {
    let name = "registrants";
    let host = subject.volume.host_id;
    if let Some(other) = mailbox
        .of_host(host)
        .filter(|e| e.key.member != subject.config.number)
    {
        return Check::problem(
            name,
            format!(
                "member {} is registered with this host's host_id {host}: two nodes with one identity cannot be fenced from each other",
                other.key.member
            ),
            "give each node its own /etc/nvme/hostid, and each member its own number",
        );
    }
    if let Some(other) = mailbox.foreign.iter().find(|foreign| foreign.host == host) {
        return Check::problem(
            name,
            format!(
                "this host has the key {:#018x}, which is not this cluster's",
                other.key
            ),
            "see which program uses the volume as this host; unregister its key (nvme resv-register --rrega=1)",
        );
    }
    let doubles = mailbox
        .of_member(subject.config.number)
        .find(|entry| entry.host != host);
    if let Some(double) = doubles {
        return Check::problem(
            name,
            format!(
                "member number {} is registered by another host too, {}",
                subject.config.number, double.host
            ),
            "give each member its own number; if this node had another host_id before, unregister the old one",
        );
    }
    if let Some(foreign) = mailbox.foreign.first() {
        return Check::warning(
            name,
            format!(
                "host {} has a key of something else, {:#018x}",
                foreign.host, foreign.key
            ),
            "see that no other cluster and no other program uses this volume",
        );
    }
    let members: Vec<_> = mailbox
        .members
        .iter()
        .map(|entry| {
            let holds = if entry.holder { " (holds)" } else { "" };
            format!("member {}{holds}", entry.key.member)
        })
        .collect();
    match members.as_slice() {
        [] => Check::ok(name, "nobody is registered"),
        members => Check::ok(name, members.join(", ")),
    }
}

/// The kernel's own account of the cache is another check.
fn cache(subject: &Subject, identified: &Identified) -> Check {
    let name = "volatile cache";
    let flushed = match subject.volume.transport {
        Transport::Tcp => "the bridge",
        Transport::Kernel => "the kernel",
    };
    if identified.volatile_write_cache {
        Check::ok(
            name,
            format!("the volume has one: {flushed} flushes it at every commit"),
        )
    } else {
        Check::ok(name, "the volume has none")
    }
}
