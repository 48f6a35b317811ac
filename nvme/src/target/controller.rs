//! A controller: what one association of one host has set and is waiting for. It lives as long as
//! its admin queue's connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Done;
use crate::command::log;
use crate::fabrics::{CC_ENABLE, CC_SHUTDOWN_MASK, CSTS_FATAL, CSTS_READY, CSTS_SHUTDOWN_COMPLETE};
use crate::log_page::{NotificationKind, ReservationNotification};
use crate::{HostIdentity, Status};

/// Asynchronous Event Requests at once (AERL is zero-based).
pub const ASYNC_EVENTS_MAX: usize = 4;
/// Reservation notifications kept for a host that does not read them; the oldest go first.
const NOTIFICATIONS_MAX: usize = 256;

/// A controller.
pub struct Controller {
    /// CNTLID.
    pub id: u16,
    /// The host.
    pub host: HostIdentity,
    /// Whether it is a Discovery controller.
    pub discovery: bool,
    killed: watch::Sender<bool>,
    state: Mutex<State>,
}

struct State {
    configuration: u32,
    status: u32,
    keep_alive: Option<Duration>,
    heard: Instant,
    queues: BTreeSet<u16>,
    async_configuration: u32,
    /// Feature 0x82 by namespace.
    notification_masks: BTreeMap<u32, u32>,
    notifications: VecDeque<(NotificationKind, u32)>,
    notification_count: u64,
    /// An event of this kind was sent and the log not read since.
    event_sent: bool,
    event_requests: VecDeque<u16>,
    admin_replies: mpsc::UnboundedSender<Done>,
}

impl Controller {
    /// A controller that is not enabled. `replies` is where its admin queue takes completions.
    pub fn new(
        id: u16,
        host: HostIdentity,
        discovery: bool,
        keep_alive: Option<Duration>,
        replies: mpsc::UnboundedSender<Done>,
    ) -> Self {
        Self {
            id,
            host,
            discovery,
            killed: watch::Sender::new(false),
            state: Mutex::new(State {
                configuration: 0,
                status: 0,
                keep_alive,
                heard: Instant::now(),
                queues: BTreeSet::new(),
                async_configuration: 0,
                notification_masks: BTreeMap::new(),
                notifications: VecDeque::new(),
                notification_count: 0,
                event_sent: false,
                event_requests: VecDeque::new(),
                admin_replies: replies,
            }),
        }
    }

    /// Ends all connections of this controller.
    pub fn kill(&self) {
        self.killed.send_replace(true);
        self.state().status |= CSTS_FATAL;
    }

    /// Whether the controller was killed.
    pub fn is_killed(&self) -> bool {
        *self.killed.borrow()
    }

    /// Resolves when the controller was killed.
    pub async fn wait_killed(&self) {
        let mut killed = self.killed.subscribe();
        // The sender lives in self: an error cannot be.
        let _ = killed.wait_for(|killed| *killed).await;
    }

    /// CC.
    pub fn configuration(&self) -> u32 {
        self.state().configuration
    }

    /// CSTS.
    pub fn status(&self) -> u32 {
        self.state().status
    }

    /// Whether commands other than Fabrics ones may come.
    pub fn is_ready(&self) -> bool {
        self.state().status & (CSTS_READY | CSTS_FATAL) == CSTS_READY
    }

    /// Property Set of CC: enables, resets or shuts down at once.
    pub fn configure(&self, configuration: u32) {
        let mut state = self.state();
        state.configuration = configuration;
        if configuration & CC_ENABLE != 0 {
            state.status |= CSTS_READY;
        } else {
            state.status = 0;
            state.event_requests.clear();
            state.event_sent = false;
        }
        if configuration & CC_SHUTDOWN_MASK != 0 {
            state.status |= CSTS_SHUTDOWN_COMPLETE;
        } else {
            state.status &= !CSTS_SHUTDOWN_COMPLETE;
        }
        state.heard = Instant::now();
    }

    /// Notes an I/O queue; false if there is one of this number already.
    pub fn add_queue(&self, queue: u16) -> bool {
        self.state().queues.insert(queue)
    }

    /// The queue's connection ended.
    pub fn remove_queue(&self, queue: u16) {
        self.state().queues.remove(&queue);
    }

