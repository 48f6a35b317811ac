//! The operators' requests that wait for an answer: from the control socket, and from peers that
//! could not fulfil them. The loop shows the oldest to `decide` until it is answered.

use std::collections::{BTreeMap, VecDeque};

use fencing::MemberId;
use tokio::sync::oneshot;

use crate::decide::{Answer, Ask, Reason, Request, RequestId};
use crate::peer::{Message, PeerChannel};

/// A request that came through the control socket.
#[derive(Debug)]
pub struct ControlRequest {
    /// What for.
    pub ask: Ask,
    /// Where the answer goes. Closed when the operator has gone.
    pub reply: oneshot::Sender<Answer>,
}

/// Who waits for an answer.
#[derive(Debug)]
enum Asker {
    Local(oneshot::Sender<Answer>),
    Peer { member: MemberId, id: u64 },
}

/// The requests that wait. Owned by the loop.
#[derive(Debug, Default)]
pub struct Requests {
    newest: u64,
    waiting: VecDeque<(Request, Asker)>,
    /// Passed to the active, whose answer is awaited.
    forwarded: BTreeMap<u64, oneshot::Sender<Answer>>,
}

impl Requests {
    /// The oldest unanswered request, for the observation. One whose operator has gone is shown
    /// until it is answered: it may be on its way.
    pub fn oldest(&self) -> Option<Request> {
        self.waiting.front().map(|(request, _)| *request)
    }

    /// Takes a request from the socket.
    pub fn take_local(&mut self, request: ControlRequest) {
        let ControlRequest { ask, reply } = request;
        self.forwarded.retain(|_, asker| !asker.is_closed());
        self.push(ask, Asker::Local(reply));
    }

    /// Takes a message from a peer; others than requests and answers are not for here.
    pub fn take_message(&mut self, from: MemberId, message: Message) {
        match message {
            Message::Ask { id, ask } => self.push(ask, Asker::Peer { member: from, id }),
            Message::Answer { id, answer } => {
                if let Some(asker) = self.forwarded.remove(&id) {
                    // The operator may have gone.
                    let _ = asker.send(answer);
                }
            }
            Message::Heartbeat(_) => {}
        }
    }

    fn push(&mut self, ask: Ask, asker: Asker) {
        self.newest += 1;
        self.waiting.push_back((
            Request {
                id: RequestId(self.newest),
                ask,
            },
            asker,
        ));
    }

    /// Passes on what `decide` answered. A switchover that this member refuses because another one
    /// is active goes to that one instead.
    pub fn answer(&mut self, id: RequestId, answer: Answer, peers: &PeerChannel) {
        let Some(index) = self
            .waiting
            .iter()
            .position(|(request, _)| request.id == id)
        else {
            return;
        };
        let Some((request, asker)) = self.waiting.remove(index) else {
            return;
        };
        let elsewhere = match (&answer, request.ask) {
            (
                Answer::Refused(reason),
                Ask::Switchover { .. }
                | Ask::SwitchoverSite { .. }
                | Ask::Failover { .. }
                | Ask::Reinit,
            ) => match reason.as_ref() {
                Reason::NotActive { active } => *active,
                _ => None,
            },
            (Answer::Refused(_) | Answer::Done, _) => None,
        };
        match (asker, elsewhere) {
            (Asker::Local(reply), Some(active)) => {
                let message = Message::Ask {
                    id: id.0,
                    ask: request.ask,
                };
                match peers.send(active, message) {
                    Ok(()) => {
                        self.forwarded.insert(id.0, reply);
                    }
                    Err(_) => drop(reply.send(answer)),
                }
            }
            (Asker::Local(reply), None) => drop(reply.send(answer)),
            (Asker::Peer { member, id }, _) => {
                // Lost with the connection: who asked has a deadline.
                let _ = peers.send(member, Message::Answer { id, answer });
            }
        }
    }
}
