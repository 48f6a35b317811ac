//! The conformance run of `tests/vm` without virtual machines: Baton's target against the model, and
//! proof that the run notices a target that does something else.

#[path = "vm/conformance/mod.rs"]
mod conformance;

use std::collections::BTreeSet;

use conformance::carry::Carrier;
use conformance::compare::{Side, Summary, run};
use conformance::oracle::Oracle;
use conformance::sequence::generate;
use conformance::table;
use fencing::model::{Departure, Departures, Quirks};
use nvme::target::{NamespaceConfig, Target, TargetConfig, default_subsystem};

struct Served {
    target: Target,
    _files: tempfile::TempDir,
}

async fn serve(persistent: bool) -> Served {
    let files = tempfile::tempdir().expect("make a directory");
    let file = files.path().join("namespace");
    let mut config = TargetConfig::local(NamespaceConfig::new(file, Some(1 << 20)));
    config.state = persistent.then(|| files.path().join("state"));
    Served {
        target: Target::start(config).await.expect("start a target"),
        _files: files,
    }
}

async fn side(name: &'static str, served: &Served, quirks: Quirks) -> Side {
    let address = served.target.address().to_string();
    let carrier = Carrier::connect(&address, &default_subsystem(), 1).await;
    Side::new(name, carrier.expect("connect"), quirks)
}

const VOLATILE: Quirks = Quirks {
    volatile: true,
    ..Quirks::NONE
};

#[tokio::test]
async fn batons_target_does_what_the_specification_asks() {
    let mut total = Summary::default();
    for (persistent, quirks) in [(true, Quirks::NONE), (false, VOLATILE)] {
        let (one, two) = (serve(persistent).await, serve(persistent).await);
        let mut sides = [
            side("one", &one, quirks).await,
            side("two", &two, quirks).await,
        ];
        let mut summary = Summary::default();
        for seed in 0..100 {
            run(seed, &mut sides, &mut summary).await.unwrap();
        }
        total.add(&summary);
    }
    assert_eq!(total.alike, 200, "{:?}", table::lines(0..100, &total));
    assert_eq!(table::counts(&total).len(), 0);
}

/// For each departure: a target without it is found out when it should have it.
#[tokio::test]
async fn a_target_that_departs_by_no_name_is_found_out() {
    let (one, two) = (serve(false).await, serve(false).await);
    for departure in Quirks::NVMET.departures.iter() {
        let quirks = Quirks {
            departures: Departures::of(&[departure]),
            ..VOLATILE
        };
        let mut sides = [
            side("as the specification", &one, VOLATILE).await,
            side("departing", &two, quirks).await,
        ];
        let mut summary = Summary::default();
        let mut found = None;
        for seed in 0..200 {
            found = run(seed, &mut sides, &mut summary).await.err();
            if found.is_some() {
                break;
            }
        }
        let found = found.unwrap_or_else(|| panic!("{departure:?} makes no difference"));
        let text = format!("{found:#}");
        assert!(text.contains("departing does what no named"), "{text}");
    }
}

/// Each row of nvmet's table decides something in the short run's seeds.
#[test]
fn every_departure_of_nvmet_is_met() {
    let mut met = BTreeSet::new();
    for seed in 0..200 {
        let mut oracle = Oracle::new(Quirks::NVMET);
        oracle.begin(0);
        for step in generate(seed) {
            oracle.predict(&step);
        }
        met.extend(oracle.take_met().iter());
    }
    let all: BTreeSet<Departure> = Quirks::NVMET.departures.iter().collect();
    assert_eq!(met, all);
}
