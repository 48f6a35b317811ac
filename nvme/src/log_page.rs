//! Log pages with content of their own: Reservation Notification (NVMe Base 2.3, 5.1.12.1.32) and
//! Discovery (5.1.12.3.1).

use std::net::SocketAddr;

use crate::Nqn;
use crate::command::{le16, le32, le64};
use crate::fabrics::{ANY_CONTROLLER, nqn_field, put_text};
use crate::identify::{padded_text, put_padded};

/// Length of a Reservation Notification log page, in bytes.
pub const RESERVATION_NOTIFICATION_LEN: usize = 64;
/// Length of the Discovery log page's header and of each entry, in bytes.
pub const DISCOVERY_ENTRY_LEN: usize = 1024;

/// What a Reservation Notification tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NotificationKind {
    /// The host's registration was preempted.
    RegistrationPreempted = 1,
    /// The reservation was released.
    ReservationReleased = 2,
    /// The reservation was preempted.
    ReservationPreempted = 3,
}

/// One Reservation Notification log page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservationNotification {
    /// Log page count: of the first page 1; 0 in the empty page.
    pub count: u64,
    /// What happened; `None` in the empty page.
    pub kind: Option<NotificationKind>,
    /// How many further pages wait; 255 for at least so many.
    pub available: u8,
    /// The namespace.
    pub nsid: u32,
}

impl ReservationNotification {
    /// The page that says "nothing".
    pub const EMPTY: Self = Self {
        count: 0,
        kind: None,
        available: 0,
        nsid: 0,
    };

    /// The 64 bytes on the wire.
    pub fn encode(&self) -> [u8; RESERVATION_NOTIFICATION_LEN] {
        let mut bytes = [0; RESERVATION_NOTIFICATION_LEN];
        bytes[..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8] = self.kind.map_or(0, |kind| kind as u8);
        bytes[9] = self.available;
        bytes[12..16].copy_from_slice(&self.nsid.to_le_bytes());
        bytes
    }

    /// The page in these bytes. An unknown kind counts as "nothing".
    pub fn decode(bytes: &[u8; RESERVATION_NOTIFICATION_LEN]) -> Self {
        Self {
            count: le64(bytes, 0),
            kind: match bytes[8] {
                1 => Some(NotificationKind::RegistrationPreempted),
                2 => Some(NotificationKind::ReservationReleased),
                3 => Some(NotificationKind::ReservationPreempted),
                _ => None,
            },
            available: bytes[9],
            nsid: le32(bytes, 12),
        }
    }
}

/// One subsystem port in a Discovery log page: NVMe/TCP, I/O controllers only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// Where to connect.
    pub address: SocketAddr,
    /// The subsystem.
    pub subsystem: Nqn,
    /// ASQSZ: largest admin submission queue.
    pub admin_queue_size: u16,
}

impl DiscoveryEntry {
    const TRANSPORT_TCP: u8 = 3;
    const SUBSYSTEM_IO: u8 = 2;

    fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; DISCOVERY_ENTRY_LEN];
        b[0] = Self::TRANSPORT_TCP;
        b[1] = if self.address.is_ipv4() { 1 } else { 2 };
        b[2] = Self::SUBSYSTEM_IO;
        b[4..6].copy_from_slice(&1u16.to_le_bytes());
        b[6..8].copy_from_slice(&ANY_CONTROLLER.to_le_bytes());
        b[8..10].copy_from_slice(&self.admin_queue_size.to_le_bytes());
        put_padded(&mut b[32..64], &self.address.port().to_string());
        put_text(&mut b[256..512], self.subsystem.as_str());
        put_padded(&mut b[512..768], &self.address.ip().to_string());
        b
    }

    fn decode(b: &[u8]) -> Option<Self> {
        if b[0] != Self::TRANSPORT_TCP || b[2] != Self::SUBSYSTEM_IO {
            return None;
        }
        let ip = padded_text(&b[512..768]).parse().ok()?;
        let port = padded_text(&b[32..64]).parse().ok()?;
        Some(Self {
            address: SocketAddr::new(ip, port),
            subsystem: nqn_field(&b[256..512])?,
            admin_queue_size: le16(b, 8),
        })
    }
}

/// The Discovery log page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryLog {
    /// GENCTR: changes with the log.
    pub generation: u64,
    /// The entries.
    pub entries: Vec<DiscoveryEntry>,
}

impl DiscoveryLog {
    /// The page's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; DISCOVERY_ENTRY_LEN];
        bytes[..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8..16].copy_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            bytes.extend(entry.encode());
        }
        bytes
    }

    /// The page in these bytes; `None` if they hold fewer entries than announced. Entries of other
    /// transports, and referrals, are left out.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < DISCOVERY_ENTRY_LEN {
            return None;
        }
        let count = usize::try_from(le64(bytes, 8)).ok()?;
        let entries = bytes[DISCOVERY_ENTRY_LEN..].chunks_exact(DISCOVERY_ENTRY_LEN);
        if entries.len() < count {
            return None;
        }
        Some(Self {
            generation: le64(bytes, 0),
            entries: entries
                .take(count)
                .filter_map(DiscoveryEntry::decode)
                .collect(),
        })
    }
}
