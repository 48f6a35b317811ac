//! Storage: Baton's own target in a process of its own, in this program's network.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use baton::drill::target::{Audit, Target};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::container::program;

/// What it serves, and where.
pub struct Plan {
    /// A directory of its own; also the name of its log.
    pub name: String,
    pub listen: SocketAddr,
    pub subsystem: String,
    /// The size of each namespace, in order; without one its file is there already.
    pub namespaces: Vec<Option<&'static str>>,
}

/// A target that runs, until it is killed or dropped.
pub struct Storage {
    plan: Plan,
    directory: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Storage {
    pub async fn start(scratch: &Path, plan: Plan) -> Result<Self> {
        let directory = directory(scratch, &plan.name);
        std::fs::create_dir_all(&directory)?;
        let log = scratch.join(format!("logs/{}.log", plan.name));
        let child = spawn(&plan, &directory, &log).await?;
        Ok(Self {
            plan,
            directory,
            log,
            child,
        })
    }

    /// Kills it. What was flushed stays, and so do the reservations.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill the storage")
    }

    /// Starts it again after [`Storage::kill`].
    pub async fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.plan, &self.directory, &self.log).await?;
        Ok(())
    }

    /// The file behind a namespace, from 1.
    pub fn volume(&self, namespace: u32) -> PathBuf {
        volume(&self.directory, namespace)
    }

    /// Its own record of fences and writes.
    pub async fn audit(&self) -> Result<Audit> {
        let socket = control(&self.directory);
        Ok(Target { socket }.audit().await?)
    }

    /// What it says of a namespace.
    pub async fn namespace(&self, number: u32) -> Result<Value> {
        let mut stream = tokio::net::UnixStream::connect(control(&self.directory)).await?;
        stream.write_all(b"{\"do\":\"status\"}\n").await?;
        let answer = tokio::io::BufReader::new(stream)
            .lines()
            .next_line()
            .await?;
        let answer: Value = serde_json::from_str(&answer.context("no answer")?)?;
        let mut all = answer["namespaces"].as_array().into_iter().flatten();
        let found = all.find(|namespace| namespace["namespace_id"] == number);
        found.cloned().context("no such namespace")
    }
}

/// Where the storage of this name keeps its files.
pub fn directory(scratch: &Path, name: &str) -> PathBuf {
    scratch.join(name)
}

/// The file behind a namespace of the storage in this directory.
pub fn volume(directory: &Path, namespace: u32) -> PathBuf {
    directory.join(format!("volume-{namespace}"))
}

fn control(directory: &Path) -> PathBuf {
    directory.join("control")
}

/// Starts the process, and waits until hosts can connect.
async fn spawn(plan: &Plan, directory: &Path, log: &Path) -> Result<Child> {
    let log_file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)?;
    let mut command = Command::new(program());
    command
        .arg("target")
        .args(["--listen", &plan.listen.to_string()])
        .args(["--subsystem", &plan.subsystem])
        .arg("--state")
        .arg(directory.join("state"))
        .arg("--control")
        .arg(control(directory));
    for (number, size) in (1..).zip(&plan.namespaces) {
        let file = volume(directory, number).display().to_string();
        command.arg("--namespace").arg(match size {
            Some(size) => format!("{file},size={size}"),
            None => file,
        });
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .kill_on_drop(true)
        .spawn()
        .context("start the storage")?;
    let said = child.stdout.take().context("no output")?;
    let line = tokio::io::BufReader::new(said).lines().next_line().await?;
    line.with_context(|| format!("the storage did not start: see {}", log.display()))?;
    Ok(child)
}
