//! One drill from beginning to end: write, break, watch, check, report.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cast::Cast;
use super::check;
use super::expect::{Course, wrong_rows};
use super::faults::Struck;
use super::gap::gaps;
use super::ground::Ground;
use super::measure::millis;
use super::progress::Progress;
use super::report::{Checks, Report};
use super::scenario::{Fault, Owner, Scenario};
use super::stage_error::StageError;
use super::timeline::{self, Done};
use super::verify;
use super::verify::{Verdict, verify};
use super::writer::{self, ON_THE_WAY, Plan, Writer, WriterError};
use crate::clock;
use crate::lab::layout::{LayoutError, postgres_bin};

/// How long the system may take until one member serves and the other is ready.
pub(super) const STEADY_WITHIN: Duration = Duration::from_secs(90);

/// How long an insert may take until its session is given up.
const INSERT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long reading the table may wait for a server.
pub(super) const READ_WITHIN: Duration = Duration::from_secs(30);

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many connections write.
    pub connections: u16,
    /// How long they write before the fault, and after everything is back.
    pub seconds: Duration,
    /// Where the ledger and the reports go.
    pub report: PathBuf,
    /// Whether the system is to run on when the drill is over.
    pub keep_running: bool,
}

/// A drill could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The system did not do what the drill needs.
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

/// Runs a drill where everything runs already, and writes its report.
///
/// # Errors
/// What kept it from being carried out; a drill that failed is a report.
pub async fn run(
    scenario: &Scenario,
    options: &Options,
    ground: &mut impl Ground,
    progress: &Progress,
) -> Result<Report, DrillError> {
    prepare(options)?;
    let ran = unless_interrupted(drill(scenario, options, ground, progress)).await;
    // whatever happened: nothing stays frozen, cut off or held down
    let undone = ground.undo().await;
    finish(ran, undone, options)
}

fn report_error(options: &Options) -> impl FnOnce(io::Error) -> DrillError {
    let dir = options.report.clone();
    move |source| DrillError::Report { dir, source }
}

/// Makes the directory of the report.
pub(super) fn prepare(options: &Options) -> Result<(), DrillError> {
    std::fs::create_dir_all(&options.report).map_err(report_error(options))
}

/// The drill, up to its end or the user's.
pub(super) async fn unless_interrupted(
    drill: impl Future<Output = Result<Report, DrillError>>,
) -> Result<Report, DrillError> {
    tokio::select! {
        ran = drill => ran,
        signal = interrupted() => Err(DrillError::Interrupted { signal }),
    }
}

/// Writes the report, once every fault was undone.
pub(super) fn finish(
    ran: Result<Report, DrillError>,
    undone: Result<(), StageError>,
    options: &Options,
) -> Result<Report, DrillError> {
    let report = ran?;
    undone?;
    report
        .write(&options.report)
        .map_err(report_error(options))?;
    Ok(report)
}

async fn drill(
    scenario: &Scenario,
    options: &Options,
    ground: &mut impl Ground,
    progress: &Progress,
) -> Result<Report, DrillError> {
    progress.step("waiting until one member serves and the other is ready");
    let mut before = ground.steady(STEADY_WITHIN).await?;
    if scenario.needs_cache() {
        progress.step("making sure that the target has a volatile write cache");
        ground.with_volatile_cache(&before).await?;
        before = ground.steady(STEADY_WITHIN).await?;
    }
    let course = course(scenario, options, ground, before, progress).await?;
    let plan = plan(ground, options);
    progress.step("comparing the ledger with the table");
    let verdict = match writer::rows(&plan, READ_WITHIN).await {
        Ok(rows) => Ok(verify(&course.written.entries, &rows)),
        Err(error) => Err(format!("the table could not be read: {error}")),
    };
    let steps = ground.steps().await?;
    let (checks, findings) = checks(ground, &course, progress).await?;
    if !options.keep_running {
        ground.leave_stopped();
    }
    let done = timeline::between(steps, course.fault, course.written.ended);
    let former = ground.host_id(&course.before.active);
    let judged = Judged {
        failures: course.failures(scenario, &former),
        verdict,
        checks,
        findings,
    };
    Ok(report(scenario, &course, &done, judged))
}

/// Waits for SIGINT or SIGTERM.
pub(crate) async fn interrupted() -> &'static str {
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

fn plan(ground: &impl Ground, options: &Options) -> Plan {
    let servers = ground.members().map(|name| ground.postgres(name));
    plan_of(servers, INSERT_TIMEOUT, options)
}

