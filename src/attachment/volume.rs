//! Steps on the filesystem: look, make, mount, flush, unmount.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fencing::{Epoch, Licence, Mono, WritePermit};
use nvme::Namespace;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::{Attachment, Changes, Done, Happening, Settings, done, failed, whole, without_permit};
use crate::clock;
use crate::decide::{Mount, Outcome, VolumeFacts};
use crate::postgres::DataDirectory;
use crate::volume::{
    self, Bounded, Cleanliness, Contents, Label, Marker, Mounted, StillMounted, Superblock,
};

impl Attachment {
    /// Drops the device's cached blocks and reads what the volume holds, past every cache.
    pub(super) async fn prepare_volume(&self, deadline: Mono) -> Done {
        let path = match self.device_path().await {
            Ok(path) => path,
            Err(refused) => return refused,
        };
        let label = label(&self.settings);
        match self
            .blocking("volume-look", deadline, move || look(&path, &label))
            .await
        {
            Ok(Ok(facts)) => (Outcome::Volume(facts), Changes::default()),
            Ok(Err(cause)) => failed(cause),
            Err(refused) => refused,
        }
    }

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
        let make = move || fill(slot, make(&permit, &path, &settings));
        let made = self
            .blocking_on_mount("volume-format", deadline, make)
            .await?;
        made.map(|()| licence).map_err(failed)
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
            return failed("no format of this epoch is under way");
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
            Ok(Ok(())) => done(),
            Ok(Err(cause)) => (Outcome::Failed { cause }, self.mount_as_found().await),
            Err((outcome, _)) => (outcome, self.mount_as_found().await),
        }
    }

    /// Mounts under the permit and checks that the data is this cluster's.
    pub(super) async fn mount(&self, permit: Arc<WritePermit>, deadline: Mono) -> Done {
        let slot = self.mounted.clone().lock_owned().await;
        let ready = async {
            let path = self.device_path().await?;
            // Before the report that confirms: a read on a lost path may take its time.
            let (device, label) = (path.clone(), label(&self.settings));
            let read = move || our_superblock(&device, &label);
            let superblock = self.blocking("volume-look", deadline, read).await?;
            let superblock = superblock.map_err(failed)?;
            self.about_to_write(&permit).await?;
            Ok::<_, Done>((path, superblock.uuid))
        };
        let (path, filesystem) = match ready.await {
            Ok(ready) => ready,
            Err(refused) => return refused,
        };
        self.say_mount(Mount::Mounted);
        let settings = self.settings.clone();
        // The slot is taken until the call returns, whoever still waits for it.
        let call = move || fill(slot, mount_ours(&permit, &path, filesystem, &settings));
        match self.blocking_on_mount("volume-mount", deadline, call).await {
            Ok(Ok(())) => (Outcome::Done, mount_is(Mount::Mounted)),
            Ok(Err(cause)) => (Outcome::Failed { cause }, self.mount_as_found().await),
            Err((outcome, _)) => (outcome, self.mount_as_found().await),
        }
    }

    /// Writes everything back, unmounts, flushes the volume, drops the caches and reads the
    /// superblock back: the order in which each is proven by the next.
    pub(super) async fn unmount(&self, deadline: Mono) -> Done {
        let mut slot = self.mounted.clone().lock_owned().await;
        let Some(mounted) = slot.take() else {
            drop(slot);
            return (
                Outcome::Unmounted { clean: false },
                self.mount_as_found().await,
            );
        };
        let device = mounted.device().to_owned();
        let call = move || {
            let synced = mounted.sync();
            empty(slot, mounted.unmount()).map(|()| synced)
        };
        let synced = match self
            .blocking_on_mount("volume-unmount", deadline, call)
            .await
        {
            Ok(Ok(synced)) => synced,
            Ok(Err(cause)) => return (Outcome::Failed { cause }, mount_is(Mount::Mounted)),
            Err((outcome, _)) => return (outcome, self.mount_as_found().await),
        };
        let left = clock::now().until(deadline);
        let flushed = tokio::time::timeout(left, self.carrier.flush()).await;
        let clean = synced.is_ok()
            && matches!(flushed, Ok(Ok(())))
            && self.is_clean(device, deadline).await;
        if clean {
            self.marks.disowned();
        }
        (Outcome::Unmounted { clean }, mount_is(Mount::Unmounted))
    }

    /// `FS_IOC_SHUTDOWN`: nothing of this mount is written from now on. Where a mount or an unmount
    /// is under way in the kernel, its device is taken away instead: to the same end.
    pub(super) async fn shut_filesystem_down(&self) -> Done {
        let Ok(slot) = self.mounted.clone().try_lock_owned() else {
            self.condemn_device().await;
            return done();
        };
        if slot.is_none() {
            return done();
        }
        let mount_point = self.settings.volume.mount_point.clone();
        let call = move || {
            let shut = nvme::block::shut_down(&mount_point);
            drop(slot);
            shut
        };
        match self.blocking("volume-shutdown", Mono::MAX, call).await {
            Ok(Ok(())) => done(),
            Ok(Err(error)) => failed(whole(error)),
            Err(refused) => refused,
        }
    }

    /// Unmounts a filesystem that was shut down. Waits for a mount or unmount that is under way.
    pub(super) async fn drop_mount(&self, deadline: Mono) -> Done {
        let mut slot = self.mounted.clone().lock_owned().await;
        let mount_point = self.settings.volume.mount_point.clone();
        let call = move || match slot.take() {
            Some(mounted) => empty(slot, mounted.unmount()),
            // What an earlier error left there without a handle.
            None => match volume::mounted_at(&mount_point).map_err(whole)? {
                Some(_) => volume::unmount(&mount_point).map_err(whole),
                None => Ok(()),
            },
        };
        match self.blocking_on_mount("volume-drop", deadline, call).await {
            Ok(Ok(())) => (Outcome::Done, mount_is(Mount::Unmounted)),
            Ok(Err(cause)) => (Outcome::Failed { cause }, mount_is(Mount::Mounted)),
            Err((outcome, _)) => (outcome, self.mount_as_found().await),
        }
    }

    /// Writes this filesystem's dirty pages back, while it is in use.
    pub async fn sync_filesystem(&self, deadline: Mono) -> Done {
        let copy = match self.mounted.lock().await.as_ref() {
            Some(mounted) => mounted.try_clone(),
            None => return failed("nothing is mounted"),
        };
        let copy = match copy {
            Ok(copy) => copy,
            Err(error) => return failed(error),
        };
        match self
            .blocking("volume-sync", deadline, move || copy.sync())
            .await
        {
            Ok(Ok(())) => done(),
            Ok(Err(error)) => failed(whole(error)),
            Err(refused) => refused,
        }
    }

    /// Whether anything is mounted, by the kernel's own table: what an error did not tell.
    async fn mount_as_found(&self) -> Changes {
        let mount_point = self.settings.volume.mount_point.clone();
        let look = move || volume::mounted_at(&mount_point);
        match self.blocking("mount-table", Mono::MAX, look).await {
            Ok(Ok(None)) => mount_is(Mount::Unmounted),
            Ok(Ok(Some(_))) => mount_is(Mount::Mounted),
            Ok(Err(_)) | Err(_) => mount_is(Mount::Stuck),
        }
    }

    /// A filesystem that the kernel stopped writing to, after an error of its device, serves nobody
    /// any more: only a fresh mount does.
    pub async fn mount_if_dead(&self) -> Changes {
        let mount_point = self.settings.volume.mount_point.clone();
        let look = move || volume::mounted_at(&mount_point);
        let dead = |options: &str| {
            let mut options = options.split(',');
            options.any(|option| matches!(option, "ro" | "emergency_ro" | "shutdown"))
        };
        match self.blocking("mount-table", Mono::MAX, look).await {
            Ok(Ok(Some(entry))) if dead(&entry.super_options) => mount_is(Mount::Stuck),
            Ok(_) | Err(_) => Changes::default(),
        }
    }

    /// Takes the block device away: whatever waits for it in the kernel fails at once, and nothing
    /// that is queued for it is written. Loses nothing that was ever flushed.
    pub async fn condemn_device(&self) {
        if let Some(device) = self.device.lock().await.as_ref() {
            device.condemn();
        }
    }

    async fn device_path(&self) -> Result<PathBuf, Done> {
        let device = self.device.lock().await;
        let alive = device.as_ref().filter(|device| device.is_alive());
        let path = alive.map(|device| device.path().to_owned());
        path.ok_or_else(|| failed("there is no block device"))
    }

    /// Everything that must be true right before the first write: the node remembers that it owned,
    /// its watchdog is armed where one is configured, the volume can be read, and a fresh report
    /// confirms the permit. SAFETY.md I2
    async fn about_to_write(&self, permit: &WritePermit) -> Result<PathBuf, Done> {
        let path = self.device_path().await?;
        if let Some(outlive) = &self.settings.outlive {
            let mount_point = &self.settings.volume.mount_point;
            refuse_links(&outlive.members, mount_point).map_err(failed)?;
        }
        self.mark_owner().map_err(failed)?;
        // Before the report: what confirms the permit is younger than the arming. SAFETY.md I14
        self.self_fence
            .arm(permit.epoch())
            .map_err(|error| failed(whole(error)))?;
        let report = tokio::time::timeout(self.timings().command, self.carrier.report()).await;
        let report = report
            .map_err(|_| failed("the reservation report before the mount got no answer"))?
            .map_err(|error| failed(whole(error)))?;
        permit.confirm(&report).map_err(failed)?;
        Ok(path)
    }

    /// Notes on the node that this host is about to own the volume.
    pub(super) fn mark_owner(&self) -> Result<(), String> {
        self.marks.owned().map_err(|error| {
            let directory = self.settings.runtime_dir.display();
            format!(
                "note in {directory} that this host is about to own the volume: {error}; nothing \
                 was touched"
            )
        })
    }

    async fn is_clean(&self, device: PathBuf, deadline: Mono) -> bool {
        let read = move || {
            volume::drop_caches(&device).map_err(whole)?;
            Superblock::read(&device).map_err(whole)
        };
        match self.blocking("volume-verify", deadline, read).await {
            Ok(Ok(superblock)) => superblock.cleanliness() == Cleanliness::Clean,
            Ok(Err(cause)) => {
                tracing::warn!(%cause, "the superblock could not be read back");
                false
            }
            Err(_) => false,
        }
    }

    fn say_mount(&self, mount: Mount) {
        self.tell.say(Happening::Changed(mount_is(mount)));
    }

    /// Runs a call on a thread of its own; beyond the deadline it is waited for all the same.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        deadline: Mono,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Done> {
        match volume::within(clock::now().until(deadline), what, call).await {
            Ok(Bounded::Done(value)) => Ok(value),
            Ok(Bounded::Stuck(pending)) => pending.await.map_err(|error| failed(whole(error))),
            Err(error) => Err(failed(whole(error))),
        }
    }

    /// The same for a call that changes the mount: beyond the deadline the mount is stuck, and the
    /// device is taken away so that the call ends.
    async fn blocking_on_mount<T: Send + 'static>(
        &self,
        what: &'static str,
        deadline: Mono,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Done> {
        match volume::within(clock::now().until(deadline), what, call).await {
            Ok(Bounded::Done(value)) => Ok(value),
            Ok(Bounded::Stuck(pending)) => {
                tracing::error!(
                    what,
                    "a system call on the volume does not return: its device goes"
                );
                self.say_mount(Mount::Stuck);
                self.condemn_device().await;
                pending.await.map_err(|error| failed(whole(error)))
            }
            Err(error) => Err(failed(whole(error))),
        }
    }
}

