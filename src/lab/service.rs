//! One process of the lab: how it is started, and when it is started again.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::process::{Process, signal_all};
use super::protocol::ServiceState;
use crate::clock::{self, Mono};

/// The pause before the first restart; it doubles up to [`MAX_PAUSE`], as a kubelet's does.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause before a restart. A kubelet's is five minutes: nobody waits that long here.
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// A service that ran this long has its pause reset.
const RAN_WELL: Duration = Duration::from_secs(10);

/// How long a service may take until it says that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Where a service's standard output goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Output {
    /// To the supervisor, for [`ready`].
    Read,
    /// To its log, as its standard error.
    Logged,
}

/// A service.
#[derive(Debug)]
pub(super) struct Service {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    mark: PathBuf,
    /// The network namespace that it runs in, if not this one.
    network: Option<PathBuf>,
    /// What is told of it.
    pub(super) state: ServiceState,
    started: Mono,
    pause: Duration,
}

impl Service {
    pub(super) fn new(
        program: PathBuf,
        arguments: Vec<String>,
        log: PathBuf,
        mark: PathBuf,
        network: Option<PathBuf>,
    ) -> Self {
        let state = ServiceState::default();
        Self {
            program,
            arguments,
            log,
            mark,
            network,
            state,
            started: Mono::ZERO,
            pause: FIRST_PAUSE,
        }
    }

    pub(super) fn set_arguments(&mut self, arguments: Vec<String>) {
        self.arguments = arguments;
    }

    /// Starts it. Its standard input is a pipe that ends with the supervisor, and the kernel kills
    /// it when the supervisor's main thread dies (`setpriv --pdeathsig` sets that without code of
    /// ours between fork and exec): must be called on that thread.
    pub(super) fn start(&mut self, output: Output) -> io::Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let mut command = match &self.network {
            None => Command::new("setpriv"),
            Some(network) => {
                let mut enter = Command::new("nsenter");
                let network = network.display();
                enter
                    .arg(format!("--net={network}"))
                    .args(["--", "setpriv"]);
                enter
            }
        };
        command
            .args(["--pdeathsig", "KILL"])
            .arg(&self.program)
            .args(&self.arguments);
        command.env(super::MARK, &self.mark).current_dir("/");
        let stdout = match output {
            Output::Read => Stdio::piped(),
            Output::Logged => log.try_clone()?.into(),
        };
        command.stdin(Stdio::piped()).stdout(stdout).stderr(log);
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        self.state.process = pid.and_then(Process::now);
        self.started = clock::now();
        Ok(child)
    }

    /// Notes its end; gives the pause after which it is to start again, if it is.
    pub(super) fn ended(&mut self, how: String) -> Option<Duration> {
        self.state.process = None;
        self.state.last_exit = Some(how);
        if self.started.elapsed(RAN_WELL, clock::now()) {
            self.pause = FIRST_PAUSE;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(MAX_PAUSE);
        (!self.state.held).then_some(pause)
    }

    /// Sends a signal to the process, if it runs.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(process) = self.state.process
            && let Err(error) = process.signal(signal)
        {
            tracing::warn!(pid = process.pid, %signal, %error, "signal");
        }
    }

    /// Kills the process and its descendants.
    pub(super) fn kill(&self) {
        if let Some(process) = self.state.process
            && let Err(error) = signal_all(&process.tree(), Signal::SIGKILL)
        {
            tracing::warn!(pid = process.pid, %error, "kill");
        }
    }
}

/// Waits for the one line by which a service says that it is ready; what it prints after that is
/// thrown away, so that its pipe never breaks or fills.
pub(super) async fn ready(child: &mut Child) -> io::Result<String> {
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("its output is gone"))?;
    let mut line = String::new();
    let mut reader = BufReader::new(stdout);
    match timeout(READY_WITHIN, reader.read_line(&mut line)).await {
        Ok(Ok(0)) => return Err(io::Error::other("it ended before it was ready")),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            return Err(io::Error::other(format!(
                "it was not ready within {READY_WITHIN:?}"
            )));
        }
    }
    tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    Ok(line)
}
