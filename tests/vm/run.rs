//! Boots, runs the cases in order, reports.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use baton::clock;

use crate::cases::{self, Case};
use crate::keep;
use crate::kernel::Kernel;
use crate::machines::Machines;
use crate::options::Options;
use crate::qemu;
use crate::report::{Line, Outcome, Report, Verdict};

/// Everything, inside the namespaces.
pub fn run(options: &Options) -> Result<ExitCode> {
    let chosen = cases::chosen(options)?;
    if options.list {
        chosen.iter().for_each(|case| println!("{}", case.name));
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(all(options, &chosen))
}

async fn all(options: &Options, chosen: &[&Case]) -> Result<ExitCode> {
    qemu::present()?;
    let kernel = Kernel::find(&options.kernel)?;
    let began = clock::now();
    let mut machines = Machines::boot(kernel, &options.scratch, options.no_kvm)
        .await
        .inspect_err(|_| keep_consoles(options))?;
    let mut report = Report {
        kernel: machines.common.kernel.version.clone(),
        accelerator: machines.common.accelerator,
        boot_ms: clock::now().since(began).as_millis(),
        cases: Vec::new(),
    };
    announce(&report, &machines);
    for case in chosen {
        let line = one(case, &mut machines).await;
        show(&line);
        report.cases.push(line);
        if let Err(error) = machines.restore().await {
            report.cases.push(lost(error));
            break;
        }
    }
    if options.keep {
        keep::serve(&machines).await?;
    }
    if let Some(folder) = &options.report {
        report.write(folder)?;
    }
    if report.failed() {
        keep_consoles(options);
    }
    report.print();
    Ok(ExitCode::from(u8::from(report.failed())))
}

fn announce(report: &Report, machines: &Machines) {
    let each = machines.all().map(|machine| {
        let seconds = machine.booted_in.as_secs_f64();
        format!("{} in {seconds:.1} s", machine.name)
    });
    let (kernel, accelerator) = (&report.kernel, report.accelerator);
    println!("Linux {kernel}, {accelerator}, booted: {}", each.join(", "));
}

async fn one(case: &Case, machines: &mut Machines) -> Line {
    println!("== {}", case.name);
    let began = clock::now();
    let patience = case.within;
    let done = tokio::time::timeout(patience, (case.run)(machines, case.name)).await;
    let done = done.unwrap_or_else(|_| Err(anyhow!("not done within {patience:?}")));
    let done = match done {
        Ok(outcome) => Ok(outcome),
        Err(error) => Err(with_consoles(error, machines)),
    };
    Line::new(case.name, done, clock::now().since(began))
}

fn with_consoles(error: anyhow::Error, machines: &Machines) -> anyhow::Error {
    let tails = machines.all().map(|machine| {
        let (name, tail) = (machine.name, machine.console().tail());
        format!("  console of {name}:\n{tail}")
    });
    anyhow!("{error:#}\n{}", tails.concat())
}

fn lost(error: anyhow::Error) -> Line {
    let line = Line::new("machines restored", Err(error), Duration::ZERO);
    show(&line);
    line
}

fn show(line: &Line) {
    let Line {
        case,
        result,
        failure,
        seconds,
        outcome,
    } = line;
    let Outcome { skipped, notes, .. } = outcome;
    for note in notes {
        println!("   {note}");
    }
    match (result, failure, skipped) {
        (Verdict::Failed, Some(failure), _) => println!("FAILED: {case}: {failure}"),
        (Verdict::Skipped, _, Some(why)) => println!("skipped: {why}"),
        _ => println!("   passed in {seconds:.1} s"),
    }
}

/// Copies the consoles beside the report: the scratch files do not outlive this program.
fn keep_consoles(options: &Options) {
    let Some(folder) = &options.report else {
        return;
    };
    if let Err(error) = copy_consoles(&options.scratch, folder) {
        eprintln!("cannot keep the consoles: {error:#}");
    }
}

fn copy_consoles(scratch: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).context("make the report's folder")?;
    for entry in std::fs::read_dir(scratch)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|kind| kind == "console") {
            std::fs::copy(&path, folder.join(entry.file_name())).context("copy a console")?;
        }
    }
    Ok(())
}