/// A mount point that others can see must be where it seems to be: no link on the way from `members`.
fn refuse_links(members: &Path, mount_point: &Path) -> Result<(), String> {
    let way = mount_point.ancestors().take_while(|path| *path != members);
    for path in way {
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                let path = path.display();
                return Err(format!(
                    "{path} is no directory: nothing is mounted through it"
                ));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("look at {}: {error}", path.display())),
        }
    }
    if mount_point.starts_with(members) {
        Ok(())
    } else {
        let (point, members) = (mount_point.display(), members.display());
        Err(format!("{point} is not below {members}"))
    }
}

fn mount_is(mount: Mount) -> Changes {
    Changes {
        mount: Some(mount),
        device: None,
    }
}

fn label(settings: &Settings) -> Label {
    Label::of(&settings.cluster, &settings.site)
}

fn look(path: &Path, label: &Label) -> Result<VolumeFacts, String> {
    volume::drop_caches(path).map_err(whole)?;
    let (contents, _formattable) = volume::probe(path, label).map_err(whole)?;
    Ok(match contents {
        Contents::Blank => VolumeFacts::Blank,
        Contents::Unfinished => VolumeFacts::Unfinished,
        Contents::Foreign { what } => VolumeFacts::Foreign { what },
        Contents::Ext4(superblock) => match superblock.admit(label) {
            Err(refusal) => VolumeFacts::Foreign {
                what: refusal.to_string(),
            },
            Ok(()) => VolumeFacts::Ours {
                clean: superblock.cleanliness() == Cleanliness::Clean,
            },
        },
    })
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
    let (root, epoch) = (mounted.mount_point(), permit.epoch());
    let marker = Marker::new(&settings.cluster, &settings.site, filesystem, epoch);
    marker.write(permit, root).map_err(whole)?;
    let Some((user, group)) = settings.owner else {
        return Ok(());
    };
    std::os::unix::fs::chown(root, Some(user), Some(group))
        .map_err(|error| format!("give {} to user {user}: {error}", root.display()))
}

