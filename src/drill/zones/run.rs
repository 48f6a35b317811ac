//! One drill of two sites from beginning to end: write, break, watch, check both sites, report.

use std::net::SocketAddr;
use std::time::Duration;

use super::cast::{SITES, ZoneCast};
use super::course::{BACK_WITHIN, Scene};
use super::ground::Zones;
use super::history::{Timelines, caught_up};
use super::scenario::{ZoneFault, ZoneScenario};
use super::sql;
use crate::clock::Mono;
use crate::drill::check::{self, Checked};
use crate::drill::expect::{fence_of, wrong_rows};
use crate::drill::gap::{Gaps, gaps};
use crate::drill::ground::Ground;
use crate::drill::ledger::Fate;
use crate::drill::measure::millis;
use crate::drill::progress::Progress;
use crate::drill::report::{self, Checks, Fence, Report};
use crate::drill::run::{
    DrillError, Options, READ_WITHIN, STEADY_WITHIN, finish, plan_of, prepare, remove_if_there,
    told, unless_interrupted,
};
use crate::drill::stage_error::StageError;
use crate::drill::target::Audit;
use crate::drill::timeline::{self, Done};
use crate::drill::verify::{Verdict, Writes, verify};
use crate::drill::writer::{self, Plan, Writer, Written};
use crate::lab::layout::postgres_bin;

/// How long an insert may take until its session is given up: over a slow line a commit takes seconds.
const INSERT_TIMEOUT: Duration = Duration::from_secs(12);

/// The same where a site that cannot commit goes on taking sessions: nobody gets anything from it.
const INSERT_TIMEOUT_PARTED: Duration = Duration::from_secs(3);

/// Runs a drill where both sites run already, and writes its report.
///
/// # Errors
/// What kept it from being carried out; a drill that failed is a report.
pub async fn run(
    scenario: &ZoneScenario,
    options: &Options,
    zones: &mut Zones,
    progress: &Progress,
) -> Result<Report, DrillError> {
    prepare(options)?;
    let ran = unless_interrupted(drill(scenario, options, zones, progress)).await;
    // whatever happened: nothing stays cut off, slow or held down
    let undone = zones.undo().await;
    finish(ran, undone, options)
}

/// What is known after the writers have stopped.
struct Course {
    before: ZoneCast,
    /// None if the sites did not come back.
    after: Option<ZoneCast>,
    timelines: Timelines,
    fault: Mono,
    written: Written,
    gaps: Gaps,
    /// How many fences each target had recorded before the drill.
    old_fences: [usize; SITES],
    failures: Vec<String>,
    notes: Vec<String>,
}

async fn drill(
    scenario: &ZoneScenario,
    options: &Options,
    zones: &mut Zones,
    progress: &Progress,
) -> Result<Report, DrillError> {
    progress.step("waiting for a primary, its confirmed replica, and a ready standby at each site");
    let before = zones.steady(BACK_WITHIN).await?;
    let insert_timeout = match scenario.fault {
        ZoneFault::Partition | ZoneFault::Rejoin => INSERT_TIMEOUT_PARTED,
        ZoneFault::Loss
        | ZoneFault::Latency
        | ZoneFault::ReplicaHandover
        | ZoneFault::SlotOverflow => INSERT_TIMEOUT,
    };
    let plan = plan_of(zones.servers(), insert_timeout, options);
    let course = course(scenario, options, zones, before, &plan, progress).await?;
    let judged = judge(scenario, zones, &course, &plan, progress).await?;
    if !options.keep_running {
        zones.leave_stopped();
    }
    Ok(report(scenario, course, judged))
}

/// Everything that happens while the writers write.
async fn course(
    scenario: &ZoneScenario,
    options: &Options,
    zones: &mut Zones,
    before: ZoneCast,
    plan: &Plan,
    progress: &Progress,
) -> Result<Course, DrillError> {
    remove_if_there(&plan.ledger)?;
    let timelines = Timelines::of(address(zones, &before, before.primary)).await?;
    let mut old_fences = [0; SITES];
    for (site, count) in old_fences.iter_mut().enumerate() {
        *count = zones.site(site).audit().await?.fences.len();
    }
    progress.step("writing");
    let writer = Writer::start(plan, STEADY_WITHIN).await?;
    progress.watch(&writer, options.seconds).await;
    let mut scene = Scene {
        zones: &mut *zones,
        writer: &writer,
        progress,
        before: &before,
        max_gap: scenario.max_gap,
        seconds: options.seconds,
        fault: None,
        failures: Vec::new(),
        notes: Vec::new(),
    };
    let played = scene.play(scenario.fault).await;
    let Scene {
        fault,
        mut failures,
        notes,
        ..
    } = scene;
    if let Err(error) = &played {
        failures.push(error.words());
        zones.undo().await?;
    }
    let after = zones.steady(BACK_WITHIN).await;
    failures.extend(after.as_ref().err().map(StageError::words));
    let written = writer.finish().await?;
    // a drill that did not get that far has no gap
    let fault = fault.unwrap_or(written.ended);
    let gaps = gaps(&written.entries, options.connections, fault, written.ended);
    Ok(Course {
        before,
        after: after.ok(),
        timelines,
        fault,
        written,
        gaps,
        old_fences,
        failures,
        notes,
    })
}

