//! What an attachment must know; nothing of it is PostgreSQL's or the peers' business.

use std::path::PathBuf;

use fencing::MemberId;

use super::Outlive;
use crate::config::{Config, Fencing, Volume};
use crate::decide::Timings;

/// The settings of one member's attachment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster, which owns the volume.
    pub cluster: String,
    /// The site.
    pub site: String,
    /// The member's name, for messages.
    pub member: String,
    /// Its number, part of its reservation key.
    pub number: MemberId,
    /// The volume, this node's identity there, and where it is mounted.
    pub volume: Volume,
    /// The fences beside the reservation.
    pub fencing: Fencing,
    /// Where marks of this boot lie.
    pub runtime_dir: PathBuf,
    /// Where the further fences' list of suspects lies: it outlives a reboot.
    pub suspects: PathBuf,
    /// How long everything may take.
    pub timings: Timings,
    /// The data directory below the mount point.
    pub data_directory: PathBuf,
    /// The major version of the PostgreSQL that will be started on it.
    pub major: u32,
    /// To whom the root of a new filesystem is given, where PostgreSQL's process may not give itself
    /// anything: user and group.
    pub owner: Option<(u32, u32)>,
    /// Whether the device lives on when this process dies.
    pub outlive: Option<Outlive>,
}

impl Settings {
    /// Of a member that attaches by itself. `major` is the version of its PostgreSQL.
    pub fn of(config: &Config, volume: &Volume, major: u32) -> Self {
        Self {
            cluster: config.cluster.clone(),
            site: config.site.clone(),
            member: config.member.clone(),
            number: config.number,
            data_directory: volume.mount_point.join(&config.postgres.data_directory),
            volume: volume.clone(),
            fencing: config.fencing.clone(),
            runtime_dir: config.runtime_dir.clone(),
            suspects: further_suspects(config),
            timings: config.timings.clone(),
            major,
            owner: None,
            outlive: None,
        }
    }
}

/// Beside the journal, which is this member's alone.
fn further_suspects(config: &Config) -> PathBuf {
    let mut name = config.journal.path.clone().into_os_string();
    name.push(".suspects");
    name.into()
}
