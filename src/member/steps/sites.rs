//! Steps of a site among several: how PostgreSQL runs, what its data directory is, where it comes from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fencing::{Epoch, Licence, Mono};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::postgres::{blocking, postgres_is};
use super::{Done, Tools, failed, volume};
use crate::attachment::whole;
use crate::clock;
use crate::decide::zone::{Data, Position, Serve, SiteName};
use crate::decide::{Outcome, Postgres};
use crate::member::event::Changes;
use crate::member::sites::Sites;
use crate::postgres::replication::{
    self, Progress, Rejoin, Replication, Seeding, Serving, Source, enforced_from, read_password,
    receive, set_names, stop_receiving,
};
use crate::postgres::{ControlData, Instance, Session, verify_shut_down};

/// What the data directory is: beside it, on the volume.
const STATE: &str = "baton-site.json";

/// The content of [`STATE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// The term of the cluster's record with which the data directory was brought in line last.
    term: u64,
    /// As what.
    data: Data,
}

impl State {
    fn read(root: &Path) -> Result<Option<Self>, String> {
        let path = root.join(STATE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| format!("{} is damaged: {error}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("reading {}: {error}", path.display())),
        }
    }

    /// Durable, and never seen half.
    fn write(self, root: &Path) -> Result<(), String> {
        let (path, next) = (root.join(STATE), root.join("baton-site.next"));
        let write = || {
            let file = std::fs::File::create(&next)?;
            serde_json::to_writer(&file, &self)?;
            file.sync_all()?;
            std::fs::rename(&next, &path)?;
            std::fs::File::open(root)?.sync_all()
        };
        write().map_err(|error| format!("writing {}: {error}", path.display()))
    }
}

type Failed = String;

/// What a promotion begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begins {
    /// The term.
    pub term: u64,
    /// Its timeline is above this one.
    pub above: u32,
}

/// Longest time for connecting to the primary of another site and asking it, its checkpoint included.
const CONNECT: Duration = Duration::from_secs(60);

/// Longest time without any progress of a copy or a rewind.
const STALL: Duration = Duration::from_secs(15 * 60);

impl Tools {
    fn among(&self) -> Result<&Sites, Failed> {
        let sites = self.sites.as_deref();
        sites.ok_or_else(|| "there is no other site".to_owned())
    }

    fn settings(&self) -> Result<Replication, Failed> {
        let settings = &self.among()?.settings;
        Ok(Replication {
            user: settings.user.clone(),
            require_tls: ["require", "verify-ca", "verify-full"]
                .contains(&settings.sslmode.as_str()),
            slot_wal_max: settings.slot_wal_max.clone(),
        })
    }

    fn source(&self, of: &SiteName) -> Result<Source, Failed> {
        let source = self.among()?.source(of);
        source
            .ok_or_else(|| format!("site {of} is not configured here; add it to replication.sites"))
    }

    /// What `serve` means to PostgreSQL.
    fn serving(&self, serve: &Serve) -> Result<Serving, Failed> {
        Ok(match serve {
            Serve::Alone => Serving::Alone,
            Serve::Primary { need, sites } => Serving::Primary {
                names: standby_names(*need, sites),
                replication: self.settings()?,
            },
            Serve::Replica { of, receive } => Serving::Replica {
                receive: receive.then(|| self.source(of)).transpose()?,
                replication: self.settings()?,
            },
        })
    }

    /// Starts PostgreSQL in this way, and waits until it serves in it.
    pub(super) async fn serve(&self, epoch: Epoch, serve: &Serve, deadline: Mono) -> Done {
        let serving = match self.serving(serve) {
            Ok(serving) => serving,
            Err(cause) => return failed(cause),
        };
        let replica = matches!(serve, Serve::Replica { .. });
        let (outcome, changes) = self.start_as(epoch, serving, deadline).await;
        if outcome != Outcome::Done {
            return (outcome, changes);
        }
        let settled = match replica {
            true => self.follow(deadline).await,
            false => self.lead(serve, deadline).await,
        };
        match settled {
            Ok(()) => (outcome, changes),
            Err(cause) => (Outcome::Failed { cause }, Changes::default()),
        }
    }

    /// What is left of a replica's time as a primary would only keep its log.
    async fn follow(&self, deadline: Mono) -> Result<(), Failed> {
        let session = self.own_session(deadline).await?;
        let (none, left) = (BTreeSet::new(), clock::now().until(deadline));
        let dropped = session.ensure_slots(&none, &none, left).await;
        dropped.map(drop).map_err(whole)
    }

