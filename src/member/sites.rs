//! What a member of several sites knows and looks at: the cluster's record, the other sites' leases,
//! its own PostgreSQL, and the primary's at another site.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fencing::Mono;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::event::Event;
use super::looks::{Pace, watch_lease};
use super::strangers::Strangers;
use crate::attachment::{Look, whole};
use crate::clock;
use crate::config::{self, Config};
use crate::decide::zone::{
    ClusterLease, ClusterRecord, Follower, Position, PostgresFacts, ProbeFacts, SiteName, SlotFacts,
};
use crate::decide::{Incarnation, LeaseVersion, Timings};
use crate::kubernetes::Access;
use crate::lease::{ClusterReading, ClusterStore, ClusterWritten, LeaseStore};
use crate::postgres::replication::{
    Facts, Probe, PutRight, Remote, Shown, Slot, Source, WalStatus,
};
use crate::postgres::{Instance, Session};

/// How often the primary at another site is asked.
const PROBE: Duration = Duration::from_secs(1);

/// The other sites, as one member reaches them.
pub(super) struct Sites {
    /// This member's own site.
    pub site: SiteName,
    /// The cluster's record.
    pub store: ClusterStore,
    /// The configuration.
    pub settings: config::Replication,
    leases: BTreeMap<SiteName, LeaseStore>,
    instance: Instance,
    /// How far a copy of the primary's database is, while one is under way.
    pub progress: Shown,
    /// The primary's site, as the record last said.
    primary: watch::Sender<Option<SiteName>>,
}

impl Sites {
    /// The sites of this configuration; none with one site. Touches nothing yet.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn open(
        config: &Config,
        instance: &Instance,
        incarnation: Incarnation,
        access: &Access,
    ) -> std::io::Result<Option<Self>> {
        let Some(settings) = config.replication.clone() else {
            return Ok(None);
        };
        let store = ClusterStore::open(config, incarnation, access.clone(), &settings.record)?;
        let others = settings
            .sites
            .iter()
            .filter(|site| site.name != config.site);
        let open = |site: &config::Site| {
            let (access, name) = (access.clone(), &site.name);
            let store = LeaseStore::open_at(config, incarnation, access, &site.lease, name)?;
            Ok((SiteName(name.clone()), store))
        };
        let leases = others.map(open).collect::<std::io::Result<_>>()?;
        Ok(Some(Self {
            site: SiteName(config.site.clone()),
            store,
            settings,
            leases,
            instance: instance.clone(),
            progress: Shown::new(None),
            primary: watch::Sender::new(None),
        }))
    }

    /// All sites but this one.
    pub fn others(&self) -> impl Iterator<Item = SiteName> {
        self.leases.keys().cloned()
    }

    /// From where this site receives when the primary is at `of`; none for a site that is not known.
    pub fn source(&self, of: &SiteName) -> Option<Source> {
        let site = self.settings.sites.iter().find(|site| site.name == of.0)?;
        let own = self.site.in_postgres();
        Some(Source {
            hosts: site.hosts.clone(),
            user: self.settings.user.clone(),
            password_file: self.settings.password_file.clone(),
            sslmode: self.settings.sslmode.clone(),
            root_certificate: self.settings.root_certificate.clone(),
            application_name: own.clone(),
            slot: own,
        })
    }

    fn of_postgres(&self, name: &str) -> Option<SiteName> {
        let names = self.settings.sites.iter();
        let mut names = names.map(|site| SiteName(site.name.clone()));
        names.find(|site| site.in_postgres() == name)
    }
}

/// Compare-and-set of the record, and what it shows.
pub(super) async fn write(
    store: &ClusterStore,
    expected: Option<LeaseVersion>,
    record: ClusterRecord,
    deadline: Mono,
) -> Look<Option<ClusterLease>> {
    let began = clock::now();
    let result = match store.write(expected, record.clone(), deadline).await {
        Ok(ClusterWritten::Done(version)) => Ok(Some(ClusterLease { version, record })),
        Ok(ClusterWritten::Conflict(found)) => Ok(found.map(|found| *found)),
        Err(error) => {
            tracing::warn!(%error, "the cluster's record was not written");
            Err(whole(error))
        }
    };
    Look { result, began }
}

/// Begins to look. The answer makes it look at the record at once.
pub(super) fn look(
    sites: &Arc<Sites>,
    tasks: &mut JoinSet<()>,
    timings: &Timings,
    events: &mpsc::UnboundedSender<Event>,
) -> Arc<Notify> {
    let asked = Arc::new(Notify::new());
    let pace = || Pace {
        interval: timings.observe,
        asked: Arc::default(),
    };
    let record = Pace {
        asked: Arc::clone(&asked),
        ..pace()
    };
    let bound = timings.lease_deadline;
    tasks.spawn(watch_record(
        Arc::clone(sites),
        record,
        bound,
        events.clone(),
    ));
    for (site, store) in &sites.leases {
        let site = site.clone();
        let seen = move |look| Event::Site(site.clone(), look);
        tasks.spawn(watch_lease(
            store.clone(),
            pace(),
            bound,
            events.clone(),
            seen,
        ));
    }
    let own = Pace {
        interval: timings.observe * 2,
        ..pace()
    };
    let patience = timings.detection;
    tasks.spawn(watch_own(Arc::clone(sites), own, patience, events.clone()));
    tasks.spawn(watch_primary(Arc::clone(sites), patience, events.clone()));
    asked
}

