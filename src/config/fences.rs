//! `[fencing]`: the fences beside the reservation, and whether they fit into the time of a fence.

use std::path::PathBuf;
use std::time::Duration;

use fencing::command_fence::CommandFence;
use fencing::watchdog::{InvalidWait, WatchdogWait};
use fencing::{FurtherFence, FurtherFences};
use serde::Serialize;
use toml::Value;

use super::read::Absolute;
use super::reader::{Section, Setting};
use crate::decide::Timings;
use crate::decide::timings::text;

/// `[fencing]`: none by default. The same on every member: each is fenced by the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fencing {
    /// An operator's command, such as a power switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<FenceCommand>,
    /// Every node resets itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<FenceWatchdog>,
}

/// `[fencing.command]`. The suspect is named by `BATON_SUSPECT_MEMBER`, `BATON_SUSPECT_HOST_ID` and
/// `BATON_SUSPECT_EPOCH` in its environment; exit code 0 is its word that the suspect cannot write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FenceCommand {
    /// The program, by its absolute path; no shell is between.
    pub program: PathBuf,
    /// Its arguments, as they are.
    pub arguments: Vec<String>,
    /// How long it may take for one suspect.
    #[serde(with = "text")]
    pub timeout: Duration,
}

/// `[fencing.watchdog]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "WrittenWatchdog")]
pub struct FenceWatchdog {
    /// This node's watchdog.
    pub device: PathBuf,
    /// `timeout`, `max_age` and `margin`, proven to be a fence.
    pub times: WatchdogWait,
}

/// As it stands in the file.
#[derive(Serialize)]
struct WrittenWatchdog {
    device: PathBuf,
    #[serde(with = "text")]
    timeout: Duration,
    #[serde(with = "text")]
    max_age: Duration,
    #[serde(with = "text")]
    margin: Duration,
}

impl From<FenceWatchdog> for WrittenWatchdog {
    fn from(FenceWatchdog { device, times }: FenceWatchdog) -> Self {
        Self {
            device,
            timeout: times.timeout(),
            max_age: times.max_age(),
            margin: times.margin(),
        }
    }
}

impl Fencing {
    /// What a take-over must prove on top of the reservation. The command comes first: the wait for
    /// the watchdog counts from the reservation's fence and runs meanwhile.
    pub fn further(&self) -> FurtherFences {
        let command = self.command.as_ref().map(|command| {
            FurtherFence::Command(CommandFence {
                program: command.program.clone(),
                arguments: command.arguments.clone(),
                timeout: command.timeout,
            })
        });
        let watchdog = self.watchdog.as_ref();
        let watchdog = watchdog.map(|watchdog| FurtherFence::Watchdog(watchdog.times));
        FurtherFences(command.into_iter().chain(watchdog).collect())
    }
}

/// Reads `[fencing]`.
pub(super) fn read(section: &mut Section<'_>) -> Option<Fencing> {
    let command = section.optional_section("command", command);
    let watchdog = section.optional_section("watchdog", watchdog);
    Some(Fencing {
        command: command?,
        watchdog: watchdog?,
    })
}

fn command(section: &mut Section<'_>) -> Option<FenceCommand> {
    let program = section.required::<Absolute>("program", "\"/usr/local/sbin/power-off\"");
    let arguments = section.optional("arguments", Vec::new());
    let timeout = section.required::<Duration>("timeout", "\"10s\"");
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        section.problem("timeout", "must be more than zero");
        return None;
    }
    Some(FenceCommand {
        program: program?.0,
        arguments: arguments?,
        timeout: timeout?,
    })
}

fn watchdog(section: &mut Section<'_>) -> Option<FenceWatchdog> {
    let device = section.optional("device", Absolute(PathBuf::from("/dev/watchdog")));
    let timeout = section.required::<Duration>("timeout", "\"10s\"");
    let max_age = section.required::<Duration>("max_age", "\"2s\"");
    let margin = section.required::<Duration>("margin", "\"1s\"");
    let times = WatchdogWait::new(timeout?, max_age?, margin?)
        .map_err(|invalid| {
            let setting = match invalid {
                InvalidWait::Timeout { .. } => "timeout",
                InvalidWait::MaxAge { .. } => "max_age",
                InvalidWait::Margin { .. } => "margin",
            };
            section.problem(setting, invalid);
        })
        .ok()?;
    Some(FenceWatchdog {
        device: device?.0,
        times,
    })
}

/// What the fences need of the timings.
pub(super) fn contradictions(
    fencing: &Fencing,
    timings: &Timings,
    note: &mut impl FnMut(&str, String),
) {
    let (command, watchdog) = (fencing.command.as_ref(), fencing.watchdog.as_ref());
    let slowest = command
        .map(|command| command.timeout)
        .max(watchdog.map(|watchdog| watchdog.times.wait()));
    let Some(slowest) = slowest else { return };
    // The reservation's own worst case (see `Timings`), then the slower fence, then a last report.
    let reservation = 3 * timings.keep_alive + timings.quiesce + 4 * timings.command;
    let needed = reservation + slowest + timings.command;
    if timings.fence < needed {
        let text = format!(
            "is {:?}, must be at least {needed:?} with [fencing]: {reservation:?} for the \
             reservation, {slowest:?} for the slower of fencing.command (timeout) and \
             fencing.watchdog (max_age + 2 × timeout + margin), {:?} for the last report",
            timings.fence, timings.command
        );
        note("timings.fence", text);
    }
    if !timings.storage_beats {
        let text = "must be on with [fencing]: a member that waits for its fences would look dead";
        note("timings.storage_beats", text.to_owned());
    }
    let report = timings.observe + timings.command;
    if let Some(watchdog) = watchdog
        && watchdog.times.timeout() < report
    {
        let text = format!(
            "is {:?}, must be at least observe + command = {report:?}: one slow report would reset \
             the node",
            watchdog.times.timeout()
        );
        note("fencing.watchdog.timeout", text);
    }
}

impl Setting for Duration {
    fn read(value: Value) -> Result<Self, String> {
        text::deserialize(value).map_err(|error: toml::de::Error| error.message().to_owned())
    }
}