    /// What a primary of several sites needs: the role and the slots of the others, and that commits
    /// wait as they shall.
    async fn lead(&self, serve: &Serve, deadline: Mono) -> Result<(), Failed> {
        let left = || clock::now().until(deadline);
        let sites = self.among()?;
        let password = read_password(&sites.settings.password_file).map_err(whole)?;
        let session = self.own_session(deadline).await?;
        let user = &sites.settings.user;
        let role = session.ensure_role(user, &password, left()).await;
        role.map_err(whole)?;
        self.slots(&session, deadline).await?;
        self.enforce(&session, serve, deadline).await
    }

    /// Returns when commits really wait for whom they shall wait.
    async fn enforce(
        &self,
        session: &Session,
        serve: &Serve,
        deadline: Mono,
    ) -> Result<(), Failed> {
        if !matches!(serve, Serve::Primary { need: 1.., .. }) {
            return Ok(());
        }
        let left = clock::now().until(deadline);
        let since = enforced_from(session, left).await.map_err(whole)?;
        tracing::info!(%since, "commits wait for other sites");
        Ok(())
    }

    async fn slots(&self, session: &Session, deadline: Mono) -> Result<(), Failed> {
        let names: BTreeSet<_> = self
            .among()?
            .others()
            .map(|site| site.in_postgres())
            .collect();
        let left = clock::now().until(deadline);
        let changes = session.ensure_slots(&names, &names, left).await;
        let changes = changes.map_err(whole)?;
        if changes != replication::SlotChanges::default() {
            tracing::info!(?changes, "replication slots");
        }
        Ok(())
    }

    pub(super) async fn keep_slots(&self, deadline: Mono) -> Done {
        let kept = async {
            let session = self.own_session(deadline).await?;
            self.slots(&session, deadline).await
        };
        done(kept.await)
    }

    async fn own_session(&self, deadline: Mono) -> Result<Session, Failed> {
        let left = clock::now().until(deadline);
        let session = Session::connect(&self.database.instance().await, left).await;
        session.map_err(whole)
    }

    /// Lets the running PostgreSQL go on in another way.
    pub(super) async fn reconfigure(&self, serve: &Serve, deadline: Mono) -> Done {
        match self.reconfigured(serve, deadline).await {
            Ok(position) => (Outcome::Reconfigured { position }, Changes::default()),
            Err(cause) => failed(cause),
        }
    }

    async fn reconfigured(
        &self,
        serve: &Serve,
        deadline: Mono,
    ) -> Result<Option<Position>, Failed> {
        let (instance, settings) = (&self.database.instance().await, self.settings()?);
        self.database.serves_as(self.serving(serve)?).await;
        let session = self.own_session(deadline).await?;
        let left = clock::now().until(deadline);
        match serve {
            Serve::Alone => Err("a cluster of several sites is never alone".to_owned()),
            Serve::Primary { need, sites } => {
                let names = standby_names(*need, sites);
                let set = set_names(instance, &session, &settings, &names, left).await;
                set.map_err(whole)?;
                self.enforce(&session, serve, deadline).await?;
                Ok(None)
            }
            Serve::Replica { of, receive: true } => {
                let source = self.source(of)?;
                let receives = receive(instance, &session, &settings, &source, left).await;
                receives.map_err(whole)?;
                Ok(None)
            }
            Serve::Replica {
                of: _,
                receive: false,
            } => {
                let stopped = stop_receiving(instance, &session, &settings, left).await;
                stopped.map(Some).map_err(whole)
            }
        }
    }

    /// Makes the replica the primary.
    pub(super) async fn promote(
        &self,
        epoch: Epoch,
        begins: Begins,
        serve: &Serve,
        deadline: Mono,
    ) -> Done {
        match self.promoted(epoch, begins, serve, deadline).await {
            Ok(()) => (Outcome::Done, postgres_is(Postgres::Running)),
            Err(cause) => failed(cause),
        }
    }

