//! Going on where an earlier process of this boot has ended: the agent's restart interrupts nothing.
//!
//! Device and mount outlive their process. What it knew of them is written down after each step, so that
//! the next process finds them again; the permit comes back only if a fresh report confirms its hold.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use fencing::{Epoch, PermitRecord};
use nvme::Namespace;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::device::{Device, DeviceRecord};
use super::{Attachment, Changes, OpenError, Settings, Tell, whole};
use crate::decide::{self, Mount, PermitFacts};
use crate::volume;

/// What is known of an attachment, for its successor. Of this boot only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The number of the newest device that was made.
    made: u64,
    device: Option<DeviceRecord>,
    /// Something is or may be mounted.
    mounted: bool,
    permit: Option<PermitRecord>,
}

/// What a successor found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Device and mount.
    pub changes: Changes,
    /// The permit, if its hold has lasted.
    pub permit: Option<PermitFacts>,
}

impl Attachment {
    /// What a successor must know; `None` while a step works on device or mount.
    pub fn record_if_free(&self) -> Option<Record> {
        let device = self.device.try_lock().ok()?.as_ref().map(Device::record);
        let mounted = self.mounted.try_lock().ok()?.is_some();
        let permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Record {
            made: self.made.load(Ordering::Relaxed),
            device,
            mounted,
            permit: permit.as_ref().map(|permit| permit.record()),
        })
    }

    /// The epoch of the permit in hand.
    pub fn permit_epoch(&self) -> Option<Epoch> {
        let permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        permit.as_ref().map(|permit| permit.epoch())
    }

    /// Opens an attachment and goes on with what `record` says, as far as it is still there.
    ///
    /// # Errors
    /// As [`Attachment::open`].
    pub async fn resume(
        settings: Settings,
        record: Record,
        tell: Tell,
    ) -> Result<(Self, Found), OpenError> {
        let attachment = Self::open(settings, tell).await?;
        attachment.made.store(record.made, Ordering::Relaxed);
        let adopted = match record.device {
            Some(device) => attachment.adopt_device(device, record.made).await,
            None => false,
        };
        // Whatever `open` took for an earlier process's is this one's.
        if adopted {
            attachment.remains.lock().await.clear();
            attachment.marks.resumed();
            if let Ok(mut drain) = attachment.former_drain.lock() {
                *drain = None;
            }
        }
        let mount = attachment.adopt_mount(record.mounted).await;
        let permit = match record.permit {
            Some(permit) if adopted => attachment.adopt_permit(permit).await,
            Some(_) | None => None,
        };
        let device = if adopted {
            decide::Device::Attached { made: record.made }
        } else {
            decide::Device::Absent
        };
        let changes = Changes {
            device: Some(device),
            mount: Some(mount),
        };
        info!(?device, ?mount, permit = permit.is_some(), "resumed");
        Ok((attachment, Found { changes, permit }))
    }

    async fn adopt_device(&self, record: DeviceRecord, made: u64) -> bool {
        let (carrier, timings) = (&self.carrier, self.timings());
        match Device::adopt(record, carrier, timings, made, self.tell.clone()).await {
            Ok(Some(device)) => {
                *self.device.lock().await = Some(device);
                true
            }
            Ok(None) => false,
            Err(error) => {
                warn!(error = %whole(error), "the device of before is not found");
                false
            }
        }
    }

    async fn adopt_mount(&self, expected: bool) -> Mount {
        let mount_point = self.settings.volume.mount_point.clone();
        let path = self
            .device
            .lock()
            .await
            .as_ref()
            .map(|device| device.path().to_owned());
        let look = move || match &path {
            Some(path) => volume::adopt(path, &mount_point).map_err(whole),
            None => match volume::mounted_at(&mount_point).map_err(whole)? {
                Some(_) => Err("the device of the mount is gone".to_owned()),
                None => Ok(None),
            },
        };
        let found = self.blocking("mount-table", fencing::Mono::MAX, look).await;
        match found {
            Ok(Ok(Some(mounted))) => {
                *self.mounted.lock().await = Some(mounted);
                Mount::Mounted
            }
            Ok(Ok(None)) => Mount::Unmounted,
            Ok(Err(cause)) => {
                warn!(cause, expected, "the mount of before cannot be used");
                Mount::Stuck
            }
            Err(_) => Mount::Stuck,
        }
    }

    async fn adopt_permit(&self, record: PermitRecord) -> Option<PermitFacts> {
        let bound = self.timings().command;
        let report = tokio::time::timeout(bound, self.carrier.report()).await;
        let permit = match report {
            Ok(Ok(report)) => record.resume(&report).map_err(whole),
            Ok(Err(error)) => Err(whole(error)),
            Err(_elapsed) => Err(format!("no reservation report within {bound:?}")),
        };
        match permit {
            Ok(permit) => {
                let facts = PermitFacts::from(&permit);
                self.keep_permit(permit);
                Some(facts)
            }
            Err(cause) => {
                warn!(cause, "the permit of before is not confirmed");
                None
            }
        }
    }
}
