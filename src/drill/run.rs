//! One drill from beginning to end: write, break, watch, check, report.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cast::Cast;
use super::check::{self, Checked};
use super::expect::{Course, wrong_rows};
use super::faults::Struck;
use super::gap::gaps;
use super::measure::millis;
use super::progress::Progress;
use super::report::{Check, Checks, Report};
use super::scenario::{Fault, Owner, Scenario};
use super::stage::Stage;
use super::stage_error::StageError;
use super::verify::{Verdict, verify};
use super::writer::{self, ON_THE_WAY, Plan, Writer, WriterError};
use super::{timeline, verify};
use crate::clock;
use crate::lab::layout::{Lab, LayoutError, MEMBERS, postgres_bin};

/// How long the lab may take until one member serves and the other is ready.
const STEADY_WITHIN: Duration = Duration::from_secs(90);

/// How long an insert may take until its session is given up.
const INSERT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long reading the table may wait for a server.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many connections write.
    pub connections: u16,
    /// How long they write before the fault, and after everything is back.
    pub seconds: Duration,
    /// Where the ledger and the reports go.
    pub report: PathBuf,
    /// Whether the lab is to run on when the drill is over.
    pub keep_running: bool,
}

/// A drill could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The lab did not do what the drill needs.
    #[error("carry out the drill")]
    Stage(#[from] StageError),
    /// The writer failed itself.
    #[error("write under the fault")]
    Writer(#[from] WriterError),
    /// The lab.
    #[error("find what the drill needs")]
    Layout(#[from] LayoutError),
    /// The user wants no more of it.
    #[error("{signal} ended the drill; every fault was undone")]
    Interrupted {
        /// By which signal.
        signal: &'static str,
    },
    /// The report could not be written.
    #[error("write the report to {}", dir.display())]
    Report {
        /// Its directory.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Runs a drill on a running lab and writes its report.
pub async fn run(
    scenario: &Scenario,
    options: &Options,
    lab: Lab,
    progress: &Progress,
) -> Result<Report, DrillError> {
    let failed = |source| DrillError::Report {
        dir: options.report.clone(),
        source,
    };
    std::fs::create_dir_all(&options.report).map_err(failed)?;
    let mut stage = Stage::new(lab);
    let ran = tokio::select! {
        ran = drill(scenario, options, &mut stage, progress) => ran,
        signal = interrupted() => Err(DrillError::Interrupted { signal }),
    };
    // whatever happened: nothing stays frozen, cut off or held down
    let undone = stage.undo().await;
    let report = ran?;
    undone?;
    report.write(&options.report).map_err(failed)?;
    Ok(report)
}

async fn drill(
    scenario: &Scenario,
    options: &Options,
    stage: &mut Stage,
    progress: &Progress,
) -> Result<Report, DrillError> {
    progress.step("waiting until one member serves and the other is ready");
    let mut before = stage.steady(STEADY_WITHIN).await?;
    if scenario.needs_cache() && !stage.lab.record.volatile_cache {
        before = with_cache(stage, &before, progress).await?;
    }
    let course = course(scenario, options, stage, before, progress).await?;
    let plan = plan(stage, options);
    progress.step("comparing the ledger with the table");
    let verdict = match writer::rows(&plan, READ_WITHIN).await {
        Ok(rows) => Ok(verify(&course.written.entries, &rows)),
        Err(error) => Err(format!("the table could not be read: {error}")),
    };
    let (checks, findings) = checks(stage, &course, &options.report, progress).await?;
    if !options.keep_running {
        stage.leave_stopped();
    }
    Ok(report(scenario, stage, &course, verdict, checks, findings))
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = async |kind| match signal(kind) {
        Ok(mut signals) => drop(signals.recv().await),
        // the signal's default action stays in force
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => "SIGINT",
        () = wait(SignalKind::terminate()) => "SIGTERM",
    }
}

/// Restarts the target with a volatile cache, nobody being at work on it.
async fn with_cache(
    stage: &mut Stage,
    cast: &Cast,
    progress: &Progress,
) -> Result<Cast, StageError> {
    progress.step("giving the target a volatile write cache");
    stage.quiesce(cast).await?;
    stage.restart_target(true, true).await?;
    stage.undo().await?;
    stage.steady(STEADY_WITHIN).await
}

fn plan(stage: &Stage, options: &Options) -> Plan {
    let server = |name: &str| {
        let mut server = tokio_postgres::Config::new();
        let address = stage.lab.member(name).postgres();
        server.host(address.ip().to_string()).port(address.port());
        server.user("postgres").dbname("postgres");
        server
    };
    Plan {
        servers: MEMBERS.into_iter().map(server).collect(),
        connections: options.connections,
        ledger: options.report.join("ledger"),
        insert_timeout: INSERT_TIMEOUT,
    }
}

/// Everything that happens while the writers write.
async fn course(
    scenario: &Scenario,
    options: &Options,
    stage: &mut Stage,
    before: Cast,
    progress: &Progress,
) -> Result<Course, DrillError> {
    let plan = plan(stage, options);
    remove_if_there(&plan.ledger)?;
    let old_fences = stage.audit().await?.fences.len();
    progress.step("writing");
    let writer = Writer::start(&plan, STEADY_WITHIN).await?;
    progress.watch(&writer, options.seconds).await;

    progress.step(scenario.what);
    let struck = Struck {
        fault: scenario.fault,
        cast: &before,
        writer: &writer,
        lasts: options.seconds,
        within: scenario.expect.max_gap,
    };
    let mut failures = Vec::new();
    let fault = clock::now();
    let injected = struck.strike(stage).await;
    failures.extend(injected.as_ref().err().map(StageError::words));
    let max_gap = scenario.expect.max_gap;
    if scenario.expect.owner == Owner::Moved && failures.is_empty() {
        failures.extend(
            stage
                .moved(&before, max_gap)
                .await
                .err()
                .as_ref()
                .map(StageError::words),
        );
    }
    if !writer.all_write(clock::now() + ON_THE_WAY, max_gap).await {
        failures.push(format!(
            "not all connections wrote again within {max_gap:?}"
        ));
    }
    progress.step("all write again; waiting for the other side to come back");
    if let Err(error) = struck.end(stage).await {
        failures.push(error.words());
        stage.undo().await?;
    }
    let after = stage.steady(STEADY_WITHIN).await;
    failures.extend(after.as_ref().err().map(StageError::words));
    progress.watch(&writer, options.seconds).await;
    let written = writer.finish().await?;
    let audit = stage.audit().await?;
    let gaps = gaps(&written.entries, options.connections, fault, written.ended);
    Ok(Course {
        before,
        after: after.ok(),
        fault,
        written,
        gaps,
        audit,
        old_fences,
        failures,
    })
}

fn remove_if_there(path: &Path) -> Result<(), DrillError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DrillError::Report {
            dir: path.to_owned(),
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// `pg_amcheck` on the running database; then both members stopped, and the volume checked at rest.
async fn checks(
    stage: &mut Stage,
    course: &Course,
    report: &Path,
    progress: &Progress,
) -> Result<(Checks, Vec<String>), DrillError> {
    let bin_dir = postgres_bin()?;
    let image = stage.lab.namespace();
    let cast = course.after.as_ref().unwrap_or(&course.before);
    progress.step("pg_amcheck");
    let address = stage.lab.member(&cast.active).postgres();
    let server = check::Server {
        host: address.ip().to_string(),
        port: address.port(),
        user: "postgres".to_owned(),
    };
    let amcheck = check::amcheck(&server, &bin_dir).await;
    progress.step("stopping both members; e2fsck, pg_checksums");
    let (e2fsck, checksums) = match stage.quiesce(cast).await {
        Ok(()) => {
            let e2fsck = check::e2fsck(&image).await;
            let mount_point =
                check::mount_point(&stage.lab.dir).map_err(|source| DrillError::Report {
                    dir: report.to_owned(),
                    source,
                })?;
            (
                e2fsck,
                check::checksums(&image, &mount_point, &bin_dir).await,
            )
        }
        Err(error) => {
            let why = format!("the members could not be stopped: {}", error.words());
            (check::not_run(why.clone()), check::not_run(why))
        }
    };
    let all = [&e2fsck, &checksums, &amcheck];
    let findings = all
        .into_iter()
        .filter_map(|checked| checked.finding.clone())
        .collect();
    let result = |checked: &Checked| -> Check { checked.result };
    let checks = Checks {
        e2fsck: result(&e2fsck),
        checksums: result(&checksums),
        amcheck: result(&amcheck),
    };
    Ok((checks, findings))
}

fn report(
    scenario: &Scenario,
    stage: &Stage,
    course: &Course,
    verdict: Result<Verdict, String>,
    checks: Checks,
    findings: Vec<String>,
) -> Report {
    let Course {
        before,
        after,
        fault,
        written,
        gaps,
        ..
    } = course;
    let done = timeline::between(&stage.lab, *fault, written.ended);
    let former = stage.lab.member(&before.active).record().host_id;
    let mut failures = course.failures(scenario, &former.to_string());
    let writes = match verdict {
        Ok(verdict) => {
            failures.extend(wrong_rows(&verdict));
            verdict.writes
        }
        Err(why) => {
            failures.push(why);
            verify::Writes::default()
        }
    };
    failures.extend(findings);
    let fence = course.fence(&done);
    if fence.as_ref().is_some_and(|fence| !fence.verified) {
        failures.push("the fence is not verified".to_owned());
    }
    let planned = matches!(scenario.fault, Fault::Switchover | Fault::Terminate);
    let detection = timeline::detection_ms(&done, *fault).filter(|_| !planned);
    Report {
        scenario: scenario.name.to_owned(),
        passed: failures.is_empty(),
        failures,
        epoch_before: before.epoch,
        epoch_after: after.as_ref().map_or(before.epoch, |cast| cast.epoch),
        write_gap_ms: millis(gaps.longest.length()),
        detection_ms: detection,
        phases: timeline::phases(&done, *fault, gaps.longest.to),
        writes,
        fence,
        checks,
    }
}
