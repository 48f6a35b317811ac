//! One QEMU process. It ends with this value, and with the process namespace.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use crate::accelerator::Accelerator;
use crate::console::Console;
use crate::network::Network;
use crate::qmp::Qmp;

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// How long QEMU may take to open its sockets.
const START_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks at a socket that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a machine consists of.
pub struct Hardware<'a> {
    pub name: &'a str,
    pub accelerator: Accelerator,
    pub memory_mib: u32,
    pub image: &'a Path,
    pub initramfs: &'a Path,
    /// `NAME=VALUE` for the kernel and its first process.
    pub parameters: Vec<String>,
    /// Where sockets and the console go.
    pub scratch: &'a Path,
    /// The machine's number, if it is on the networks, shares the root and has an agent.
    pub number: Option<u8>,
    /// A file that is the machine's first disk.
    pub disk: Option<&'a Path>,
}

/// A running machine's process.
pub struct Qemu {
    child: Mutex<Child>,
    qmp: Mutex<Qmp>,
    pub console: Console,
    errors: PathBuf,
}

impl Qemu {
    pub async fn start(hardware: &Hardware<'_>) -> Result<Self> {
        let at = |what: &str| hardware.scratch.join(format!("{}.{what}", hardware.name));
        let socket = at("qmp");
        for stale in [&socket, &agent_socket(hardware.scratch, hardware.name)] {
            let _ = std::fs::remove_file(stale);
        }
        let (console, errors) = (Console::at(at("console")), at("errors"));
        let output = std::fs::File::create(&errors).context("create a file")?;
        let child = Command::new(PROGRAM)
            .args(hardware.arguments(&console, &socket))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("run {PROGRAM}"))?;
        let child = Mutex::new(child);
        let qmp = reach(&child, &socket, &errors).await?;
        Ok(Self {
            child,
            qmp: Mutex::new(qmp),
            console,
            errors,
        })
    }

    /// One command of QMP.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.qmp.lock().await.execute(command, arguments).await
    }

    /// `running`, `paused`, `internal-error`, …
    pub async fn status(&self) -> Result<String> {
        let status = self.execute("query-status", json!({})).await?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Whether the process has ended, and if so, what it said.
    pub async fn ended(&self) -> Option<String> {
        let status = self.child.lock().await.try_wait();
        let status = status.ok().flatten()?;
        let said = std::fs::read_to_string(&self.errors).unwrap_or_default();
        Some(format!("QEMU ended with {status}\n{said}"))
    }

    /// The machine's death: no word to anyone inside.
    pub async fn kill(&self) -> Result<()> {
        self.child.lock().await.kill().await.context("kill QEMU")
    }
}

/// The socket of the agent's port.
pub fn agent_socket(scratch: &Path, machine: &str) -> PathBuf {
    scratch.join(format!("{machine}.agent"))
}

/// Connects as soon as QEMU listens; there is a moment between the socket's file and that.
async fn reach(child: &Mutex<Child>, socket: &Path, errors: &Path) -> Result<Qmp> {
    let wait = async {
        loop {
            if let Ok(stream) = UnixStream::connect(socket).await {
                return Qmp::greet(stream).await;
            }
            if let Some(status) = child.lock().await.try_wait()? {
                let said = std::fs::read_to_string(errors).unwrap_or_default();
                bail!("QEMU ended with {status}: {}", said.trim());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let reached = tokio::time::timeout(START_WITHIN, wait).await;
    reached.context("QEMU opened no control socket in time")?
}

impl Hardware<'_> {
    fn arguments(&self, console: &Console, socket: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        for (option, value) in self.accelerator.arguments() {
            add(option, (*value).to_owned());
        }
        let memory = self.memory_mib;
        add("-machine", "q35".to_owned());
        add("-m", format!("{memory}M"));
        add("-kernel", self.image.display().to_string());
        add("-initrd", self.initramfs.display().to_string());
        // A panic, and any oops, ends QEMU at once. Without mitigations emulation is quicker.
        let fixed = "console=ttyS0 loglevel=5 oops=panic panic=-1 mitigations=off";
        let parameters = self.parameters.join(" ");
        add("-append", format!("{fixed} {parameters}"));
        add("-serial", format!("file:{}", console.path().display()));
        add(
            "-qmp",
            format!("unix:{},server=on,wait=off", socket.display()),
        );
        if let Some(number) = self.number {
            let fitted = self.agent().into_iter().chain(self.networks(number));
            fitted.for_each(|(option, value)| add(option, value));
        }
        if let Some(disk) = self.disk {
            let disk = disk.display();
            let drive = format!("file={disk},format=raw,if=none,id=disk,cache=writeback");
            add("-drive", drive);
            add("-device", "virtio-blk-pci,drive=disk".to_owned());
        }
        let alone = ["-nodefaults", "-no-user-config", "-no-reboot"];
        arguments.extend(alone.map(str::to_owned));
        arguments.extend(["-display", "none"].map(str::to_owned));
        arguments
    }

    /// The root, which nobody can write, and the agent's port.
    fn agent(&self) -> Vec<(&'static str, String)> {
        let socket = agent_socket(self.scratch, self.name);
        let socket = socket.display();
        let root = "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap";
        let port = "virtserialport,chardev=agent,name=agent";
        vec![
            ("-virtfs", root.to_owned()),
            ("-device", "virtio-serial-pci".to_owned()),
            (
                "-chardev",
                format!("socket,id=agent,path={socket},server=on,wait=off"),
            ),
            ("-device", port.to_owned()),
        ]
    }

    fn networks(&self, number: u8) -> Vec<(&'static str, String)> {
        let one = |network: Network| {
            let (name, tap) = (network.name(), network.tap(self.name));
            let mac = network.hardware_address(number);
            [
                (
                    "-netdev",
                    format!("tap,id={name},ifname={tap},script=no,downscript=no"),
                ),
                (
                    "-device",
                    format!("virtio-net-pci,netdev={name},mac={mac},romfile="),
                ),
            ]
        };
        Network::ALL.into_iter().flat_map(one).collect()
    }
}

/// Fails with a clear word if there is no QEMU.
pub fn present() -> Result<()> {
    let version = std::process::Command::new(PROGRAM)
        .arg("--version")
        .output()
        .with_context(|| format!("run {PROGRAM}: install qemu-system-x86"))?;
    ensure!(version.status.success(), "{PROGRAM} does not run");
    Ok(())
}
