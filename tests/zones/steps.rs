//! What the simulated steps do.

use baton::decide::zone::{Data, Position, Serve, SiteName};
use baton::decide::{Outcome, Postgres, Work};
use baton::postgres::Lsn;
use fencing::Mono;

use super::broken::Broken;
use super::view::position;
use super::world::World;

/// A step under way.
pub struct Step {
    pub work: Work,
    /// When it has its effect.
    pub effect: Mono,
    /// When it ends.
    pub ends: Mono,
    /// Its outcome, once it had its effect.
    pub outcome: Option<Outcome>,
}

impl World {
    pub fn begin(&mut self, index: usize, work: Work) {
        let took = self.rng.range(50, 900);
        let effect = self.now + std::time::Duration::from_millis(self.rng.range(0, took));
        let ends = self.now + std::time::Duration::from_millis(took);
        self.say(|| format!("{index}: {work:?}"));
        self.sites[index].step = Some(Step {
            work,
            effect,
            ends,
            outcome: None,
        });
    }

    /// Effects and ends of the steps whose time has come.
    pub fn steps(&mut self) {
        for index in 0..self.sites.len() {
            let Some(mut step) = self.sites[index].step.take() else {
                continue;
            };
            if step.outcome.is_none() && self.now >= step.effect {
                step.outcome = Some(self.effect(index, &step.work));
            }
            match &step.outcome {
                Some(outcome) if self.now >= step.ends => {
                    let now = self.now;
                    let outcome = outcome.clone();
                    let site = &mut self.sites[index];
                    if site.postgres == Postgres::Starting {
                        site.postgres = Postgres::Running;
                    }
                    site.memory.take_in(&step.work, &outcome, now);
                }
                Some(_) | None => self.sites[index].step = Some(step),
            }
        }
    }

    fn effect(&mut self, index: usize, work: &Work) -> Outcome {
        match work {
            Work::Serve { serve, .. } => self.start(index, serve),
            Work::Reconfigure { serve, .. } => self.reconfigure(index, serve),
            Work::Promote { term, serve, .. } => self.promote(index, *term, serve),
            Work::Align {
                term,
                primary,
                reseed,
                ..
            } => self.align(index, *term, primary, *reseed),
            Work::StopToMove => self.shut_down(index),
            Work::StopPostgres { .. } | Work::KillPostgres => {
                self.sites[index].stop();
                Outcome::Stopped { clean: false }
            }
            _ => Outcome::Done,
        }
    }

    fn start(&mut self, index: usize, serve: &Serve) -> Outcome {
        let site = &mut self.sites[index];
        site.postgres = Postgres::Starting;
        match serve {
            Serve::Replica { of, receive } => {
                let source = receive.then(|| self.index(of));
                let site = &mut self.sites[index];
                site.replica = true;
                site.receives = source;
                site.heard = self.now;
            }
            Serve::Primary { need, sites } => {
                assert_eq!(
                    site.state.map(|state| state.1),
                    Some(Data::Primary),
                    "a replica's data"
                );
                site.replica = false;
                site.names = (*need, sites.clone());
                // All that is there is shown, also what nobody had been told of.
                let log = site.log.clone();
                self.promised.extend(log);
            }
            Serve::Alone => unreachable!("there are several sites"),
        }
        Outcome::Done
    }

    fn reconfigure(&mut self, index: usize, serve: &Serve) -> Outcome {
        // It may fail before its effect, or after that.
        let fails = self.rng.range(0, 20);
        if self.sites[index].postgres != Postgres::Running || fails == 0 {
            return failed();
        }
        let outcome = self.reconfigured(index, serve);
        if fails == 1 { failed() } else { outcome }
    }

