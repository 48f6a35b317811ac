//! `baton doctor`: what is wrong with this node, and what to do.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use super::reach::{Output, OutputArgs, print_json};
use crate::config::Config;
use crate::doctor::{self, Check, Report, Subject, Tree, Verdict};

/// Check this node and say what is wrong and what to do; changes nothing
///
/// Without --config only the machine is looked at. The exit code is 0 if there is no problem; a
/// warning is none.
#[derive(clap::Args)]
pub struct Args {
    /// The member's configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Looks at everything, and fails if there is a problem.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.as_deref().map(Config::load).transpose()?;
    let subject = config.map(|config| {
        Subject::of(config)
            .context("[agent]: the volume is the node agent's; run doctor on the node")
    });
    let subject = subject.transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let tree = Tree::at(Path::new("/"));
    let report = runtime.block_on(doctor::examine(&tree, subject.as_ref()));
    // A look that hangs must not keep the process.
    runtime.shutdown_background();
    match args.output.output {
        Output::Json => print_json(&report)?,
        Output::Text => print(&report),
    }
    Ok(if report.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(report: &Report) {
    for Check {
        name,
        verdict,
        says,
        advice,
    } in &report.checks
    {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Problem => "PROBLEM",
            Verdict::NotChecked => "not checked",
        };
        println!("{verdict:<11}  {name:<19}  {says}");
        if let Some(advice) = advice {
            println!("{:33}  -> {advice}", "");
        }
    }
    let (problems, warnings) = (
        report.count(Verdict::Problem),
        report.count(Verdict::Warning),
    );
    println!("{problems} problems, {warnings} warnings");
}
