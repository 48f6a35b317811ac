//! Steps of a site among several: how PostgreSQL runs.

use std::collections::BTreeSet;

use fencing::{Epoch, Licence, Mono};

use super::data::At;
use super::postgres::{blocking, postgres_is};
use super::{Done, Tools, failed};
use crate::attachment::whole;
use crate::clock;
use crate::decide::zone::{Data, Position, Serve, SiteName};
use crate::decide::{Outcome, Postgres};
use crate::member::event::Changes;
use crate::member::sites::Sites;
use crate::postgres::replication::{
    self, Replication, Serving, Source, enforced_from, read_password, reload, stop_receiving,
};
use crate::postgres::{Session, verify_shut_down};

/// Why a step failed, for people.
pub(super) type Failed = String;

/// What a promotion begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begins {
    /// The record, and with it the term.
    pub at: At,
    /// Its timeline is above this one.
    pub above: u32,
}

impl Tools {
    pub(super) fn among(&self) -> Result<&Sites, Failed> {
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

    pub(super) fn source(&self, of: &SiteName) -> Result<Source, Failed> {
        let source = self.among()?.source(of);
        source
            .ok_or_else(|| format!("site {of} is not configured here; add it to replication.sites"))
    }

    /// What `serve` means to PostgreSQL.
    fn serving(&self, serve: &Serve) -> Result<Serving, Failed> {
        Ok(match serve {
            Serve::Alone => Serving::Alone,
            Serve::Primary { .. } => Serving::Primary {
                names: serve.names(),
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
        if replica && let Err(cause) = self.note_replica(deadline).await {
            return failed(cause);
        }
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
        // They are looked after again while it serves.
        if let Err(cause) = self.slots(&session, deadline).await {
            tracing::warn!(%cause, "the other sites' replication slots are not all there");
        }
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
        let instance = &self.database.instance().await;
        let serving = self.serving(serve)?;
        self.database.serves_as(serving.clone()).await;
        let session = self.own_session(deadline).await?;
        let left = clock::now().until(deadline);
        match &serving {
            Serving::Alone => Err("a cluster of several sites is never alone".to_owned()),
            Serving::Replica {
                receive: None,
                replication,
            } => {
                let stopped = stop_receiving(instance, &session, replication, left).await;
                stopped.map(Some).map_err(whole)
            }
            Serving::Primary { .. } | Serving::Replica { .. } => {
                let reloaded = reload(instance, &session, &serving, left).await;
                reloaded.map_err(whole)?;
                self.enforce(&session, serve, deadline).await?;
                Ok(None)
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
        Begins { at, above }: Begins,
        serve: &Serve,
        deadline: Mono,
    ) -> Result<(), Failed> {
        let left = || clock::now().until(deadline);
        let instance = &self.database.instance().await;
        let serving = self.serving(serve)?;
        if !matches!(serving, Serving::Primary { .. }) {
            return Err("this is no primary".to_owned());
        }
        self.database.serves_as(serving.clone()).await;
        let session = self.own_session(deadline).await?;
        let reloaded = reload(instance, &session, &serving, left()).await;
        reloaded.map_err(whole)?;
        self.reserve_timelines(epoch, &session, above, deadline)
            .await?;
        let begins = session.promote(left()).await.map_err(whole)?;
        tracing::info!(%begins, term = at.term, "promoted");
        self.note(at, Data::Primary).await?;
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

    pub(super) async fn licence(&self, epoch: Epoch) -> Result<Licence, Failed> {
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
}

fn done(result: Result<(), Failed>) -> Done {
    match result {
        Ok(()) => (Outcome::Done, Changes::default()),
        Err(cause) => failed(cause),
    }
}
