//! Steps on PostgreSQL.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use fencing::{Epoch, Mono};
use tokio::sync::{Mutex, mpsc, watch};

use super::{Done, Tools, failed, volume};
use crate::attachment::whole;
use crate::clock;
use crate::config;
use crate::decide::{Outcome, Postgres};
use crate::member::event::{Changes, Event};
use crate::member::pulse;
use crate::postgres::replication::Serving;
use crate::postgres::{
    ConfigurationError, End, Instance, Isolation, Launched, Postmaster, Request, Session,
    StartedBy, initdb, launch_as, rewrite_configuration, verify_shut_down,
};
use crate::volume::{Bounded, within};

/// The program that becomes pid 1 of PostgreSQL's namespace: the very one that is running.
const BATON: &str = "/proc/self/exe";

/// PostgreSQL on this member.
pub(in crate::member) struct Database {
    /// Locked for the whole of a launch and of a reload, so that what PostgreSQL reads is never older than
    /// what a reload has said.
    instance: Mutex<Instance>,
    /// How it runs, or shall run next.
    serving: Mutex<Serving>,
    isolation: Isolation,
    node_lock: OwnedFd,
    postmaster: Mutex<Option<Postmaster>>,
    /// Open while PostgreSQL serves, so that a checkpoint need not connect first.
    session: Mutex<Option<Session>>,
    runs: AtomicU64,
    /// Every process on the volume, or whoever is about to start one, has a receiver.
    processes: watch::Sender<()>,
}

impl Database {
    /// PostgreSQL is not running. Every process of it will hold the node's lock open.
    pub fn new(instance: Instance, node_lock: OwnedFd, isolation: Isolation) -> Self {
        Self {
            instance: Mutex::new(instance),
            serving: Mutex::new(Serving::Alone),
            isolation,
            node_lock,
            postmaster: Mutex::new(None),
            session: Mutex::new(None),
            runs: AtomicU64::new(0),
            processes: watch::Sender::new(()),
        }
    }

    /// The number of the newest start.
    pub fn run(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Closes the member's own session.
    pub async fn forget_session(&self) {
        *self.session.lock().await = None;
    }

    /// Where PostgreSQL is and how it is run, as of now.
    pub async fn instance(&self) -> Instance {
        self.instance.lock().await.clone()
    }

    /// What every program of PostgreSQL on the volume gets.
    pub(super) fn started_by(&self) -> std::io::Result<StartedBy<'static>> {
        Ok(StartedBy {
            baton: Path::new(BATON),
            node_lock: Some(self.node_lock.try_clone()?),
            isolation: self.isolation,
            witness: Some(self.processes.subscribe()),
        })
    }

    /// How PostgreSQL shall run from now on: what a reload writes.
    pub(super) async fn serves_as(&self, serving: Serving) {
        *self.serving.lock().await = serving;
    }

    /// Takes over parameters and access rules, for every start from now on, and has PostgreSQL re-read
    /// them if it runs. It tells by its log what it took up.
    ///
    /// # Errors
    /// The files cannot be written, or PostgreSQL cannot be told.
    pub async fn reload(&self, fresh: &config::Postgres) -> Result<(), ReloadError> {
        let mut instance = self.instance.lock().await;
        instance.parameters = fresh.parameters.clone();
        instance.hba = fresh.hba.clone();
        let mut postmaster = self.postmaster.lock().await;
        let Some(postmaster) = postmaster.as_mut().filter(|one| one.ended().is_none()) else {
            return Ok(());
        };
        rewrite_configuration(&instance, &*self.serving.lock().await)?;
        match postmaster.ask(Request::Reload) {
            // It has ended meanwhile: its next start reads what was written.
            Err(_) if postmaster.ended().is_some() => Ok(()),
            told => told.map_err(ReloadError::Tell),
        }
    }

