//! What goes wrong: sites lost, lines cut, the store away, members and PostgreSQLs that end.

use std::time::Duration;

use super::world::World;

impl World {
    pub fn fault(&mut self) {
        let now = self.now;
        for site in &mut self.sites {
            if site.doomed.is_some_and(|at| now >= at) {
                site.lose();
            }
        }
        let (one, other) = (
            self.rng.index(self.sites.len()),
            self.rng.index(self.sites.len()),
        );
        match self.rng.range(0, 900) {
            0 | 1 => self.sites[one].take_over(now),
            2 if self.sites[one].up => {
                self.say(|| format!("{one}: lost"));
                self.sites[one].lose();
            }
            3..=9 if !self.sites[one].up => {
                self.sites[one].up = true;
                self.sites[one].take_over(now);
            }
            10 if one != other => {
                self.say(|| format!("{one} and {other}: cut"));
                self.cut.insert((one.min(other), one.max(other)));
            }
            11..=13 => {
                self.cut.remove(&(one.min(other), one.max(other)));
            }
            14 => self.sites[one].store = false,
            15..=18 => self.sites[one].store = true,
            19 => self.sites[one].stop(),
            // A zone's uplink.
            20 => {
                self.say(|| format!("{one}: isolated"));
                self.sites[one].store = false;
                for other in (0..self.sites.len()).filter(|other| *other != one) {
                    self.cut.insert((one.min(other), one.max(other)));
                }
            }
            21 => self.ask_to_move(one),
            // What it shows at its start is soon all that is left of it.
            22 | 23 if self.sites[one].up => {
                self.sites[one].take_over(now);
                self.sites[one].doomed =
                    Some(now + Duration::from_millis(self.rng.range(500, 5_000)));
            }
            24 if self.broken.restores() => self.make_anew(one),
            _ => {}
        }
    }

    /// An operator has a copy made anew, and the primary's site may be lost before that has caught up.
    fn make_anew(&mut self, index: usize) {
        let (now, soon) = (self.now, self.rng.range(500, 20_000));
        let site = &mut self.sites[index];
        if !site.up || site.leads() {
            return;
        }
        site.memory.reseed = true;
        self.say(|| format!("{index}: made anew"));
        if let Some(primary) = self.sites.iter_mut().find(|site| site.leads()) {
            primary.doomed = Some(now + Duration::from_millis(soon));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        let now = self.now;
        for site in &mut self.sites {
            site.store = true;
            if !site.up {
                site.up = true;
                site.take_over(now);
            }
        }
    }

    fn ask_to_move(&mut self, index: usize) {
        let to = self.sites[self.rng.index(self.sites.len())].name.clone();
        let other = to != self.sites[index].name;
        if !other || !self.sites[index].leads() || self.sites[index].step.is_some() {
            return;
        }
        let asked = self.judge(index, |judge| {
            judge.begin_move(&to).ok().map(|(_, next)| next)
        });
        if let Some(next) = asked {
            self.carry_out(index, next);
        }
    }
}
