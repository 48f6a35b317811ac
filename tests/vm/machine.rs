//! One virtual machine: boot it, run commands in it, freeze it, cut its networks, kill it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use baton::{clock, control};
use serde_json::json;
use uuid::Uuid;

use crate::accelerator::Accelerator;
use crate::agent::host::Agent;
use crate::agent::{Do, Done, Output};
use crate::console::Console;
use crate::kernel::Kernel;
use crate::network::Network;
use crate::qemu::{self, Hardware, Qemu};

/// A command that has no deadline of its own, under KVM.
const COMMAND_WITHIN: Duration = Duration::from_secs(20);

/// From power on to the agent's greeting, under KVM.
const BOOT_WITHIN: Duration = Duration::from_secs(30);

/// What emulation multiplies deadlines by.
const EMULATION: u32 = 4;

/// A command's own deadline lies this much before that of its answer.
const ANSWER_MARGIN: Duration = Duration::from_secs(10);

/// What all machines share.
pub struct Common {
    pub accelerator: Accelerator,
    pub kernel: Kernel,
    pub initramfs: PathBuf,
    pub scratch: PathBuf,
    /// The folder of Baton's program, and somewhere below it this one.
    pub programs: PathBuf,
    /// This program, by a path that is the same inside.
    pub agent: PathBuf,
    /// Names and addresses on the peer network, as `NAME=ADDRESS,…`.
    pub hosts: String,
}

/// A machine, running or not.
pub struct Machine {
    pub name: &'static str,
    /// The last number of its addresses.
    pub number: u8,
    memory_mib: u32,
    disk: Option<PathBuf>,
    console: Console,
    running: Option<Running>,
    /// The last boot's duration.
    pub booted_in: Duration,
    accelerator: Accelerator,
}

struct Running {
    qemu: Qemu,
    agent: Agent,
}