    fn reconfigured(&mut self, index: usize, serve: &Serve) -> Outcome {
        match serve {
            Serve::Primary { need, sites } => {
                self.sites[index].names = (*need, sites.clone());
                Outcome::Reconfigured { position: None }
            }
            Serve::Replica { of, receive: true } => {
                let source = self.index(of);
                self.sites[index].receives = Some(source);
                Outcome::Reconfigured { position: None }
            }
            Serve::Replica { receive: false, .. } => {
                let site = &mut self.sites[index];
                site.receives = None;
                let position = Some(Position {
                    timeline: site.timeline,
                    lsn: Lsn(site.log.len() as u64),
                });
                Outcome::Reconfigured { position }
            }
            Serve::Alone => unreachable!("there are several sites"),
        }
    }

    fn promote(&mut self, index: usize, term: u64, serve: &Serve) -> Outcome {
        let timeline = self
            .sites
            .iter()
            .map(|site| site.timeline)
            .max()
            .unwrap_or(1)
            + 1;
        let Serve::Primary { need, sites } = serve else {
            unreachable!("a primary is promoted")
        };
        let site = &mut self.sites[index];
        if site.postgres != Postgres::Running {
            return failed();
        }
        site.receives = None;
        site.replica = false;
        site.timeline = timeline;
        site.names = (*need, sites.clone());
        site.state = Some((term, Data::Primary));
        let log = site.log.clone();
        self.promised.extend(log);
        Outcome::Done
    }

    fn align(&mut self, index: usize, term: u64, primary: &SiteName, reseed: bool) -> Outcome {
        let reseed = reseed && self.broken.restores();
        let of = self.index(primary);
        let site = &mut self.sites[index];
        if of == index {
            // Without a record it is only looked at.
            let state = site.state.unwrap_or((term, Data::Primary));
            if term > 0 {
                site.state = Some(state);
            }
            return match state {
                (_, Data::Replica) => aligned(Data::Replica, None),
                (known, Data::Primary) if known == term => aligned(Data::Primary, None),
                (_, Data::Primary) => failed(),
            };
        }
        if site.state == Some((term, Data::Replica)) && !reseed {
            return self.a_replica(index);
        }
        if !self.connected(index, of) || !self.sites[of].leads() {
            return failed();
        }
        let source = &self.sites[of];
        let (log, timeline) = (source.log.clone(), source.timeline);
        let there = position(source);
        // A backup is of any age.
        let restored = reseed.then(|| self.rng.range(0, log.len() as u64 + 1) as usize);
        self.seen.restored += u64::from(reseed);
        let site = &mut self.sites[index];
        match restored {
            Some(count) => {
                site.log = log[..count].to_vec();
                site.floor = Some(there);
            }
            None => {
                let both = site.log.iter().zip(&log);
                let common = both.take_while(|(one, other)| one == other).count();
                site.log.truncate(common);
            }
        }
        site.timeline = timeline;
        site.state = Some((term, Data::Replica));
        // It may fail when the copy has taken its place already.
        match reseed && self.rng.chance(20) {
            true => failed(),
            false => self.a_replica(index),
        }
    }

    fn a_replica(&self, index: usize) -> Outcome {
        let trusts = self.broken == Broken::TrustsRestored;
        let floor = self.sites[index].floor.filter(|_| !trusts);
        aligned(Data::Replica, floor)
    }

    /// A primary in order: its log is sent to whoever is connected, its last record too.
    fn shut_down(&mut self, index: usize) -> Outcome {
        if self.sites[index].postgres != Postgres::Running {
            return Outcome::Stopped { clean: false };
        }
        let site = &mut self.sites[index];
        let at = Position {
            timeline: site.timeline,
            lsn: Lsn(site.log.len() as u64),
        };
        self.newest += 1;
        site.log.push(self.newest);
        self.replicate(usize::MAX);
        self.sites[index].stop();
        Outcome::ShutDown { at }
    }
}

fn aligned(data: Data, floor: Option<Position>) -> Outcome {
    Outcome::Aligned { data, floor }
}

fn failed() -> Outcome {
    Outcome::Failed {
        cause: String::new(),
    }
}