async fn watch_record(
    sites: Arc<Sites>,
    pace: Pace,
    bound: Duration,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut changed = sites.store.watch();
    let mut asked = true;
    loop {
        let began = clock::now();
        let reading = match asked {
            true => sites.store.read(began + bound).await,
            false => sites.store.known(began + bound).await,
        };
        let look = match reading {
            Ok(ClusterReading { lease, at }) => {
                let primary = lease.as_ref().map(|lease| lease.record.primary.clone());
                sites.primary.send_if_modified(|known| {
                    let other = primary.is_some() && *known != primary;
                    if other {
                        *known = primary;
                    }
                    other
                });
                Look {
                    result: Ok(lease),
                    began: at,
                }
            }
            Err(error) => Look {
                result: Err(whole(error)),
                began,
            },
        };
        if events.send(Event::Cluster(look)).is_err() {
            return;
        }
        tokio::select! {
            early = pace.next() => asked = early,
            () = changed.changed() => asked = false,
        }
    }
}

/// Looks at this member's own PostgreSQL; while it does not run, that is unknown.
async fn watch_own(
    sites: Arc<Sites>,
    pace: Pace,
    patience: Duration,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut session = None;
    let mut strangers = Strangers::default();
    let user = &sites.settings.user;
    loop {
        let began = clock::now();
        let result = match own_facts(&sites.instance, &mut session, user, patience).await {
            Ok(facts) => {
                let doubted = strangers.doubted(&facts.strangers(user), began);
                Ok(sites.facts(&facts, &doubted))
            }
            Err(error) => {
                session = None;
                Err(whole(error))
            }
        };
        let look = Look { result, began };
        if events.send(Event::Replication(look)).is_err() {
            return;
        }
        pace.next().await;
    }
}

async fn own_facts(
    instance: &Instance,
    session: &mut Option<Session>,
    user: &str,
    patience: Duration,
) -> Result<Facts, crate::postgres::SessionError> {
    let open = match session.take().filter(|session| !session.is_closed()) {
        Some(open) => open,
        None => Session::connect(instance, patience).await?,
    };
    let session = session.insert(open);
    let facts = session.facts(patience).await?;
    let PutRight { ended, reset } = session.put_right(&facts, user, patience).await?;
    for (name, role) in ended {
        tracing::warn!(
            name,
            role,
            "ended a connection under a site's name that is not the site's"
        );
    }
    for name in reset {
        tracing::warn!(
            name,
            "took an ALTER SYSTEM back: between sites this is Baton's to set"
        );
    }
    Ok(facts)
}

/// Asks the primary's PostgreSQL, where that is another site's.
async fn watch_primary(
    sites: Arc<Sites>,
    patience: Duration,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut primary = sites.primary.subscribe();
    let mut remote = None;
    loop {
        let of = primary.borrow_and_update().clone();
        if let Some(of) = of.filter(|of| *of != sites.site) {
            let began = clock::now();
            let result = match probe(&sites, &of, &mut remote, patience).await {
                Ok(facts) => Ok(facts),
                Err(cause) => {
                    remote = None;
                    Err(cause)
                }
            };
            if events.send(Event::Probe(Look { result, began })).is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PROBE) => {}
            changed = primary.changed() => {
                remote = None;
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

async fn probe(
    sites: &Sites,
    of: &SiteName,
    remote: &mut Option<Remote>,
    patience: Duration,
) -> Result<ProbeFacts, String> {
    let source = sites.source(of).ok_or("this site is not configured")?;
    let open = match remote.take().filter(|remote| !remote.is_closed()) {
        Some(open) => open,
        None => Remote::connect(&source, patience).await.map_err(whole)?,
    };
    let slot = source.slot;
    let looked = remote.insert(open).look(&slot, patience).await;
    let Probe {
        system,
        major: _,
        in_recovery,
        timeline,
        position,
        slot,
    } = looked.map_err(whole)?;
    Ok(ProbeFacts {
        site: of.clone(),
        system,
        in_recovery,
        flushed: Position {
            timeline,
            lsn: position,
        },
        slot: slot.map(|slot| slot_facts(&slot)),
    })
}

fn slot_facts(slot: &Slot) -> SlotFacts {
    SlotFacts {
        lost: slot.wal_status == Some(WalStatus::Lost),
        from: slot.restart,
        retained: slot.retained,
    }
}

impl Sites {
    /// The facts by the sites' names, without the followers whose names are doubted.
    fn facts(&self, facts: &Facts, doubted: &BTreeSet<String>) -> PostgresFacts {
        let followers = facts.followers.iter();
        let followers = followers
            .filter(|(name, _)| !doubted.contains(*name))
            .filter_map(|(name, follower)| {
                let known = Follower {
                    streaming: follower.state == "streaming",
                    flushed: follower.flushed,
                    replayed: follower.replayed,
                };
                Some((self.of_postgres(name)?, known))
            });
        let slots = facts.slots.iter();
        let slots =
            slots.filter_map(|(name, slot)| Some((self.of_postgres(name)?, slot_facts(slot))));
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        PostgresFacts {
            system: facts.system,
            in_recovery: facts.in_recovery,
            flushed: Position {
                timeline: facts.timeline,
                lsn: facts.flushed,
            },
            replayed: facts.replayed,
            names: facts.names.clone(),
            receiving: facts.receiving,
            heard_ms: facts.heard.map(millis),
            delay_ms: facts.replay_delay.map(millis),
            followers: followers.collect(),
            slots: slots.collect(),
        }
    }
}