    async fn promoted(
        &self,
        epoch: Epoch,
        Begins { term, above }: Begins,
        serve: &Serve,
        deadline: Mono,
    ) -> Result<(), Failed> {
        let left = || clock::now().until(deadline);
        let instance = &self.database.instance().await;
        self.database.serves_as(self.serving(serve)?).await;
        let names = match serve {
            Serve::Primary { need, sites } => standby_names(*need, sites),
            Serve::Alone | Serve::Replica { .. } => return Err("this is no primary".to_owned()),
        };
        let session = self.own_session(deadline).await?;
        let set = set_names(instance, &session, &self.settings()?, &names, left()).await;
        set.map_err(whole)?;
        self.reserve_timelines(epoch, &session, above, deadline)
            .await?;
        let begins = session.promote(left()).await.map_err(whole)?;
        tracing::info!(%begins, term, "promoted");
        self.note(term, Data::Primary).await?;
        let first = session.commit_ownership(epoch, &instance.member, left());
        first.await.map_err(whole)?;
        self.lead(serve, deadline).await?;
        // Without it `pg_rewind` of the old primary does not see the new timeline.
        let patience = self.timings.checkpoint;
        tokio::spawn(async move {
            if let Err(error) = session.checkpoint(patience).await {
                tracing::warn!(%error, "no checkpoint after the promotion");
            }
        });
        Ok(())
    }

    /// The new timeline must be another than any that this site never heard of.
    async fn reserve_timelines(
        &self,
        epoch: Epoch,
        session: &Session,
        above: u32,
        deadline: Mono,
    ) -> Result<(), Failed> {
        let left = clock::now().until(deadline);
        let own = session.facts(left).await.map_err(whole)?.timeline;
        let licence = self.licence(epoch).await?;
        let instance = self.database.instance().await;
        let reserve =
            move || replication::reserve_timelines(&licence, &instance, own, above).map_err(whole);
        blocking("timelines", deadline, reserve).await
    }

    async fn licence(&self, epoch: Epoch) -> Result<Licence, Failed> {
        let licence = self.link.licence(epoch).await;
        licence.map_err(|(outcome, _)| format!("no permit: {outcome:?}"))
    }

    /// Stops in order, and says where the log ends.
    pub(super) async fn stop_to_move(&self) -> Done {
        let (outcome, changes) = self.stop_postgres(false).await;
        if outcome != (Outcome::Stopped { clean: true }) {
            return (outcome, changes);
        }
        let directory = self.database.instance().await.data_directory;
        let read = move || verify_shut_down(&directory, false).map_err(whole);
        let outcome = match blocking("postgres-verify", Mono::MAX, read).await {
            Ok(control) => Outcome::ShutDown {
                at: Position {
                    timeline: control.timeline,
                    lsn: control.checkpoint,
                },
            },
            Err(_unknown) => outcome,
        };
        (outcome, changes)
    }

    async fn root(&self) -> PathBuf {
        self.database.instance().await.volume_root
    }

    async fn note(&self, term: u64, data: Data) -> Result<(), Failed> {
        let root = self.root().await;
        let write = move || State { term, data }.write(&root);
        blocking("site-state", Mono::MAX, write).await
    }

    /// Brings the data directory in line with the record.
    pub(super) async fn align(
        &self,
        epoch: Epoch,
        term: u64,
        primary: &SiteName,
        reseed: bool,
    ) -> Done {
        match self.aligned(epoch, term, primary, reseed).await {
            Ok(data) => (Outcome::Aligned(data), Changes::default()),
            Err(cause) => failed(cause),
        }
    }

    async fn aligned(
        &self,
        epoch: Epoch,
        term: u64,
        primary: &SiteName,
        reseed: bool,
    ) -> Result<Data, Failed> {
        let root = self.root().await;
        let known = blocking("site-state", Mono::MAX, move || State::read(&root)).await?;
        if *primary == self.among()?.site {
            return self.aligned_to_lead(term, known).await;
        }
        if known
            == Some(State {
                term,
                data: Data::Replica,
            })
            && !reseed
        {
            return Ok(Data::Replica);
        }
        let source = self.source(primary)?;
        let licence = self.licence(epoch).await?;
        let instance = &self.database.instance().await;
        match reseed {
            true => self.copy_anew(&licence, instance, &source, term).await?,
            false => self.rejoin(&licence, instance, &source, term).await?,
        }
        self.note(term, Data::Replica).await?;
        Ok(Data::Replica)
    }

    /// Takes away what the primary does not have, and keeps it for the operator.
    async fn rejoin(
        &self,
        licence: &Licence,
        instance: &Instance,
        source: &Source,
        term: u64,
    ) -> Result<(), Failed> {
        let by = self.database.started_by().map_err(whole)?;
        let wanted = Rejoin {
            source,
            label: &label(term),
            connect: CONNECT,
            stall: STALL,
        };
        let rejoined = replication::rejoin(licence, instance, &by, &wanted).await;
        tracing::info!(rejoined = ?rejoined.map_err(whole)?, "the database follows the primary");
        Ok(())
    }

