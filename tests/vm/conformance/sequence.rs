//! The generator: a seed gives a sequence of commands, as data.

use std::collections::BTreeMap;

use fencing::model::{Model, Quirks};
use nvme::HostId;
use nvme::command::io;
use nvme::reservation_codec::{AcquireRequest, RegisterRequest, ReleaseRequest};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use uuid::Uuid;

use super::HOSTS;

/// Blocks that are written and read back.
const BLOCKS: u64 = 4;

/// Where blocks are deallocated: what they hold then is open, so nobody reads them.
pub const DEALLOCATED: u64 = 16;

/// Commands of a sequence: enough for several changes of hands.
const STEPS: std::ops::RangeInclusive<u64> = 12..=32;

/// Lengths of a report, in bytes: shorter than the header, the header, half an entry, one entry and
/// a half, everything, and more than everything.
const LENGTHS: [usize; 6] = [32, 64, 96, 160, 256, 1024];

/// One command of one host.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which of the hosts sends it.
    pub host: usize,
    /// The command.
    pub what: What,
}

/// A command.
#[derive(Clone, Debug)]
pub enum What {
    Register(RegisterRequest),
    Acquire(AcquireRequest),
    Release(ReleaseRequest),
    Report {
        extended: bool,
        length: usize,
    },
    /// One block; `tag` is the content that Write writes and Compare expects.
    Io {
        opcode: u8,
        lba: u64,
        tag: u64,
    },
}

/// The identifier of a host. The order of the numbers is not that of the identifiers.
pub fn host_id(host: usize) -> HostId {
    let first = [0x52, 0x1f, 0x9a][host];
    HostId(Uuid::from_u128(
        first << 120 | 0x6b_0f4d_4e8a_b1c2_7d3e_9f55_0000_0000_u128 | (host as u128 + 1),
    ))
}

/// The sequence of this seed.
pub fn generate(seed: u64) -> Vec<Step> {
    Generator::new(seed).sequence()
}

/// Follows the state with a model, so that most commands have something to do. With even seeds it is
/// the specification's, with odd ones nvmet's: states that only one of them reaches are explored
/// from there.
struct Generator {
    rng: ChaCha8Rng,
    model: Model,
    hosts: u64,
    written: BTreeMap<u64, u64>,
    next_tag: u64,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let hosts = 2 + rng.next_u64() % (HOSTS as u64 - 1);
        let quirks = match seed % 2 {
            0 => Quirks::NONE,
            _ => Quirks::NVMET,
        };
        Self {
            rng,
            model: Model::new(quirks),
            hosts,
            written: BTreeMap::new(),
            next_tag: seed << 8,
        }
    }

    fn sequence(mut self) -> Vec<Step> {
        let steps = STEPS.start() + self.below(STEPS.end() - STEPS.start() + 1);
        (0..steps).map(|_| self.step()).collect()
    }

    fn below(&mut self, end: u64) -> u64 {
        self.rng.next_u64() % end
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// An index by weight.
    fn weighted(&mut self, weights: &[u64]) -> u8 {
        let mut left = self.below(weights.iter().sum());
        for (index, weight) in (0..).zip(weights) {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return index,
            }
        }
        unreachable!("the drawn number is below the weights' sum")
    }

    fn step(&mut self) -> Step {
        let host = self.below(self.hosts) as usize;
        let what = match self.weighted(&[28, 34, 10, 4, 24]) {
            0 => What::Register(self.register(host)),
            1 => What::Acquire(self.acquire(host)),
            2 => What::Release(self.release(host)),
            3 => What::Report {
                extended: !self.percent(20),
                length: LENGTHS[self.below(LENGTHS.len() as u64) as usize],
            },
            _ => self.io(),
        };
        self.follow(host_id(host), &what);
        Step { host, what }
    }

    fn register(&mut self, host: usize) -> RegisterRequest {
        // An unregistered host registers, mostly; a registered one replaces or leaves.
        let weights = match self.model.key_of(host_id(host)) {
            None => [70, 10, 17, 3],
            Some(_) => [25, 32, 40, 3],
        };
        RegisterRequest {
            action: self.weighted(&weights),
            ignore_existing_key: self.percent(20),
            persistence: [0, 1, 2, 3][usize::from(self.weighted(&[88, 3, 3, 6]))],
            current: self.own_key(host),
            new: self.a_key(),
        }
    }

    fn acquire(&mut self, host: usize) -> AcquireRequest {
        AcquireRequest {
            action: self.weighted(&[40, 24, 33, 3]),
            ignore_existing_key: self.percent(3),
            kind: self.a_type(),
            current: self.own_key(host),
            preempted: self.victim(host),
        }
    }

    fn release(&mut self, host: usize) -> ReleaseRequest {
        let held = self.model.reservation().filter(|_| true);
        let kind = match held {
            Some(held) if self.percent(65) => held as u8,
            _ => self.a_type(),
        };
        ReleaseRequest {
            action: self.weighted(&[80, 16, 4]),
            ignore_existing_key: self.percent(3),
            kind,
            current: self.own_key(host),
        }
    }

    /// All six types alike, and now and then a reserved number.
    fn a_type(&mut self) -> u8 {
        match self.percent(4) {
            true => [0, 7, 255][self.below(3) as usize],
            false => 1 + self.below(6) as u8,
        }
    }

    /// Few keys, so that they meet and stale ones turn up; 0 is no key.
    fn a_key(&mut self) -> u64 {
        match self.percent(4) {
            true => 0,
            false => 0xa0 + self.below(4),
        }
    }

    fn own_key(&mut self, host: usize) -> u64 {
        match self.model.key_of(host_id(host)) {
            Some(key) if self.percent(88) => key,
            _ => self.a_key(),
        }
    }

    /// Mostly another host's key, also one's own, nobody's, or everybody's.
    fn victim(&mut self, host: usize) -> u64 {
        let other = (host + 1 + self.below(self.hosts - 1) as usize) % self.hosts as usize;
        let of = |generator: &Self, host| generator.model.key_of(host_id(host));
        match self.weighted(&[58, 10, 12, 20]) {
            0 => of(self, other).unwrap_or(0xa9),
            1 => of(self, host).unwrap_or(0xa9),
            2 => 0,
            _ => self.a_key(),
        }
    }

    fn io(&mut self) -> What {
        let lba = self.below(BLOCKS);
        self.next_tag += 1;
        let index = self.weighted(&[32, 34, 14, 8, 6, 6]);
        let opcode = [
            io::READ,
            io::WRITE,
            io::FLUSH,
            io::WRITE_ZEROES,
            io::DATASET_MANAGEMENT,
            io::COMPARE,
        ][usize::from(index)];
        let known = self.written.get(&lba).copied();
        let tag = match (opcode, known) {
            (io::COMPARE, Some(tag)) if self.percent(70) => tag,
            _ => self.next_tag,
        };
        if opcode == io::WRITE {
            self.written.insert(lba, tag);
        }
        What::Io { opcode, lba, tag }
    }

    fn follow(&mut self, host: HostId, what: &What) {
        match what {
            What::Register(request) => drop(self.model.register_request(host, request)),
            What::Acquire(request) => drop(self.model.acquire_request(host, request)),
            What::Release(request) => drop(self.model.release_request(host, request)),
            What::Report { .. } | What::Io { .. } => {}
        }
    }
}
