//! Reads `member.toml` anew for an operator. Only PostgreSQL's parameters and access rules can change
//! while a member runs: everything else is read at the member's start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::{info, warn};

use super::steps::Tools;
use crate::attachment::whole;
use crate::config::{self, Config};
use crate::decide::{Answer, Reason};

/// How long the file and PostgreSQL's first process may take. Neither is on the volume.
const PATIENCE: Duration = Duration::from_secs(5);

/// The member's file, with what of it is in force.
pub(super) struct MemberFile {
    path: PathBuf,
    in_force: Mutex<Config>,
}

impl MemberFile {
    /// `config` was read from `path`.
    pub fn new(path: &Path, config: Config) -> Self {
        Self {
            path: path.to_owned(),
            in_force: Mutex::new(config),
        }
    }
}

impl Tools {
    /// Takes over what can change, or nothing if the file has a mistake.
    pub(super) async fn reload(&self) -> Answer {
        let reloaded = tokio::time::timeout(PATIENCE, self.take_over_settings()).await;
        let cause = match reloaded {
            Ok(Ok(())) => return Answer::Done,
            Ok(Err(cause)) => cause,
            Err(_) => format!("no end within {PATIENCE:?}"),
        };
        warn!(cause, "the settings were not reloaded");
        Answer::Refused(Box::new(Reason::ReloadFailed { cause }))
    }

    async fn take_over_settings(&self) -> Result<(), String> {
        let mut in_force = self.file.in_force.lock().await;
        let path = self.file.path.clone();
        let read = tokio::task::spawn_blocking(move || Config::load(&path));
        let fresh = read.await.map_err(whole)?.map_err(whole)?;
        if !only_differs_in_what_can_change(&in_force, &fresh) {
            warn!(
                "other settings than PostgreSQL's parameters and hba take effect at the member's next start"
            );
        }
        self.database.reload(&fresh.postgres).await.map_err(whole)?;
        info!(settings = %self.file.path.display(), "reloaded PostgreSQL's settings");
        in_force.postgres = with_what_can_change(&in_force.postgres, &fresh.postgres);
        Ok(())
    }
}

fn with_what_can_change(in_force: &config::Postgres, fresh: &config::Postgres) -> config::Postgres {
    config::Postgres {
        parameters: fresh.parameters.clone(),
        hba: fresh.hba.clone(),
        ..in_force.clone()
    }
}

fn only_differs_in_what_can_change(in_force: &Config, fresh: &Config) -> bool {
    let postgres = with_what_can_change(&in_force.postgres, &fresh.postgres);
    let expected = Config {
        postgres,
        ..in_force.clone()
    };
    expected == *fresh
}