    /// The numbers of the connected I/O queues.
    pub fn queues(&self) -> Vec<u16> {
        self.state().queues.iter().copied().collect()
    }

    /// The keep-alive time-out; `None` when it is off.
    pub fn keep_alive(&self) -> Option<Duration> {
        self.state().keep_alive
    }

    /// Sets the keep-alive time-out, from now.
    pub fn set_keep_alive(&self, timeout: Option<Duration>) {
        let mut state = self.state();
        state.keep_alive = timeout;
        state.heard = Instant::now();
    }

    /// A Keep Alive command came.
    pub fn heard(&self) {
        self.state().heard = Instant::now();
    }

    /// Resolves when the host was not heard for its keep-alive time-out (NVMe Base 2.3, 3.9.5).
    pub async fn keep_alive_expired(&self) {
        /// How often to look whether a keep alive was switched on that was off.
        const RECHECK: Duration = Duration::from_secs(1);
        loop {
            let (timeout, heard) = {
                let state = self.state();
                (state.keep_alive, state.heard)
            };
            let until = match timeout {
                Some(timeout) if heard.elapsed() >= timeout => return,
                Some(timeout) => heard + timeout,
                None => Instant::now() + RECHECK,
            };
            tokio::time::sleep_until(until).await;
        }
    }

    /// Feature Asynchronous Event Configuration.
    pub fn async_configuration(&self) -> u32 {
        self.state().async_configuration
    }

    /// Sets the same.
    pub fn set_async_configuration(&self, value: u32) {
        self.state().async_configuration = value;
    }

    /// Feature Reservation Notification Mask of a namespace.
    pub fn notification_mask(&self, nsid: u32) -> u32 {
        self.state()
            .notification_masks
            .get(&nsid)
            .copied()
            .unwrap_or(0)
    }

    /// Sets the same; a set bit keeps that kind from being reported.
    pub fn set_notification_mask(&self, nsid: u32, mask: u32) {
        self.state().notification_masks.insert(nsid, mask);
    }

    /// An Asynchronous Event Request: kept until something happens. A completion only if refused.
    pub fn request_event(&self, command: u16) -> Option<Done> {
        let mut state = self.state();
        if state.event_requests.len() >= ASYNC_EVENTS_MAX {
            return Some(Done::status(command, Status::ASYNC_EVENT_LIMIT.dnr()));
        }
        state.event_requests.push_back(command);
        state.send_event();
        None
    }

    /// A reservation notification for this host.
    pub fn notify(&self, kind: NotificationKind, nsid: u32) {
        let mut state = self.state();
        let mask = state.notification_masks.get(&nsid).copied().unwrap_or(0);
        // Mask bits 1 to 3 are the kinds 1 to 3.
        if mask & 1 << (kind as u32) != 0 {
            return;
        }
        if state.notifications.len() >= NOTIFICATIONS_MAX {
            state.notifications.pop_front();
        }
        state.notifications.push_back((kind, nsid));
        state.send_event();
    }

    /// Reads log page 0x80: takes the oldest notification.
    pub fn next_notification(&self) -> ReservationNotification {
        let mut state = self.state();
        state.event_sent = false;
        let Some((kind, nsid)) = state.notifications.pop_front() else {
            return ReservationNotification::EMPTY;
        };
        state.notification_count += 1;
        let page = ReservationNotification {
            count: state.notification_count,
            kind: Some(kind),
            available: u8::try_from(state.notifications.len()).unwrap_or(u8::MAX),
            nsid,
        };
        state.send_event();
        page
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Completes an event request if something is to be told and was not told yet.
    fn send_event(&mut self) {
        /// Event type "I/O Command specific status"; its information 0 is "Reservation Log Page
        /// Available".
        const IO_COMMAND_SPECIFIC: u64 = 6;
        if self.event_sent || self.notifications.is_empty() {
            return;
        }
        if let Some(command) = self.event_requests.pop_front() {
            self.event_sent = true;
            let result = IO_COMMAND_SPECIFIC | u64::from(log::RESERVATION_NOTIFICATION) << 16;
            // A closed channel: the association is ending, and the event with it.
            let _ = self.admin_replies.send(Done::result(command, result));
        }
    }
}
