//! Asking a Discovery controller which subsystems it knows.

use tokio::time::{Duration, timeout};

use super::association::Admin;
use super::{ConnectError, Options};
use crate::command::{Command, log};
use crate::identity::DISCOVERY_NQN;
use crate::log_page::{DISCOVERY_ENTRY_LEN, DiscoveryLog};

/// Most entries that are read: a log that claims more is cut off there.
const MAX_ENTRIES: u64 = 1024;
/// How often a log that changed while it was read is read anew (GENCTR moved).
const ATTEMPTS: u32 = 3;

/// Reads the Discovery log at `options.address` as `options.host`; the options' subsystem and
/// namespace play no part. Takes at most the connect deadline.
pub async fn discover(options: &Options) -> Result<DiscoveryLog, ConnectError> {
    let deadline = options.connect_deadline;
    timeout(deadline, read_log(options))
        .await
        .map_err(|_| ConnectError::Deadline {
            address: options.address.clone(),
            deadline,
        })?
}

async fn read_log(options: &Options) -> Result<DiscoveryLog, ConnectError> {
    let subsystem = DISCOVERY_NQN
        .parse()
        .map_err(|_| unusable("the discovery name is no NQN"))?;
    // Not a persistent connection: no keep alive.
    let admin = Admin::connect(options, &subsystem, Duration::ZERO).await?;
    for _ in 0..ATTEMPTS {
        let header = read_page(&admin, DISCOVERY_ENTRY_LEN).await?;
        let count = number_at(&header, 8).min(MAX_ENTRIES) as usize;
        let page = read_page(&admin, DISCOVERY_ENTRY_LEN * (1 + count)).await?;
        let log = DiscoveryLog::decode(&page);
        match log {
            Some(log) if log.generation == number_at(&header, 0) => return Ok(log),
            _ => {}
        }
    }
    Err(unusable("its log kept changing, or is too long"))
}

async fn read_page(admin: &Admin, length: usize) -> Result<bytes::Bytes, ConnectError> {
    let command = Command::get_log_page(log::DISCOVERY, 0, 0, length as u32);
    let page = admin
        .read("Get Log Page (Discovery)", command, length)
        .await?;
    if page.len() == length {
        Ok(page)
    } else {
        Err(unusable("its log page is shorter than asked for"))
    }
}

/// The little-endian number at `at`, which is within every page.
fn number_at(page: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn unusable(detail: &str) -> ConnectError {
    ConnectError::Unusable {
        detail: detail.to_owned(),
    }
}
