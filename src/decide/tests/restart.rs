//! An operator's restart of PostgreSQL, and a reload: the order of steps, and who is refused.

use fencing::KeyFlags;

use super::*;

const STOP_FAST: Work = Work::StopPostgres {
    mode: StopMode::Fast,
};

fn failed() -> Outcome {
    Outcome::Failed {
        cause: String::new(),
    }
}

fn refused(reason: Reason) -> Option<Answer> {
    Some(Answer::Refused(Box::new(reason)))
}

fn start() -> Option<Work> {
    Some(Work::StartPostgres { epoch: epoch(5) })
}

fn serving_said(scene: &Scene) -> bool {
    scene.memory.routed.unwrap().serving
}

#[test]
fn a_restart_stops_and_starts_under_the_same_epoch_and_costs_nothing_of_the_budget() {
    for routed in [false, true] {
        let mut scene = Scene::active();
        scene.config.routed = routed;
        scene.ask(Ask::Restart);
        assert_eq!(scene.begun(), Some(Work::Checkpoint));
        assert_eq!(scene.reason(), &Reason::RestartingAsAsked);
        assert!(serving_said(&scene), "a checkpoint may take long");
        scene.end(Outcome::Done);
        if routed {
            assert_eq!(scene.begun(), Some(Work::Withdraw { epoch: epoch(5) }));
            scene.end(failed());
        }
        assert_eq!(scene.begun(), Some(STOP_FAST));
        assert!(!serving_said(&scene));
        scene.seen.local.postgres = Postgres::Stopped;
        scene.end(Outcome::Stopped { clean: true });
        assert_eq!(scene.begun(), start());
        assert_eq!(scene.answer(), None);
        assert_eq!(scene.role(), RoleName::Active);
        scene.seen.local.postgres = Postgres::Running;
        scene.end(Outcome::Done);
        assert_eq!(scene.answer(), Some(Answer::Done));
        assert_eq!(scene.reason(), &Reason::Serving);
        assert!(serving_said(&scene));
        assert_eq!(scene.memory.restarts, []);
        scene.seen.request = None;
        scene.pass(5_000);
        assert_eq!((scene.begun(), scene.memory.restarting), (None, None));
    }
}

#[test]
fn a_stop_for_a_restart_gets_harder() {
    let mut scene = Scene::active();
    scene.ask(Ask::Restart);
    scene.end(failed());
    assert_eq!(scene.begun(), Some(STOP_FAST), "without a checkpoint, too");
    scene.seen.local.postgres = Postgres::Stopping;
    scene.end(Outcome::Overdue);
    let mode = StopMode::Immediate;
    assert_eq!(scene.begun(), Some(Work::StopPostgres { mode }));
    scene.end(Outcome::Overdue);
    assert_eq!(scene.begun(), Some(Work::KillPostgres));
    scene.seen.local.postgres = Postgres::Stopped;
    scene.end(Outcome::Done);
    assert_eq!(scene.begun(), start());
}

#[test]
fn a_crash_on_the_way_is_a_stop_too() {
    let mut scene = Scene::active();
    scene.ask(Ask::Restart);
    scene.seen.local.postgres = Postgres::Stopped;
    scene.end(failed());
    assert_eq!(scene.begun(), start());
}

#[test]
fn an_active_without_postgresql_starts_it_at_once_when_asked() {
    let mut scene = Scene::active();
    scene.seen.local.postgres = Postgres::Stopped;
    scene.decide();
    scene.end(failed());
    assert_eq!(scene.begun(), None, "it waits for its next try");
    scene.ask(Ask::Restart);
    assert_eq!(scene.begun(), start());
    scene.seen.local.postgres = Postgres::Running;
    scene.end(Outcome::Done);
    assert_eq!(scene.answer(), Some(Answer::Done));
}

#[test]
fn a_start_that_fails_is_told_and_then_counted_as_any_failure() {
    let mut scene = Scene::active();
    scene.ask(Ask::Restart);
    scene.end(Outcome::Done);
    scene.seen.local.postgres = Postgres::Stopped;
    scene.end(Outcome::Stopped { clean: true });
    scene.end(failed());
    assert_eq!(scene.answer(), refused(Reason::RestartFailed));
    assert_eq!((scene.begun(), scene.memory.restarts.len()), (None, 0));
    scene.seen.request = None;
    scene.hear(2, |_| {});
    scene.pass(2_000);
    assert_eq!((scene.begun(), scene.memory.restarts.len()), (start(), 1));
}

#[test]
fn a_lost_hold_or_sigterm_ends_a_restart() {
    for stopping in [false, true] {
        let mut scene = Scene::active();
        scene.ask(Ask::Restart);
        scene.end(Outcome::Done);
        assert_eq!(scene.begun(), Some(STOP_FAST));
        scene.seen.local.postgres = Postgres::Stopped;
        let next = if stopping {
            scene.seen.stopping = true;
            scene.end(Outcome::Stopped { clean: true });
            Work::Unmount
        } else {
            scene.now += 10;
            scene.read_volume(Some((2, 6, KeyFlags::NONE)));
            scene.decide();
            Work::ShutdownFilesystem
        };
        assert_eq!(scene.begun(), Some(next));
        assert_eq!(scene.answer(), refused(Reason::RestartFailed));
        assert_eq!(scene.memory.restarting, None);
    }
}

#[test]
fn a_restart_is_refused_by_whoever_is_not_active_and_during_a_handover() {
    let mut standby = Scene::standby();
    standby.ask(Ask::Restart);
    let active = Some(member(1));
    assert_eq!(standby.answer(), refused(Reason::NotActive { active }));
    let mut leaving = Scene::active();
    leaving.seen.stopping = true;
    leaving.decide();
    assert_eq!(leaving.role(), RoleName::HandingOver);
    for ask in [Ask::Restart, Ask::Reload] {
        leaving.ask(ask);
        assert_eq!(leaving.answer(), refused(Reason::NotNow { ask }));
    }
}

#[test]
fn a_reload_is_ordered_once_and_disturbs_no_step() {
    for mut scene in [Scene::active(), Scene::standby()] {
        let reloads = |scene: &Scene| {
            let actions = &scene.last.as_ref().unwrap().actions;
            let request = RequestId(1);
            actions.contains(&Action::Reload { request })
        };
        scene.ask(Ask::Reload);
        assert!(reloads(&scene));
        assert_eq!((scene.begun(), scene.answer()), (None, None));
        scene.pass(250);
        assert!(!reloads(&scene), "the executor answers it");
        assert_eq!(scene.answer(), None);
    }
}
