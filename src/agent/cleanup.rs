//! What is done when a member ends without a word: kill, prove, unmount, announce.
//!
//! The steps are those of a handover after the stop of PostgreSQL. If one fails the volume is left as it is
//! and the standby fences this host, as after a crash.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fencing::{Epoch, KeyFlags};
use tracing::{error, info, warn};

use super::tree;
use crate::attachment::{Attachment, whole};
use crate::clock;
use crate::decide::{Outcome, Timings, Work};

/// Kills what is left of a member, gives its volume up, and announces `clean` if it is.
pub(super) async fn clean_up(attachment: &Arc<Attachment>, container: &Path, timings: &Timings) {
    kill(attachment, container, timings.kill).await;
    let epoch = attachment.permit_epoch();
    let unmounted = perform(attachment, Work::Unmount, timings.unmount).await;
    match (unmounted, epoch) {
        (Outcome::Unmounted { clean: true }, Some(epoch)) => {
            announce(attachment, epoch, timings).await
        }
        (Outcome::Unmounted { .. }, None) => {
            // A standby: its key must not say `ready` any more.
            let outcome = perform(attachment, Work::Unregister, timings.command).await;
            info!(?outcome, "the standby is gone");
        }
        (outcome, epoch) => {
            warn!(
                ?outcome,
                ?epoch,
                "the volume is not clean: it is let go the hard way"
            );
            perform(attachment, Work::ShutdownFilesystem, timings.kill).await;
            perform(attachment, Work::DropMount, timings.unmount).await;
        }
    }
    attachment.close().await;
}

/// Returns only when not one process of the container is left. One that hangs on the volume ends when its
/// device goes.
async fn kill(attachment: &Attachment, container: &Path, bound: Duration) {
    let group = container.display();
    if let Err(error) = tree::kill(container) {
        error!(error = %whole(error), %group, "the member's processes cannot be killed");
    }
    let empty = tree::emptied(container);
    tokio::pin!(empty);
    if tokio::time::timeout(bound / 4, &mut empty).await.is_err() {
        warn!(%group, "processes hang on the volume: its device goes");
        attachment.condemn_device().await;
        empty.await;
    }
    info!(%group, "not one process of the member is left");
}

async fn announce(attachment: &Arc<Attachment>, epoch: Epoch, timings: &Timings) {
    let work = Work::AnnounceClean {
        epoch,
        flags: KeyFlags::NONE,
    };
    match perform(attachment, work, timings.command).await {
        Outcome::Done => info!(%epoch, "the volume is clean, and its key says so"),
        outcome => warn!(?outcome, %epoch, "nobody was told that the volume is clean"),
    }
}

async fn perform(attachment: &Arc<Attachment>, work: Work, bound: Duration) -> Outcome {
    let name = work.name();
    let (outcome, _changes) = attachment.perform(&work, clock::now() + bound).await;
    info!(step = name, ?outcome, "clean up");
    outcome
}
