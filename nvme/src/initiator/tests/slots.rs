//! Outstanding commands under whatever a controller sends.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio::sync::{Semaphore, oneshot};

use crate::command::{Command, Completion};
use crate::initiator::slots::{Completed, Slot, Slots};
use crate::pdu::{Data, Pdu, ReadyToTransfer};
use crate::{Error, Status};

type Answer = oneshot::Receiver<Result<Completed, Error>>;

fn insert(slots: &mut Slots, out: Bytes, expected: usize) -> (u16, Answer) {
    let permit = Arc::new(Semaphore::new(1))
        .try_acquire_owned()
        .expect("free");
    let (reply, answer) = oneshot::channel();
    let command = Command::new(1, 1);
    let slot = Slot::new("Write", command, out, false, expected, reply, permit);
    (slots.insert(slot).expect("open"), answer)
}

fn succeed(id: u16) -> Completion {
    Completion {
        result: 9,
        sq_head: 0,
        sq_id: 0,
        id,
        status: Status::SUCCESS,
    }
}

/// Cuts `length` bytes at these places.
fn pieces(length: usize, cuts: &[prop::sample::Index]) -> Vec<std::ops::Range<usize>> {
    let mut ends: Vec<_> = cuts.iter().map(|cut| 1 + cut.index(length)).collect();
    ends.push(length);
    ends.sort_unstable();
    ends.dedup();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts
        .zip(ends.clone())
        .map(|(from, to)| from..to)
        .collect()
}

proptest! {
    #[test]
    fn data_in_any_pieces_arrives_whole(
        content in prop::collection::vec(any::<u8>(), 1..5000),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        by_flag in any::<bool>(),
    ) {
        let mut slots = Slots::default();
        let (id, mut answer) = insert(&mut slots, Bytes::new(), content.len());
        prop_assert!(matches!(slots.capsule(id), Some(Pdu::Command(..))));
        for piece in pieces(content.len(), &cuts) {
            let last = piece.end == content.len();
            let unit = Data {
                command: id,
                tag: 0,
                offset: piece.start as u32,
                data: Bytes::copy_from_slice(&content[piece]),
                last,
                success: last && by_flag,
            };
            prop_assert!(answer.try_recv().is_err());
            slots.receive(unit, true).expect("in order");
        }
        if !by_flag {
            slots.complete(succeed(id)).expect("outstanding");
        }
        let completed = answer.try_recv().expect("answered").expect("completed");
        prop_assert_eq!(&completed.data[..], &content[..]);
        prop_assert!(slots.complete(succeed(id)).is_err(), "completed once");
    }

    #[test]
    fn data_is_sent_as_asked_for_in_any_pieces(
        content in prop::collection::vec(any::<u8>(), 1..5000),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        most in 1_usize..2000,
    ) {
        let mut slots = Slots::default();
        let (id, _answer) = insert(&mut slots, Bytes::from(content.clone()), 0);
        slots.capsule(id);
        let mut sent = BytesMut::new();
        for piece in pieces(content.len(), &cuts) {
            let wish = ReadyToTransfer {
                command: id,
                tag: 3,
                offset: piece.start as u32,
                length: piece.len() as u32,
            };
            let units = slots.answer(wish, most).expect("within the command");
            prop_assert!(units.iter().all(|unit| unit.data.len() <= most && unit.tag == 3));
            prop_assert_eq!(units.iter().filter(|unit| unit.last).count(), 1);
            prop_assert!(units.last().is_some_and(|unit| unit.last));
            for unit in units {
                prop_assert_eq!(unit.offset as usize, sent.len());
                sent.extend_from_slice(&unit.data);
            }
        }
        prop_assert_eq!(&sent[..], &content[..]);
        let again = ReadyToTransfer { command: id, tag: 3, offset: 0, length: 1 };
        prop_assert!(slots.answer(again, most).is_err(), "each byte is asked for once");
    }

    #[test]
    fn nothing_that_a_controller_sends_breaks_the_table(
        units in prop::collection::vec((0_u16..6, any::<u32>(), 0_usize..200, 0_u8..3), 0..60),
    ) {
        let mut slots = Slots::default();
        let mut answers = Vec::new();
        for n in 0..4 {
            let (id, answer) = insert(&mut slots, Bytes::from(vec![1; 64]), 64);
            if n > 0 {
                slots.capsule(id);
            }
            answers.push(answer);
        }
        for (command, number, length, kind) in units {
            let offset = number % 80;
            let _ = match kind {
                0 => slots.complete(succeed(command)),
                1 => slots.receive(
                    Data {
                        command,
                        tag: 0,
                        offset,
                        data: Bytes::from(vec![2; length]),
                        last: true,
                        success: number % 2 == 0,
                    },
                    true,
                ),
                _ => {
                    let length = length as u32;
                    let wish = ReadyToTransfer { command, tag: 0, offset, length };
                    slots.answer(wish, 32).map(|_| ())
                }
            };
        }
        slots.end("the test is over");
        // The first was never sent: nothing that a controller says can complete it.
        let unsent = answers.remove(0).try_recv().expect("answered");
        prop_assert!(matches!(unsent, Err(Error::NoPath { .. })), "never sent");
        for mut answer in answers {
            let answer = answer.try_recv().expect("answered");
            let sound = match answer {
                Ok(completed) => completed.data.len() <= 64,
                Err(error) => error.outcome_unknown(),
            };
            prop_assert!(sound);
        }
    }
}

#[test]
fn identifiers_do_not_come_back_at_once() {
    let mut slots = Slots::default();
    let (first, _answer) = insert(&mut slots, Bytes::new(), 0);
    slots.capsule(first);
    slots.complete(succeed(first)).expect("outstanding");
    let (second, _answer) = insert(&mut slots, Bytes::new(), 0);
    assert_ne!(first, second);
}

#[test]
fn a_command_withdrawn_before_it_left_is_never_sent() {
    let mut slots = Slots::default();
    let (id, _answer) = insert(&mut slots, Bytes::new(), 0);
    assert!(slots.withdraw(id));
    assert!(slots.capsule(id).is_none());
    let (id, answer) = insert(&mut slots, Bytes::new(), 0);
    drop(answer);
    assert!(slots.capsule(id).is_none(), "its caller is gone");
    let (id, _answer) = insert(&mut slots, Bytes::new(), 0);
    slots.capsule(id);
    assert!(!slots.withdraw(id), "it may have left");
}
