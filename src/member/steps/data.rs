//! What the data directory of a site is: a primary's or a replica's, of which term, and how it becomes that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fencing::{Epoch, Licence, Mono};
use serde::{Deserialize, Serialize};

use super::postgres::blocking;
use super::sites::Failed;
use super::{Done, Tools, failed, volume};
use crate::attachment::whole;
use crate::decide::Outcome;
use crate::decide::zone::{Data, Newest, SiteName};
use crate::member::event::Changes;
use crate::postgres::replication::{self, Rejoin, RejoinError, Seeding, Source};
use crate::postgres::{ControlData, Instance};
use crate::volume::Beneath;

/// What the data directory is: beside it, on the volume.
const STATE: &str = "baton-site.json";

/// Longer than any content of it.
const STATE_MAX_LEN: u64 = 64 * 1024;

/// The content of [`STATE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// The term of the cluster's record with which the data directory was brought in line last.
    term: u64,
    /// How many writes that record had seen.
    #[serde(default)]
    writes: u64,
    /// As what.
    data: Data,
}

impl State {
    fn read(root: &Path) -> Result<Option<Self>, String> {
        let path = root.join(STATE);
        let read =
            Beneath::resolved(root).and_then(|root| root.read(Path::new(STATE), STATE_MAX_LEN));
        match read {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| format!("{} is damaged (line {})", path.display(), error.line())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("reading {}: {error}", path.display())),
        }
    }

    /// The same data once it was started as a replica's: to lead, it must be promoted.
    fn of_a_replica(known: Option<Self>) -> Self {
        let (term, writes) = known.map_or((0, 0), |known| (known.term, known.writes));
        let data = Data::Replica;
        Self { term, writes, data }
    }

    /// As what this site's data leads in that term.
    fn leading(known: Option<Self>, term: u64) -> Result<Data, Failed> {
        match known {
            // A database from before there were several sites, and perhaps from before the record.
            None => Ok(Data::Primary),
            Some(known) if known.data == Data::Replica => Ok(Data::Replica),
            Some(known) if known.term == term => Ok(Data::Primary),
            Some(known) => Err(format!(
                "the data is a primary's of term {}, the record says that term {term} is this site's: \
                 attach the right volume, or let another site lead",
                known.term
            )),
        }
    }

    /// What follows where this rests on a newer record than `at`, or on one at all where there is none.
    fn newer_than(self, at: At) -> Option<Outcome> {
        let Self { term, writes, data } = self;
        let known = Newest {
            writes,
            term,
            timeline: 0,
        };
        let looked = at.term == 0;
        (looked || writes > at.writes).then_some(Outcome::RecordOlder { known, data })
    }

    /// Durable, and never seen half.
    fn write(self, root: &Path) -> Result<(), String> {
        let write = || Beneath::resolved(root)?.replace(STATE, &serde_json::to_vec(&self)?);
        write().map_err(|error: std::io::Error| {
            format!("writing {}: {error}", root.join(STATE).display())
        })
    }
}

/// Which state of the cluster's record a step rests on.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// Its term.
    pub term: u64,
    /// How many writes it has seen.
    pub writes: u64,
}

/// Longest time for connecting to the primary of another site and asking it, its checkpoint included.
const CONNECT: Duration = Duration::from_secs(60);

/// Longest time without any progress of a copy or a rewind.
const STALL: Duration = Duration::from_secs(15 * 60);

impl Tools {
    async fn root(&self) -> PathBuf {
        self.database.instance().await.volume_root
    }

    pub(super) async fn note(&self, at: At, data: Data) -> Result<(), Failed> {
        let root = self.root().await;
        let At { term, writes } = at;
        let write = move || State { term, writes, data }.write(&root);
        blocking("site-state", Mono::MAX, write).await
    }

    /// What is about to be started as a replica is none of a primary's any more, whatever it was: an operator's
    /// word starts what nobody has brought in line.
    pub(super) async fn note_replica(&self, deadline: Mono) -> Result<(), Failed> {
        let root = self.root().await;
        let note = move || {
            let known = State::read(&root)?;
            match known.is_some_and(|known| known.data == Data::Replica) {
                true => Ok(()),
                false => State::of_a_replica(known).write(&root),
            }
        };
        blocking("site-state", deadline, note).await
    }

    /// Brings the data directory in line with the record.
    pub(super) async fn align(
        &self,
        epoch: Epoch,
        at: At,
        primary: &SiteName,
        reseed: bool,
    ) -> Done {
        match self.aligned(epoch, at, primary, reseed).await {
            Ok(outcome) => (outcome, Changes::default()),
            Err(cause) => failed(cause),
        }
    }