/// Where clients reach the active of a site.
fn address(zones: &mut Zones, cast: &ZoneCast, site: usize) -> SocketAddr {
    zones.site(site).postgres(&cast.sites[site].active)
}

/// What the checks after the writers' end have found.
struct Judged {
    failures: Vec<String>,
    /// Of the primary and of the replica at the end.
    writes: [Writes; SITES],
    checks: [Checks; SITES],
    newest_timeline: Option<u32>,
    fence: Option<Fence>,
    done: Vec<Done>,
}

async fn judge(
    scenario: &ZoneScenario,
    zones: &mut Zones,
    course: &Course,
    plan: &Plan,
    progress: &Progress,
) -> Result<Judged, DrillError> {
    let cast = course.after.as_ref().unwrap_or(&course.before);
    let [primary, replica] = [cast.primary, cast.replica()].map(|site| address(zones, cast, site));
    let mut failures = Vec::new();
    progress.step("comparing the ledger with both sites' tables");
    let rows = writer::rows(plan, READ_WITHIN).await;
    let rows = rows.map(|rows| verify(&course.written.entries, &rows));
    let of_primary = rows_of("primary", rows, &mut failures);
    failures.extend(told(caught_up(primary, replica).await));
    let rows = writer::rows_on(&sql::server(replica)).await;
    let rows = rows.map(|rows| verify(&course.written.entries, &rows));
    let of_replica = rows_of("replica", rows, &mut failures);

    let mut newest_timeline = None;
    match (Timelines::of(primary).await, Timelines::of(replica).await) {
        (Ok(ours), Ok(theirs)) => {
            failures.extend(ours.wrong(&course.timelines, &theirs, scenario.promotions));
            newest_timeline = ours.newest();
        }
        (Err(error), _) | (_, Err(error)) => failures.push(error.words()),
    }
    let steps = zones.steps().await?;
    let done = timeline::between(steps, course.fault, course.written.ended);
    let audits = [zones.site(0).audit().await?, zones.site(1).audit().await?];
    let fence = fences(zones, course, &audits, &done, &mut failures);
    let (checks, findings) = checks(zones, cast, [primary, replica], progress).await?;
    failures.extend(findings);
    Ok(Judged {
        failures,
        writes: [of_primary, of_replica],
        checks,
        newest_timeline,
        fence,
        done,
    })
}

fn rows_of(
    whose: &str,
    verdict: Result<Verdict, writer::WriterError>,
    failures: &mut Vec<String>,
) -> Writes {
    match verdict {
        Ok(verdict) => {
            let wrong = wrong_rows(&verdict).into_iter();
            failures.extend(wrong.map(|text| format!("{whose}: {text}")));
            verdict.writes
        }
        Err(error) => {
            failures.push(format!("the {whose}'s table could not be read: {error}"));
            Writes::default()
        }
    }
}

/// The last fence within a site, where there was one. Both members may come back at once and try; the
/// proof is that of the one that the target names.
fn fences(
    zones: &mut Zones,
    course: &Course,
    audits: &[Audit; SITES],
    done: &[Done],
    failures: &mut Vec<String>,
) -> Option<Fence> {
    let mut last = None;
    for (site, (audit, old)) in audits.iter().zip(course.old_fences).enumerate() {
        let (name, ground) = (Zones::name(site), zones.site(site));
        if audit.violations > 0 {
            let violations = audit.violations;
            failures.push(format!(
                "site {name}: the target applied {violations} writes of a fenced host"
            ));
        }
        let fences = audit.fences.get(old..).unwrap_or_default();
        let by = fences.last().map(|fence| fence.by.as_str());
        let members = ground.members().into_iter();
        let fencer = members.filter(|member| Some(ground.host_id(member).as_str()) == by);
        let fencer: Vec<_> = fencer.collect();
        let theirs = done
            .iter()
            .filter(|(member, _)| fencer.contains(&member.as_str()));
        let theirs: Vec<_> = theirs.cloned().collect();
        let fence = fence_of(fences, audit.violations, &theirs);
        if fence.as_ref().is_some_and(|fence| !fence.verified) {
            failures.push(format!("site {name}: the fence is not verified"));
        }
        last = fence.or(last);
    }
    last
}