    async fn remember(&self, postmaster: Postmaster, events: &mpsc::UnboundedSender<Event>) {
        let run = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        let mut end = postmaster.watch();
        *self.postmaster.lock().await = Some(postmaster);
        let events = events.clone();
        tokio::spawn(async move {
            reaped(&mut end).await;
            let how = end.borrow().unwrap_or(End::Unknown).to_string();
            let _closed = events.send(Event::PostgresGone { run, how });
        });
    }
}

/// Why PostgreSQL was not told of new settings.
#[derive(Debug, thiserror::Error)]
pub(in crate::member) enum ReloadError {
    /// The files that it reads could not be written.
    #[error("configuring PostgreSQL")]
    Configuration(#[from] ConfigurationError),
    /// Its first process takes no request.
    #[error("telling PostgreSQL")]
    Tell(#[source] std::io::Error),
}

impl Tools {
    /// Makes the filesystem and the database on a volume that is proven blank once more.
    pub(super) async fn format(&self, epoch: Epoch, deadline: Mono) -> Done {
        let licence = match self.link.begin_format(epoch, deadline).await {
            Ok(licence) => licence,
            Err(refused) => return volume(refused),
        };
        let instance = self.database.instance().await;
        let make = move || initdb(&licence, &instance).map_err(whole);
        let made = blocking("postgres-initdb", deadline, make).await;
        let system = match &made {
            Ok(control) => Some(control.system_identifier),
            Err(_cause) => None,
        };
        let ended = self.link.end_format(epoch, system, deadline).await;
        match made {
            Ok(_) => volume(ended),
            Err(cause) => (Outcome::Failed { cause }, ended.1.into()),
        }
    }

    /// Starts PostgreSQL and waits until it has committed a write.
    pub(super) async fn start_postgres(&self, epoch: Epoch, deadline: Mono) -> Done {
        self.start_as(epoch, Serving::Alone, deadline).await
    }

    /// Starts PostgreSQL in this way, and waits until it has committed a write, or, as a replica, until it
    /// takes connections.
    pub(super) async fn start_as(&self, epoch: Epoch, serving: Serving, deadline: Mono) -> Done {
        let licence = match self.link.licence(epoch).await {
            Ok(licence) => licence,
            Err(refused) => return volume(refused),
        };
        let database = &self.database;
        let started_by = match database.started_by() {
            Ok(started_by) => started_by,
            Err(error) => return failed(error),
        };
        let starting = {
            let instance = database.instance.lock().await;
            database.serves_as(serving.clone()).await;
            match launch_as(&licence, &instance, &serving, started_by).await {
                Ok(Launched {
                    postmaster,
                    starting,
                }) => {
                    database.remember(postmaster, &self.events).await;
                    starting
                }
                Err(error) => return failed(whole(error)),
            }
        };
        let _closed = self
            .events
            .send(Event::Changed(postgres_is(Postgres::Starting)));
        if let Err(error) = starting.ready(clock::now().until(deadline)).await {
            let changes = self.link.mount_if_dead().await.into();
            let cause = whole(error);
            return (Outcome::Failed { cause }, changes);
        }
        let replica = matches!(serving, Serving::Replica { .. });
        match self.first_session(epoch, !replica, deadline).await {
            Ok(session) => {
                *database.session.lock().await = Some(session);
                self.feel_pulse(epoch).await;
                (Outcome::Done, postgres_is(Postgres::Running))
            }
            Err(error) => failed(whole(error)),
        }
    }

    async fn feel_pulse(&self, epoch: Epoch) {
        let database = &self.database;
        let instance = database.instance().await;
        if let Some(postmaster) = database.postmaster.lock().await.as_ref() {
            tokio::spawn(pulse::watch(
                instance,
                epoch,
                database.run(),
                postmaster.watch(),
                self.events.clone(),
            ));
        }
    }

    async fn first_session(
        &self,
        epoch: Epoch,
        writes: bool,
        deadline: Mono,
    ) -> Result<Session, crate::postgres::SessionError> {
        let left = || clock::now().until(deadline);
        let instance = self.database.instance().await;
        let session = Session::connect(&instance, left()).await?;
        if writes {
            session
                .commit_ownership(epoch, &instance.member, left())
                .await?;
        }
        Ok(session)
    }

    /// CHECKPOINT and syncfs while serving.
    pub(super) async fn checkpoint(&self, deadline: Mono) -> Done {
        let left = clock::now().until(deadline);
        {
            let instance = self.database.instance().await;
            let mut session = self.database.session.lock().await;
            let open = match session.take().filter(|session| !session.is_closed()) {
                Some(open) => Ok(open),
                None => Session::connect(&instance, left).await,
            };
            let open = match open {
                Ok(open) => session.insert(open),
                Err(error) => return failed(whole(error)),
            };
            if let Err(error) = open.checkpoint(left).await {
                return failed(whole(error));
            }
        }
        volume(self.link.sync_filesystem(deadline).await)
    }

    /// Asks PostgreSQL to stop and waits until its process tree is empty; the deadline is the step's.
    pub(super) async fn stop_postgres(&self, immediate: bool) -> Done {
        self.database.forget_session().await;
        let request = if immediate {
            Request::StopImmediate
        } else {
            Request::StopFast
        };
        let _closed = self
            .events
            .send(Event::Changed(postgres_is(Postgres::Stopping)));
        let mut end = {
            let mut postmaster = self.database.postmaster.lock().await;
            let Some(postmaster) = postmaster.as_mut() else {
                return self.stopped(false).await;
            };
            if let Err(error) = postmaster.ask(request)
                && postmaster.ended().is_none()
            {
                return failed(error);
            }
            postmaster.watch()
        };
        reaped(&mut end).await;
        self.stopped(!immediate).await
    }

    /// Kills the whole tree and waits until it is empty, and until no other program works on the volume: each is
    /// killed with the step that ran it, which this one has ended. A process that waits for the volume in the
    /// kernel cannot die: after a while the device is taken away, and its wait ends.
    pub(super) async fn kill_postgres(&self) -> Done {
        self.database.forget_session().await;
        if let Some(postmaster) = self.database.postmaster.lock().await.as_ref()
            && let Err(error) = postmaster.kill()
        {
            return failed(error);
        }
        let gone = self.database.processes.closed();
        tokio::pin!(gone);
        let patience = self.timings.kill / 4;
        if tokio::time::timeout(patience, &mut gone).await.is_err() {
            tracing::warn!("PostgreSQL's processes hang on the volume: its device goes");
            self.link.condemn_device().await;
            gone.await;
        }
        (Outcome::Done, postgres_is(Postgres::Stopped))
    }

    /// After a fast stop the control file must agree that nothing is left to replay.
    async fn stopped(&self, verify: bool) -> Done {
        let directory = self.database.instance().await.data_directory;
        let replica = matches!(*self.database.serving.lock().await, Serving::Replica { .. });
        let read = move || verify_shut_down(&directory, replica).map_err(whole);
        let clean = verify
            && match blocking("postgres-verify", Mono::MAX, read).await {
                Ok(_) => true,
                Err(cause) => {
                    tracing::warn!(cause, "PostgreSQL was not shut down in order");
                    false
                }
            };
        (Outcome::Stopped { clean }, postgres_is(Postgres::Stopped))
    }
}

/// Runs a call that may wait for the volume on a thread of its own, beyond the deadline too.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    deadline: Mono,
    call: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match within(clock::now().until(deadline), what, call).await {
        Ok(Bounded::Done(result)) => result,
        Ok(Bounded::Stuck(pending)) => pending.await.map_err(whole)?,
        Err(error) => Err(whole(error)),
    }
}

/// Waits until the whole process tree is reaped. The sender lives as long as the thread that reaps:
/// its loss says the same.
async fn reaped(end: &mut watch::Receiver<Option<End>>) {
    let _ended = end.wait_for(Option::is_some).await.is_ok();
}

pub(super) fn postgres_is(postgres: Postgres) -> Changes {
    Changes {
        postgres: Some(postgres),
        ..Changes::default()
    }
}