/// The marker with the database's identity, durable.
fn note(
    permit: &WritePermit,
    mounted: &Mounted,
    settings: &Settings,
    system_identifier: u64,
) -> Result<(), String> {
    let mut marker = Marker::read(mounted.mount_point()).map_err(whole)?;
    marker.system_identifier = Some(system_identifier);
    marker.write(permit, mounted.mount_point()).map_err(whole)?;
    mounted.sync().map_err(whole)?;
    admit(mounted, marker.filesystem, settings)
}

/// Mounts, and unmounts again what turns out not to be ours.
fn mount_ours(
    permit: &WritePermit,
    path: &Path,
    filesystem: Uuid,
    settings: &Settings,
) -> Result<Mounted, (Option<Mounted>, String)> {
    let mounted = volume::mount(permit, path, &settings.volume.mount_point)
        .map_err(|error| (None, whole(error)))?;
    match admit(&mounted, filesystem, settings) {
        Ok(()) => Ok(mounted),
        Err(cause) => Err(undo(mounted, cause)),
    }
}

/// Unmounts what must not stay; what did stay, with the cause.
fn undo(mounted: Mounted, cause: String) -> (Option<Mounted>, String) {
    match mounted.unmount() {
        Ok(()) => (None, cause),
        Err(still) => {
            let cause = format!("{cause}; then: {}", whole(&*still));
            (still.mounted, cause)
        }
    }
}

