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
use crate::decide::zone::{Data, SiteName};
use crate::member::event::Changes;
use crate::postgres::replication::{self, Rejoin, Seeding, Source};
use crate::postgres::{ControlData, Instance};

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

/// Longest time for connecting to the primary of another site and asking it, its checkpoint included.
const CONNECT: Duration = Duration::from_secs(60);

/// Longest time without any progress of a copy or a rewind.
const STALL: Duration = Duration::from_secs(15 * 60);

impl Tools {
    async fn root(&self) -> PathBuf {
        self.database.instance().await.volume_root
    }

    pub(super) async fn note(&self, term: u64, data: Data) -> Result<(), Failed> {
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
            progress: &self.among()?.progress,
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

/// Under which name what is replaced is kept: it is of before this term.
fn label(term: u64) -> String {
    format!("term-{term}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
