//! Steps on the filesystem: look, make, mount, flush, unmount.

use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use fencing::{Mono, WritePermit};
use nvme::Namespace;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::{Attachment, Changes, Done, Happening, Settings, done, failed, whole};
use crate::clock;
use crate::decide::{Mount, Outcome, VolumeFacts};
use crate::postgres::{DataDirectory, replication};
use crate::volume::{
    self, Beneath, Bounded, Cleanliness, Contents, Kind, Label, Marker, MountEntry, Mounted,
    StillMounted, Superblock,
};

/// More names beside the data directory than anybody has.
const BESIDE_DATA: usize = 10_000;

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
    pub(super) async fn mount_as_found(&self) -> Changes {
        mount_is(match self.mount_entry().await {
            Ok(None) => Mount::Unmounted,
            Ok(Some(_)) => Mount::Mounted,
            Err(_) => Mount::Stuck,
        })
    }

    async fn mount_entry(&self) -> Result<Option<MountEntry>, Done> {
        let mount_point = self.settings.volume.mount_point.clone();
        let look = move || volume::mounted_at(&mount_point);
        let looked = self.blocking("mount-table", Mono::MAX, look).await?;
        looked.map_err(|error| failed(whole(error)))
    }

    /// A filesystem that the kernel stopped writing to, after an error of its device, serves nobody
    /// any more: only a fresh mount does.
    pub async fn mount_if_dead(&self) -> Changes {
        let dead = |options: &str| {
            let mut options = options.split(',');
            options.any(|option| matches!(option, "ro" | "emergency_ro" | "shutdown"))
        };
        match self.mount_entry().await {
            Ok(Some(entry)) if dead(&entry.super_options) => mount_is(Mount::Stuck),
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
    pub(super) async fn about_to_write(&self, permit: &WritePermit) -> Result<PathBuf, Done> {
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

    pub(super) fn say_mount(&self, mount: Mount) {
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
    pub(super) async fn blocking_on_mount<T: Send + 'static>(
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
    let plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
    if !mount_point.components().all(plain) || !mount_point.starts_with(members) {
        let (point, members) = (mount_point.display(), members.display());
        return Err(format!("{point} is not below {members}"));
    }
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
    Ok(())
}

pub(super) fn mount_is(mount: Mount) -> Changes {
    Changes {
        mount: Some(mount),
        device: None,
    }
}

pub(super) fn label(settings: &Settings) -> Label {
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
pub(super) fn undo(mounted: Mounted, cause: String) -> (Option<Mounted>, String) {
    match mounted.unmount() {
        Ok(()) => (None, cause),
        Err(still) => {
            let cause = format!("{cause}; then: {}", whole(&*still));
            (still.mounted, cause)
        }
    }
}

/// Puts into the slot what a mount left there.
pub(super) fn fill(
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
pub(super) fn empty(
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
pub(super) fn admit(
    mounted: &Mounted,
    filesystem: Uuid,
    settings: &Settings,
) -> Result<(), String> {
    let marker = Marker::read(mounted.root()).map_err(whole)?;
    marker
        .admit(&settings.cluster, &settings.site, filesystem)
        .map_err(whole)?;
    let directory = &settings.data_directory;
    let below = directory.strip_prefix(&settings.volume.mount_point);
    let below =
        below.map_err(|_outside| format!("{} is not on the volume", directory.display()))?;
    let found = DataDirectory::look(mounted.root(), below).map_err(whole)?;
    // Where a rewind was cut off there is none: its site makes a new one before anything is started.
    if found.is_none() && is_rewinding(mounted.root(), below)? {
        return Ok(());
    }
    found
        .ok_or_else(|| format!("{} is missing", directory.display()))?
        .admit(settings.major, marker.system_identifier)
        .map_err(whole)
}

/// Whether a rewind of the data directory was cut off. What has a name like it is looked at first, because
/// the answer comes from a path: no link is followed.
fn is_rewinding(root: &Beneath, below: &Path) -> Result<bool, String> {
    let (beside, own) = (below.parent().unwrap_or(Path::new("")), below.file_name());
    let own = own.unwrap_or_default().as_bytes();
    let names = root.names(beside, BESIDE_DATA).map_err(whole)?;
    for name in names.iter().filter(|name| name.as_bytes().starts_with(own)) {
        let kind = root.kind(&beside.join(name)).map_err(whole)?;
        if matches!(kind, Kind::Link(_)) {
            let path = root.path().join(beside).join(name);
            return Err(format!("{} is a symbolic link: remove it", path.display()));
        }
    }
    Ok(names.len() < BESIDE_DATA && replication::is_rewinding(&root.path().join(below)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_is_mounted_through_a_link_or_outside() {
        let root = tempfile::tempdir().expect("a directory");
        let members = root.path().join("members");
        let outside = root.path().join("outside");
        for directory in [&members.join("db/main-a"), &outside] {
            std::fs::create_dir_all(directory).expect("make it");
        }
        let own = members.join("db/main-a/data");
        refuse_links(&members, &own).expect("it is not there yet, and will be made");
        symlink(&outside, &own).expect("make a link");
        assert!(
            refuse_links(&members, &own).is_err(),
            "the mount point is a link"
        );
        symlink(&outside, members.join("other")).expect("make a link");
        let through = members.join("other/main-a/data");
        assert!(
            refuse_links(&members, &through).is_err(),
            "a link on the way"
        );
        assert!(refuse_links(&members, &outside).is_err(), "outside");
        let dots = members.join("db/../../outside");
        assert!(refuse_links(&members, &dots).is_err(), "outside by dots");
    }
}
