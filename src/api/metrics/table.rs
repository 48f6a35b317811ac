//! The table of all metrics: a line's closure reads the values from a status.

use prometheus_client::registry::Unit;

use super::values::{
    AMONG, POSTGRES, ROLES, aged, copying, legs, of_peer, one_of, plain, secs, sites, steps, truth,
    zone,
};
use super::{Kind, Metric, Values};
use crate::control::StepTally;
use crate::control::zone::ZoneStatus;
use crate::routing::Leg;

const fn gauge(name: &'static str, help: &'static str, values: Values) -> Metric {
    metric(name, help, None, Kind::Gauge, values)
}

const fn seconds(name: &'static str, help: &'static str, values: Values) -> Metric {
    metric(name, help, Some(Unit::Seconds), Kind::Gauge, values)
}

const fn bytes(name: &'static str, help: &'static str, values: Values) -> Metric {
    metric(name, help, Some(Unit::Bytes), Kind::Gauge, values)
}

const fn counter(name: &'static str, help: &'static str, values: Values) -> Metric {
    metric(name, help, None, Kind::Counter, values)
}

const fn metric(
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: Kind,
    values: Values,
) -> Metric {
    Metric {
        name,
        help,
        unit,
        kind,
        values,
    }
}

/// All of them.
pub(super) static METRICS: &[Metric] = &[
    gauge(
        "version",
        "Always 1; the program's version is in the label.",
        |status| vec![(vec![("version", status.version.clone())], 1.0)],
    ),
    gauge("role", "1 for the role that the member has.", |status| {
        let own = status.members.first().and_then(|member| member.role);
        one_of("role", &ROLES, |role| Some(role) == own)
    }),
    gauge(
        "epoch",
        "The epoch that the member owns, or the newest it knows of.",
        |status| {
            let own = status.members.first().and_then(|member| member.epoch);
            own.map(f64::from).map(plain).into_iter().collect()
        },
    ),
    gauge(
        "serving",
        "1 if PostgreSQL accepts writes here.",
        |status| truth(status.serving),
    ),
    gauge(
        "standby_ready",
        "1 if the member is a standby that could take over.",
        |status| truth(status.members.first().is_some_and(|member| member.ready)),
    ),
    gauge(
        "reservation_held",
        "1 if this member holds the volume's reservation by the newest report.",
        |status| truth(status.owner.as_ref() == Some(&status.member)),
    ),
    gauge(
        "postgres_state",
        "1 for the state that PostgreSQL is in here.",
        |status| one_of("state", &POSTGRES, |state| state == status.postgres),
    ),
    gauge(
        "paused",
        "1 if the operator wants no automatic take-over.",
        |status| truth(status.paused),
    ),
    gauge(
        "needs_operator",
        "1 if the member will not get on without a person.",
        |status| truth(status.needs_operator),
    ),
    gauge("warnings", "How many warnings the status has.", |status| {
        vec![plain(status.warnings.len() as f64)]
    }),
    seconds(
        "decision_age",
        "Since the loop's newest decision; it decides at every heartbeat.",
        |status| vec![plain(secs(status.age_ms))],
    ),
    gauge(
        "lease_store_reachable",
        "1 if the lease store could be read at the last attempt.",
        |status| truth(status.lease.reachable),
    ),
    gauge(
        "volume_reachable",
        "1 if the volume's reservations could be read at the last attempt.",
        |status| truth(status.volume.reachable),
    ),
    seconds(
        "lease_read_age",
        "Since the lease was read, or since it cannot be.",
        |status| vec![aged(status, status.lease.age_ms)],
    ),
    seconds(
        "volume_read_age",
        "Since the volume's reservations were read, or since they cannot be.",
        |status| vec![aged(status, status.volume.age_ms)],
    ),
    seconds(
        "lease_age",
        "Since the record in the lease store was last seen to change.",
        |status| {
            let moved = status.signs.lease_ms;
            moved.map(|ms| aged(status, ms)).into_iter().collect()
        },
    ),
    seconds(
        "storage_beat_age",
        "Since a member's key on the volume was last seen to change.",
        |status| {
            let keys = status.signs.keys_ms.iter();
            keys.map(|(name, ms)| of_peer(status, name, *ms)).collect()
        },
    ),
    seconds(
        "heartbeat_age",
        "Since another member was heard over the network.",
        |status| {
            let others = status.members.iter().skip(1);
            let heard = |member: &crate::control::MemberStatus| {
                Some(of_peer(status, &member.name, member.heard_ms?))
            };
            others.filter_map(heard).collect()
        },
    ),
    gauge(
        "route_published",
        "1 for each way that leads clients to this member, as far as it could be told.",
        |status| legs(status, |leg| matches!(leg, Leg::Published { .. })),
    ),
    gauge(
        "route_failing",
        "1 for each way to lead clients that could not be told at the last attempt.",
        |status| legs(status, |leg| matches!(leg, Leg::Failing { .. })),
    ),
    counter(
        "route_errors",
        "How often a way to lead clients could not be told.",
        |status| vec![plain(status.route.errors as f64)],
    ),
    counter(
        "takeovers",
        "How often the member became active.",
        |status| vec![plain(status.tally.takeovers as f64)],
    ),
    counter(
        "steps",
        "Steps by name and outcome; refused: another member was faster.",
        steps,
    ),
    seconds(
        "step_duration",
        "What the newest step of each name took that was done: the phases of the last handover.",
        |status| {
            let steps = status.tally.steps.iter();
            let took = |(name, step): (&String, &StepTally)| {
                Some((vec![("step", name.clone())], secs(step.last_ms?)))
            };
            steps.filter_map(took).collect()
        },
    ),
    seconds(
        "step_running",
        "For how long the step that is under way has been running.",
        |status| {
            let running = status.step.iter();
            let age = status.age_ms;
            running
                .map(|step| {
                    let value = secs(step.running_ms.saturating_add(age));
                    (vec![("step", step.name.clone())], value)
                })
                .collect()
        },
    ),
    gauge(
        "postgres_role",
        "1 for what PostgreSQL here is among the sites; absent with one site.",
        |status| {
            zone(status, |zone| {
                one_of("role", &AMONG, |role| role == zone.serving_as)
            })
        },
    ),
    gauge(
        "cluster_record_reachable",
        "1 if the record of all sites could be read at the last attempt.",
        |status| zone(status, |zone| truth(zone.reachable)),
    ),
    gauge(
        "term",
        "Counts the changes of the primary's site.",
        |status| zone(status, |zone| vec![plain(zone.term as f64)]),
    ),
    gauge(
        "failover_safe",
        "1 if a failover to another site now would lose nothing.",
        |status| zone(status, |zone| truth(zone.failover.safe)),
    ),
    gauge(
        "sync_sites_needed",
        "For how many other sites commits wait; 0: replication is degraded, or off.",
        |status| {
            let needed = |zone: &ZoneStatus| zone.sync.as_ref().map_or(0, |sync| sync.need);
            zone(status, |zone| vec![plain(f64::from(needed(zone)))])
        },
    ),
    bytes(
        "replication_lag",
        "How much log a site is behind: the primary's word on others, a replica's own.",
        |status| sites(status, |site| site.lag_bytes.map(|lag| lag as f64)),
    ),
    seconds(
        "replication_delay",
        "How much older than now the newest commit is that this replica has replayed.",
        |status| {
            let delay = |zone: &ZoneStatus| zone.lag_ms.map(secs).map(plain);
            zone(status, |zone| delay(zone).into_iter().collect())
        },
    ),
    bytes(
        "copy_done",
        "How much of the primary's database has arrived; absent while no copy is under way.",
        |status| copying(status, |copy| Some(copy.done)),
    ),
    bytes(
        "copy_expected",
        "How much will arrive, by an estimate; absent while no copy is under way, or nobody knows.",
        |status| copying(status, |copy| Some(copy.total).filter(|total| *total > 0)),
    ),
    gauge(
        "replica_streaming",
        "1 if a site streams from this primary.",
        |status| sites(status, |site| site.streaming.map(f64::from)),
    ),
    bytes(
        "slot_retained",
        "How much log this primary keeps for a site.",
        |status| sites(status, |site| site.slot_retained.map(|kept| kept as f64)),
    ),
    gauge(
        "slot_lost",
        "1 if a site's slot no longer keeps what it needs.",
        |status| sites(status, |site| site.slot_lost.map(f64::from)),
    ),
    seconds(
        "last_takeover_gap",
        "How long no member was heard to be active before this one became it; absent before the first time.",
        |status| {
            let gap = status.tally.last_gap_ms.into_iter();
            gap.map(|gap| plain(secs(gap))).collect()
        },
    ),
    seconds(
        "last_fence_timestamp",
        "When the newest fence was proven, since 1970; absent before the first.",
        |status| {
            let fence = status.tally.last_fence.iter();
            fence.map(|fence| plain(secs(fence.at.0))).collect()
        },
    ),
    seconds(
        "last_fence_duration",
        "What the newest proven fence took; absent before the first.",
        |status| {
            let fence = status.tally.last_fence.iter();
            fence.map(|fence| plain(secs(fence.took_ms))).collect()
        },
    ),
];