/// Puts into the slot what a mount left there.
fn fill(
    mut slot: OwnedMutexGuard<Option<Mounted>>,
    ended: Result<Mounted, (Option<Mounted>, String)>,
) -> Result<(), String> {
    let (mounted, result) = match ended {
        Ok(mounted) => (Some(mounted), Ok(())),
        Err((mounted, cause)) => (mounted, Err(cause)),
    };
    *slot = mounted;
    result
}

/// Puts back into the slot what an unmount left there.
fn empty(
    mut slot: OwnedMutexGuard<Option<Mounted>>,
    ended: Result<(), Box<StillMounted>>,
) -> Result<(), String> {
    ended.map_err(|still| {
        let cause = whole(&*still);
        *slot = still.mounted;
        cause
    })
}

/// The superblock, if it is one that this cluster may mount.
fn our_superblock(path: &Path, label: &Label) -> Result<Superblock, String> {
    let superblock = Superblock::read(path).map_err(whole)?;
    superblock.admit(label).map_err(whole)?;
    Ok(superblock)
}

/// The data must be this cluster's, of this PostgreSQL's version, and complete.
fn admit(mounted: &Mounted, filesystem: Uuid, settings: &Settings) -> Result<(), String> {
    let marker = Marker::read(mounted.mount_point()).map_err(whole)?;
    marker
        .admit(&settings.cluster, &settings.site, filesystem)
        .map_err(whole)?;
    let directory = &settings.data_directory;
    DataDirectory::read(mounted.mount_point(), directory)
        .map_err(whole)?
        .ok_or_else(|| format!("{} is missing", directory.display()))?
        .admit(settings.major, marker.system_identifier)
        .map_err(whole)
}
