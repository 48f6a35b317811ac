//! An operator's command as a fence: a power switch, a hypervisor, a fabric's switch port.
//!
//! Exit code 0 is its word that the suspect cannot write any more; anything else, or no end in time,
//! is "not fenced". The command runs without a shell, with `BATON_SUSPECT_MEMBER`,
//! `BATON_SUSPECT_HOST_ID` and `BATON_SUSPECT_EPOCH` in its environment.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use crate::Mono;
use crate::fence::{Clock, Fence, Suspect};

/// How much of the command's output is kept, in bytes: its end, where the reason stands.
const OUTPUT_KEPT: usize = 4096;
/// How long is waited for the rest of the output once the command has ended: something that it left
/// behind may hold the pipe open for ever.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);

/// The command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandFence {
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// Its arguments, as they are.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// The command ended with exit code 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandProof {
    /// When.
    pub at: Mono,
    /// The end of its output.
    pub output: String,
}

/// The command proved nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommandUnproven {
    /// It could not be started.
    #[error("the fence command {} could not be started: correct its path or its permissions",
            .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It ended otherwise than with exit code 0.
    #[error("the fence command {} did not confirm the fence ({status}): see to the node by hand; \
             it said: {output:?}", .program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The end of its output.
        output: String,
    },
    /// It did not end in time, and was killed with all of its process group.
    #[error("the fence command {} did not end within {limit:?} and was killed: what it did is \
             unknown, see to the node by hand; it said: {output:?}", .program.display())]
    Overdue {
        /// The program.
        program: PathBuf,
        /// The time it had.
        limit: Duration,
        /// The end of its output so far.
        output: String,
    },
    /// Its end could not be read.
    #[error("how the fence command {} ended is unknown: see to the node by hand",
            .program.display())]
    Wait {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Fence for CommandFence {
    type Proof = CommandProof;
    type Unproven = CommandUnproven;

    async fn fence(
        &self,
        suspect: &Suspect,
        clock: &impl Clock,
        deadline: Mono,
    ) -> Result<CommandProof, CommandUnproven> {
        let program = || self.program.clone();
        let limit = self.timeout.min(clock().until(deadline));
        let mut running = self.start(suspect)?;
        let mut output = Tail::default();
        let ended = tokio::time::timeout(limit, end_of(&mut running.0, &mut output)).await;
        let output = output.into_text();
        match ended {
            Ok(Ok(status)) if status.success() => Ok(CommandProof {
                at: clock(),
                output,
            }),
            Ok(Ok(status)) => Err(CommandUnproven::Failed {
                program: program(),
                status,
                output,
            }),
            Ok(Err(source)) => Err(CommandUnproven::Wait {
                program: program(),
                source,
            }),
            Err(_) => Err(CommandUnproven::Overdue {
                program: program(),
                limit,
                output,
            }),
        }
    }
}

impl CommandFence {
    fn start(&self, suspect: &Suspect) -> Result<Running, CommandUnproven> {
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env("BATON_SUSPECT_MEMBER", suspect.member.to_string())
            .env("BATON_SUSPECT_HOST_ID", suspect.host.to_string())
            .env("BATON_SUSPECT_EPOCH", suspect.epoch.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        child.map(Running).map_err(|source| CommandUnproven::Start {
            program: self.program.clone(),
            source,
        })
    }
}

/// A command whose whole process group dies with this value, if it has not ended.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // `id` is `None` once the process was reaped: then its number may be another's.
        let group = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = group {
            // It may have ended by itself meanwhile, which is no failure.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// The last bytes of an output.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(OUTPUT_KEPT);
        self.0.drain(..surplus);
    }

    fn into_text(self) -> String {
        String::from_utf8_lossy(&self.0).trim().to_owned()
    }
}

/// Waits for the command's end while keeping the end of what it says.
async fn end_of(child: &mut Child, output: &mut Tail) -> std::io::Result<ExitStatus> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut out_bytes, mut err_bytes) = ([0; 1024], [0; 1024]);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            read = next(&mut out, &mut out_bytes), if out.is_some() => output.push(read),
            read = next(&mut err, &mut err_bytes), if err.is_some() => output.push(read),
        }
    };
    let rest = async {
        while out.is_some() || err.is_some() {
            tokio::select! {
                read = next(&mut out, &mut out_bytes), if out.is_some() => output.push(read),
                read = next(&mut err, &mut err_bytes), if err.is_some() => output.push(read),
            }
        }
    };
    // Without the rest the status stands all the same.
    let _ = tokio::time::timeout(OUTPUT_GRACE, rest).await;
    Ok(status)
}

/// The next bytes; at the end, or when it cannot be read, the stream is given up.
async fn next<'b, R: AsyncRead + Unpin>(stream: &mut Option<R>, bytes: &'b mut [u8]) -> &'b [u8] {
    let read = match stream {
        Some(stream) => stream.read(bytes).await.unwrap_or(0),
        None => 0,
    };
    if read == 0 {
        *stream = None;
    }
    &bytes[..read]
}
