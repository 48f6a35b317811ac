//! The commands of [`Namespace`] over the current association.

use bytes::Bytes;

use super::Initiator;
use super::queue::Transfer;
use super::slots::Completed;
use crate::command::{Command, Range, encode_ranges};
use crate::reservation::{Acquire, ChangePersistence, Register, Release, ReservationReport};
use crate::reservation_codec::{REPORT_ENTRY_LEN, REPORT_HEADER_LEN, decode_report};
use crate::{Error, Identified, Namespace, ReservationType};

/// Registrants for which the first Reservation Report makes room; the report tells if there are more.
const USUAL_REGISTRANTS: usize = 15;
/// How often a report that grew meanwhile is asked for anew.
const REPORT_ATTEMPTS: u32 = 3;
/// Most blocks of one command: NLB is a zero-based 16-bit number.
const MAX_COMMAND_BLOCKS: u32 = 1 << 16;

impl Initiator {
    async fn run(
        &self,
        name: &'static str,
        command: Command,
        transfer: Transfer,
    ) -> Result<Completed, Error> {
        let association = self.association_for(name)?;
        let deadline = self.options.command_deadline;
        association.execute(name, command, transfer, deadline).await
    }

    async fn run_with_data(
        &self,
        name: &'static str,
        (command, data): (Command, Vec<u8>),
    ) -> Result<(), Error> {
        self.run(name, command, Transfer::to_controller(data))
            .await?;
        Ok(())
    }

    /// Sends a command of the I/O queues as it is, with its data or room for `expected` bytes, whatever
    /// the controller may make of it: for tests that hold a target against the specification.
    /// Gives the bytes that came.
    pub async fn passthrough(
        &self,
        command: Command,
        data: Vec<u8>,
        expected: usize,
    ) -> Result<Bytes, Error> {
        let transfer = Transfer {
            out: data.into(),
            expected,
        };
        let length = transfer.out.len().max(expected);
        let command = match length {
            0 => command,
            _ => command.transfer(length),
        };
        Ok(self.run("Passthrough", command, transfer).await?.data)
    }

    /// Checks a range before anything is sent.
    fn check(
        &self,
        name: &'static str,
        identified: &Identified,
        blocks: u32,
        limit: u32,
    ) -> Result<(), Error> {
        if (1..=limit).contains(&blocks) {
            return Ok(());
        }
        let size = identified.block_size;
        Err(Error::Io {
            command: name,
            operation: format!("check the length of {blocks} blocks of {size} bytes"),
            source: std::io::ErrorKind::InvalidInput.into(),
        })
    }
}

fn transfer_limit(identified: &Identified) -> u32 {
    (identified.max_transfer / identified.block_size).min(MAX_COMMAND_BLOCKS)
}

impl Namespace for Initiator {
    async fn identify(&self) -> Result<Identified, Error> {
        Ok(self.association_for("Identify")?.identified.clone())
    }

    async fn read(&self, lba: u64, blocks: u32) -> Result<Bytes, Error> {
        let name = "Read";
        let association = self.association_for(name)?;
        let identified = &association.identified;
        self.check(name, identified, blocks, transfer_limit(identified))?;
        let length = (blocks * identified.block_size) as usize;
        let command = Command::read(identified.nsid, lba, blocks, identified.block_size);
        let transfer = Transfer::from_controller(length);
        let deadline = self.options.command_deadline;
        let read = association
            .execute(name, command, transfer, deadline)
            .await?;
        if read.data.len() == length {
            return Ok(read.data);
        }
        Err(Error::Protocol {
            command: name,
            detail: format!("{} of {length} bytes came", read.data.len()),
        })
    }

    async fn write(&self, lba: u64, data: Bytes, fua: bool) -> Result<(), Error> {
        let name = "Write";
        let association = self.association_for(name)?;
        let identified = &association.identified;
        let size = identified.block_size;
        let whole = data.len().is_multiple_of(size as usize);
        let blocks = if whole {
            (data.len() / size as usize) as u32
        } else {
            0
        };
        self.check(name, identified, blocks, transfer_limit(identified))?;
        let command = Command::write(identified.nsid, lba, blocks, size, fua);
        let transfer = Transfer::to_controller(data);
        let deadline = self.options.command_deadline;
        association
            .execute(name, command, transfer, deadline)
            .await?;
        Ok(())
    }

    async fn flush(&self) -> Result<(), Error> {
        let command = Command::flush(self.options.namespace_id);
        self.run("Flush", command, Transfer::none()).await?;
        Ok(())
    }

    async fn write_zeroes(&self, lba: u64, blocks: u32, deallocate: bool) -> Result<(), Error> {
        let name = "Write Zeroes";
        let association = self.association_for(name)?;
        self.check(name, &association.identified, blocks, MAX_COMMAND_BLOCKS)?;
        let command = Command::write_zeroes(self.options.namespace_id, lba, blocks, deallocate);
        let deadline = self.options.command_deadline;
        association
            .execute(name, command, Transfer::none(), deadline)
            .await?;
        Ok(())
    }

    async fn deallocate(&self, lba: u64, blocks: u32) -> Result<(), Error> {
        let ranges = [Range { lba, blocks }];
        let command = Command::deallocate(self.options.namespace_id, 1);
        self.run_with_data("Dataset Management", (command, encode_ranges(&ranges)))
            .await
    }

    async fn register(
        &self,
        action: Register,
        persistence: ChangePersistence,
    ) -> Result<(), Error> {
        let nsid = self.options.namespace_id;
        let command = Command::reservation_register(nsid, action, false, persistence);
        self.run_with_data("Reservation Register", command).await
    }

    async fn acquire(&self, action: Acquire, key: u64, kind: ReservationType) -> Result<(), Error> {
        let command = Command::reservation_acquire(self.options.namespace_id, action, key, kind);
        self.run_with_data("Reservation Acquire", command).await
    }

    async fn release(&self, action: Release, key: u64) -> Result<(), Error> {
        let command = Command::reservation_release(self.options.namespace_id, action, key);
        self.run_with_data("Reservation Release", command).await
    }

    async fn report(&self) -> Result<ReservationReport, Error> {
        let name = "Reservation Report";
        let mut registrants = USUAL_REGISTRANTS;
        for _ in 0..REPORT_ATTEMPTS {
            let length = REPORT_HEADER_LEN + registrants * REPORT_ENTRY_LEN;
            let command = Command::reservation_report(self.options.namespace_id, length as u32);
            let transfer = Transfer::from_controller(length);
            let data = self.run(name, command, transfer).await?.data;
            let present = data
                .get(5..7)
                .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
            if usize::from(present) > registrants {
                registrants = usize::from(present);
                continue;
            }
            return decode_report(&data).map_err(|error| Error::Protocol {
                command: name,
                detail: error.to_string(),
            });
        }
        Err(Error::Protocol {
            command: name,
            detail: "the number of registrants kept growing".to_owned(),
        })
    }
}