    async fn aligned(
        &self,
        epoch: Epoch,
        at: At,
        primary: &SiteName,
        reseed: bool,
    ) -> Result<Outcome, Failed> {
        let root = self.root().await;
        let known = blocking("site-state", Mono::MAX, move || State::read(&root)).await?;
        if let Some(older) = known.and_then(|known| known.newer_than(at)) {
            return Ok(older);
        }
        if *primary == self.among()?.site {
            return self.aligned_to_lead(at, known).await;
        }
        let ours = known.is_some_and(|known| known.term == at.term && known.data == Data::Replica);
        if !ours || reseed {
            let source = self.source(primary)?;
            let licence = self.licence(epoch).await?;
            let instance = &self.database.instance().await;
            if reseed {
                let copied = self.copy_anew(&licence, instance, &source, at.term);
                copied.await?;
            } else if let Some(why) = self.rejoin(&licence, instance, &source, at.term).await? {
                return Ok(Outcome::CopyNeeded { why });
            }
        }
        self.note(at, Data::Replica).await?;
        let instance = self.database.instance().await;
        let read = move || replication::floor(&instance).map_err(whole);
        let floor = blocking("site-floor", Mono::MAX, read).await?;
        let data = Data::Replica;
        Ok(Outcome::Aligned { data, floor })
    }

    /// Takes away what the primary does not have, and keeps it for the operator. Returns why, if it
    /// cannot be done.
    async fn rejoin(
        &self,
        licence: &Licence,
        instance: &Instance,
        source: &Source,
        term: u64,
    ) -> Result<Option<String>, Failed> {
        let by = self.database.started_by().map_err(whole)?;
        let wanted = Rejoin {
            source,
            label: &label(term),
            connect: CONNECT,
            stall: STALL,
            progress: &self.among()?.progress,
        };
        match replication::rejoin(licence, instance, &by, &wanted).await {
            Ok(rejoined) => {
                tracing::info!(?rejoined, "the database follows the primary");
                Ok(None)
            }
            Err(RejoinError::BaseBackupNeeded { why }) => {
                tracing::warn!(why, "the database must be copied anew");
                Ok(Some(why))
            }
            Err(error) => Err(whole(error)),
        }
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
        let seeding = self.seeding(source)?;
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
        let seeding = self.seeding(source)?;
        let copied = replication::basebackup(licence, instance, &by, &seeding).await;
        copied.map_err(whole)
    }

    fn seeding<'a>(&'a self, source: &'a Source) -> Result<Seeding<'a>, Failed> {
        let sites = self.among()?;
        Ok(Seeding {
            source,
            system: None,
            connect: CONNECT,
            stall: STALL,
            command: sites.settings.seed.as_ref(),
            progress: &sites.progress,
        })
    }

    /// The record names this site: its data is the primary's, or is being promoted.
    async fn aligned_to_lead(&self, at: At, known: Option<State>) -> Result<Outcome, Failed> {
        let data = State::leading(known, at.term)?;
        // A replica's is noted as the primary's when it is promoted.
        if at.term > 0 && data == Data::Primary {
            self.note(at, data).await?;
        }
        Ok(Outcome::Aligned { data, floor: None })
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
            let at = At { term, writes: 0 };
            self.note(at, Data::Replica).await?;
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

/// Under which name what is replaced is kept: it is of before this term.
fn label(term: u64) -> String {
    format!("term-{term}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_primary_that_was_started_as_a_replica_may_lead_a_later_term() {
        let former = State {
            term: 1,
            writes: 9,
            data: Data::Primary,
        };
        assert!(State::leading(Some(former), 3).is_err());
        assert_eq!(State::leading(Some(former), 1), Ok(Data::Primary));
        for known in [Some(former), None] {
            let started = State::of_a_replica(known);
            assert_eq!(State::leading(Some(started), 3), Ok(Data::Replica));
            assert_eq!(started.term, known.map_or(0, |known| known.term));
        }
    }

    #[test]
    fn the_state_is_read_as_it_was_written() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(State::read(root.path()), Ok(None));
        let state = State {
            term: 3,
            writes: 17,
            data: Data::Replica,
        };
        state.write(root.path()).unwrap();
        assert_eq!(State::read(root.path()), Ok(Some(state)));
        let at = |term, writes| At { term, writes };
        assert_eq!(state.newer_than(at(3, 17)), None);
        assert_eq!(
            state.newer_than(at(2, 1_030)),
            None,
            "made anew by an operator"
        );
        assert!(state.newer_than(at(3, 16)).is_some());
        assert!(state.newer_than(at(0, 0)).is_some());
        std::fs::write(root.path().join(STATE), "{}").unwrap();
        assert!(State::read(root.path()).is_err());
    }
}
