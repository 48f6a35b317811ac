//! Opening an attachment: connects, and refuses a volume that cannot be fenced before anything is registered.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use fencing::ClusterTag;
use fencing::reservation::drain_wait;
use nvme::kernel::Identifier;
use nvme::{Identified, Namespace, Nqn};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::carrier::{Carrier, ConnectError};
use super::device::Remains;
use super::further::Further;
use super::keeper::{Keeper, Registrant};
use super::marks::Marks;
use super::self_fence::SelfFence;
use super::{Attachment, Settings, Tell};
use crate::config::{Endpoint, Volume};
use crate::decide::Timings;

/// Why a member is not attached. Nothing was changed on the volume.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The volume cannot be reached.
    #[error(
        "connect to namespace {namespace_id} of {subsystem} at {address}: start the target, or \
         correct volume.address, volume.subsystem and volume.namespace_id"
    )]
    Connect {
        /// Where.
        address: Endpoint,
        /// What serves it.
        subsystem: Nqn,
        /// Which.
        namespace_id: u32,
        /// Why not.
        #[source]
        source: Box<ConnectError>,
    },
    /// The volume did not say what it is.
    #[error("identify the volume")]
    Identify(#[from] nvme::Error),
    /// Another volume answers.
    #[error(
        "the volume has UUID {uuid} and NGUID {nguid}, not volume.identifier {wanted}: correct volume.address, volume.subsystem or volume.namespace_id"
    )]
    AnotherVolume {
        /// The setting.
        wanted: Uuid,
        /// As Identify says.
        uuid: Uuid,
        /// As Identify says.
        nguid: Uuid,
    },
    /// The volume cannot be fenced.
    #[error(
        "the volume has no reservations (RESCAP {rescap:#04x}): it cannot be fenced; use a target and namespace that support Write Exclusive reservations"
    )]
    NoReservations {
        /// RESCAP.
        rescap: u8,
    },
    /// The settings promise an earlier end of old commands than the controller does.
    #[error(
        "timings.quiesce is {quiesce:?}, and this volume's controller may need longer to end the commands of a lost host: set it to at least {needed:?}"
    )]
    QuiesceTooShort {
        /// The setting.
        quiesce: Duration,
        /// What the setting must be.
        needed: Duration,
    },
    /// Nothing says when the commands of a lost host are over.
    #[error(
        "the association has no keep-alive time-out: nothing says when the commands of a lost host are over; set timings.keep_alive"
    )]
    NoKeepAlive,
    /// Its fences would be forgotten.
    #[error(
        "the volume's reservations do not survive a power loss of the target (RESCAP \
         {rescap:#04x}): enable their persistence on the target, or allow volatile ones with \
         volume.require_persistence = false"
    )]
    NotPersistent {
        /// RESCAP.
        rescap: u8,
    },
}

/// RESCAP bit 0: reservations can persist through a power loss.
const RESCAP_PERSISTENCE: u8 = 1 << 0;

/// RESCAP bit 1: Write Exclusive reservations.
const RESCAP_WRITE_EXCLUSIVE: u8 = 1 << 1;

impl Attachment {
    /// Connects to the volume and checks that it is the one that is meant and can be fenced. Nothing is
    /// registered and nothing mounted.
    ///
    /// # Errors
    /// [`OpenError`]: nothing was changed.
    pub async fn open(settings: Settings, tell: Tell) -> Result<Self, OpenError> {
        let Settings {
            volume, timings, ..
        } = &settings;
        let carrier = Arc::new(connect(volume, timings).await?);
        let identified = carrier.identify().await?;
        refuse_another(volume, &identified)?;
        refuse_unfenceable(volume, identified.reservation_capabilities)?;
        let drain_wait = drain_wait(&identified);
        check_quiesce(timings, drain_wait)?;
        let marks = Marks::new(&settings.runtime_dir, volume);
        let former_writer = marks.stands();
        let further = settings.fencing.further();
        let watchdog = settings.fencing.watchdog.clone();
        let cluster = ClusterTag::of_site(&settings.cluster, &settings.site);
        let registrant = Registrant {
            host: volume.host_id,
            cluster,
            member: settings.number,
            require_persistence: volume.require_persistence,
        };
        let keeper = Keeper::new(carrier.clone(), identified, registrant, timings.clone());
        Ok(Self {
            cluster,
            keeper: Mutex::new(keeper),
            further: Further::new(further, &settings.suspects, timings.clone()),
            self_fence: SelfFence::new(watchdog, volume.host_id, settings.number),
            device: Mutex::new(None),
            remains: Mutex::new(Remains::of_earlier(&carrier, volume, timings)),
            made: AtomicU64::new(0),
            mounted: Arc::new(Mutex::new(None)),
            former_drain: StdMutex::new(drain_wait.filter(|_| former_writer)),
            permit: StdMutex::new(None),
            marks,
            carrier,
            tell,
            settings,
        })
    }
}

/// The wait for a former owner's commands is computed from the settings: it must not be shorter than
/// what the controller itself says. That the fence's deadline holds it, the settings prove themselves.
fn check_quiesce(timings: &Timings, drain: Option<Duration>) -> Result<(), OpenError> {
    let drain = drain.ok_or(OpenError::NoKeepAlive)?;
    let settings = 3 * timings.keep_alive + timings.quiesce;
    if drain <= settings {
        return Ok(());
    }
    Err(OpenError::QuiesceTooShort {
        quiesce: timings.quiesce,
        needed: timings.quiesce + (drain - settings),
    })
}

async fn connect(volume: &Volume, timings: &Timings) -> Result<Carrier, OpenError> {
    Carrier::connect(volume, timings)
        .await
        .map_err(|source| OpenError::Connect {
            address: volume.address.clone(),
            subsystem: volume.subsystem.clone(),
            namespace_id: volume.namespace_id,
            source: Box::new(source),
        })
}

/// Whether it is the volume that is meant, where the settings name it.
fn refuse_another(volume: &Volume, identified: &Identified) -> Result<(), OpenError> {
    let Identified { uuid, nguid, .. } = identified;
    match volume.identifier {
        Some(Identifier::Long(wanted)) if ![*uuid, *nguid].contains(&wanted) => {
            Err(OpenError::AnotherVolume {
                wanted,
                uuid: *uuid,
                nguid: *nguid,
            })
        }
        // By its EUI-64 the kernel's device was chosen; nothing else may be configured.
        Some(Identifier::Long(_) | Identifier::Eui64(_)) | None => Ok(()),
    }
}

/// What the volume lacks for a fence is known before anything is registered there.
fn refuse_unfenceable(volume: &Volume, rescap: u8) -> Result<(), OpenError> {
    if rescap & RESCAP_WRITE_EXCLUSIVE == 0 {
        return Err(OpenError::NoReservations { rescap });
    }
    if volume.require_persistence && rescap & RESCAP_PERSISTENCE == 0 {
        return Err(OpenError::NotPersistent { rescap });
    }
    Ok(())
}
