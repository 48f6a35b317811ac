//! Connecting and disconnecting the kernel's own initiator (`/dev/nvme-fabrics`, sysfs).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::options::TimeOuts;
use crate::{HostIdentity, Nqn};

const DEVICE: &str = "/dev/nvme-fabrics";
/// The kernel takes at most one page of options.
const MAX_OPTIONS: usize = 4095;

/// Options of an NVMe/TCP connection of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// The subsystem.
    pub subsystem: Nqn,
    /// IP address of the port, as text.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Who this host is.
    pub host: HostIdentity,
    /// The kernel's time-outs.
    pub time_outs: TimeOuts,
    /// I/O queues; `None` for one per processor.
    pub io_queues: Option<u16>,
    /// Header digests.
    pub header_digest: bool,
    /// Data digests.
    pub data_digest: bool,
}

impl ConnectOptions {
    /// Options with the usual time-outs, as many queues as processors, and no digests.
    pub fn new(subsystem: Nqn, address: String, port: u16, host: HostIdentity) -> Self {
        Self {
            subsystem,
            address,
            port,
            host,
            time_outs: TimeOuts::default(),
            io_queues: None,
            header_digest: false,
            data_digest: false,
        }
    }

    /// The option string, with the tokens in the kernel's own order of documentation.
    pub fn to_text(&self) -> Result<String, ConnectError> {
        let mut options = vec![
            ("nqn", self.subsystem.to_string()),
            ("transport", "tcp".to_owned()),
            ("traddr", self.address.clone()),
            ("trsvcid", self.port.to_string()),
            ("hostnqn", self.host.nqn.to_string()),
            ("hostid", self.host.id.to_string()),
        ];
        let times = &self.time_outs;
        let times = [
            ("keep_alive_tmo", times.keep_alive),
            ("reconnect_delay", times.reconnect_delay),
            ("fast_io_fail_tmo", times.fast_io_fail),
            ("ctrl_loss_tmo", times.controller_loss),
        ];
        options.extend(times.map(|(name, time)| (name, time.as_secs().to_string())));
        if let Some(queues) = self.io_queues {
            options.push(("nr_io_queues", queues.to_string()));
        }
        let flags = [
            ("hdr_digest", self.header_digest),
            ("data_digest", self.data_digest),
        ];
        for (name, value) in &options {
            // The kernel splits at commas; there is no way to quote one.
            if value.contains([',', '\n']) {
                return Err(ConnectError::Value {
                    option: name,
                    value: value.clone(),
                });
            }
        }
        let pairs = options
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let set = flags
            .iter()
            .filter(|(_, on)| *on)
            .map(|(name, _)| (*name).to_owned());
        let text = pairs.chain(set).collect::<Vec<_>>().join(",");
        if text.len() > MAX_OPTIONS {
            return Err(ConnectError::TooLong { length: text.len() });
        }
        Ok(text)
    }
}

/// Why the kernel's initiator did not connect.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// An option's value cannot be written.
    #[error("{option}={value:?} cannot be passed to the kernel: it holds a comma or a line break")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// The options do not fit.
    #[error("{length} bytes of options are more than the kernel takes")]
    TooLong {
        /// Their length in bytes.
        length: usize,
    },
    /// The running kernel does not know an option that is needed.
    #[error("this kernel's nvme-fabrics does not know the option {option}")]
    Unsupported {
        /// The option.
        option: String,
    },
    /// A system call failed. Connecting may be refused here by the target, too.
    #[error("{operation} {}", path.display())]
    System {
        /// What was attempted.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel has no NVMe over Fabrics.
    #[error("{DEVICE} is missing: load the module nvme-tcp (modprobe nvme-tcp)")]
    NoModule,
    /// No answer in time. The connection may still be made.
    #[error("the kernel has not answered in time")]
    Late,
    /// The kernel's answer is not understood.
    #[error("the kernel answered {answer:?}")]
    Answer {
        /// The answer.
        answer: String,
    },
}

/// A connection that the kernel made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// N of `nvmeN`.
    pub instance: u32,
    /// CNTLID.
    pub controller: u16,
}

impl ConnectError {
    /// Whether such a connection is there already: somebody else made it.
    pub fn is_there_already(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.raw_os_error() == Some(libc::EALREADY))
    }
}

/// Connects. Blocks for as long as the target takes: run it on a thread of its own.
///
/// # Errors
/// See [`ConnectError`]; the kernel's log says more.
pub fn connect(options: &ConnectOptions) -> Result<Connected, ConnectError> {
    let text = options.to_text()?;
    if !Path::new(DEVICE).exists() {
        return Err(ConnectError::NoModule);
    }
    if let Some(supported) = supported_options(Path::new(DEVICE)) {
        let needed = text.split(',').map(|o| o.split('=').next().unwrap_or(o));
        if let Some(option) = needed
            .into_iter()
            .find(|o| !supported.iter().any(|s| s == o))
        {
            return Err(ConnectError::Unsupported {
                option: option.to_owned(),
            });
        }
    }
    let mut device = open(Path::new(DEVICE))?;
    device
        .write_all(text.as_bytes())
        .map_err(|e| failed("connect through", Path::new(DEVICE), e))?;
    let mut answer = [0; 256];
    let length = device
        .read(&mut answer)
        .map_err(|e| failed("read the answer of", Path::new(DEVICE), e))?;
    parse_answer(&String::from_utf8_lossy(&answer[..length]))
}

