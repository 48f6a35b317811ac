//! What a target must answer: the model of its reservations, and the blocks' contents.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use fencing::Outcome;
use fencing::model::{Departures, Executed, Model, Quirks};
use nvme::command::io;
use nvme::reservation_codec::decode_report;
use nvme::{HostId, ReservationReport, Status};

use super::carry::REPORT_BYTES;
use super::sequence::{Step, What, host_id};

/// What a command brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Success, without data.
    Done,
    /// Success of a report: its bytes.
    Bytes(Vec<u8>),
    /// Success of a read: the tag that fills the block.
    Block(u64),
    /// A status: type, code and DNR.
    Refused(Status),
}

/// Predicts one target.
pub struct Oracle {
    quirks: Quirks,
    model: Model,
    /// The tag of each block whose content is known.
    blocks: BTreeMap<u64, u64>,
}

impl Oracle {
    /// For a target with these quirks, as long as nothing is known of its blocks.
    pub fn new(quirks: Quirks) -> Self {
        Self {
            quirks,
            model: Model::new(quirks),
            blocks: BTreeMap::new(),
        }
    }

    /// A new sequence: nobody is registered, the generation counts on.
    pub fn begin(&mut self, generation: u32) {
        self.model = Model::new(self.quirks).with_generation(generation);
    }

    /// The answer to a step, whose effects have then happened. `None`: any block may be read, as
    /// its content is not known.
    pub fn predict(&mut self, step: &Step) -> Option<Answer> {
        let host = host_id(step.host);
        let outcome = match &step.what {
            What::Register(request) => self.model.register_request(host, request),
            What::Release(request) => self.model.release_request(host, request),
            What::Acquire(request) => match self.model.acquire_request(host, request) {
                Executed::Completed(Outcome::Refused(status)) => Err(status),
                Executed::Completed(_) | Executed::Draining(_) => Ok(()),
            },
            What::Report { extended, length } => {
                return Some(match self.model.report_request(*extended, *length) {
                    Ok(bytes) => Answer::Bytes(bytes),
                    Err(status) => Answer::Refused(status),
                });
            }
            What::Io { opcode, lba, tag } => return self.predict_io(host, *opcode, *lba, *tag),
        };
        Some(match outcome {
            Ok(()) => Answer::Done,
            Err(status) => Answer::Refused(status),
        })
    }

    fn predict_io(&mut self, host: HostId, opcode: u8, lba: u64, tag: u64) -> Option<Answer> {
        if let Err(status) = self.model.admits(host, opcode) {
            return Some(Answer::Refused(status));
        }
        let known = self.blocks.get(&lba).copied();
        match opcode {
            io::READ => return known.map(Answer::Block),
            io::COMPARE if known != Some(tag) => {
                return Some(Answer::Refused(Status::COMPARE_FAILURE.dnr()));
            }
            io::WRITE => drop(self.blocks.insert(lba, tag)),
            io::WRITE_ZEROES => drop(self.blocks.insert(lba, 0)),
            _ => {}
        }
        Some(Answer::Done)
    }

    /// What a full report must show now.
    pub fn report(&mut self) -> Result<ReservationReport> {
        let bytes = self.model.report_request(true, REPORT_BYTES);
        let bytes = bytes.map_err(|status| anyhow!("the model refuses a report: {status}"))?;
        Ok(decode_report(&bytes)?)
    }

    /// The departures that mattered since this was last asked.
    pub fn take_met(&mut self) -> Departures {
        self.model.take_met()
    }
}
