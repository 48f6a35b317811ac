//! The model of reservations and the real target's table, written apart from each other, give the
//! same answers and the same reports to any sequence of commands.

mod common;

use std::collections::BTreeSet;

use common::host;
use fencing::Outcome;
use fencing::model::{Access, CommandId, Executed, Model, Quirks};
use nvme::HostId;
use nvme::reservation::{Acquire, ChangePersistence, Register, Release, ReservationType};
use nvme::target::reservation::{Access as TargetAccess, Effects, ReservationTable};
use proptest::prelude::*;

const HOSTS: u8 = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    Register(u8, Register, ChangePersistence),
    Acquire(u8, Acquire, u64, ReservationType),
    Release(u8, Release, u64),
    /// A command of this host begins, and stays in flight.
    Begin(u8, Access),
    PowerLoss,
}

/// Few keys, so that they meet; 0 is no key.
fn a_key() -> impl Strategy<Value = u64> {
    0u64..4
}

fn a_kind() -> impl Strategy<Value = ReservationType> {
    proptest::sample::select(ReservationType::ALL.to_vec())
}

fn a_step() -> impl Strategy<Value = Step> {
    let register = prop_oneof![
        4 => a_key().prop_map(|key| Register::Register { key }),
        1 => a_key().prop_map(|key| Register::Unregister { key }),
        2 => (a_key(), a_key()).prop_map(|(current, new)| Register::Replace { current, new }),
    ];
    let persistence = prop_oneof![
        6 => Just(ChangePersistence::Unchanged),
        1 => Just(ChangePersistence::Volatile),
        1 => Just(ChangePersistence::Persistent),
    ];
    let acquire = prop_oneof![
        2 => Just(Acquire::Acquire),
        1 => a_key().prop_map(|victim| Acquire::Preempt { victim }),
        2 => a_key().prop_map(|victim| Acquire::PreemptAndAbort { victim }),
    ];
    let release = prop_oneof![
        4 => a_kind().prop_map(Release::Release),
        1 => Just(Release::Clear),
    ];
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    let by = || 0..HOSTS;
    prop_oneof![
        6 => (by(), register, persistence).prop_map(|(h, r, p)| Step::Register(h, r, p)),
        6 => (by(), acquire, a_key(), a_kind()).prop_map(|(h, a, k, t)| Step::Acquire(h, a, k, t)),
        2 => (by(), release, a_key()).prop_map(|(h, r, k)| Step::Release(h, r, k)),
        2 => (by(), access).prop_map(|(h, a)| Step::Begin(h, a)),
        1 => Just(Step::PowerLoss),
    ]
}

struct Both {
    model: Model,
    table: ReservationTable,
    in_flight: Vec<(CommandId, HostId)>,
}

impl Both {
    fn acquire(&mut self, by: HostId, action: Acquire, key: u64, kind: ReservationType) {
        let table = self.table.acquire_action(by, action, key, kind);
        let model = self.model.acquire(by, action, key, kind);
        let drained = match &model {
            Executed::Completed(_) => BTreeSet::new(),
            Executed::Draining(id) => self.model.draining(*id).collect(),
        };
        let expected: BTreeSet<CommandId> = match &table {
            Ok(Effects {
                removed,
                abort: true,
                ..
            }) => self
                .in_flight
                .iter()
                .filter(|(_, by)| removed.iter().any(|(host, _)| host == by))
                .map(|(id, _)| *id)
                .collect(),
            Ok(_) | Err(_) => BTreeSet::new(),
        };
        assert_eq!(drained, expected, "commands to be drained by {action:?}");
        let model = match model {
            Executed::Completed(Outcome::Refused(status)) => Err(status),
            Executed::Completed(_) | Executed::Draining(_) => Ok(()),
        };
        assert_eq!(model, table.map(drop));
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Register(by, action, persistence) => {
                let table = self.table.register_action(host(by), action, persistence);
                let model = self.model.register(host(by), action, persistence);
                assert_eq!(model, table.map(drop));
            }
            Step::Acquire(by, action, key, kind) => self.acquire(host(by), action, key, kind),
            Step::Release(by, action, key) => {
                let table = self.table.release_action(host(by), action, key);
                assert_eq!(self.model.release(host(by), action, key), table.map(drop));
            }
            Step::Begin(by, access) => {
                if let Ok(id) = self.model.begin(host(by), access) {
                    self.in_flight.push((id, host(by)));
                }
            }
            Step::PowerLoss => {
                self.table.power_loss();
                self.model.power_loss();
                self.in_flight.clear();
            }
        }
    }

    fn compare(&self) {
        assert_eq!(self.model.report(), self.table.report());
        for by in (0..HOSTS).map(host) {
            assert_eq!(self.model.holds(by), self.table.is_holder(by));
            for (ours, theirs) in [
                (Access::Read, TargetAccess::Read),
                (Access::Write, TargetAccess::Write),
            ] {
                assert_eq!(self.model.allows(by, ours), self.table.allows(by, theirs));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn the_model_and_the_target_agree_step_by_step(
        steps in proptest::collection::vec(a_step(), 1..60),
        volatile in any::<bool>(),
    ) {
        let quirks = Quirks { volatile, ..Quirks::NONE };
        let mut both = Both {
            model: Model::new(quirks),
            table: ReservationTable::new(!volatile),
            in_flight: Vec::new(),
        };
        for step in steps {
            both.take(step);
            both.compare();
        }
    }
}