/// What to write to the members at these addresses.
pub(super) fn plan_of(
    addresses: impl IntoIterator<Item = SocketAddr>,
    insert_timeout: Duration,
    options: &Options,
) -> Plan {
    let server = |address: SocketAddr| {
        let mut server = tokio_postgres::Config::new();
        server.host(address.ip().to_string()).port(address.port());
        server.user("postgres").dbname("postgres");
        server
    };
    Plan {
        servers: addresses.into_iter().map(server).collect(),
        connections: options.connections,
        ledger: options.report.join("ledger"),
        insert_timeout,
    }
}

/// Everything that happens while the writers write.
async fn course(
    scenario: &Scenario,
    options: &Options,
    ground: &mut impl Ground,
    before: Cast,
    progress: &Progress,
) -> Result<Course, DrillError> {
    let plan = plan(ground, options);
    remove_if_there(&plan.ledger)?;
    let old_fences = ground.audit().await?.fences.len();
    progress.step("writing");
    let writer = Writer::start(&plan, STEADY_WITHIN).await?;
    progress.watch(&writer, options.seconds).await;

    progress.step(scenario.what);
    let struck = Struck {
        fault: scenario.fault,
        cast: &before,
        lasts: options.seconds,
    };
    let fault = clock::now();
    let mut failures = told(struck.strike(ground).await);
    let max_gap = scenario.expect.max_gap;
    if scenario.expect.owner == Owner::Moved && failures.is_empty() {
        failures.extend(told(ground.moved(&before, max_gap).await));
    }
    if !writer.all_write(clock::now() + ON_THE_WAY, max_gap).await {
        failures.push(format!(
            "not all connections wrote again within {max_gap:?}"
        ));
    }
    progress.step("all write again; waiting for the other side to come back");
    if let Err(error) = struck.end(ground).await {
        failures.push(error.words());
        ground.undo().await?;
    }
    let after = ground.steady(STEADY_WITHIN).await;
    failures.extend(after.as_ref().err().map(StageError::words));
    progress.watch(&writer, options.seconds).await;
    let written = writer.finish().await?;
    let audit = ground.audit().await?;
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

/// What failed, in words.
pub(super) fn told(result: Result<(), StageError>) -> Vec<String> {
    result.err().iter().map(StageError::words).collect()
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), DrillError> {
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
    ground: &mut impl Ground,
    course: &Course,
    progress: &Progress,
) -> Result<(Checks, Vec<String>), DrillError> {
    let cast = course.after.as_ref().unwrap_or(&course.before);
    progress.step("pg_amcheck");
    let server = check::Server::at(ground.postgres(&cast.active));
    let amcheck = check::amcheck(&server, &postgres_bin()?).await;
    progress.step("stopping both members; e2fsck, pg_checksums");
    let [e2fsck, checksums] = match ground.quiesce(cast).await {
        Ok(()) => ground.inspect().await?,
        Err(error) => {
            let why = format!("the members could not be stopped: {}", error.words());
            [check::not_run(why.clone()), check::not_run(why)]
        }
    };
    Ok(Checks::of([e2fsck, checksums, amcheck]))
}

/// What was found beside the course of events.
struct Judged {
    failures: Vec<String>,
    verdict: Result<Verdict, String>,
    checks: Checks,
    findings: Vec<String>,
}

fn report(scenario: &Scenario, course: &Course, done: &[Done], judged: Judged) -> Report {
    let Course {
        before,
        after,
        fault,
        written: _,
        gaps,
        ..
    } = course;
    let mut failures = judged.failures;
    let writes = match judged.verdict {
        Ok(verdict) => {
            failures.extend(wrong_rows(&verdict));
            verdict.writes
        }
        Err(why) => {
            failures.push(why);
            verify::Writes::default()
        }
    };
    failures.extend(judged.findings);
    let fence = course.fence(done);
    if fence.as_ref().is_some_and(|fence| !fence.verified) {
        failures.push("the fence is not verified".to_owned());
    }
    let planned = matches!(scenario.fault, Fault::Switchover | Fault::Terminate);
    let detection = timeline::detection_ms(done, *fault).filter(|_| !planned);
    Report {
        scenario: scenario.name.to_owned(),
        passed: failures.is_empty(),
        failures,
        epoch_before: before.epoch,
        epoch_after: after.as_ref().map_or(before.epoch, |cast| cast.epoch),
        write_gap_ms: millis(gaps.longest.length()),
        detection_ms: detection,
        phases: timeline::phases(done, *fault, gaps.longest.to),
        writes,
        fence,
        checks: judged.checks,
        zones: None,
    }
}
