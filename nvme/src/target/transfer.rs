//! Data that commands of one queue wait for: which R2T is outstanding, what has come.
//!
//! No I/O. One R2T asks for a command's whole data; how much is asked for at once is bounded, further
//! commands wait in order.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::command::Command;
use crate::pdu::{Data, FatalStatus, ReadyToTransfer, Violation};

/// Bytes asked for and not yet received on one queue: bounds its memory.
const GRANTED_MAX: usize = 8 * 1024 * 1024;

/// A command with its data complete.
#[derive(Debug)]
pub struct Arrived {
    /// The command.
    pub command: Command,
    /// Its data.
    pub data: Bytes,
    /// Whether every data digest was right.
    pub intact: bool,
}

struct Transfer {
    command: Command,
    length: usize,
    received: BytesMut,
    intact: bool,
}

/// The transfers of one queue.
#[derive(Default)]
pub struct Transfers {
    /// By transfer tag.
    slots: Vec<Option<Transfer>>,
    waiting: VecDeque<(Command, usize)>,
    granted: usize,
}

impl Transfers {
    /// The command waits for `length` bytes, not 0. Then ask [`Transfers::grant`].
    pub fn wait_for(&mut self, command: Command, length: usize) {
        self.waiting.push_back((command, length));
    }

    /// The next R2T to send, while the bound allows it. One transfer is always allowed.
    pub fn grant(&mut self) -> Option<ReadyToTransfer> {
        let (_, length) = self.waiting.front()?;
        if self.granted > 0 && self.granted + length > GRANTED_MAX {
            return None;
        }
        let (command, length) = self.waiting.pop_front()?;
        self.granted += length;
        let transfer = Transfer {
            command,
            length,
            received: BytesMut::new(),
            intact: true,
        };
        let tag = match self.slots.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[tag] = Some(transfer);
        Some(ReadyToTransfer {
            command: command.id,
            tag: tag as u16,
            offset: 0,
            length: length as u32,
        })
    }

    /// Takes in a data unit; the command when its data is complete. Data must come in order.
    pub fn receive(&mut self, unit: Data, intact: bool) -> Result<Option<Arrived>, Violation> {
        let wrong = |at, what| Violation::new(FatalStatus::InvalidHeaderField, at, what);
        let slot = self.slots.get_mut(usize::from(unit.tag));
        let Some(transfer) = slot.and_then(Option::as_mut) else {
            return Err(wrong(10, "data with an unknown transfer tag"));
        };
        if transfer.command.id != unit.command {
            return Err(wrong(
                8,
                "data of another command than its transfer tag says",
            ));
        }
        let received = transfer.received.len();
        let fits =
            unit.offset as usize == received && unit.data.len() <= transfer.length - received;
        let complete = fits && received + unit.data.len() == transfer.length;
        if !fits || (unit.last && !complete) {
            let what = "data outside the range that was asked for";
            return Err(Violation::new(FatalStatus::DataOutOfRange, 12, what));
        }
        transfer.intact &= intact;
        if !complete {
            transfer.received.reserve(transfer.length - received);
            transfer.received.extend_from_slice(&unit.data);
            return Ok(None);
        }
        let Some(mut done) = self.slots[usize::from(unit.tag)].take() else {
            return Ok(None);
        };
        self.granted -= done.length;
        // The usual case, all data in one unit, copies nothing.
        let data = if received == 0 {
            unit.data
        } else {
            done.received.extend_from_slice(&unit.data);
            done.received.freeze()
        };
        Ok(Some(Arrived {
            command: done.command,
            data,
            intact: done.intact,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(tag: u16, offset: u32, data: &'static [u8], last: bool) -> Data {
        let data = Bytes::from_static(data);
        Data {
            command: 7,
            tag,
            offset,
            data,
            last,
            success: false,
        }
    }

    fn waiting(length: usize) -> (Transfers, u16) {
        let mut transfers = Transfers::default();
        transfers.wait_for(
            Command {
                id: 7,
                ..Command::default()
            },
            length,
        );
        let grant = transfers.grant().unwrap();
        assert_eq!(
            (grant.command, grant.offset, grant.length as usize),
            (7, 0, length)
        );
        (transfers, grant.tag)
    }

    #[test]
    fn data_in_parts_comes_out_whole() {
        let (mut transfers, tag) = waiting(6);
        assert!(
            transfers
                .receive(unit(tag, 0, b"abc", false), true)
                .unwrap()
                .is_none()
        );
        let arrived = transfers
            .receive(unit(tag, 3, b"def", true), true)
            .unwrap()
            .unwrap();
        assert_eq!((&arrived.data[..], arrived.intact), (&b"abcdef"[..], true));
        assert!(transfers.receive(unit(tag, 0, b"a", false), true).is_err());
    }

    #[test]
    fn data_out_of_range_is_a_violation() {
        for bad in [
            unit(0, 1, b"abc", false),
            unit(0, 0, b"abcdefg", true),
            unit(0, 0, b"abc", true),
            unit(1, 0, b"abc", false),
        ] {
            let (mut transfers, tag) = waiting(6);
            assert_eq!(tag, 0);
            transfers.receive(bad, true).unwrap_err();
        }
    }

    #[test]
    fn grants_are_bounded_and_in_order() {
        let mut transfers = Transfers::default();
        for id in 0..3 {
            transfers.wait_for(
                Command {
                    id,
                    ..Command::default()
                },
                GRANTED_MAX / 2 + 1,
            );
        }
        assert_eq!(transfers.grant().unwrap().command, 0);
        assert!(transfers.grant().is_none());
    }
}
