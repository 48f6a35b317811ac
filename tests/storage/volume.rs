//! The volume: proven blank, formatted, mounted, given up, refused.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use baton::volume::{
    self, Bounded, Checked, Cleanliness, Contents, Label, Marker, MountError, Refusal,
    StillMounted, Superblock, UnmountError,
};

use crate::harness::{CLUSTER, LONG, SITE, Volume, block_on, label, permit};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn cleanliness(volume: &Volume) -> Cleanliness {
    Superblock::read(volume.device()).unwrap().cleanliness()
}

#[test]
fn a_blank_volume_is_formatted_and_handed_over_clean() {
    let volume = Volume::new();
    assert!(volume::is_free(volume.device()).unwrap());
    let mounted = volume.prepare();
    let superblock = Superblock::read(volume.device()).unwrap();
    assert_eq!(superblock.admit(&label()), Ok(()));
    assert!(superblock.has_journal && !superblock.mmp, "{superblock:?}");
    let other = superblock.admit(&Label::of(CLUSTER, "elsewhere"));
    assert!(
        matches!(other, Err(Refusal::OtherLabel { .. })),
        "{other:?}"
    );

    assert_eq!(superblock.cleanliness(), Cleanliness::NeedsRecovery);
    assert!(!volume::is_free(volume.device()).unwrap());
    let marker = Marker::read(mounted.root()).unwrap();
    marker.admit(CLUSTER, SITE, superblock.uuid).unwrap();

    mounted.sync().unwrap();
    mounted.unmount().unwrap();
    assert_eq!(cleanliness(&volume), Cleanliness::Clean);
    assert!(volume::is_free(volume.device()).unwrap());
    volume::drop_caches(volume.device()).unwrap();
    let (contents, formattable) = volume::probe(volume.device(), &label()).unwrap();
    assert!(matches!(contents, Contents::Ext4(_)) && formattable.is_none());
}

#[test]
fn what_is_not_blank_is_never_formatted() {
    let volume = Volume::new();
    let device = File::options().write(true).open(volume.device()).unwrap();
    let end = 512 << 20;
    let cases: [(u64, &[u8]); 8] = [
        (0, b"XFSB"),
        (512, b"LABELONE"),
        (510, b"\x55\xaa"),
        (65600, b"_BHRfS_M"),
        (end - 512, b"EFI PART"),          // a GPT's backup header
        (end - 8192, b"\xfc\x4e\x2b\xa9"), // Linux RAID 1.0
        (128 << 20, b"\x53\xef"),          // a backup superblock whose primary was wiped
        (256 << 20, b"row of a table"),    // data in the middle
    ];
    for (offset, bytes) in cases {
        device.write_all_at(bytes, offset).unwrap();
        device.sync_all().unwrap();
        let (contents, formattable) = volume::probe(volume.device(), &label()).unwrap();
        assert!(
            matches!(contents, Contents::Foreign { .. }),
            "{offset}: {contents:?}"
        );
        assert!(formattable.is_none(), "{offset}");
        device.write_all_at(&vec![0; bytes.len()], offset).unwrap();
    }
    device.sync_all().unwrap();
    let (contents, formattable) = volume::probe(volume.device(), &label()).unwrap();
    assert!(contents == Contents::Blank && formattable.is_some());
}

#[test]
fn other_filesystems_are_refused() {
    let volume = Volume::new();
    let device = volume.device().to_str().unwrap().to_owned();
    let label = label();
    let admit = || Superblock::read(volume.device()).unwrap().admit(&label);
    run("mkfs.ext4", &["-q", "-F", &device]);
    assert!(matches!(admit(), Err(Refusal::OtherLabel { .. })));
    run("tune2fs", &["-L", &label.finished(), &device]);
    assert_eq!(admit(), Ok(()));
    run("tune2fs", &["-O", "mmp", &device]);
    assert_eq!(admit(), Err(Refusal::MultipleMountProtection));
    run("tune2fs", &["-O", "^mmp", "-o", "nobarrier", &device]);
    assert_eq!(admit(), Err(Refusal::NoBarrier));
    run(
        "tune2fs",
        &["-o", "^nobarrier", "-E", "mount_opts=barrier=0", &device],
    );
    assert_eq!(admit(), Err(Refusal::NoBarrier));
    run("mkfs.ext2", &["-q", "-F", "-L", &label.finished(), &device]);
    assert_eq!(admit(), Err(Refusal::NotExt4));
}

