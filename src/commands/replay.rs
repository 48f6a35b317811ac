//! `baton replay`: a journal's decisions once more, through the `decide` of this program.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use crate::journal::{self, Contents, Replayed};

use super::reach::{Output, OutputArgs, print_json};

/// Run the decisions of a journal again and show where they come out otherwise
///
/// Exits with 1 if one does, or if there is none to run.
#[derive(clap::Args)]
pub struct Args {
    /// The journal
    #[arg(value_name = "FILE")]
    journal: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Reads, runs and compares.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let contents = journal::read(&args.journal)
        .with_context(|| format!("read the journal {}", args.journal.display()))?;
    let replayed = journal::replay(&contents);
    match args.output.output {
        Output::Json => print_json(&document(&contents, &replayed))?,
        Output::Text => print(&contents, &replayed),
    }
    let same = replayed.differences.is_empty() && replayed.decisions > 0;
    Ok(if same {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn document(contents: &Contents, replayed: &Replayed) -> serde_json::Value {
    let differences: Vec<_> = replayed
        .differences
        .iter()
        .map(|difference| {
            let places: Vec<_> = difference
                .places
                .iter()
                .map(|(place, recorded, now)| json!({"place": place, "recorded": recorded, "now": now}))
                .collect();
            json!({"line": difference.line, "places": places})
        })
        .collect();
    json!({
        "decisions": replayed.decisions,
        "differences": differences,
        "without_config": replayed.without_config,
        "unreadable": contents.unreadable.iter().map(|(line, _)| line).collect::<Vec<_>>(),
        "cut": contents.cut,
    })
}

fn print(contents: &Contents, replayed: &Replayed) {
    for difference in &replayed.differences {
        println!("line {}:", difference.line);
        for (place, recorded, now) in &difference.places {
            println!("  {place}: recorded {recorded}, now {now}");
        }
    }
    for (line, why) in &contents.unreadable {
        println!("line {line} cannot be read: {why}");
    }
    if contents.cut {
        println!("the last line was cut");
    }
    if replayed.without_config > 0 {
        println!(
            "{} decisions before the first configuration",
            replayed.without_config
        );
    }
    println!(
        "{} decisions, {} come out otherwise",
        replayed.decisions,
        replayed.differences.len()
    );
}
