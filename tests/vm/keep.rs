//! `--keep`: a person, or a script, looks around in the machines.

use anyhow::{Context, Result};

use crate::machines::Machines;

/// Runs each line `MACHINE COMMAND` of standard input there, until its end.
pub async fn serve(machines: &Machines) -> Result<()> {
    println!("the machines stay; type MACHINE COMMAND, or end the input to end them");
    // Blocks this one task: the connections to the machines are other tasks.
    for line in std::io::stdin().lines() {
        let line = line.context("read standard input")?;
        let (name, script) = line.trim().split_once(' ').unwrap_or((line.trim(), "true"));
        let Some(machine) = machines.by_name(name) else {
            println!("no machine {name}");
            continue;
        };
        match machine.run(&["sh", "-c", script]).await {
            Ok(output) => println!(
                "{}{}[{name}: {}]",
                output.stdout, output.stderr, output.code
            ),
            Err(error) => println!("{error:#}"),
        }
    }
    Ok(())
}
