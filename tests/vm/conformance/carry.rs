//! Carries steps to a target, with one initiator for each host.

use anyhow::{Context, Result, bail, ensure};
use nvme::command::{Command, Range, encode_ranges, io};
use nvme::initiator::{Initiator, Options};
use nvme::reservation_codec::{RegisterRequest, decode_report};
use nvme::{Error, HostIdentity, Namespace, Nqn, ReservationReport, Status};

use super::HOSTS;
use super::oracle::Answer;
use super::sequence::{DEALLOCATED, Step, What, host_id};

/// Bytes of the report that is compared after each step: room for more registrants than there are.
pub const REPORT_BYTES: usize = 1024;

/// One namespace of one target, seen by all hosts.
pub struct Carrier {
    hosts: Vec<Initiator>,
    nsid: u32,
    block_size: u32,
}

impl Carrier {
    /// Connects all hosts.
    pub async fn connect(address: &str, subsystem: &Nqn, nsid: u32) -> Result<Self> {
        let mut hosts = Vec::new();
        for host in 0..HOSTS {
            let identity = HostIdentity {
                nqn: format!("nqn.2026-11.dev.baton:conformance:{host}").parse()?,
                id: host_id(host),
            };
            let options = Options::new(address.to_owned(), subsystem.clone(), nsid, identity);
            let connected = Initiator::connect(options).await;
            hosts.push(connected.with_context(|| format!("connect to {address} as host {host}"))?);
        }
        let block_size = hosts[0].identify().await?.block_size;
        Ok(Self {
            hosts,
            nsid,
            block_size,
        })
    }

    /// Unregisters every host, whatever its key, and gives the generation.
    pub async fn reset(&self) -> Result<u32> {
        for host in 0..HOSTS {
            let request = RegisterRequest {
                action: 1,
                ignore_existing_key: true,
                persistence: 2,
                current: 0,
                new: 0,
            };
            let what = What::Register(request);
            match self.carry(&Step { host, what }).await? {
                Answer::Refused(status) if !status.is_conflict() => bail!("unregister: {status}"),
                _ => {}
            }
        }
        let report = self.report().await?;
        ensure!(report.registrants.is_empty(), "still there: {report:?}");
        Ok(report.generation)
    }

    /// Sends one command and waits for its end.
    pub async fn carry(&self, step: &Step) -> Result<Answer> {
        let (command, data, expected) = self.command(&step.what);
        let host = &self.hosts[step.host];
        match host.passthrough(command, data, expected).await {
            Ok(bytes) => self.answer(&step.what, bytes.to_vec()),
            Err(Error::Status { status, .. }) => Ok(Answer::Refused(judged(status))),
            Err(error) => Err(error.into()),
        }
    }

    fn command(&self, what: &What) -> (Command, Vec<u8>, usize) {
        let new = |opcode| Command::new(opcode, self.nsid);
        let one = |opcode, lba: u64| new(opcode).with_cdw(10, lba as u32);
        let none = Vec::new();
        match what {
            What::Register(request) => {
                let command = new(io::RESERVATION_REGISTER).with_cdw(10, request.cdw10());
                (command, request.data().to_vec(), 0)
            }
            What::Acquire(request) => {
                let command = new(io::RESERVATION_ACQUIRE).with_cdw(10, request.cdw10());
                (command, request.data().to_vec(), 0)
            }
            What::Release(request) => {
                let command = new(io::RESERVATION_RELEASE).with_cdw(10, request.cdw10());
                (command, request.data().to_vec(), 0)
            }
            What::Report { extended, length } => {
                let command = Command::reservation_report(self.nsid, *length as u32);
                (command.with_cdw(11, u32::from(*extended)), none, *length)
            }
            What::Io { opcode, lba, tag } => match *opcode {
                io::READ => (one(io::READ, *lba), none, self.block_size as usize),
                io::WRITE | io::COMPARE => (one(*opcode, *lba), self.block(*tag), 0),
                io::DATASET_MANAGEMENT => {
                    let ranges = [Range {
                        lba: DEALLOCATED,
                        blocks: 1,
                    }];
                    (Command::deallocate(self.nsid, 1), encode_ranges(&ranges), 0)
                }
                io::WRITE_ZEROES => (one(io::WRITE_ZEROES, *lba), none, 0),
                _ => (new(*opcode), none, 0),
            },
        }
    }

    fn block(&self, tag: u64) -> Vec<u8> {
        tag.to_le_bytes().repeat(self.block_size as usize / 8)
    }

    fn answer(&self, what: &What, bytes: Vec<u8>) -> Result<Answer> {
        Ok(match what {
            What::Report { .. } => Answer::Bytes(bytes),
            What::Io { opcode, .. } if *opcode == io::READ => {
                let mut tag = [0; 8];
                tag.copy_from_slice(bytes.get(..8).context("an empty block")?);
                let tag = u64::from_le_bytes(tag);
                ensure!(bytes == self.block(tag), "a torn block: {:?}", &bytes[..64]);
                Answer::Block(tag)
            }
            _ => Answer::Done,
        })
    }

    /// The full report.
    pub async fn report(&self) -> Result<ReservationReport> {
        let command = Command::reservation_report(self.nsid, REPORT_BYTES as u32);
        let read = self.hosts[0].passthrough(command, Vec::new(), REPORT_BYTES);
        Ok(decode_report(&read.await.context("read the report")?)?)
    }
}

/// Type, code and DNR. More (bit 13) only says that the error log has an entry, and the retry delay
/// (bits 12:11) is advice: neither is a part of the outcome.
fn judged(status: Status) -> Status {
    Status(status.code().0 | status.0 & Status::DNR)
}
