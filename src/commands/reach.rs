//! How a command finds the running member that it talks to, and how it shows the answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

use crate::config::Config;
use crate::control::{Client, ClientError, Reply, Request, Status};

/// How long a question that the member answers from memory may take.
const QUESTION: Duration = Duration::from_secs(5);

/// Which member to talk to.
#[derive(clap::Args)]
pub struct Reach {
    #[command(flatten)]
    place: Place,
    /// With --lab: this member instead of the active one
    #[arg(long, requires = "lab", value_name = "NAME")]
    member: Option<String>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// The member with this configuration
    #[arg(long, value_name = "FILE", env = "BATON_CONFIG")]
    config: Option<PathBuf>,
    /// The member with this control socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The members of the lab in this directory
    #[arg(long, value_name = "DIR")]
    lab: Option<PathBuf>,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// How an answer is written.
#[derive(clap::Args)]
pub struct OutputArgs {
    /// How the answer is written
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

impl Reach {
    /// The configuration, where one was given.
    pub fn config(&self) -> anyhow::Result<Option<Config>> {
        Ok(self.place.config.as_deref().map(Config::load).transpose()?)
    }

    /// The sockets of all members that are meant, the best first.
    fn sockets(&self) -> anyhow::Result<Vec<PathBuf>> {
        let Place {
            config,
            socket,
            lab,
        } = &self.place;
        if let Some(path) = config {
            return Ok(vec![Config::load(path)?.control.socket]);
        }
        if let Some(lab) = lab {
            return lab_sockets(lab, self.member.as_deref());
        }
        Ok(socket.iter().cloned().collect())
    }

    /// A connection to the member: in a lab, to the active one if there is one, else to any that
    /// answers.
    pub fn client(&self, patience: Duration) -> anyhow::Result<Client> {
        let mut sockets = self.sockets()?;
        if sockets.len() > 1 {
            // Sorted: members that serve first, then those that answer.
            sockets.sort_by_key(|socket| match status(socket) {
                Ok(status) if status.serving => 0,
                Ok(_) => 1,
                Err(_) => 2,
            });
        }
        let first = sockets.first().context("there is no member")?;
        Ok(Client::connect(first, patience)?)
    }

    /// The status of every member that is meant; of those that do not answer, why.
    pub fn statuses(&self) -> anyhow::Result<Vec<Result<Status, ClientError>>> {
        Ok(self
            .sockets()?
            .iter()
            .map(|socket| status(socket))
            .collect())
    }
}

fn status(socket: &Path) -> Result<Status, ClientError> {
    let mut client = Client::connect(socket, QUESTION)?;
    client.send(&Request::Status)?;
    match client.receive()? {
        Reply::Status(status) => Ok(*status),
        other => Err(ClientError::Strange {
            what: format!("{other:?}"),
        }),
    }
}

/// The control sockets of a lab: each member has a directory with its `member.toml`.
fn lab_sockets(lab: &Path, member: Option<&str>) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(lab).with_context(|| {
        format!(
            "look for a lab in {} (baton lab up makes one)",
            lab.display()
        )
    })?;
    let mut sockets = Vec::new();
    for entry in entries {
        let path = entry
            .context("look through the lab")?
            .path()
            .join("member.toml");
        if !path.exists() {
            continue;
        }
        let config = Config::load(&path)?;
        if member.is_none_or(|member| member == config.member) {
            sockets.push(config.control.socket);
        }
    }
    sockets.sort();
    match (sockets.is_empty(), member) {
        (false, _) => Ok(sockets),
        (true, None) => anyhow::bail!(
            "there is no lab in {}; baton lab up makes one",
            lab.display()
        ),
        (true, Some(member)) => {
            anyhow::bail!("the lab in {} has no member {member}", lab.display())
        }
    }
}

/// Prints a document as one JSON document.
pub fn print_json(document: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(document)?);
    Ok(())
}

/// Prints rows under a head, in columns as wide as they must be.
pub fn print_table<const N: usize>(head: [&str; N], rows: &[[String; N]]) {
    let mut widths = head.map(|text| text.chars().count());
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let rule: Vec<_> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    let line = |cells: [&str; N]| {
        let cells: Vec<_> = cells
            .iter()
            .zip(widths)
            .map(|(text, width)| format!(" {text:width$} "))
            .collect();
        println!("|{}|", cells.join("|"));
    };
    println!("+{}+", rule.join("+"));
    line(head);
    println!("+{}+", rule.join("+"));
    for row in rows {
        line(std::array::from_fn(|index| row[index].as_str()));
    }
    println!("+{}+", rule.join("+"));
}