    /// Replaces the database by a copy of the primary's; what was there is kept.
    async fn copy_anew(
        &self,
        licence: &Licence,
        instance: &Instance,
        source: &Source,
        term: u64,
    ) -> Result<(), Failed> {
        let by = self.database.started_by().map_err(whole)?;
        let progress = self.progress()?;
        let seeding = seeding(source, progress);
        let copied = replication::reseed(licence, instance, &by, &seeding, &label(term)).await;
        tracing::info!(kept = ?copied.map_err(whole)?.old, "the database was copied anew");
        Ok(())
    }

    /// Copies the primary's database to where none is.
    async fn copy(
        &self,
        licence: &Licence,
        instance: &Instance,
        source: &Source,
    ) -> Result<ControlData, Failed> {
        let by = self.database.started_by().map_err(whole)?;
        let progress = self.progress()?;
        let seeding = seeding(source, progress);
        let copied = replication::basebackup(licence, instance, &by, &seeding).await;
        copied.map_err(whole)
    }

    fn progress(&self) -> Result<&watch::Sender<Progress>, Failed> {
        Ok(&self.among()?.progress)
    }

    /// The record names this site: its data is the primary's, or is being promoted.
    async fn aligned_to_lead(&self, term: u64, known: Option<State>) -> Result<Data, Failed> {
        match known {
            // A database from before there were several sites.
            None => {
                self.note(term, Data::Primary).await?;
                Ok(Data::Primary)
            }
            Some(known) if known.data == Data::Replica => Ok(Data::Replica),
            Some(known) if known.term == term => Ok(Data::Primary),
            Some(known) => Err(format!(
                "the data is a primary\'s of term {}, the record says that term {term} is this site\'s: \
                 attach the right volume, or let another site lead",
                known.term
            )),
        }
    }

    /// Makes the filesystem on a blank volume, with a copy of the primary's database.
    pub(super) async fn seed(
        &self,
        epoch: Epoch,
        from: &SiteName,
        term: u64,
        deadline: Mono,
    ) -> Done {
        let source = match self.source(from) {
            Ok(source) => source,
            Err(cause) => return failed(cause),
        };
        let licence = match self.link.begin_format(epoch, deadline).await {
            Ok(licence) => licence,
            Err(refused) => return volume(refused),
        };
        let instance = &self.database.instance().await;
        let copied = async {
            let copied = self.copy(&licence, instance, &source).await?;
            self.note(term, Data::Replica).await?;
            Ok::<_, Failed>(copied)
        };
        let copied = copied.await;
        let system = copied
            .as_ref()
            .ok()
            .map(|control| control.system_identifier);
        let ended = self.link.end_format(epoch, system, deadline).await;
        match copied {
            Ok(_) => volume(ended),
            Err(cause) => (Outcome::Failed { cause }, ended.1.into()),
        }
    }
}

fn seeding<'a>(source: &'a Source, progress: &'a watch::Sender<Progress>) -> Seeding<'a> {
    Seeding {
        source,
        system: None,
        connect: CONNECT,
        stall: STALL,
        progress,
    }
}

/// Under which name what is replaced is kept: it is of before this term.
fn label(term: u64) -> String {
    format!("term-{term}")
}

fn done(result: Result<(), Failed>) -> Done {
    match result {
        Ok(()) => (Outcome::Done, Changes::default()),
        Err(cause) => failed(cause),
    }
}

/// `synchronous_standby_names`.
fn standby_names(need: u8, sites: &BTreeSet<SiteName>) -> String {
    if need == 0 {
        return String::new();
    }
    let names: Vec<_> = sites.iter().map(SiteName::in_postgres).collect();
    format!("ANY {need} ({})", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_postgresqls() {
        let sites = ["b", "eu-west"].map(|name| SiteName(name.to_owned()));
        let sites = BTreeSet::from(sites);
        assert_eq!(standby_names(1, &sites), "ANY 1 (baton_b, baton_eu_west)");
        assert_eq!(standby_names(0, &sites), "");
    }

    #[test]
    fn the_state_is_read_as_it_was_written() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(State::read(root.path()), Ok(None));
        let state = State {
            term: 3,
            data: Data::Replica,
        };
        state.write(root.path()).unwrap();
        assert_eq!(State::read(root.path()), Ok(Some(state)));
        std::fs::write(root.path().join(STATE), "{}").unwrap();
        assert!(State::read(root.path()).is_err());
    }
}