impl Machine {
    /// A machine that has not been started.
    pub fn new(
        common: &Common,
        (name, number): (&'static str, u8),
        memory_mib: u32,
        disk: Option<PathBuf>,
    ) -> Self {
        Self {
            name,
            number,
            memory_mib,
            disk,
            console: Console::at(common.scratch.join(format!("{name}.console"))),
            running: None,
            booted_in: Duration::ZERO,
            accelerator: common.accelerator,
        }
    }

    /// Its address on a network.
    pub fn address(&self, network: Network) -> std::net::Ipv4Addr {
        network.address(self.number)
    }

    /// Its NVMe host identifier, also in `/etc/nvme/hostid`.
    pub fn host_id(&self) -> Uuid {
        Uuid::from_u128(0x8e6f_ca0e_90b3_4b0b_a3f0_3a1f_3f0e_0c00 | u128::from(self.number))
    }

    /// Its NVMe host name, also in `/etc/nvme/hostnqn`.
    pub fn host_nqn(&self) -> String {
        format!("nqn.2014-08.org.nvmexpress:uuid:{}", self.host_id())
    }

    /// Whether it was booted and its process lives.
    pub async fn lives(&self) -> bool {
        match &self.running {
            Some(running) => running.qemu.ended().await.is_none(),
            None => false,
        }
    }

    /// Switches it on, again if it ran before, and waits until it takes commands.
    pub async fn boot(&mut self, common: &Common) -> Result<()> {
        self.running = None;
        let began = clock::now();
        let hardware = Hardware {
            name: self.name,
            accelerator: common.accelerator,
            memory_mib: self.memory_mib,
            image: &common.kernel.image,
            initramfs: &common.initramfs,
            parameters: self.parameters(common),
            scratch: &common.scratch,
            number: Some(self.number),
            disk: self.disk.as_deref(),
        };
        let qemu = Qemu::start(&hardware).await;
        let qemu = qemu.with_context(|| format!("start the machine {}", self.name))?;
        let agent = self.greeting(&qemu, &common.scratch).await;
        let agent = agent.with_context(|| self.failure("does not boot"))?;
        self.running = Some(Running { qemu, agent });
        self.booted_in = clock::now().since(began);
        Ok(())
    }

    async fn greeting(&self, qemu: &Qemu, scratch: &Path) -> Result<Agent> {
        let within = self.patience(BOOT_WITHIN);
        let socket = qemu::agent_socket(scratch, self.name);
        match tokio::time::timeout(within, Agent::greet(&socket)).await {
            Ok(Ok(agent)) => Ok(agent),
            Ok(Err(error)) => match qemu.ended().await {
                Some(said) => Err(error.context(said)),
                None => Err(error),
            },
            Err(_) => bail!("no word from it in {within:?}"),
        }
    }

    fn parameters(&self, common: &Common) -> Vec<String> {
        vec![
            format!("MACHINE={}", self.name),
            format!("STORAGE_ADDRESS={}", self.address(Network::Storage)),
            format!("PEER_ADDRESS={}", self.address(Network::Peer)),
            format!("HOSTS={}", common.hosts),
            format!("HOST_ID={}", self.host_id()),
            format!("MODULES={}", common.kernel.modules.display()),
            format!("PROGRAMS={}", common.programs.display()),
            format!("AGENT={}", common.agent.display()),
        ]
    }

    /// `duration` under KVM, more under emulation.
    pub fn patience(&self, duration: Duration) -> Duration {
        self.accelerator.patience(duration, EMULATION)
    }

    /// Runs a command to its end, whatever its exit code, with no input and the usual deadline.
    pub async fn run(&self, argv: &[&str]) -> Result<Output> {
        self.run_within(argv, "", self.patience(COMMAND_WITHIN))
            .await
    }

    /// Runs a command to its end. At its deadline it is killed with all that it started.
    pub async fn run_within(&self, argv: &[&str], input: &str, within: Duration) -> Result<Output> {
        let what = Do::Run {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            input: input.to_owned(),
            seconds: within.as_secs().max(1),
        };
        match self.ask(what, within + ANSWER_MARGIN).await {
            Ok(Done::Ran(output)) => Ok(output),
            Ok(other) => bail!("the agent answers {other:?}"),
            Err(error) => Err(error.context(format!("on {}: {}", self.name, argv.join(" ")))),
        }
    }

    /// Runs a command that must end with 0, and gives its standard output without the last newline.
    pub async fn ok(&self, argv: &[&str]) -> Result<String> {
        let output = self.run(argv).await?;
        self.succeeded(&argv.join(" "), output)
    }

    /// The same for a script: `sh -eu` reads it from its input.
    pub async fn shell(&self, script: &str) -> Result<String> {
        let within = self.patience(COMMAND_WITHIN);
        let output = self.run_within(&["sh", "-eu"], script, within).await?;
        self.succeeded(script.trim(), output)
    }

    fn succeeded(&self, what: &str, output: Output) -> Result<String> {
        let Output {
            code,
            stdout,
            stderr,
        } = output;
        let name = self.name;
        let said = format!("{}\n{}", stdout.trim_end(), stderr.trim_end());
        ensure!(code == 0, "on {name}, exit code {code}: {what}\n{said}");
        Ok(stdout.trim_end().to_owned())
    }

    /// Writes a file, and the folders above it.
    pub async fn write(&self, path: &str, content: &str) -> Result<()> {
        let script = "mkdir -p -- \"$(dirname -- \"$1\")\" && cat >\"$1\"";
        let argv = ["sh", "-euc", script, "sh", path];
        let within = self.patience(COMMAND_WITHIN);
        let output = self.run_within(&argv, content, within).await?;
        self.succeeded(&format!("write {path}"), output).map(drop)
    }

    /// Starts a command that goes on, with its output in the file `log` there. Its id is that of
    /// its process group, too.
    pub async fn start(&self, argv: &[&str], log: &str) -> Result<u32> {
        let what = Do::Start {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            log: log.to_owned(),
        };
        match self.ask(what, self.patience(COMMAND_WITHIN)).await? {
            Done::Started(pid) => Ok(pid),
            other => bail!("the agent answers {other:?}"),
        }
    }

    /// Waits for the end of what [`Self::start`] started; once.
    pub async fn wait(&self, pid: u32, within: Duration) -> Result<i32> {
        match self.ask(Do::Wait { pid }, within).await? {
            Done::Ended(code) => Ok(code),
            other => bail!("the agent answers {other:?}"),
        }
    }

    /// Asks the member behind a control socket there.
    pub async fn member(
        &self,
        socket: &str,
        request: control::Request,
        within: Duration,
    ) -> Result<control::Reply> {
        let what = Do::Ask {
            socket: socket.into(),
            request,
            seconds: within.as_secs().max(1),
        };
        match self.ask(what, within + ANSWER_MARGIN).await? {
            Done::Replied(reply) => Ok(*reply),
            other => bail!("the agent answers {other:?}"),
        }
    }

    /// What must be added to the machine's monotonic clock to have ours, in milliseconds. As exact as
    /// the answer is quick.
    pub async fn clock_offset(&self) -> Result<i64> {
        let before = clock::now().as_millis();
        let answer = self.ask(Do::Clock, self.patience(COMMAND_WITHIN)).await?;
        let after = clock::now().as_millis();
        match answer {
            Done::Time(there) => Ok(before.midpoint(after).cast_signed() - there.cast_signed()),
            other => bail!("the agent answers {other:?}"),
        }
    }

    async fn ask(&self, what: Do, within: Duration) -> Result<Done> {
        let running = self.running()?;
        running.agent.ask(what, within).await
    }

    fn running(&self) -> Result<&Running> {
        let running = self.running.as_ref();
        running.with_context(|| format!("{} is switched off", self.name))
    }

    /// Stops the machine's processors. It notices nothing: its clocks stop too.
    pub async fn freeze(&self) -> Result<()> {
        self.execute("stop", json!({})).await
    }

    /// Lets it go on.
    pub async fn thaw(&self) -> Result<()> {
        self.execute("cont", json!({})).await
    }

    /// Takes its link to the network down, or up again. The machine sees it.
    pub async fn link(&self, network: Network, up: bool) -> Result<()> {
        let link = json!({"name": network.name(), "up": up});
        self.execute("set_link", link).await
    }

    /// Ends the machine as a power cut does.
    pub async fn kill(&mut self) -> Result<()> {
        match self.running.take() {
            Some(running) => running.qemu.kill().await,
            None => Ok(()),
        }
    }

    /// Waits until the machine's process has ended, as after a panic.
    pub async fn ended(&self, within: Duration) -> Result<()> {
        let wait = async {
            while self.lives().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(within, wait).await;
        waited.with_context(|| format!("{} goes on after {within:?}", self.name))
    }

    async fn execute(&self, command: &str, arguments: serde_json::Value) -> Result<()> {
        let done = self.running()?.qemu.execute(command, arguments).await;
        done.map(drop).with_context(|| self.name)
    }

    /// What the serial line showed since the last boot.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// A failure in words, with the console's tail.
    pub fn failure(&self, what: &str) -> String {
        let (name, tail) = (self.name, self.console.tail());
        format!("{name} {what}; its console:\n{tail}")
    }
}
