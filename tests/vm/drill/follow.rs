//! Inside `storage`: reads the trace of the kernel's target (the tracepoints of
//! drivers/nvme/target/trace.h), puts each command's beginning and end together, and tells what is
//! worth knowing, one JSON document a line. The trace as it is would take minutes to carry out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

const TRACE: &str = "/sys/kernel/tracing/trace_pipe";

/// Status code and its type, of a completion's status without its DNR and More bits.
const STATUS_MASK: u32 = 0x7ff;

/// Reservation Conflict (NVMe base specification, generic command status).
pub const CONFLICT: u32 = 0x83;

/// A command that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// When, in seconds of the target's kernel.
    pub at: f64,
    /// The number of its controller.
    pub controller: u32,
    pub what: What,
    /// Status code type and status code; 0 is success.
    pub status: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Anything that changes blocks.
    Write,
    /// The action of a reservation acquire: 0 acquire, 1 preempt, 2 preempt and abort.
    Acquire(u8),
}

/// Controller, queue, identifier.
type Command = (u32, u32, u32);

/// Follows the trace until it is killed.
pub fn follow() -> Result<ExitCode> {
    let trace = File::open(TRACE).with_context(|| format!("open {TRACE}"))?;
    let mut output = std::io::stdout();
    let mut pairs = Pairs::default();
    for line in BufReader::new(trace).lines() {
        let line = line.context("read the trace")?;
        ensure!(!line.contains("LOST"), "the trace has lost events: {line}");
        if let Some(ended) = pairs.line(&line)? {
            writeln!(output, "{}", serde_json::to_string(&ended)?).context("tell")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Commands whose end is still to come.
#[derive(Default)]
pub struct Pairs(BTreeMap<Command, What>);

impl Pairs {
    /// Takes a line; gives the command that ended with it.
    pub fn line(&mut self, line: &str) -> Result<Option<Ended>> {
        let Some((head, event)) = line.split_once(": nvmet_req_") else {
            return Ok(None);
        };
        let parse = || format!("read the trace's line {line}");
        let (kind, fields) = event.split_once(": nvmet").with_context(parse)?;
        let Some(command) = command(fields) else {
            return Ok(None);
        };
        if kind == "init" {
            if let Some(what) = what(fields) {
                self.0.insert(command, what);
            }
            return Ok(None);
        }
        let status = number(fields, "status=").with_context(parse)? & STATUS_MASK;
        let what = match self.0.remove(&command) {
            Some(what) => what,
            // the target refuses a write or flush before it traces the command's beginning
            None if status == CONFLICT => What::Write,
            None => return Ok(None),
        };
        let at = head.rsplit(' ').next().with_context(parse)?;
        Ok(Some(Ended {
            at: at.parse().with_context(parse)?,
            controller: command.0,
            what,
            status,
        }))
    }
}

/// `1: disk=…, qid=2, cmdid=12, …`; none before a controller is known.
fn command(fields: &str) -> Option<Command> {
    let controller = fields.split(':').next()?.parse().ok()?;
    Some((
        controller,
        number(fields, "qid=")?,
        number(fields, "cmdid=")?,
    ))
}

/// The number behind a name, decimal or hexadecimal.
fn number(fields: &str, name: &str) -> Option<u32> {
    let (_, value) = fields.split_once(name)?;
    let value = value.split([',', ' ', ')']).next()?;
    match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

fn what(fields: &str) -> Option<What> {
    let (_, command) = fields.split_once("cmd=(")?;
    match command.split([',', ')']).next()? {
        "nvme_cmd_write" | "nvme_cmd_write_uncor" | "nvme_cmd_write_zeroes" | "nvme_cmd_dsm" => {
            Some(What::Write)
        }
        "nvme_cmd_resv_acquire" => {
            // `racqa=2:preempt and abort`; older kernels print dword 10, the action in its low three bits
            if let Some((_, action)) = command.split_once("racqa=") {
                return Some(What::Acquire(action.get(..1)?.parse().ok()?));
            }
            let (_, dwords) = command.split_once("cdw10=")?;
            let first = u8::from_str_radix(dwords.get(..2)?, 16).ok()?;
            Some(What::Acquire(first & 7))
        }
        _ => None,
    }
}
