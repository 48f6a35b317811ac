//! `baton drill`: faults under load, and what must follow from them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::drill::measure::Measure;
use crate::drill::writer::Plan;

/// Break the running system under load, and check that no acknowledged write is lost
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    drill: Drill,
}

#[derive(clap::Subcommand)]
enum Drill {
    /// Measure one fault under the writer, against any PostgreSQL cluster (for the benchmark)
    #[command(hide = true)]
    Measure(MeasureArgs),
}

#[derive(clap::Args)]
struct MeasureArgs {
    /// A server that may accept writes, as "host=… port=… user=…"; give all of them
    #[arg(long = "server", value_name = "DSN", required = true)]
    servers: Vec<tokio_postgres::Config>,
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
        Drill::Measure(args) => runtime.block_on(measure(args)),
    }
}

async fn measure(args: MeasureArgs) -> anyhow::Result<ExitCode> {
    let measure = Measure {
        plan: Plan {
            servers: args.servers,
            connections: args.connections,
            ledger: args.ledger,
            insert_timeout: seconds(args.insert_timeout)?,
        },
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
