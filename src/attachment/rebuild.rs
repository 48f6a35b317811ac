//! Making the block device anew.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::device::Device;
use super::{Attachment, Changes, Done, Happening, failed, whole};
use crate::decide::{self, Outcome};

impl Attachment {
    /// Destroys the device with everything queued in it and makes it anew. SAFETY.md I6
    pub(super) async fn rebuild_device(self: &Arc<Self>) -> Done {
        let mut slot = self.device.lock().await;
        let mut remains = self.remains.lock().await;
        remains.extend(slot.take().map(Device::destroy));
        // Whatever is not proven stays on the list for the next attempt.
        while let Some(device) = remains.last_mut() {
            if let Err(error) = device.prove_gone().await {
                return failed(whole(error));
            }
            remains.pop();
        }
        drop(remains);
        self.former_is_gone();
        // Ordered only once no process and no mount is left: now nothing is queued either.
        self.self_fence.disarm();
        self.tell.say(Happening::Changed(Changes {
            device: Some(decide::Device::Absent),
            ..Changes::default()
        }));
        let made = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        match Device::make(
            &self.carrier,
            &self.settings.volume,
            self.timings(),
            self.settings.outlive.as_ref(),
            made,
            self.tell.clone(),
        )
        .await
        {
            Ok(device) => *slot = Some(device),
            Err(error) => return failed(whole(error)),
        }
        drop(slot);
        let device = Some(decide::Device::Attached { made });
        (
            Outcome::Done,
            Changes {
                device,
                ..Changes::default()
            },
        )
    }

    /// Takes the mark of an earlier process away when its commands are provably over, which is counted
    /// from here: the kernel's device lives on when its process dies. Where nothing says how long
    /// they may take, the mark stays.
    fn former_is_gone(self: &Arc<Self>) {
        let wait = self
            .former_drain
            .lock()
            .ok()
            .and_then(|mut wait| wait.take());
        let Some(wait) = wait else { return };
        let attachment = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            attachment.marks.outlived();
        });
    }
}