/// Removes a controller, `nvmeN`. Blocks until the kernel has ended its commands and closed its
/// connections, which takes up to `nvme_core.admin_timeout` on a silent path.
///
/// # Errors
/// It is still being made (EBUSY). One that is gone, or already on its way out, is no error.
pub fn disconnect(sysfs: &Path, controller: &str) -> Result<(), ConnectError> {
    let path = sysfs
        .join("class/nvme")
        .join(controller)
        .join("delete_controller");
    let written = OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(b"1"));
    match written {
        // The attribute goes first.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        written => written.map_err(|e| failed("write to", &path, e)),
    }
}

/// The options that the running kernel knows. `None` where it does not tell (before Linux 5.17).
///
/// One open file serves one connection; this opens its own.
fn supported_options(device: &Path) -> Option<Vec<String>> {
    let mut text = [0; 4096];
    let length = File::open(device).ok()?.read(&mut text).ok()?;
    parse_supported(&String::from_utf8_lossy(&text[..length]))
}

/// `instance=-1,cntlid=-1`-like answers of old kernels name no options.
fn parse_supported(text: &str) -> Option<Vec<String>> {
    let names: Vec<String> = text
        .trim_end_matches(['\n', '\0'])
        .split(',')
        .filter_map(|option| option.split('=').next())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    names
        .iter()
        .any(|name| name == "transport")
        .then_some(names)
}

fn parse_answer(text: &str) -> Result<Connected, ConnectError> {
    let field = |name: &str| {
        text.trim_end_matches(['\n', '\0'])
            .split(',')
            .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
            .and_then(|value| value.parse::<u32>().ok())
    };
    let parsed = || {
        Some(Connected {
            instance: field("instance")?,
            controller: u16::try_from(field("cntlid")?).ok()?,
        })
    };
    parsed().ok_or_else(|| ConnectError::Answer {
        answer: text.to_owned(),
    })
}

fn open(path: &Path) -> Result<File, ConnectError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| failed("open", path, e))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> ConnectError {
    ConnectError::System {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ConnectOptions {
        let host = HostIdentity {
            nqn: "nqn.2014-08.org.nvmexpress:uuid:3b6f2d30-1f6a-4b0e-8f5e-0e6b8c1d2a01"
                .parse()
                .expect("an NQN"),
            id: crate::HostId(uuid::uuid!("3b6f2d30-1f6a-4b0e-8f5e-0e6b8c1d2a01")),
        };
        let subsystem = "nqn.2026-11.dev.baton:lab".parse().expect("an NQN");
        ConnectOptions::new(subsystem, "192.0.2.7".to_owned(), 4420, host)
    }

    #[test]
    fn options_are_written_as_the_kernel_reads_them() {
        let mut options = options();
        options.io_queues = Some(4);
        options.header_digest = true;
        let expected = "nqn=nqn.2026-11.dev.baton:lab,transport=tcp,traddr=192.0.2.7,\
            trsvcid=4420,hostnqn=nqn.2014-08.org.nvmexpress:uuid:3b6f2d30-1f6a-4b0e-8f5e-0e6b8c1d2a01,\
            hostid=3b6f2d30-1f6a-4b0e-8f5e-0e6b8c1d2a01,keep_alive_tmo=5,reconnect_delay=1,\
            fast_io_fail_tmo=5,ctrl_loss_tmo=60,nr_io_queues=4,hdr_digest";
        assert_eq!(options.to_text().expect("fits"), expected);
    }

    #[test]
    fn a_value_cannot_smuggle_an_option_in() {
        let mut options = options();
        options.address = "192.0.2.7,hostid=0".to_owned();
        let refused = options.to_text();
        assert!(matches!(
            refused,
            Err(ConnectError::Value {
                option: "traddr",
                ..
            })
        ));
    }

    /// The text of nvmf_dev_show and __nvmf_concat_opt_tokens in drivers/nvme/host/fabrics.c.
    #[test]
    fn answers_are_understood() {
        let connected = parse_answer("instance=3,cntlid=17\n").expect("understood");
        assert_eq!((connected.instance, connected.controller), (3, 17));
        for wrong in [
            "",
            "instance=-1,cntlid=-1",
            "instance=3",
            "cntlid=70000,instance=1",
        ] {
            assert!(parse_answer(wrong).is_err(), "{wrong:?}");
        }
        let text = "transport=%s,traddr=%s,trsvcid=%s,nqn=%s,queue_size=%d,duplicate_connect,\
            fast_io_fail_tmo=%d,discovery\n";
        let supported = parse_supported(text).expect("understood");
        assert!(supported.iter().any(|name| name == "duplicate_connect"));
        assert!(supported.iter().any(|name| name == "fast_io_fail_tmo"));
        assert_eq!(parse_supported("instance=-1\n"), None);
    }

    #[test]
    fn disconnecting_writes_to_the_controllers_file() {
        let sysfs = tempfile::tempdir().expect("make a directory");
        let controller = sysfs.path().join("class/nvme/nvme3");
        std::fs::create_dir_all(&controller).expect("make the tree");
        std::fs::write(controller.join("delete_controller"), "").expect("make the file");
        disconnect(sysfs.path(), "nvme3").expect("disconnect");
        let written = std::fs::read_to_string(controller.join("delete_controller"));
        assert_eq!(written.expect("read"), "1");
        disconnect(sysfs.path(), "nvme4").expect("it is gone already");
    }
}
