//! What a superuser of PostgreSQL can put in the place of a file.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::CWD;
use tempfile::TempDir;

use super::*;

/// Longer than any answer that does not block.
const AT_ONCE: Duration = Duration::from_secs(10);

const SECRET: &str = "the host's secret";

/// A volume's root, and a file of the host beside it.
fn volume() -> (TempDir, PathBuf, Beneath) {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(place.path().join("secret"), SECRET).unwrap();
    let beneath = Beneath::at(&root).unwrap();
    (place, root, beneath)
}

fn read(beneath: &Beneath, name: &str) -> io::Result<Vec<u8>> {
    let (beneath, name) = (beneath.try_clone().unwrap(), PathBuf::from(name));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(beneath.read(&name, 64)));
    receiver.recv_timeout(AT_ONCE).expect("it does not block")
}

#[test]
fn a_link_leads_nowhere() {
    let (place, root, beneath) = volume();
    let secret = place.path().join("secret");
    fs::write(root.join("inside"), "inside").unwrap();
    fs::create_dir(root.join("pgdata")).unwrap();
    symlink(place.path(), root.join("way")).unwrap();
    let held = File::open(&secret).unwrap();
    let magic = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    let targets = [
        secret.to_str().unwrap(),
        "../secret",
        "../../secret",
        magic.as_str(),
        "/proc/self/environ",
        "/dev/zero",
        "inside",
    ];
    for target in targets {
        for name in ["link", "pgdata/link"] {
            symlink(target, root.join(name)).unwrap();
            let refused = read(&beneath, name).unwrap_err().to_string();
            assert!(refused.contains("symbolic link"), "{target}: {refused}");
            assert_eq!(
                beneath.kind(Path::new(name)).unwrap(),
                Kind::Link(target.into())
            );
            assert!(beneath.names(Path::new(name), 9).is_err(), "{target}");
            fs::remove_file(root.join(name)).unwrap();
        }
    }
    assert!(read(&beneath, "way/secret").is_err(), "a link on the way");
    assert!(beneath.kind(Path::new("way/secret")).is_err());
    assert!(read(&beneath, "../secret").is_err(), "outside");
    assert!(
        read(&beneath, secret.to_str().unwrap()).is_err(),
        "absolute"
    );
    assert_eq!(read(&beneath, "pgdata/../inside").unwrap(), b"inside");
}

#[test]
fn only_a_regular_file_of_its_size_is_read() {
    let (_place, root, beneath) = volume();
    rustix::fs::mkfifoat(CWD, root.join("fifo"), Mode::RWXU).unwrap();
    assert!(read(&beneath, "fifo").is_err());
    assert_eq!(beneath.kind(Path::new("fifo")).unwrap(), Kind::Other);
    let zero = rustix::fs::makedev(1, 5);
    let device = root.join("device");
    // Only root may; a filesystem without devices refuses to open it, which is as good.
    if rustix::fs::mknodat(CWD, &device, FileType::CharacterDevice, Mode::RWXU, zero).is_ok() {
        assert!(read(&beneath, "device").is_err());
    }
    fs::create_dir(root.join("directory")).unwrap();
    assert!(read(&beneath, "directory").is_err());
    fs::write(root.join("full"), [7; 64]).unwrap();
    assert_eq!(read(&beneath, "full").unwrap(), [7; 64]);
    fs::write(root.join("more"), [7; 65]).unwrap();
    let refused = read(&beneath, "more").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FileTooLarge);
    let absent = read(&beneath, "absent").unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound);
    assert_eq!(beneath.kind(Path::new("absent")).unwrap(), Kind::Absent);
    assert_eq!(beneath.names(Path::new(""), 2).unwrap().len(), 2, "bounded");
}

#[test]
fn a_write_replaces_what_lies_in_its_way_and_follows_nothing() {
    let (place, root, beneath) = volume();
    let secret = place.path().join("secret");
    for name in ["state", ".state.new"] {
        symlink(&secret, root.join(name)).unwrap();
    }
    beneath.replace("state", b"one").unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), SECRET);
    assert_eq!(read(&beneath, "state").unwrap(), b"one");
    assert_eq!(beneath.kind(Path::new("state")).unwrap(), Kind::File);
    fs::hard_link(&secret, root.join(".state.new")).unwrap();
    beneath.replace("state", b"two").unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), SECRET);
    assert_eq!(read(&beneath, "state").unwrap(), b"two");
    assert_eq!(
        beneath.names(Path::new(""), 9).unwrap(),
        [OsString::from("state")]
    );
}

#[test]
fn a_root_that_is_a_link_is_not_opened() {
    let (place, root, _beneath) = volume();
    symlink(&root, place.path().join("link")).unwrap();
    assert!(Beneath::at(&place.path().join("link")).is_err());
}
