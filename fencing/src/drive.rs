//! Carries a sequence's commands to a namespace and their outcomes back. It holds no policy: what to
//! send, when to retry and when to give up is the sequence's.

use std::future::Future;
use std::time::Duration;

use nvme::reservation::{Acquire, Register};
use nvme::{Error, Namespace, ReservationType};

use crate::{Command, Mono, Outcome, Sequence, Step};

/// How many times `command_timeout` a preempt-and-abort may take. It completes only when the victim's
/// commands are over; a target that counts a write from its first request for data on waits for a
/// cut-off victim's until that one's keep-alive time-out (5 s). Giving up before turns that into the
/// wait of a lost reply (25 s).
const PREEMPT_PATIENCE: u32 = 4;

/// Runs `sequence` on `namespace` to its end.
///
/// `clock` reads `CLOCK_BOOTTIME`. No command is waited for longer than `command_timeout` (four times
/// that for a preempt-and-abort, which waits for the victim's commands), nor past the sequence's
/// deadline: its outcome is then unknown, whatever becomes of it. Dropping the future
/// abandons the sequence at the same risk as a lost reply; a later one copes with that.
pub async fn drive<S: Sequence>(
    sequence: &mut S,
    namespace: &impl Namespace,
    clock: impl Fn() -> Mono,
    command_timeout: Duration,
) -> Result<S::Proof, S::Unproven> {
    let mut outcome = None;
    loop {
        match sequence.next(clock(), outcome.take()) {
            Step::Send(command) => {
                let left = clock().until(sequence.deadline());
                let bound = patience(&command, command_timeout).min(left);
                let answer = tokio::time::timeout(bound, send(namespace, command)).await;
                outcome = Some(answer.unwrap_or(Outcome::Unknown));
            }
            // The sequence asks again if the timer, which stands still while the machine sleeps,
            // and the clock, which does not, disagree.
            Step::WaitUntil(until) => tokio::time::sleep(clock().until(until)).await,
            Step::Proven(proof) => return Ok(proof),
            Step::Unproven(unproven) => return Err(unproven),
        }
    }
}

fn patience(command: &Command, timeout: Duration) -> Duration {
    match command {
        Command::PreemptAndAbort { .. } => timeout * PREEMPT_PATIENCE,
        Command::Report
        | Command::Acquire { .. }
        | Command::Register { .. }
        | Command::Replace { .. } => timeout,
    }
}

/// Sends one command and says what became of it.
pub async fn send(namespace: &impl Namespace, command: Command) -> Outcome {
    const KIND: ReservationType = ReservationType::WriteExclusive;
    match command {
        Command::Report => match namespace.report().await {
            Ok(report) => Outcome::Report(report),
            Err(error) => Outcome::of_error(&error),
        },
        Command::PreemptAndAbort { key, victim } => {
            let victim = victim.pack();
            let action = Acquire::PreemptAndAbort { victim };
            done(namespace.acquire(action, key.pack(), KIND)).await
        }
        Command::Acquire { key } => {
            done(namespace.acquire(Acquire::Acquire, key.pack(), KIND)).await
        }
        Command::Register { key, persistence } => {
            let key = key.pack();
            done(namespace.register(Register::Register { key }, persistence)).await
        }
        Command::Replace {
            current,
            new,
            persistence,
        } => {
            let (current, new) = (current.pack(), new.pack());
            done(namespace.register(Register::Replace { current, new }, persistence)).await
        }
    }
}

async fn done(sent: impl Future<Output = Result<(), Error>>) -> Outcome {
    match sent.await {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::of_error(&error),
    }
}