#[test]
fn an_owner_that_was_cut_off_leaves_a_journal_that_the_next_one_replays() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let file = mounted.mount_point().join("file");
    fs::write(&file, "kept").unwrap();
    mounted.sync().unwrap();
    mounted.shut_down().unwrap();
    assert!(fs::write(&file, "refused").is_err());
    mounted.unmount().unwrap();
    assert_eq!(cleanliness(&volume), Cleanliness::NeedsRecovery);

    volume::drop_caches(volume.device()).unwrap();
    let mounted = volume.mount();
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    mounted.unmount().unwrap();
    assert_eq!(cleanliness(&volume), Cleanliness::Clean);
}

#[test]
fn a_busy_volume_says_who_holds_it() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    let mut file = File::create(mounted.mount_point().join("open")).unwrap();
    file.write_all(b"x").unwrap();
    let StillMounted { mounted, cause } = *mounted.unmount().unwrap_err();
    let UnmountError::Busy { holders, .. } = &cause else {
        panic!("{cause}")
    };
    let own = i32::try_from(std::process::id()).unwrap();
    assert!(holders.iter().any(|holder| holder.pid == own), "{cause}");
    drop(file);
    mounted.unwrap().unmount().unwrap();
}

#[test]
fn nothing_is_mounted_over_something_or_from_nothing() {
    let volume = Volume::new();
    let blank = volume::mount(&permit(1), volume.device(), &volume.mount_point());
    assert!(
        matches!(blank, Err(MountError::Refused { .. })),
        "{blank:?}"
    );
    let mounted = volume.prepare();
    let twice = volume::mount(&permit(1), volume.device(), &volume.mount_point());
    assert!(
        matches!(twice, Err(MountError::Occupied { .. })),
        "{twice:?}"
    );
    mounted.unmount().unwrap();
}

#[test]
fn calls_on_the_volume_run_within_a_deadline() {
    let volume = Volume::new();
    let mounted = volume.prepare();
    block_on(async {
        let clone = mounted.try_clone().unwrap();
        let synced = volume::within(LONG, "syncfs", move || clone.sync())
            .await
            .unwrap();
        assert!(matches!(synced, Bounded::Done(Ok(()))), "{synced:?}");
        let unmounted = volume::within(LONG, "umount", move || mounted.unmount())
            .await
            .unwrap();
        assert!(matches!(unmounted, Bounded::Done(Ok(()))), "{unmounted:?}");
    });
}

#[test]
fn an_interrupted_preparation_may_begin_anew_and_a_finished_one_never() {
    let volume = Volume::new();
    let (_, blank) = volume::probe(volume.device(), &label()).unwrap();
    volume::format(&permit(1), blank.unwrap()).unwrap();
    let superblock = Superblock::read(volume.device()).unwrap();
    assert_eq!(superblock.admit(&label()), Err(Refusal::Unfinished));
    let elsewhere = Label::of(CLUSTER, "elsewhere");
    let (contents, formattable) = volume::probe(volume.device(), &elsewhere).unwrap();
    assert!(matches!(contents, Contents::Ext4(_)) && formattable.is_none());

    let (contents, formattable) = volume::probe(volume.device(), &label()).unwrap();
    assert_eq!(contents, Contents::Unfinished);
    volume::format(&permit(2), formattable.unwrap()).unwrap();
    volume::finish(&permit(2), volume.device(), &label()).unwrap();
    let superblock = Superblock::read(volume.device()).unwrap();
    assert_eq!(superblock.admit(&label()), Ok(()));
    let (contents, formattable) = volume::probe(volume.device(), &label()).unwrap();
    assert!(matches!(contents, Contents::Ext4(_)) && formattable.is_none());
}

#[test]
fn recorded_errors_are_seen_and_repaired_or_left_to_a_person() {
    let volume = Volume::new();
    volume.prepare().unmount().unwrap();
    assert_eq!(
        volume::check(&permit(1), volume.device()).unwrap(),
        Checked::Sound
    );
    let device = volume.device().to_str().unwrap().to_owned();
    run("debugfs", &["-w", "-R", "ssv state 2", &device]);
    volume::drop_caches(volume.device()).unwrap();
    assert_ne!(cleanliness(&volume), Cleanliness::Clean);
    assert_eq!(
        volume::check(&permit(1), volume.device()).unwrap(),
        Checked::Repaired
    );
    volume::drop_caches(volume.device()).unwrap();
    assert_eq!(cleanliness(&volume), Cleanliness::Clean);

    // The root directory's inode is gone: a choice.
    run("debugfs", &["-w", "-R", "clri <2>", &device]);
    run("debugfs", &["-w", "-R", "ssv state 2", &device]);
    let damaged = volume::check(&permit(1), volume.device()).unwrap();
    assert!(matches!(damaged, Checked::Damaged { .. }), "{damaged:?}");
}
