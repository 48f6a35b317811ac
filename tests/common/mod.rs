//! What the tests of control socket, journal and command line share: a member that is only an
//! observation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use baton::config::Config;
use baton::decide::{Device, Incarnation, Local, Mount, Observation, Postgres, Seen};
use fencing::Mono;
use tempfile::TempDir;

/// A directory with a configuration, gone at the end.
pub struct Site {
    pub directory: TempDir,
    pub config: Config,
}

impl Site {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("secret"), "0123456789abcdef0123456789abcdef\n").unwrap();
        std::fs::create_dir(at("shared")).unwrap();
        let text = format!(
            r#"
            cluster = "main"
            member = "a"
            number = 1
            runtime_dir = "{run}"
            [volume]
            address = "127.0.0.1:4420"
            subsystem = "nqn.2026-11.dev.baton:lab"
            host_nqn = "nqn.2014-08.org.nvmexpress:uuid:a"
            host_id = "8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c11"
            mount_point = "{mount}"
            directory = "{bridge}"
            [lease]
            path = "{lease}"
            [peer]
            listen = "127.0.0.1:7401"
            secret_file = "{secret}"
            [[peer.members]]
            name = "b"
            number = 2
            address = "127.0.0.1:1"
            [postgres]
            bin_dir = "/usr/lib/postgresql/15/bin"
            [journal]
            path = "{journal}"
            max_bytes = 65536
            [control]
            socket = "{socket}"
            "#,
            run = at("run"),
            mount = at("mount"),
            bridge = at("bridge"),
            lease = at("shared/main.lease"),
            secret = at("secret"),
            journal = at("journal.jsonl"),
            socket = at("control.sock"),
        );
        std::fs::write(at("member.toml"), &text).unwrap();
        let mut config = Config::parse(Path::new("member.toml"), &text).unwrap();
        // For channels that run within the test: any free port.
        config.peer.listen = "127.0.0.1:0".parse().unwrap();
        Self { directory, config }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// What a member sees before it has seen anything.
pub fn observation(config: &Config, since: Mono) -> Observation {
    let unseen = || "not read yet".to_owned();
    let unknown = || Seen::Unknown {
        since,
        cause: unseen(),
    };
    Observation {
        mailbox: Seen::Unknown {
            since,
            cause: unseen(),
        },
        lease: Seen::Unknown {
            since,
            cause: unseen(),
        },
        // A number as a map's key: every document with it must be read back.
        peers: BTreeMap::from([(config.peer.members[0].number, unknown())]),
        platform: BTreeMap::new(),
        local: Local {
            incarnation: Incarnation(u64::MAX),
            host: config.volume().expect("attached by itself").host_id,
            device: Device::Absent,
            mount: Mount::Unmounted,
            postgres: Postgres::Stopped,
            former_writer: false,
            permit: None,
            agent_away: None,
        },
        running: None,
        finished: None,
        request: None,
        stopping: false,
        zone: None,
    }
}
