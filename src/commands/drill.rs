//! `baton drill`: faults under load, and what must follow from them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::builder::PossibleValuesParser;

use crate::drill::lab::LabGround;
use crate::drill::measure::Measure;
use crate::drill::progress::Progress;
use crate::drill::report::Report;
use crate::drill::run::{self, Options};
use crate::drill::scenario;
use crate::drill::writer::Plan;
use crate::drill::zones::{self, ground::Zones};
use crate::lab::down::down;
use crate::lab::layout::{Lab, Wanted};
use crate::lab::up::up;

/// Where a drill's own lab is while it runs. On a disk: in memory, PostgreSQL's syncs would cost
/// nothing.
const LABS: &str = "/var/tmp";

/// Break the running system under load, and check that no acknowledged write is lost
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    drill: Drill,
}

#[derive(clap::Subcommand)]
enum Drill {
    /// Run one drill on a running lab, or on one of its own
    Run(RunArgs),
    /// List all drills: what is done, and what must follow
    List,
    /// Measure one fault under the writer, against any PostgreSQL cluster (for the benchmark)
    #[command(hide = true)]
    Measure(MeasureArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// Which drill; `baton drill list` tells them
    #[arg(value_parser = PossibleValuesParser::new(scenario::names().chain(zones::scenario::names())))]
    scenario: String,
    /// Connections that write at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=90))]
    connections: u16,
    /// Seconds of writing before the fault, and again when everything is back
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    seconds: f64,
    /// Where report.json, report.txt and the ledger go
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// The directory of a running lab; without it, the drill brings one up and takes it down
    #[arg(long, value_name = "DIR")]
    lab: Option<PathBuf>,
}

#[derive(clap::Args)]
struct MeasureArgs {
    /// A server that may accept writes, as "host=… port=… user=…"; give all of them
    #[arg(long = "server", value_name = "DSN", required = true)]
    servers: Vec<tokio_postgres::Config>,
    /// A shell command that is run to its end before the fault, under the writer
    #[arg(long, value_name = "COMMAND")]
    prelude: Option<String>,
    /// The shell command that injects the fault
    #[arg(long, value_name = "COMMAND")]
    fault: String,
    /// Where the ledger is kept; must not exist
    #[arg(long, value_name = "FILE")]
    ledger: PathBuf,
    /// Connections that write at the same time
    #[arg(long, default_value_t = 8)]
    connections: u16,
    /// Seconds of writing before the fault
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    before: f64,
    /// Seconds until every connection must write again
    #[arg(long, default_value_t = 90.0, value_name = "SECONDS")]
    within: f64,
    /// Seconds of writing after that
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    after: f64,
    /// Seconds until an insert without answer is given up
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    insert_timeout: f64,
}

/// Runs the drill; the exit code is 0 only if it passed.
///
/// # Errors
/// What kept the drill from being carried out, as opposed to a drill that failed.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    match args.drill {
        Drill::Run(args) => runtime.block_on(drill(args)),
        Drill::List => {
            list();
            Ok(ExitCode::SUCCESS)
        }
        Drill::Measure(args) => runtime.block_on(measure(args)),
    }
}

fn list() {
    let one = scenario::SCENARIOS.iter().map(|s| (s.name, s.what, s.must));
    let two = zones::scenario::SCENARIOS
        .iter()
        .map(|s| (s.name, s.what, s.must));
    for (name, what, must) in one.chain(two) {
        println!("{name:<17} {what}\n{:<17} must follow: {must}", "");
    }
}

/// A drill of one site, or of two.
enum Which {
    One(&'static scenario::Scenario),
    Two(&'static zones::scenario::ZoneScenario),
}

impl Which {
    fn find(name: &str) -> Option<Self> {
        let two = || zones::scenario::find(name).map(Self::Two);
        scenario::find(name).map(Self::One).or_else(two)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::One(scenario) => scenario.name,
            Self::Two(scenario) => scenario.name,
        }
    }

    /// The lab that it brings up for itself.
    fn wanted(&self) -> Wanted {
        match self {
            Self::One(scenario) => Wanted {
                volatile_cache: scenario.needs_cache(),
                ..Wanted::default()
            },
            Self::Two(scenario) => Wanted {
                sites: Some(2),
                slot_wal_max: scenario.slot_wal_max().map(str::to_owned),
                ..Wanted::default()
            },
        }
    }

    async fn run(
        &self,
        lab: Lab,
        options: &Options,
        progress: &Progress,
    ) -> anyhow::Result<Report> {
        Ok(match self {
            Self::One(_) if lab.record.wide.is_some() => {
                anyhow::bail!("this drill is for one site, but the lab has two")
            }
            Self::One(scenario) => {
                run::run(scenario, options, &mut LabGround::new(lab), progress).await?
            }
            Self::Two(scenario) => {
                zones::run::run(scenario, options, &mut Zones::new(lab)?, progress).await?
            }
        })
    }
}

async fn drill(args: RunArgs) -> anyhow::Result<ExitCode> {
    let which = Which::find(&args.scenario).context("find the drill")?;
    // a drill without --report keeps its ledger in a directory that goes with it
    let scratch = tempfile::Builder::new()
        .prefix("baton-drill-")
        .tempdir_in(LABS)?;
    let options = Options {
        connections: args.connections,
        seconds: seconds(args.seconds)?,
        report: args.report.unwrap_or_else(|| scratch.path().join("report")),
        keep_running: args.lab.is_some(),
    };
    let progress = Progress::new(which.name());
    let report = match args.lab {
        Some(dir) => which.run(Lab::open(&dir)?, &options, &progress).await?,
        None => {
            let lab = up(&scratch.path().join("lab"), &which.wanted()).await?;
            let ran = which.run(lab.clone(), &options, &progress).await;
            progress.step("taking the lab down");
            let down = down(&lab).await;
            let passed = ran.as_ref().is_ok_and(|report| report.passed);
            if !passed {
                eprintln!("the lab's logs are kept in {}", scratch.keep().display());
            }
            let report = ran?;
            down?;
            report
        }
    };
    drop(progress);
    print!("{report}");
    Ok(ExitCode::from(u8::from(!report.passed)))
}

async fn measure(args: MeasureArgs) -> anyhow::Result<ExitCode> {
    let measure = Measure {
        plan: Plan {
            servers: args.servers,
            connections: args.connections,
            ledger: args.ledger,
            insert_timeout: seconds(args.insert_timeout)?,
        },
        prelude: args.prelude,
        fault: args.fault,
        before: seconds(args.before)?,
        within: seconds(args.within)?,
        after: seconds(args.after)?,
    };
    let measured = measure.run().await.context("measure the fault")?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(ExitCode::from(u8::from(!measured.passed)))
}

fn seconds(seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds).with_context(|| format!("{seconds} is no duration"))
}
