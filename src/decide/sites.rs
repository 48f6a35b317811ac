//! The active among several sites: carries out what [`zone`](super::zone) judges, one step at a time.

use fencing::Epoch;

use super::action::{Action, StopMode, Work};
use super::ask::{Ask, RequestId};
use super::memory::{Ownership, Role, TakeOver};
use super::observation::{LeaseVersion, Outcome, Postgres};
use super::reason::Reason;
use super::turn::{Next, Turn};
use super::zone::{
    Asked, ClusterRecord, Judge, Move, SiteNumber, Situation, Stopping, Urged, ZoneReason,
};

impl Turn<'_> {
    /// The judge of this moment; none with one site.
    fn judge(&mut self, epoch: Epoch, proven_at: fencing::Mono) -> Option<Judge<'_>> {
        let config = self.config.zone.as_ref()?;
        let seen = self.seen.zone.as_deref()?;
        Some(Judge {
            config,
            timings: &self.config.timings,
            seen,
            situation: Situation {
                member: self.config.member,
                epoch,
                proven_at,
                awake_since: self.memory.awake_since,
                postgres: self.seen.local.postgres,
                paused: self.memory.paused,
            },
            memory: &mut self.memory.zone,
            now: self.now,
        })
    }

    /// Another site was promoted while this one runs a primary: it is killed, whatever else goes on.
    pub(super) fn superseded(&mut self, own: Ownership) -> Option<Next> {
        let why = self.judge(own.epoch, own.proven_at)?.superseded_now()?;
        if self.seen.local.postgres == Postgres::Stopped {
            return None;
        }
        self.memory.zone.at_rest = true;
        self.begin(Work::KillPostgres);
        Some(Next::Wait(Reason::Zone(why)))
    }

    /// Whether PostgreSQL is being started.
    pub(super) fn is_starting(&self) -> bool {
        let issued = self.memory.issued.as_ref();
        issued.is_some_and(|issued| {
            matches!(issued.work, Work::StartPostgres { .. } | Work::Serve { .. })
        })
    }

    /// Whether the data directory is being worked on, by programs that are none of PostgreSQL's own processes.
    pub(super) fn is_copying(&self) -> bool {
        let issued = self.memory.issued.as_ref();
        issued.is_some_and(|issued| matches!(issued.work, Work::Align { .. } | Work::Seed { .. }))
    }

    /// Takes in how a step ended that changes how PostgreSQL runs.
    pub(super) fn take_in_sites(&mut self) {
        let Some((work, outcome)) = self.ended.clone() else {
            return;
        };
        if matches!((&work, &outcome), (Work::Serve { .. }, Outcome::Done)) {
            self.memory.failed = None;
        }
        self.memory.zone.take_in(&work, &outcome, self.now);
    }

    /// No step is under way: the next one, of those between sites.
    pub(super) fn serve_among_sites(&mut self, own: Ownership, ended: Option<Outcome>) -> Next {
        if self.seen.local.postgres == Postgres::Running {
            let next = self.serve(own);
            if !matches!(next, Next::Wait(Reason::Serving)) {
                return next;
            }
        }
        if matches!(ended, Some(Outcome::Failed { .. } | Outcome::Overdue)) {
            self.back_off(1);
        }
        let Some(judge) = self.judge(own.epoch, own.proven_at) else {
            return Next::Wait(Reason::Zone(ZoneReason::RecordUnknown));
        };
        let next = judge.judge();
        if let Move::Kill(why) = next {
            self.begin(Work::KillPostgres);
            return Next::Wait(Reason::Zone(why));
        }
        if matches!(
            self.seen.local.postgres,
            Postgres::Starting | Postgres::Stopping | Postgres::Unknown
        ) {
            // Nothing was ordered that explains this state: get to a known one.
            self.begin(Work::KillPostgres);
            return Next::Wait(self.attempt());
        }
        if let Some(wait) = self.backing_off() {
            return wait;
        }
        self.carry_out(own, next)
    }

    fn carry_out(&mut self, own: Ownership, next: Move) -> Next {
        let epoch = own.epoch;
        let (work, why) = match next {
            Move::Wait(why) => {
                if why == ZoneReason::RecordUnknown {
                    self.actions.push(Action::RefreshCluster);
                }
                return Next::Wait(Reason::Zone(why));
            }
            Move::Write {
                expected,
                record,
                why,
            } => {
                self.write_cluster(expected, record);
                return Next::Wait(Reason::Zone(why));
            }
            Move::Start(serve) => {
                let start = Work::Serve { epoch, serve };
                if !std::mem::take(&mut self.memory.zone.at_rest) {
                    return self.start_again(own, start);
                }
                (start, ZoneReason::Changing)
            }
            Move::Stop(why) => (self.next_stop(epoch, &why), why),
            Move::Kill(why) => (Work::KillPostgres, why),
            Move::Align { reseed } => match self.align(epoch, reseed) {
                Some(found) => found,
                None => return Next::Wait(Reason::Zone(ZoneReason::RecordUnknown)),
            },
            Move::Reconfigure(serve) => (Work::Reconfigure { epoch, serve }, ZoneReason::Changing),
            Move::Promote(serve) => {
                let Some(record) = self.cluster().map(|lease| &lease.record) else {
                    return Next::Wait(Reason::Zone(ZoneReason::RecordUnknown));
                };
                let work = Work::Promote {
                    epoch,
                    term: record.term,
                    writes: record.writes,
                    above: record.newest_timeline.saturating_sub(1),
                    serve,
                };
                (work, ZoneReason::Promoting)
            }
            Move::KeepSlots => (Work::KeepSlots { epoch }, ZoneReason::Changing),
        };
        self.memory.zone.at_rest |= matches!(
            work,
            Work::StopToMove | Work::StopPostgres { .. } | Work::KillPostgres
        );
        self.begin(work);
        Next::Wait(Reason::Zone(why))
    }

    fn write_cluster(&mut self, expected: Option<LeaseVersion>, record: Box<ClusterRecord>) {
        let deadline = self.now + self.timings().lease_deadline;
        self.actions.push(Action::WriteCluster {
            expected,
            record,
            deadline,
        });
    }

    /// What goes on while a step is under way.
    pub(super) fn under_way(&self) -> Reason {
        let work = self.memory.issued.as_ref().map(|issued| &issued.work);
        let why = match (&self.config.zone, work) {
            (None, _) => return self.attempt(),
            (
                Some(_),
                Some(Work::Align {
                    primary,
                    reseed: true,
                    ..
                }),
            ) => ZoneReason::Seeding(primary.clone()),
            (Some(_), Some(Work::Align { .. })) => ZoneReason::Aligning,
            (Some(_), Some(Work::Promote { .. })) => ZoneReason::Promoting,
            (Some(_), _) => ZoneReason::Changing,
        };
        Reason::Zone(why)
    }

    fn align(&self, epoch: Epoch, reseed: bool) -> Option<(Work, ZoneReason)> {
        let own = &self.config.zone.as_ref()?.site;
        let record = self.seen.zone.as_ref()?.record.known()?;
        let record = record.as_ref().map(|lease| &lease.record);
        let primary = record.map_or(own, |record| &record.primary).clone();
        let why = match reseed {
            true => ZoneReason::Seeding(primary.clone()),
            false => ZoneReason::Aligning,
        };
        let work = Work::Align {
            epoch,
            term: record.map_or(0, |record| record.term),
            writes: record.map_or(0, |record| record.writes),
            primary,
            reseed,
        };
        Some((work, why))
    }

    /// The cluster's record as it was seen last, whatever its age.
    fn cluster(&self) -> Option<&super::zone::ClusterLease> {
        self.seen.zone.as_ref()?.record.known()?.as_ref()
    }

    /// To move, a primary stops as in a handover: checkpoint, clients away, stop in order.
    fn next_stop(&self, epoch: Epoch, why: &ZoneReason) -> Work {
        let fast = Work::StopPostgres {
            mode: StopMode::Fast,
        };
        if !matches!(why, ZoneReason::Moving(_)) {
            return fast;
        }
        match self.memory.zone.stopping {
            Stopping::Not => Work::Checkpoint,
            Stopping::Checkpointed if self.config.routed => Work::Withdraw { epoch },
            Stopping::Checkpointed | Stopping::Withdrawn => Work::StopToMove,
            Stopping::Overdue => Work::StopPostgres {
                mode: StopMode::Immediate,
            },
        }
    }

    /// What makes the database of a blank volume: the first site's is new, the others' are copies.
    pub(super) fn first_data(&self, takeover: &TakeOver) -> Result<Work, Reason> {
        let epoch = takeover.epoch;
        let Some(zone) = &self.config.zone else {
            return Ok(Work::Format { epoch });
        };
        let unknown = Err(Reason::Zone(ZoneReason::RecordUnknown));
        let Some(seen) = self.seen.zone.as_ref() else {
            return unknown;
        };
        match seen.record.known() {
            None => unknown,
            Some(None) if self.memory.zone.newest.is_some() => {
                Err(Reason::Zone(ZoneReason::RecordLost))
            }
            // Only where there never was a database of this cluster.
            Some(None) if zone.first == zone.site => Ok(Work::Format { epoch }),
            Some(None) => Err(Reason::Zone(ZoneReason::WaitingForFirst(
                zone.first.clone(),
            ))),
            Some(Some(lease)) if lease.record.primary != zone.site => Ok(Work::Seed {
                epoch,
                from: lease.record.primary.clone(),
                term: lease.record.term,
            }),
            // A format that was broken off before anything was in service.
            Some(Some(lease)) if lease.record.system.is_none() => Ok(Work::Format { epoch }),
            Some(Some(_)) => Err(Reason::VolumeBlank),
        }
    }

    /// Whether PostgreSQL here is the primary, as far as is known: alone, always.
    pub(super) fn runs_the_primary(&self) -> bool {
        self.memory.zone.leads(self.config.zone.is_some())
    }

    /// Whether this request is on its way already.
    pub(super) fn between_sites(&self, request: RequestId) -> bool {
        let zone = &self.memory.zone;
        zone.moving
            .as_ref()
            .is_some_and(|asked| asked.request == request)
            || zone.urged.is_some_and(|urged| urged.request == request)
    }

    /// Answers what was asked for when the record says how it went.
    pub(super) fn finish_between_sites(&mut self) {
        if let Some(asked) = self.memory.zone.moving.clone() {
            self.finish_move(&asked);
        }
        if let Some(urged) = self.memory.zone.urged {
            self.finish_failover(urged);
        }
    }

    fn finish_move(&mut self, asked: &Asked) {
        let Some(record) = self.cluster().map(|lease| &lease.record) else {
            return;
        };
        let over = record.term > asked.term;
        let patience = self.timings().handover;
        let taken_back = record.moving.is_none() && asked.at.elapsed(patience, self.now);
        let moved = over && record.primary == asked.to;
        if !(over || taken_back) || (moved && !self.leads_there(asked)) {
            return;
        }
        self.memory.zone.moving = None;
        match moved {
            true => self.grant(asked.request),
            false => self.refuse(asked.request, Reason::HandoverFailed),
        }
    }

    /// Whether the step under way is one that the word asked for.
    fn works_for(&self, urged: Urged) -> bool {
        let (issued, holds) = (self.memory.issued.as_ref(), self.timings().promote);
        issued.is_some_and(|issued| urged.has_begun(&issued.work, issued.at, holds))
    }

    fn finish_failover(&mut self, urged: Urged) {
        let newest = self.memory.zone.newest;
        let made = |record: &&ClusterRecord| {
            record.term > urged.term && !newest.is_some_and(|newest| newest.outdates(record))
        };
        let record = self.cluster().map(|lease| &lease.record);
        let Some(record) = record.filter(made) else {
            if urged.at.elapsed(self.timings().promote, self.now) && !self.works_for(urged) {
                self.memory.zone.urged = None;
                self.refuse(urged.request, Reason::HandoverFailed);
            }
            return;
        };
        let here = self.config.zone.as_ref().map(|zone| &zone.site);
        let promoted = here == Some(&record.primary);
        if promoted && !self.runs_the_primary() {
            return;
        }
        self.memory.zone.urged = None;
        match promoted {
            true => self.grant(urged.request),
            false => self.refuse(urged.request, Reason::HandoverFailed),
        }
    }

    /// Whether the new primary answers as one, or has had its time for it.
    fn leads_there(&self, asked: &Asked) -> bool {
        let probe = self.seen.zone.as_ref().and_then(|zone| zone.probe.known());
        let leads = probe.is_some_and(|probe| probe.site == asked.to && !probe.in_recovery);
        leads || asked.at.elapsed(self.timings().promote, self.now)
    }

    fn owned_here(&self) -> Option<Ownership> {
        match &self.memory.role {
            Role::Active(own) => Some(*own),
            Role::Joining { .. }
            | Role::Standby
            | Role::TakingOver(_)
            | Role::HandingOver(_)
            | Role::Returning { .. }
            | Role::Leaving
            | Role::Stopped => None,
        }
    }

    /// `switchover --site`: the record says that the primary moves; the rest follows from it.
    pub(super) fn move_to_site(&mut self, id: RequestId, site: SiteNumber) {
        let ask = Ask::SwitchoverSite { site };
        let Some(own) = self.owned_here() else {
            return self.refuse_elsewhere(id, ask);
        };
        let Some(zone) = self.config.zone.clone() else {
            return self.refuse(id, Reason::NoSuchSite);
        };
        let to = zone.numbered(site).cloned();
        let Some(to) = to.filter(|to| *to != zone.site) else {
            return self.refuse(id, Reason::NoSuchSite);
        };
        if !self.runs_the_primary() || self.pending() {
            return self.refuse(id, Reason::NotNow { ask });
        }
        let now = self.now;
        let Some(judge) = self.judge(own.epoch, own.proven_at) else {
            return self.refuse(id, Reason::NotNow { ask });
        };
        match judge.begin_move(&to) {
            Ok((
                term,
                Move::Write {
                    expected, record, ..
                },
            )) => {
                self.memory.zone.moving = Some(Asked {
                    request: id,
                    to,
                    term,
                    at: now,
                });
                self.write_cluster(expected, record);
            }
            Ok(_) => self.refuse(id, Reason::NotNow { ask }),
            Err(why) => self.refuse(id, Reason::Zone(ZoneReason::NotSafe(why))),
        }
    }

    /// `failover`: to this site, whose primary's is silent.
    pub(super) fn fail_over(&mut self, id: RequestId, allow_data_loss: bool) {
        let ask = Ask::Failover { allow_data_loss };
        let Some(own) = self.owned_here() else {
            return self.refuse_elsewhere(id, ask);
        };
        let (leads, at) = (self.runs_the_primary(), self.now);
        let detection = self.timings().detection;
        let Some(judge) = self.judge(own.epoch, own.proven_at) else {
            return self.refuse(id, Reason::NotNow { ask });
        };
        // A primary has nothing to take over, unless nobody can tell any more that it is the one.
        if leads && !judge.record_is_lost() {
            return self.refuse(id, Reason::NotNow { ask });
        }
        match judge.may_be_urged(allow_data_loss, detection) {
            Ok(term) => {
                self.memory.zone.urged = Some(Urged {
                    request: id,
                    term,
                    allow_data_loss,
                    at,
                });
            }
            Err(why) => self.refuse(id, Reason::Zone(ZoneReason::NotSafe(why))),
        }
    }

    /// `reinit`: the copy is made anew.
    pub(super) fn reinit(&mut self, id: RequestId) {
        if self.owned_here().is_none() {
            return self.refuse_elsewhere(id, Ask::Reinit);
        }
        if self.runs_the_primary() {
            return self.refuse(id, Reason::NotNow { ask: Ask::Reinit });
        }
        self.memory.zone.reseed = true;
        self.grant(id);
    }
}
