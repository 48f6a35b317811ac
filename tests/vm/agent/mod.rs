//! Runs commands in a machine: this same program, started there by its first process, at the other
//! end of a virtio-serial port. One JSON document a line, both ways; many commands at a time.

pub mod guest;
pub mod host;

use std::path::PathBuf;

use baton::control;
use serde::{Deserialize, Serialize};

/// From outside to inside.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Comes back with the answer.
    pub id: u64,
    #[serde(rename = "do")]
    pub what: Do,
}

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Do {
    /// Run to the end, and give the output. After `seconds` its process group is killed.
    Run {
        argv: Vec<String>,
        input: String,
        seconds: u64,
    },
    /// Start in a process group of its own, output to the end of the file `log`, and answer at once.
    Start { argv: Vec<String>, log: String },
    /// Wait for the end of what was started.
    Wait { pid: u32 },
    /// Ask a member at its control socket, within `seconds`.
    Ask {
        socket: PathBuf,
        request: control::Request,
        seconds: u64,
    },
    /// Tell the time.
    Clock,
}

/// From inside to outside.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The request's; none for the greeting.
    pub id: Option<u64>,
    pub result: Result<Done, String>,
}

/// What came of a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// The agent is there.
    Hello,
    Ran(Output),
    Started(u32),
    Ended(i32),
    Replied(Box<control::Reply>),
    /// `CLOCK_BOOTTIME` of the machine, in milliseconds.
    Time(u64),
}

/// What a command left. Text that is not UTF-8 is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The exit code; 128 and the signal's number if one killed it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}
