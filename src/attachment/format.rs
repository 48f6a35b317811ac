//! The first format: filesystem and marker; the member makes the database in between.

use std::path::Path;

use fencing::{Epoch, Licence, Mono, WritePermit};
use uuid::Uuid;

use super::volume::{admit, empty, fill, label, mount_is, undo};
use super::{Attachment, Done, Settings, whole, without_permit};
use crate::decide::{Mount, Outcome};
use crate::volume::{self, Marker, Mounted};

impl Attachment {
    /// Makes the filesystem on a volume that is proven blank once more, and mounts it for `initdb`.
    /// [`Attachment::end_format`] must follow, whatever becomes of that.
    ///
    /// # Errors
    /// No permit for `epoch` is in hand, the volume is not blank, or the step failed.
    pub async fn begin_format(&self, epoch: Epoch, deadline: Mono) -> Result<Licence, Done> {
        let permit = self.held(epoch).ok_or_else(|| without_permit(epoch))?;
        let slot = self.mounted.clone().lock_owned().await;
        let path = self.about_to_write(&permit).await?;
        let (settings, licence) = (self.settings.clone(), permit.licence());
        self.say_mount(Mount::Mounted);
        let make = move || fill(slot, make(&permit, &path, &settings));
        let made = self
            .blocking_on_mount("volume-format", deadline, make)
            .await?;
        match made {
            Ok(()) => Ok(licence),
            Err(cause) => Err((Outcome::Failed { cause }, self.mount_as_found().await)),
        }
    }

    /// Notes which database `initdb` has made (`None`: it failed), unmounts, and only then marks the
    /// filesystem as finished, so that an interrupted attempt can be made again.
    pub async fn end_format(
        &self,
        epoch: Epoch,
        system_identifier: Option<u64>,
        deadline: Mono,
    ) -> Done {
        let mut slot = self.mounted.clone().lock_owned().await;
        let (Some(permit), Some(mounted)) = (self.held(epoch), slot.take()) else {
            drop(slot);
            let cause = "no format of this epoch is under way".to_owned();
            return (Outcome::Failed { cause }, self.mount_as_found().await);
        };
        let settings = self.settings.clone();
        let end = move || {
            let device = mounted.device().to_owned();
            let noted = system_identifier.map(|system| note(&permit, &mounted, &settings, system));
            empty(slot, mounted.unmount())?;
            match noted {
                None => Err("initdb made no database".to_owned()),
                Some(noted) => noted.and_then(|()| {
                    volume::finish(&permit, &device, &label(&settings)).map_err(whole)
                }),
            }
        };
        match self.blocking_on_mount("volume-format", deadline, end).await {
            Ok(Ok(())) => (Outcome::Done, mount_is(Mount::Unmounted)),
            Ok(Err(cause)) => (Outcome::Failed { cause }, self.mount_as_found().await),
            Err((outcome, _)) => (outcome, self.mount_as_found().await),
        }
    }
}

/// Makes the filesystem, mounts it and writes its marker; what fails is unmounted again.
fn make(
    permit: &WritePermit,
    path: &Path,
    settings: &Settings,
) -> Result<Mounted, (Option<Mounted>, String)> {
    let alone = |cause| (None, cause);
    let (contents, formattable) =
        volume::probe(path, &label(settings)).map_err(|error| alone(whole(error)))?;
    let formattable =
        formattable.ok_or_else(|| alone(format!("the volume is not blank: {contents:?}")))?;
    let uuid = volume::format(permit, formattable).map_err(|error| alone(whole(error)))?;
    let mounted = volume::mount(permit, path, &settings.volume.mount_point)
        .map_err(|error| alone(whole(error)))?;
    match populate(permit, &mounted, uuid, settings) {
        Ok(()) => Ok(mounted),
        Err(cause) => Err(undo(mounted, cause)),
    }
}

fn populate(
    permit: &WritePermit,
    mounted: &Mounted,
    filesystem: Uuid,
    settings: &Settings,
) -> Result<(), String> {
    let (root, epoch) = (mounted.root(), permit.epoch());
    let marker = Marker::new(&settings.cluster, &settings.site, filesystem, epoch);
    marker.write(permit, root).map_err(whole)?;
    let Some(owner) = settings.owner else {
        return Ok(());
    };
    root.give_to(owner).map_err(|error| {
        format!(
            "give {} to user {}: {error}",
            root.path().display(),
            owner.0
        )
    })
}

/// The marker with the database's identity, durable.
fn note(
    permit: &WritePermit,
    mounted: &Mounted,
    settings: &Settings,
    system_identifier: u64,
) -> Result<(), String> {
    let mut marker = Marker::read(mounted.root()).map_err(whole)?;
    marker.system_identifier = Some(system_identifier);
    marker.write(permit, mounted.root()).map_err(whole)?;
    mounted.sync().map_err(whole)?;
    admit(mounted, marker.filesystem, settings)
}
