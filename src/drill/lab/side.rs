//! Killing, freezing and waking a whole side of a lab.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::LabGround;
use super::undo::Undo;
use crate::drill::ground::Ground;
use crate::drill::stage_error::StageError;
use crate::drill::wait::until;
use crate::lab::bridge_queue::BridgeQueue;
use crate::lab::process::Process;
use crate::lab::protocol::Request;

/// How long signals may take to be carried out.
const SIGNALS_WITHIN: Duration = Duration::from_secs(10);

impl LabGround {
    /// SIGKILL to everything of a member, which stays down until [`Undo::Release`].
    pub(super) async fn kill_all_of(&mut self, member: &str) -> Result<(), StageError> {
        let root = self.process(member).await?;
        self.ask(Request::Hold {
            member: member.to_owned(),
        })
        .await?;
        self.undo.push(Undo::Release(member.to_owned()));
        let tree = root.tree();
        self.signal(member, &tree, Signal::SIGKILL)?;
        let what = "the end of everything of the active";
        until(what, SIGNALS_WITHIN, async || {
            Ok(!tree.iter().any(|process| process.lives()))
        })
        .await
    }

    /// SIGKILL to everything of the site, its target too, at one moment. All of it stays down until
    /// the undoing.
    pub(in crate::drill) async fn kill_site(&mut self) -> Result<(), StageError> {
        self.gone = self.audit().await?;
        for member in self.site().members() {
            let member = member.to_owned();
            self.undo.push(Undo::Release(member.clone()));
            self.ask(Request::Hold { member }).await?;
        }
        // undone first: no member attaches without it
        self.undo.push(Undo::StartTarget);
        let site = self.site_name();
        let state = self.ask(Request::HoldTarget { site }).await?;
        let target = self.site().target();
        let target = target
            .file_name()
            .and_then(|name| state.targets.get(name.to_str()?));
        let members = self.site().members().into_iter();
        let members = members.filter_map(|member| state.members.get(member));
        let roots = members.chain(target).filter_map(|service| service.process);
        let all: Vec<_> = roots.flat_map(Process::tree).collect();
        self.signal("whole site", &all, Signal::SIGKILL)?;
        let what = "the end of everything of the site";
        until(what, SIGNALS_WITHIN, async || {
            Ok(!all.iter().any(|process| process.lives()))
        })
        .await
    }

    /// SIGSTOP to everything of a member; the bridge first, so that writes queue in it: those are
    /// what a zombie sends when it wakes up.
    pub(super) async fn freeze_all_of(&mut self, member: &str) -> Result<(), StageError> {
        let root = self.process(member).await?;
        let bridge = self.bridge(member).await?;
        self.undo.push(Undo::Thaw(vec![bridge]));
        self.signal(member, &[bridge], Signal::SIGSTOP)?;
        let queue = BridgeQueue::of(bridge).map_err(|source| StageError::Io {
            what: "find the bridge's device in",
            path: format!("/proc/{}/fd", bridge.pid).into(),
            source,
        })?;
        let what = "a write queued in the stopped bridge";
        until(what, SIGNALS_WITHIN, async || {
            queue.waits().map_err(|source| StageError::Io {
                what: "count the waiting requests in",
                path: queue.place().to_owned(),
                source,
            })
        })
        .await?;
        let mut frozen = vec![bridge];
        // children that were forked while their parents were being stopped are found the next time
        loop {
            let tree = root.tree();
            let fresh: Vec<_> = tree.into_iter().filter(|p| !frozen.contains(p)).collect();
            if fresh.is_empty() {
                return Ok(());
            }
            self.signal(member, &fresh, Signal::SIGSTOP)?;
            frozen.extend(fresh);
            self.undo.pop();
            self.undo.push(Undo::Thaw(frozen.clone()));
        }
    }

    /// SIGCONT to all that was frozen but the member itself: the bridge and PostgreSQL.
    pub(super) async fn thaw_all_but(&mut self, member: &str) -> Result<(), StageError> {
        let root = self.process(member).await?;
        for undo in std::mem::take(&mut self.undo) {
            match undo {
                Undo::Thaw(frozen) => {
                    let (own, others): (Vec<_>, Vec<_>) = frozen.iter().partition(|p| **p == root);
                    self.signal(member, &others, Signal::SIGCONT)?;
                    self.undo.push(Undo::Thaw(own));
                }
                other => self.undo.push(other),
            }
        }
        Ok(())
    }
}
