//! Two bare sites: their networks and the line between them, for servers that somebody else brings.
//! The benchmark puts another system there, so that both are measured over the same line.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::path::Path;

use tokio::sync::mpsc;

use super::layout::SITES;
use super::network::{Network, NetworkError, SiteNetwork};
use super::wan::Line;
use super::wan::shape::Shape;

/// The sites could not be made, or the line not be told.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// The networks.
    #[error("make the sites' networks")]
    Network(#[from] NetworkError),
    /// Reading what the line is to do.
    #[error("read what the line is to do")]
    Read(#[source] io::Error),
    /// No network is free.
    #[error("find a free network")]
    Draw(#[source] io::Error),
    /// A line that is no shape.
    #[error("{text:?} is no shape of a line")]
    Shape {
        /// What was read.
        text: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// Keeps two sites until standard input or `until` ends, then takes them away. `made` is called with
/// the sites by their names; every line of standard input is a [`Shape`] that the line between them
/// has from then on.
///
/// # Errors
/// [`BareError`]; the networks are gone then too, as far as that can be done.
pub async fn keep<T>(
    owner: &Path,
    until: impl Future<Output = T>,
    made: impl FnOnce(&BTreeMap<&str, SiteNetwork>),
) -> Result<(), BareError> {
    let network = Network::draw().map_err(BareError::Draw)?;
    let kept = async {
        network.make(owner).await?;
        let line = network.join()?;
        made(&SITES.map(|name| (name, network.site(name))).into());
        follow(&line).await
    };
    let kept = tokio::select! {
        kept = kept => kept,
        _ = until => Ok(()),
    };
    let removed = network.remove().await;
    kept?;
    Ok(removed?)
}

async fn follow(line: &Line) -> Result<(), BareError> {
    let (told, mut telling) = mpsc::unbounded_channel();
    // A thread of its own: reading cannot be given up, and this must end on a signal.
    std::thread::spawn(move || {
        for text in io::stdin().lock().lines() {
            if told.send(text).is_err() {
                break;
            }
        }
    });
    while let Some(text) = telling.recv().await {
        let text = text.map_err(BareError::Read)?;
        let shape: Shape =
            serde_json::from_str(&text).map_err(|source| BareError::Shape { text, source })?;
        line.set(shape);
    }
    Ok(())
}
