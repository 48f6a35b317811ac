//! What is known of each peer: its newest heartbeat, the state of both connections, and whether two
//! processes say that they are the same member.

use std::collections::BTreeMap;
use std::time::Duration;

use fencing::{MemberId, Mono};

use crate::config::PeerMember;
use crate::decide::{Heartbeat, Incarnation, Seen};

/// An earlier process's last words may be read this long after its successor's first.
const SUCCESSION: Duration = Duration::from_secs(1);

/// A proof of two processes with one number is believed for so long.
const DUPLICATE_FRESH: Duration = Duration::from_secs(10);

/// How many earlier incarnations are remembered.
const FORMER_MAX: usize = 8;

/// Two processes say that they are the same member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The one that was heard first, or this process.
    pub one: Incarnation,
    /// The other one.
    pub other: Incarnation,
    /// The newest proof.
    pub at: Mono,
}

impl Duplicate {
    fn fresh(&self, now: Mono) -> bool {
        !self.at.elapsed(DUPLICATE_FRESH, now)
    }
}

/// A connection's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// It stands.
    Up {
        /// Since when.
        since: Mono,
    },
    /// It does not, and it is tried again.
    Down {
        /// Since when.
        since: Mono,
        /// Why, for people.
        cause: String,
    },
}

/// One connection of a peer to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Connection {
    /// Counts all connections of this process: which of two is newer, even within a millisecond.
    pub serial: u64,
    /// When its handshake was done.
    pub made: Mono,
}

/// What is known of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Its name.
    pub name: String,
    /// The newest heartbeat and when it arrived.
    pub heard: Option<(Heartbeat, Mono)>,
    /// Our connection to it.
    pub outgoing: Link,
    /// Its connection to us.
    pub incoming: Link,
    /// Two processes say that they are this member.
    pub duplicate: Option<Duplicate>,
    /// The connection that brought the newest heartbeat.
    spoke: Connection,
    /// The newest connection, whose state `incoming` is.
    newest: Connection,
    /// Incarnations before the newest one.
    former: Vec<Incarnation>,
}

impl PeerView {
    fn new(name: &str, now: Mono) -> Self {
        let down = Link::Down {
            since: now,
            cause: "not connected yet".to_owned(),
        };
        Self {
            name: name.to_owned(),
            heard: None,
            outgoing: down.clone(),
            incoming: down,
            duplicate: None,
            spoke: Connection::default(),
            newest: Connection::default(),
            former: Vec::new(),
        }
    }

    /// Notes a new connection of the peer.
    pub(super) fn arrive(&mut self, connection: Connection) -> bool {
        self.newest = connection;
        note(
            &mut self.incoming,
            Link::Up {
                since: connection.made,
            },
        )
    }

    /// Notes the end of a connection, unless a newer one has taken its place.
    pub(super) fn leave(&mut self, connection: Connection, down: Link) -> bool {
        self.newest == connection && note(&mut self.incoming, down)
    }

    /// Takes a heartbeat. Whether it is news.
    pub(super) fn hear(&mut self, heartbeat: Heartbeat, by: Connection, now: Mono) -> bool {
        let Some((last, _)) = &self.heard else {
            self.spoke = by;
            self.heard = Some((heartbeat, now));
            return true;
        };
        let (known, new) = (last.incarnation, heartbeat.incarnation);
        if known == new {
            // A connection made anew may bring once more what an earlier one had brought.
            if heartbeat.sequence <= last.sequence {
                return false;
            }
        } else {
            let returned = self.former.contains(&new);
            if by.serial <= self.spoke.serial {
                // Last words of an earlier process, unless it goes on talking.
                if self.spoke.made.elapsed(SUCCESSION, now) {
                    self.duplicate = Some(Duplicate {
                        one: known,
                        other: new,
                        at: now,
                    });
                }
                return false;
            }
            if returned {
                self.duplicate = Some(Duplicate {
                    one: known,
                    other: new,
                    at: now,
                });
            }
            self.former.push(known);
            let surplus = self.former.len().saturating_sub(FORMER_MAX);
            self.former.drain(..surplus);
        }
        self.spoke = by;
        self.heard = Some((heartbeat, now));
        true
    }

    pub(super) fn observation(&self, started: Mono, now: Mono) -> Seen<Heartbeat> {
        if let Some(duplicate) = self
            .duplicate
            .as_ref()
            .filter(|duplicate| duplicate.fresh(now))
        {
            let cause = format!("two processes say that they are member {}", self.name);
            return Seen::Unknown {
                since: duplicate.at,
                cause,
            };
        }
        match (&self.heard, &self.incoming) {
            (Some((heartbeat, at)), _) => Seen::Known {
                value: heartbeat.clone(),
                at: *at,
            },
            (None, Link::Down { since: _, cause }) => Seen::Unknown {
                since: started,
                cause: cause.clone(),
            },
            (None, Link::Up { .. }) => Seen::Unknown {
                since: started,
                cause: "connected, no heartbeat yet".to_owned(),
            },
        }
    }
}

/// Everything that is seen.
#[derive(Clone, Debug)]
pub(super) struct All {
    pub peers: BTreeMap<MemberId, PeerView>,
    /// Another process dialed us under our own number.
    pub impostor: Option<Duplicate>,
    /// Connections so far.
    pub connections: u64,
}

impl All {
    pub fn new(members: &[PeerMember], now: Mono) -> Self {
        let peers = members
            .iter()
            .map(|member| (member.number, PeerView::new(&member.name, now)))
            .collect();
        Self {
            peers,
            impostor: None,
            connections: 0,
        }
    }
}

/// Notes a connection's state. Whether it is another one than before, and worth a log line.
pub(super) fn note(link: &mut Link, new: Link) -> bool {
    let same = match (&*link, &new) {
        (Link::Up { .. }, Link::Up { .. }) => true,
        (Link::Down { cause: before, .. }, Link::Down { cause: after, .. }) => before == after,
        (Link::Up { .. }, Link::Down { .. }) | (Link::Down { .. }, Link::Up { .. }) => false,
    };
    match (&mut *link, new) {
        // It has been down since the first failure, whatever the newest cause.
        (Link::Down { cause, .. }, Link::Down { cause: newest, .. }) => *cause = newest,
        (link, new) => *link = new,
    }
    !same
}
