//! Runs the cases one after another on one world.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cases::{self, Case};
use crate::options::Options;
use crate::report::{Line, Report};
use crate::world::World;

/// Already in namespaces of its own.
pub fn run(options: &Options) -> Result<ExitCode> {
    let chosen = cases::chosen(options.all, &options.cases)?;
    if options.list {
        for case in cases::ALL {
            println!(
                "{}{}",
                case.name,
                if case.long { " (long form)" } else { "" }
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(!chosen.is_empty(), "no case");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let report = runtime.block_on(all(options, &chosen));
    keep_logs(options);
    runtime.shutdown_background();
    let report = report?;
    report.print();
    if let Some(folder) = &options.report {
        report.write(folder)?;
    }
    Ok(if report.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn all(options: &Options, chosen: &[&Case]) -> Result<Report> {
    let began = Instant::now();
    let mut world = World::make(options).await.context("make the world")?;
    println!("serves after {:.1} s", began.elapsed().as_secs_f64());
    let mut cases = Vec::new();
    for case in chosen {
        let began = Instant::now();
        let done = (case.run)(&mut world).await;
        let line = Line::new(case.name, done, began.elapsed());
        println!("{:<24} {}", line.case, line.result);
        let failed = line.result == "failed";
        cases.push(line);
        // What a failed case left would fail the next ones.
        if failed {
            break;
        }
    }
    let api_server = match world.api.stand_in() {
        Some(_) => "stand-in".to_owned(),
        None => world.api.client.apiserver_version().await?.git_version,
    };
    world.end().await?;
    Ok(Report { api_server, cases })
}

/// Logs go with the scratch files: those of a run with a report are kept beside it.
fn keep_logs(options: &Options) {
    let Some(folder) = &options.report else {
        return;
    };
    let logs = std::fs::read_dir(options.scratch.join("logs"));
    let _made = std::fs::create_dir_all(folder);
    for log in logs.into_iter().flatten().flatten() {
        let _copied = std::fs::copy(log.path(), folder.join(log.file_name()));
    }
}
