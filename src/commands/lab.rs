//! `baton lab`: the whole system on this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use crate::drill::cast::Cast;
use crate::drill::ground::Ground;
use crate::drill::lab::LabGround;
use crate::drill::run::interrupted;
use crate::drill::stage_error::StageError;
use crate::drill::zones::ground::Zones;
use crate::lab::layout::{DEFAULT_SIZE, Lab, Wanted};
use crate::lab::protocol::{AskError, Request, ServiceState, ask_supervisor};
use crate::lab::up::{Started, up};
use crate::lab::{bare, down, supervisor};

/// Where a lab is if nobody says otherwise. On a disk: in memory, PostgreSQL's syncs would cost
/// nothing.
pub const DEFAULT_DIR: &str = "/var/tmp/baton-lab";

/// How long the supervisor may take to tell how it is.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// How long the lab may take until one member serves and the other is ready.
const SERVES_WITHIN: Duration = Duration::from_secs(120);

/// Run the whole system on this machine: an NVMe/TCP target and two members, or two sites of that
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    lab: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Start a lab in the background; returns when PostgreSQL serves and the standby is ready
    Up(UpArgs),
    /// End the lab; its data stays
    Down(DirArgs),
    /// Show what runs; exits with 0 if one member serves and the other is ready, at each site
    Status(DirArgs),
    /// Be the supervisor, in the foreground
    #[command(hide = true)]
    Supervise(DirArgs),
    /// Be two bare sites and the line between them, in the foreground (for the benchmark)
    #[command(hide = true)]
    Line(DirArgs),
}

#[derive(clap::Args)]
struct DirArgs {
    /// The directory that holds everything of the lab
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
}

#[derive(clap::Args)]
struct UpArgs {
    #[command(flatten)]
    dir: DirArgs,
    /// The volume's size in MiB, if it is made now
    #[arg(long, default_value_t = DEFAULT_SIZE >> 20, value_name = "MIB", value_parser = clap::value_parser!(u64).range(256..))]
    size: u64,
    /// Give the target a volatile write cache
    #[arg(long)]
    volatile_cache: bool,
    /// How many sites, each with its own target, volume, members and network; as it has, or 1
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    sites: Option<u8>,
}

/// Starts, ends or shows a lab.
///
/// # Errors
/// What kept it from being done.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // One thread, this one: the supervisor's children end when the thread that made them ends.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("start the runtime")?;
    runtime.block_on(async {
        match args.lab {
            Command::Up(args) => start(&args).await,
            Command::Down(args) => end(&args).await,
            Command::Status(args) => status(&args).await,
            Command::Supervise(args) => supervise(&args).await,
            Command::Line(args) => line(&args).await,
        }
    })
}

async fn start(args: &UpArgs) -> anyhow::Result<ExitCode> {
    let wanted = Wanted {
        size: args.size << 20,
        volatile_cache: args.volatile_cache,
        sites: args.sites,
        slot_wal_max: None,
    };
    let lab = up(&args.dir.dir, &wanted).await?;
    let dir = lab.dir.display().to_string();
    let told = serving(lab, SERVES_WITHIN).await;
    let told = told
        .with_context(|| format!("the lab runs, but does not serve; look at {dir}/*/member.log"))?;
    println!("{told}");
    Ok(ExitCode::SUCCESS)
}

/// Who serves and who is ready, one line a site, once that is so everywhere.
async fn serving(lab: Lab, within: Duration) -> Result<String, StageError> {
    if lab.record.wide.is_none() {
        let ground = LabGround::new(lab);
        let cast = ground.steady(within).await?;
        return Ok(line_of(&ground, &cast));
    }
    let mut zones = Zones::new(lab)?;
    let cast = zones.steady(within).await?;
    let lines = (0..cast.sites.len()).map(|site| {
        let role = if site == cast.primary {
            "primary"
        } else {
            "replica"
        };
        let line = line_of(zones.site(site), &cast.sites[site]);
        format!("site {}, {role}: {line}", Zones::name(site))
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn line_of(ground: &LabGround, cast: &Cast) -> String {
    let Cast {
        active,
        standby,
        epoch,
    } = cast;
    let address = ground.lab.member(active).postgres();
    let (host, port) = (address.ip(), address.port());
    format!(
        "{active} serves (epoch {epoch}), {standby} is ready; psql -h {host} -p {port} -U postgres"
    )
}

/// Cleanly if the members do well: the standby first, so that nobody waits for a hand-over.
async fn end(args: &DirArgs) -> anyhow::Result<ExitCode> {
    let lab = Lab::open(&args.dir)?;
    if let Err(error) = quiesce(lab.clone()).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "not stopped one after the other"
        );
    }
    down::down(&lab).await?;
    Ok(ExitCode::SUCCESS)
}

/// Stops the members in order, where they do well.
async fn quiesce(lab: Lab) -> Result<(), StageError> {
    if lab.record.wide.is_some() {
        let mut zones = Zones::new(lab)?;
        return match zones.steady(Duration::ZERO).await {
            Ok(cast) => zones.quiesce(&cast).await,
            Err(_) => Ok(()),
        };
    }
    let mut ground = LabGround::new(lab);
    match ground.steady(Duration::ZERO).await {
        Ok(cast) => ground.quiesce(&cast).await,
        Err(_) => Ok(()),
    }
}

async fn status(args: &DirArgs) -> anyhow::Result<ExitCode> {
    let lab = Lab::open(&args.dir)?;
    let socket = lab.supervisor_socket();
    let state = match ask_supervisor(&socket, &Request::Status, ASK_WITHIN).await {
        Err(AskError::Io { .. }) => {
            let dir = lab.dir.display();
            anyhow::bail!("the lab in {dir} is down: start it with `baton lab up --dir {dir}`");
        }
        answer => answer?,
    };
    let line = |name: &str, service: &ServiceState, says: &str| {
        let pid = service
            .process
            .map_or("down".to_owned(), |process| format!("pid {}", process.pid));
        println!(
            "{name:<10} {pid:<10} restarted {:<3} {says}",
            service.restarts
        );
    };
    for (name, target) in &state.targets {
        line(name, target, "");
    }
    for site in lab.sites() {
        let ground = LabGround::of_site(lab.clone(), site.name);
        for name in site.members() {
            let says = ground
                .status(name)
                .await
                .map_or_else(|error| error.to_string(), |s| s.reason);
            if let Some(service) = state.members.get(name) {
                line(name, service, &says);
            }
        }
    }
    if let Some(shape) = state.line {
        println!("{:<10} {shape}", "line");
    }
    let told = serving(lab, Duration::ZERO).await;
    let serves = told.is_ok();
    println!(
        "{}",
        told.unwrap_or_else(|_| "nobody serves with a ready standby".into())
    );
    Ok(ExitCode::from(u8::from(!serves)))
}

async fn supervise(args: &DirArgs) -> anyhow::Result<ExitCode> {
    // Away from the caller's terminal and its signals; fails only where that is so already.
    if let Err(error) = nix::unistd::setsid() {
        tracing::debug!(%error, "no session of its own");
    }
    let run = async {
        let lab = Lab::open(&args.dir)?;
        supervisor::run(lab, || Started::Ready.tell()).await?;
        anyhow::Ok(())
    };
    let ran = run.await;
    if let Err(error) = &ran {
        Started::Failed(format!("{error:#}")).tell();
    }
    ran.map(|()| ExitCode::SUCCESS)
}

/// Tells the sites on standard output once they are there.
async fn line(args: &DirArgs) -> anyhow::Result<ExitCode> {
    bare::keep(&args.dir, interrupted(), |sites| {
        println!("{}", json!(sites));
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}
