//! The end inside the machine. It ends, and the machine with it, when nobody listens any more.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use baton::{clock, control};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::{Answer, Do, Done, Output, Request};

/// Where the kernel lists the ports; the devices have the same names.
const PORTS: &str = "/sys/class/virtio-ports";

/// What was started, until somebody waits for it.
type Children = BTreeMap<u32, Child>;

/// Serves until the port's other end is closed.
pub fn serve() -> Result<ExitCode> {
    let port = port()?;
    let mut answers = port.try_clone().context("share the port")?;
    let (requests, received) = mpsc::unbounded_channel();
    // A read of the port cannot be given up, so a thread does it.
    std::thread::spawn(move || {
        for line in BufReader::new(port).lines() {
            let Ok(line) = line else { break };
            if requests.send(line).is_err() {
                break;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(answer_all(received, &mut answers))?;
    Ok(ExitCode::SUCCESS)
}

fn port() -> Result<File> {
    for port in std::fs::read_dir(PORTS).with_context(|| format!("read {PORTS}"))? {
        let port = port.context("read an entry")?;
        let name = std::fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim() == "agent" {
            let device = PathBuf::from("/dev").join(port.file_name());
            let opened = File::options().read(true).write(true).open(&device);
            return opened.with_context(|| format!("open {}", device.display()));
        }
    }
    bail!("no port named agent in {PORTS}")
}

async fn answer_all(mut received: mpsc::UnboundedReceiver<String>, port: &mut File) -> Result<()> {
    let (finished, mut done) = mpsc::unbounded_channel();
    let mut children = Children::new();
    let hello = Answer {
        id: None,
        result: Ok(Done::Hello),
    };
    send(port, &hello)?;
    loop {
        tokio::select! {
            line = received.recv() => {
                let Some(line) = line else { return Ok(()) };
                let request = serde_json::from_str(&line).context("read a request")?;
                begin(request, &mut children, &finished);
            }
            Some(answer) = done.recv() => send(port, &answer)?,
        }
    }
}

fn send(port: &mut File, answer: &Answer) -> Result<()> {
    let line = serde_json::to_string(answer).context("write an answer")? + "\n";
    port.write_all(line.as_bytes()).context("write to the port")
}

/// Begins what is asked; the answer comes through `finished`.
fn begin(request: Request, children: &mut Children, finished: &mpsc::UnboundedSender<Answer>) {
    let Request { id, what } = request;
    let finished = finished.clone();
    let answer = move |result: Result<Done>| {
        let result = result.map_err(|error| format!("{error:#}"));
        // closed only when the program ends
        let _ = finished.send(Answer {
            id: Some(id),
            result,
        });
    };
    match what {
        Do::Run {
            argv,
            input,
            seconds,
        } => {
            let within = Duration::from_secs(seconds);
            tokio::spawn(async move { answer(run(&argv, input, within).await) });
        }
        Do::Ask {
            socket,
            request,
            seconds,
        } => {
            let within = Duration::from_secs(seconds);
            tokio::task::spawn_blocking(move || {
                let reply = control::ask(&socket, &request, within);
                answer(
                    reply
                        .map(|reply| Done::Replied(Box::new(reply)))
                        .map_err(Into::into),
                );
            });
        }
        Do::Clock => answer(Ok(Done::Time(clock::now().as_millis()))),
        Do::Start { argv, log } => answer(start(&argv, &log, children)),
        Do::Wait { pid } => {
            let Some(mut child) = children.remove(&pid) else {
                return answer(Err(anyhow::anyhow!("nothing to wait for with id {pid}")));
            };
            tokio::spawn(async move {
                let ended = child.wait().await.context("wait");
                answer(ended.map(|status| Done::Ended(code(status))));
            });
        }
    }
}

fn command(argv: &[String]) -> Result<Command> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(arguments).process_group(0);
    Ok(command)
}

async fn run(argv: &[String], input: String, within: Duration) -> Result<Done> {
    let mut child = command(argv)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", argv[0]))?;
    let group = child.id().context("a process without an id")?;
    let mut stdin = child.stdin.take().context("a process without input")?;
    let feed = async move {
        // it need not read all
        let _ = stdin.write_all(input.as_bytes()).await;
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let Ok(output) = tokio::time::timeout(within, both).await else {
        let _ = killpg(Pid::from_raw(group.cast_signed()), Signal::SIGKILL);
        bail!("did not end within {within:?}");
    };
    let output = output.context("read its output")?;
    Ok(Done::Ran(Output {
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }))
}

fn start(argv: &[String], log: &str, children: &mut Children) -> Result<Done> {
    let output = File::options().create(true).append(true).open(log);
    let output = output.with_context(|| format!("open {log}"))?;
    let child = command(argv)?
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("share the log")?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("run {}", argv[0]))?;
    let pid = child.id().context("a process without an id")?;
    children.insert(pid, child);
    Ok(Done::Started(pid))
}

fn code(status: ExitStatus) -> i32 {
    let signal = status.signal().map_or(0, |signal| 128 + signal);
    status.code().unwrap_or(signal)
}
