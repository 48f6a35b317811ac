//! The status document: how a member and its site are, for people and programs.

use std::collections::BTreeMap;

use fencing::{Holder, MemberId, Mono};
use serde::{Deserialize, Serialize};

use super::tally::Tally;
use super::zone::ZoneStatus;
use crate::clock::{self, Wall};
use crate::config::Config;
use crate::decide::{
    self, Heartbeat, Incarnation, Memory, Observation, Outcome, Postgres, Reason, RoleName, Seen,
    VolumeFacts,
};
use crate::peer::{Link, PeerChannel, PeerView};
use crate::postgres::replication::Progress;
use crate::routing::RouteState;

/// A heartbeat older than this many intervals is named as silence.
const SILENT_AFTER: u32 = 4;

/// How a member and its site are. All times are milliseconds before the document was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster.
    pub cluster: String,
    /// The site.
    pub site: String,
    /// The member that says all this.
    pub member: String,
    /// This run of it.
    pub incarnation: Incarnation,
    /// The program's version.
    pub version: String,
    /// When the document was made, by the member's wall clock.
    pub at: Wall,
    /// How old it is; set when it is read. Much more than the heartbeat means that the loop hangs.
    pub age_ms: u64,
    /// Why the member does what it does.
    pub reason: String,
    /// Why, for programs.
    pub reason_code: Reason,
    /// A person must look: the member will not get on by itself.
    pub needs_operator: bool,
    /// No automatic take-over.
    pub paused: bool,
    /// PostgreSQL accepts writes here.
    pub serving: bool,
    /// PostgreSQL here.
    pub postgres: Postgres,
    /// The step that is being worked on, and for how long.
    pub step: Option<RunningStep>,
    /// The owner, as the volume says.
    pub owner: Option<String>,
    /// The lease store.
    pub lease: ChannelStatus,
    /// The volume.
    pub volume: ChannelStatus,
    /// What leads clients to the active.
    #[serde(default)]
    pub route: RouteState,
    /// All members of the site, this one first.
    pub members: Vec<MemberStatus>,
    /// What somebody should know; empty when all is well.
    pub warnings: Vec<String>,
    /// Which channel moved when.
    pub signs: Signs,
    /// What the member did since its start.
    pub tally: Tally,
    /// The sites, where the cluster has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneStatus>,
}

/// How long ago each channel last *moved*, which is more than that it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signs {
    /// The record in the lease store.
    pub lease_ms: Option<u64>,
    /// The keys on the volume, by member's name.
    pub keys_ms: BTreeMap<String, u64>,
}

/// A step that is being worked on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningStep {
    /// Its name, as in the journal.
    pub name: String,
    /// For how long it has been running.
    pub running_ms: u64,
}

/// Whether a channel can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// It was readable at the last attempt.
    pub reachable: bool,
    /// How long ago the newest value was read, or since when there is none.
    pub age_ms: u64,
    /// What it says, or why it says nothing.
    pub says: String,
}

/// One member of the site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: MemberId,
    /// Its role; `None` when it was never heard.
    pub role: Option<RoleName>,
    /// The epoch it owns, or the newest it knows of.
    pub epoch: Option<u32>,
    /// It is a standby that could take over.
    pub ready: bool,
    /// It reaches the lease store.
    pub reachable: bool,
    /// How long ago it was heard; 0 for the member that answers.
    pub heard_ms: Option<u64>,
    /// Where it is; of the member that answers, where it listens.
    pub address: String,
    /// In a word or two: `running`, `silent`, `duplicate`, `unreachable: …`.
    pub state: String,
}

/// What a status is made from: all of it is at hand in the member's loop.
pub struct Facts<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// After the newest decision.
    pub memory: &'a Memory,
    /// On which it rested.
    pub observation: &'a Observation,
    /// Why.
    pub reason: &'a Reason,
    /// The peers.
    pub peers: &'a PeerChannel,
    /// What was done so far.
    pub tally: &'a Tally,
    /// What leads clients here.
    pub route: RouteState,
    /// How far a copy of the primary's database is, while one is under way.
    pub copying: Option<Progress>,
    /// When it was made.
    pub now: Mono,
}

