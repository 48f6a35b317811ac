//! Starting a lab: a supervisor in the background, and waiting until it says that it runs.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::layout::{Lab, LayoutError, Wanted};
use super::protocol::{Request, ask_supervisor};

/// How long the supervisor may take to start the target and the members.
const START_WITHIN: Duration = Duration::from_secs(30);

/// How long it may take to find out whether a supervisor runs already.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// The lab could not be started.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// Its directory.
    #[error("prepare the lab")]
    Layout(#[from] LayoutError),
    /// It runs already.
    #[error("the lab in {} is up already: end it with `baton lab down --dir {}`", dir.display(), dir.display())]
    Running {
        /// The directory.
        dir: PathBuf,
    },
    /// The supervisor could not be started.
    #[error("start the supervisor")]
    Io(#[from] io::Error),
    /// The supervisor ended or said why it cannot start.
    #[error("the supervisor could not start: {reason} (its log: {})", log.display())]
    Supervisor {
        /// Its words.
        reason: String,
        /// Its log.
        log: PathBuf,
    },
}

/// The one line by which the supervisor tells its caller how its start went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Started {
    /// The target listens, the members are started.
    Ready,
    /// It ends, because of this.
    Failed(String),
}

impl Started {
    /// Tells the caller. It may be gone: then nobody needs to know.
    pub fn tell(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            drop(writeln!(io::stdout(), "{line}"));
        }
    }
}

/// Makes the lab if there is none and starts it; returns when the members are started.
pub async fn up(dir: &Path, wanted: &Wanted) -> Result<Lab, UpError> {
    if let Ok(lab) = Lab::open(dir)
        && ask_supervisor(&lab.supervisor_socket(), &Request::Status, ASK_WITHIN)
            .await
            .is_ok()
    {
        return Err(UpError::Running { dir: lab.dir });
    }
    let lab = Lab::create(dir, wanted)?;
    let path = lab.dir.join("supervisor.log");
    let log = OpenOptions::new().create(true).append(true).open(&path)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["lab", "supervise", "--dir"]).arg(&lab.dir);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut supervisor = command.spawn()?;
    let mut line = String::new();
    if let Some(stdout) = supervisor.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        drop(timeout(START_WITHIN, stdout.read_line(&mut line)).await);
    }
    match serde_json::from_str(&line) {
        Ok(Started::Ready) => Ok(lab),
        Ok(Started::Failed(reason)) => Err(UpError::Supervisor { reason, log: path }),
        Err(_) => {
            drop(supervisor.start_kill());
            let reason = format!("it said nothing useful within {START_WITHIN:?}");
            Err(UpError::Supervisor { reason, log: path })
        }
    }
}
