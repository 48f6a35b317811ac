//! Runs a sequence on both targets at once and holds each against its oracle.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use fencing::model::{Departure, Departures, Quirks};
use nvme::ReservationReport;

use super::carry::Carrier;
use super::oracle::{Answer, Oracle};
use super::sequence::{Step, generate};

/// One target, what predicts it, and its name in messages.
pub struct Side {
    name: &'static str,
    carrier: Carrier,
    oracle: Oracle,
}

/// What one side did in a step, and what it should have done.
struct Seen {
    answer: Answer,
    predicted: Option<Answer>,
    report: ReservationReport,
    predicted_report: ReservationReport,
    met: Departures,
}

impl Side {
    /// A connected target that should behave so.
    pub fn new(name: &'static str, carrier: Carrier, quirks: Quirks) -> Self {
        Self {
            name,
            carrier,
            oracle: Oracle::new(quirks),
        }
    }

    async fn begin(&mut self) -> Result<()> {
        let reset = self.carrier.reset().await;
        let generation = reset.with_context(|| format!("reset {}", self.name))?;
        self.oracle.begin(generation);
        Ok(())
    }

    async fn take(&mut self, step: &Step) -> Result<Seen> {
        let carried = async {
            let answer = self.carrier.carry(step).await?;
            anyhow::Ok((answer, self.carrier.report().await?))
        };
        let (answer, report) = carried
            .await
            .with_context(|| format!("send {step:?} to {}", self.name))?;
        let predicted = self.oracle.predict(step);
        Ok(Seen {
            answer,
            predicted,
            report,
            predicted_report: self.oracle.report()?,
            met: self.oracle.take_met(),
        })
    }
}

impl Seen {
    fn as_predicted(&self) -> bool {
        let answered = self.predicted.as_ref().is_none_or(|p| *p == self.answer);
        answered && self.report == self.predicted_report
    }
}

/// What many sequences have shown.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Sequences.
    pub sequences: u64,
    /// Commands of the sequences, each sent to both targets.
    pub steps: u64,
    /// Sequences in which both targets did the same from the first to the last step.
    pub alike: u64,
    /// Steps in which answers or reports of the targets differ.
    pub different: u64,
    /// Steps that each departure decided.
    pub met: BTreeMap<Departure, u64>,
}

impl Summary {
    /// Adds what another run has shown.
    pub fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.steps += other.steps;
        self.alike += other.alike;
        self.different += other.different;
        for (departure, times) in &other.met {
            *self.met.entry(*departure).or_default() += times;
        }
    }
}

/// Runs the sequence of this seed on both sides.
pub async fn run(seed: u64, sides: &mut [Side; 2], summary: &mut Summary) -> Result<()> {
    let [a, b] = sides;
    let begun = tokio::try_join!(a.begin(), b.begin());
    begun.with_context(|| format!("begin seed {seed}"))?;
    let steps = generate(seed);
    let mut departed = Departures::NONE;
    let mut differed = 0;
    for (number, step) in steps.iter().enumerate() {
        let seen = tokio::try_join!(a.take(step), b.take(step));
        let (first, second) = seen.with_context(|| at(seed, number, &steps))?;
        for departure in first.met.iter().chain(second.met.iter()) {
            departed.add(departure);
            *summary.met.entry(departure).or_default() += 1;
        }
        let seen = [(a.name, first), (b.name, second)];
        judge(&seen, departed).with_context(|| at(seed, number, &steps))?;
        differed += u64::from(differ(&seen));
    }
    summary.sequences += 1;
    summary.steps += steps.len() as u64;
    summary.alike += u64::from(differed == 0);
    summary.different += differed;
    Ok(())
}

/// Generations count from the target's start, and hence are held against the oracles alone.
fn differ([(_, a), (_, b)]: &[(&str, Seen); 2]) -> bool {
    let answers = match (&a.answer, &b.answer) {
        // The bytes of a report hold its generation.
        (Answer::Bytes(a), Answer::Bytes(b)) => a.get(4..) != b.get(4..),
        // Blocks may hold what earlier sequences left there.
        (Answer::Block(_), Answer::Block(_)) => false,
        (a, b) => a != b,
    };
    let without_generation = |report: &ReservationReport| ReservationReport {
        generation: 0,
        ..report.clone()
    };
    answers || without_generation(&a.report) != without_generation(&b.report)
}

fn judge(seen: &[(&str, Seen); 2], departed: Departures) -> Result<()> {
    for (name, one) in seen {
        if !one.as_predicted() {
            bail!(
                "{name} does what no named departure predicts\n{}",
                both(seen)
            );
        }
    }
    ensure!(
        departed != Departures::NONE || !differ(seen),
        "the targets differ although no departure was met\n{}",
        both(seen)
    );
    Ok(())
}

fn both(seen: &[(&str, Seen); 2]) -> String {
    let mut text = String::new();
    for (name, one) in seen {
        let Seen {
            answer,
            predicted,
            report,
            predicted_report,
            met: _,
        } = one;
        let _ = writeln!(text, "  {name} answered  {answer:?}");
        let _ = writeln!(text, "  {name} should    {predicted:?}");
        let _ = writeln!(text, "  {name} reports   {report:?}");
        let _ = writeln!(text, "  {name} should    {predicted_report:?}");
    }
    text
}

fn at(seed: u64, number: usize, steps: &[Step]) -> String {
    let mut text = format!("seed {seed}, step {number}, after\n");
    for (n, step) in steps.iter().enumerate().take(number + 1) {
        let _ = writeln!(text, "  {n:2} host {} {:x?}", step.host, step.what);
    }
    text
}