impl Status {
    /// The status of this moment.
    pub fn of(facts: &Facts<'_>) -> Self {
        let Facts {
            config,
            memory,
            observation,
            reason,
            peers,
            tally,
            route,
            copying,
            now,
        } = facts;
        let seen = peers.seen();
        let role = memory.role.name();
        let mut members = vec![own_line(facts)];
        members.extend(config.peer.members.iter().map(|member| {
            let mut line = peer_line(seen.get(&member.number), config, *now);
            line.name.clone_from(&member.name);
            line.number = member.number;
            line.address = member.address.to_string();
            line
        }));
        let lease = lease(observation, *now);
        let volume = volume(observation, config, *now);
        let warnings = warnings(facts, &seen, &lease, &volume);
        Self {
            cluster: config.cluster.clone(),
            site: config.site.clone(),
            member: config.member.clone(),
            incarnation: observation.local.incarnation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at: clock::wall(),
            age_ms: 0,
            reason: reason.to_string(),
            reason_code: (*reason).clone(),
            needs_operator: reason.needs_operator(),
            paused: memory.paused,
            serving: role == RoleName::Active
                && observation.local.postgres == Postgres::Running
                && memory.zone.leads(config.replication.is_some()),
            postgres: observation.local.postgres,
            step: memory.issued.as_ref().map(|step| RunningStep {
                name: step.work.name().to_owned(),
                running_ms: millis(step.at, *now),
            }),
            owner: owner(observation, config),
            lease,
            volume,
            route: route.clone(),
            members,
            warnings,
            signs: signs(facts),
            tally: (*tally).clone(),
            zone: ZoneStatus::of(config, memory, observation, copying.as_ref()),
        }
    }

    /// The member that serves, as far as this one knows.
    pub fn active(&self) -> Option<&MemberStatus> {
        self.members
            .iter()
            .find(|member| member.role == Some(RoleName::Active) && member.state != SILENT)
    }
}

const SILENT: &str = "silent";

fn millis(since: Mono, now: Mono) -> u64 {
    u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX)
}

fn name(config: &Config, member: MemberId) -> String {
    config
        .name_of(member)
        .map_or_else(|| format!("member {member}"), str::to_owned)
}

fn own_line(facts: &Facts<'_>) -> MemberStatus {
    let Facts {
        config,
        memory,
        observation,
        ..
    } = facts;
    let said = memory.said.as_ref().map(|said| &said.heartbeat);
    let state = match observation.local.postgres {
        Postgres::Stopped => "stopped",
        Postgres::Starting => "starting",
        Postgres::Running => "running",
        Postgres::Stopping => "stopping",
        Postgres::Unknown => "unknown",
    };
    MemberStatus {
        name: config.member.clone(),
        number: config.number,
        role: Some(memory.role.name()),
        epoch: Some(said.map_or(memory.newest, |said| said.epoch).number()),
        ready: said.is_some_and(|said| said.ready),
        reachable: observation.lease.known().is_some(),
        heard_ms: Some(0),
        address: config.peer.listen.to_string(),
        state: state.to_owned(),
    }
}

fn peer_line(view: Option<&PeerView>, config: &Config, now: Mono) -> MemberStatus {
    let heard = view.and_then(|view| view.heard.as_ref());
    let said: Option<&Heartbeat> = heard.map(|(heartbeat, _)| heartbeat);
    let silent = |at: Mono| at.elapsed(config.timings.heartbeat * SILENT_AFTER, now);
    let state = match (view, heard) {
        (Some(view), _) if view.duplicate.is_some() => "duplicate".to_owned(),
        (_, Some((_, at))) if silent(*at) => SILENT.to_owned(),
        (_, Some((heartbeat, _))) if heartbeat.stuck => "stuck".to_owned(),
        (_, Some((heartbeat, _))) if heartbeat.failed => "failed lately".to_owned(),
        (_, Some(_)) => "running".to_owned(),
        (
            Some(PeerView {
                outgoing: Link::Down { since: _, cause },
                ..
            }),
            None,
        ) => {
            format!("unreachable: {cause}")
        }
        (Some(_) | None, None) => "not heard yet".to_owned(),
    };
    MemberStatus {
        name: String::new(),
        number: config.number,
        role: said.map(|said| said.role),
        epoch: said.map(|said| said.epoch.number()),
        ready: said.is_some_and(|said| said.ready),
        reachable: said.is_some_and(|said| said.reachable),
        heard_ms: heard.map(|(_, at)| millis(*at, now)),
        address: String::new(),
        state,
    }
}

fn signs(facts: &Facts<'_>) -> Signs {
    let watch = &facts.memory.watch;
    let named = |entry: &fencing::MemberEntry| {
        let since = watch.keys.get(&entry.host)?.since;
        Some((
            name(facts.config, entry.key.member),
            millis(since, facts.now),
        ))
    };
    let entries = facts.observation.mailbox.known();
    Signs {
        lease_ms: watch
            .lease
            .as_ref()
            .map(|track| millis(track.since, facts.now)),
        keys_ms: entries
            .into_iter()
            .flat_map(|mailbox| mailbox.members.iter().filter_map(named))
            .collect(),
    }
}