/// `pg_amcheck` on both running databases; then everything stopped, and both volumes checked at rest.
/// The primary's results first.
async fn checks(
    zones: &mut Zones,
    cast: &ZoneCast,
    addresses: [SocketAddr; SITES],
    progress: &Progress,
) -> Result<([Checks; SITES], Vec<String>), DrillError> {
    progress.step("pg_amcheck on both sites");
    let bin_dir = postgres_bin()?;
    let [primary, replica] = addresses.map(check::Server::at);
    let primary = check::amcheck(&primary, &bin_dir).await;
    // its functions come from the primary, as everything else
    let followed = caught_up(addresses[0], addresses[1]).await;
    let replica = match followed {
        Ok(()) => check::amcheck_replica(&replica, &bin_dir).await,
        Err(error) => check::not_run(error.words()),
    };
    progress.step("stopping all members; e2fsck, pg_checksums");
    let mut at_rest = match zones.quiesce(cast).await {
        Ok(()) => zones.inspect().await?,
        Err(error) => {
            let why = format!("the members could not be stopped: {}", error.words());
            let not_run =
                || -> [Checked; 2] { [check::not_run(why.clone()), check::not_run(why.clone())] };
            [not_run(), not_run()]
        }
    };
    if cast.primary != 0 {
        at_rest.reverse();
    }
    let [[e2fsck, checksums], [e2fsck_there, checksums_there]] = at_rest;
    let (ours, mut findings) = Checks::of([e2fsck, checksums, primary]);
    let (theirs, more) = Checks::of([e2fsck_there, checksums_there, replica]);
    findings.extend(
        more.into_iter()
            .map(|finding| format!("replica: {finding}")),
    );
    Ok(([ours, theirs], findings))
}

impl Course {
    /// What the scenario promises, where it does not hold, in words.
    fn failures(&self, scenario: &ZoneScenario) -> Vec<String> {
        let mut wrong = self.failures.clone();
        let (gap, max_gap) = (self.gaps.longest.length(), scenario.max_gap);
        if gap > max_gap {
            wrong.push(format!("no write for {gap:?}, more than {max_gap:?}"));
        }
        let entries = self.written.entries.iter();
        let broke = entries.filter(|entry| entry.fate == Fate::Unknown).count();
        if scenario.fault == ZoneFault::ReplicaHandover && broke > 0 {
            wrong.push(format!(
                "{broke} sessions broke, but nothing was to be interrupted"
            ));
        }
        wrong.extend(
            self.after
                .as_ref()
                .and_then(|after| self.wrong_place(after, scenario)),
        );
        wrong
    }

    fn wrong_place(&self, after: &ZoneCast, scenario: &ZoneScenario) -> Option<String> {
        let before = &self.before;
        let promotions = scenario.promotions;
        let moved = promotions % 2 == 1;
        if (after.primary != before.primary) != moved {
            let (from, to) = (Zones::name(before.primary), Zones::name(after.primary));
            return Some(format!(
                "the primary was at site {from} and is at site {to}"
            ));
        }
        let terms = after.term.saturating_sub(before.term);
        if terms != promotions as u64 {
            return Some(format!(
                "the term rose by {terms}, but must by {promotions}"
            ));
        }
        let epochs = [before, after].map(|cast| cast.sites[cast.primary].epoch);
        (promotions == 0 && epochs[0] != epochs[1])
            .then(|| "the primary's site changed its owner, but nothing was to".to_owned())
    }
}

fn report(scenario: &ZoneScenario, course: Course, judged: Judged) -> Report {
    let mut failures = course.failures(scenario);
    failures.extend(judged.failures);
    let after = course.after.as_ref().unwrap_or(&course.before);
    let ends = [&course.before, after];
    let served = course.gaps.longest.to;
    // how the lost side came back is not what clients waited for
    let done = judged.done.iter().filter(|(_, step)| step.began <= served);
    let done: Vec<_> = done.cloned().collect();
    let promoted = done.iter().find(|(_, step)| step.name == "promote");
    let detection = promoted.map(|(_, step)| millis(step.began.since(course.fault)));
    let [writes, replica_writes] = judged.writes;
    let [checks, replica_checks] = judged.checks;
    let [epoch_before, epoch_after] = ends.map(|cast| cast.sites[cast.primary].epoch);
    Report {
        scenario: scenario.name.to_owned(),
        passed: failures.is_empty(),
        failures,
        epoch_before,
        epoch_after,
        write_gap_ms: millis(course.gaps.longest.length()),
        detection_ms: detection,
        phases: timeline::phases(&done, course.fault, served),
        writes,
        fence: judged.fence,
        checks,
        zones: Some(report::Zones {
            primary: ends.map(|cast| Zones::name(cast.primary).to_owned()),
            term: ends.map(|cast| cast.term),
            timeline: [course.timelines.newest(), judged.newest_timeline]
                .map(Option::unwrap_or_default),
            replica_writes,
            replica_checks,
            notes: course.notes,
        }),
    }
}
