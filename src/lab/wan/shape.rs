//! What a line does to frames, and the queue of those under way. Pure: time and chance are
//! arguments.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::clock::Mono;

/// The most that may be under way in one direction, in bytes: what comes on top is lost, as in a
/// router. Far more than one second of what PostgreSQL sends under a drill's writers.
const QUEUE_BYTES: usize = 64 << 20;

/// What a line does to frames, each direction by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// How long a frame takes, in milliseconds.
    pub delay_ms: u64,
    /// By how much that varies, in milliseconds to either side. Frames never overtake each other.
    pub jitter_ms: u64,
    /// The share of frames that is lost, 0 to 1.
    pub loss: f64,
    /// Whether nothing passes at all.
    pub cut: bool,
}

impl Shape {
    /// A line on which nothing passes.
    pub const CUT: Self = Self {
        delay_ms: 0,
        jitter_ms: 0,
        loss: 0.0,
        cut: true,
    };

    /// A line with this delay in each direction, and this share of frames lost.
    pub fn slow(delay: Duration, loss: f64) -> Self {
        Self {
            delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            loss,
            ..Self::default()
        }
    }

    /// When a frame that is sent now arrives; none if it is lost.
    fn arrival(&self, now: Mono, chance: &mut impl Rng) -> Option<Mono> {
        if self.cut || (self.loss > 0.0 && chance.random::<f64>() < self.loss) {
            return None;
        }
        let jitter = match self.jitter_ms {
            0 => 0,
            most => chance.random_range(0..=2 * most),
        };
        let delay = (self.delay_ms + jitter).saturating_sub(self.jitter_ms);
        Some(now + Duration::from_millis(delay))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            delay_ms,
            jitter_ms,
            loss,
            cut,
        } = self;
        match (cut, *self == Self::default()) {
            (true, _) => f.write_str("cut"),
            (false, true) => f.write_str("as good as it gets"),
            (false, false) => {
                let loss = loss * 100.0;
                write!(f, "{delay_ms} ms ± {jitter_ms} ms, {loss} % loss")
            }
        }
    }
}

/// The frames under way in one direction, in the order of their arrival.
#[derive(Debug, Default)]
pub struct Queue {
    frames: VecDeque<(Mono, Vec<u8>)>,
    bytes: usize,
}

impl Queue {
    /// Takes a frame, or loses it.
    pub fn accept(&mut self, frame: &[u8], shape: &Shape, now: Mono, chance: &mut impl Rng) {
        let Some(arrival) = shape.arrival(now, chance) else {
            return;
        };
        if self.bytes + frame.len() > QUEUE_BYTES {
            return;
        }
        let last = self.frames.back().map_or(arrival, |(last, _)| *last);
        self.bytes += frame.len();
        self.frames.push_back((arrival.max(last), frame.to_vec()));
    }

    /// The next frame that has arrived by now.
    pub fn arrived(&mut self, now: Mono) -> Option<Vec<u8>> {
        self.frames.front().filter(|(due, _)| *due <= now)?;
        let (_, frame) = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// How long until the next one arrives; none if nothing is under way.
    pub fn next(&self, now: Mono) -> Option<Duration> {
        self.frames.front().map(|(due, _)| due.since(now))
    }

    /// Loses all that is under way.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_millis(ms)
    }

    #[test]
    fn frames_arrive_late_in_order_and_not_all_of_them() {
        let mut chance = ChaCha8Rng::seed_from_u64(7);
        let shape = Shape {
            jitter_ms: 50,
            ..Shape::slow(Duration::from_millis(300), 0.05)
        };
        let mut queue = Queue::default();
        for number in 0..1_000_u64 {
            queue.accept(&number.to_be_bytes(), &shape, at(number), &mut chance);
        }
        let (mut last, mut count) = (None, 0);
        for now in 0..2_000 {
            while let Some(frame) = queue.arrived(at(now)) {
                let number = u64::from_be_bytes(frame.try_into().unwrap());
                assert!((250..=1_000).contains(&(now - number)), "{number} at {now}");
                assert!(last < Some(number), "{number} after {last:?}");
                (last, count) = (Some(number), count + 1);
            }
        }
        assert!((900..990).contains(&count), "{count} of 1000 arrived");
    }

    #[test]
    fn nothing_enters_a_cut_line_and_what_is_under_way_can_be_lost() {
        let mut chance = ChaCha8Rng::seed_from_u64(7);
        let mut queue = Queue::default();
        queue.accept(&[1], &Shape::CUT, at(0), &mut chance);
        assert_eq!(queue.next(at(0)), None);
        let slow = Shape::slow(Duration::from_millis(10), 0.0);
        queue.accept(&[1], &slow, at(0), &mut chance);
        assert_eq!(queue.next(at(4)), Some(Duration::from_millis(6)));
        queue.clear();
        assert_eq!(queue.arrived(at(99)), None);
    }

    #[test]
    fn a_line_does_not_keep_more_than_it_can_carry() {
        let mut chance = ChaCha8Rng::seed_from_u64(7);
        let mut queue = Queue::default();
        let frame = vec![0; 1 << 20];
        for _ in 0..65 {
            queue.accept(&frame, &Shape::default(), at(0), &mut chance);
        }
        assert_eq!(std::iter::from_fn(|| queue.arrived(at(0))).count(), 64);
    }
}