fn owner(observation: &Observation, config: &Config) -> Option<String> {
    match &observation.mailbox.known()?.holder {
        Holder::Member(entry) => Some(name(config, entry.key.member)),
        Holder::Foreign(foreign) => Some(format!("foreign host {}", foreign.host)),
        Holder::Nobody | Holder::Several(_) | Holder::Missing => None,
    }
}

fn channel<T>(seen: &Seen<T>, now: Mono, says: impl FnOnce(&T) -> String) -> ChannelStatus {
    match seen {
        Seen::Known { value, at } => ChannelStatus {
            reachable: true,
            age_ms: millis(*at, now),
            says: says(value),
        },
        Seen::Unknown { since, cause } => ChannelStatus {
            reachable: false,
            age_ms: millis(*since, now),
            says: cause.clone(),
        },
    }
}

fn lease(observation: &Observation, now: Mono) -> ChannelStatus {
    channel(&observation.lease, now, |lease| match lease {
        Some(decide::Lease { record, version: _ }) => {
            let holder = record
                .holder
                .map_or("nobody".to_owned(), |holder| format!("member {holder}"));
            let clean = if record.clean { ", clean" } else { "" };
            format!("epoch {} of {holder}{clean}", record.epoch)
        }
        None => "no lease was ever made".to_owned(),
    })
}

fn volume(observation: &Observation, config: &Config, now: Mono) -> ChannelStatus {
    channel(&observation.mailbox, now, |mailbox| {
        let holder = match &mailbox.holder {
            Holder::Nobody => "nobody holds".to_owned(),
            Holder::Member(entry) => {
                format!("{} holds, {}", name(config, entry.key.member), entry.key)
            }
            Holder::Foreign(foreign) => format!("foreign host {} holds", foreign.host),
            Holder::Several(count) => format!("{count} hosts hold"),
            Holder::Missing => "the report names no holder".to_owned(),
        };
        format!(
            "{holder}; {} registered",
            mailbox.members.len() + mailbox.foreign.len()
        )
    })
}

/// What the step that ended last could not do, for people.
pub(crate) fn failure(observation: &Observation) -> Option<String> {
    match &observation.finished.as_ref()?.outcome {
        Outcome::Failed { cause } => Some(format!("the last step failed: {cause}")),
        Outcome::CopyNeeded { why } => Some(format!("the database must be copied anew: {why}")),
        Outcome::Overdue => Some("the last step did not end in time".to_owned()),
        Outcome::Volume(VolumeFacts::Foreign { what }) => Some(what.clone()),
        Outcome::Done
        | Outcome::ClaimLost
        | Outcome::Fenced(_)
        | Outcome::FenceLost
        | Outcome::Volume(
            VolumeFacts::Blank | VolumeFacts::Unfinished | VolumeFacts::Ours { .. },
        )
        | Outcome::Aligned { .. }
        | Outcome::RecordOlder { .. }
        | Outcome::Reconfigured { .. }
        | Outcome::ShutDown { .. }
        | Outcome::Stopped { .. }
        | Outcome::Unmounted { .. } => None,
    }
}

fn warnings(
    facts: &Facts<'_>,
    seen: &BTreeMap<MemberId, PeerView>,
    lease: &ChannelStatus,
    volume: &ChannelStatus,
) -> Vec<String> {
    let Facts {
        config,
        memory,
        observation,
        reason,
        peers,
        tally: _,
        route,
        copying: _,
        now: _,
    } = facts;
    let mut warnings = Vec::new();
    let mut warn = |holds: bool, text: String| {
        if holds {
            warnings.push(text);
        }
    };
    warn(
        reason.needs_operator(),
        format!("an operator must look: {reason}"),
    );
    if let Some(what) = failure(observation) {
        warn(true, what);
    }
    warn(
        memory.paused,
        "automatic take-over is paused; baton resume".to_owned(),
    );
    warn(
        !lease.reachable,
        format!("the lease store is unreachable: {}", lease.says),
    );
    warn(
        !volume.reachable,
        format!("the volume is unreachable: {}", volume.says),
    );
    let volatile = observation
        .mailbox
        .known()
        .is_some_and(|mailbox| !mailbox.persistent);
    warn(
        volatile,
        "the target does not keep reservations through a power loss (PTPL off)".to_owned(),
    );
    let twin = format!(
        "another process uses number {} of this member; stop it",
        config.number
    );
    warn(peers.impostor().is_some(), twin);
    for failing in route.failures() {
        warn(true, failing);
    }
    for view in seen.values() {
        let text = format!(
            "two processes say that they are member {}; stop one",
            view.name
        );
        warn(view.duplicate.is_some(), text);
    }
    warnings
}
