//! Every bad setting is named, all at once; every good configuration survives being written out.

use std::path::Path;
use std::time::Duration;

use baton::config::{Config, ConfigError};

const GOOD: &str = r#"
cluster = "main"
member = "a"
number = 1
runtime_dir = "/run/baton"

[volume]
address = "127.0.0.1:4420"
subsystem = "nqn.2026-11.dev.baton:lab"
host_nqn = "nqn.2014-08.org.nvmexpress:uuid:a"
host_id = "8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c11"
mount_point = "/srv/baton/volume"
directory = "/srv/baton/bridge"

[lease]
path = "/srv/shared/main.lease"

[peer]
listen = "127.0.0.1:7401"
secret_file = "/etc/baton/secret"

[[peer.members]]
name = "b"
number = 2
address = "127.0.0.1:7402"

[postgres]
bin_dir = "/usr/lib/postgresql/15/bin"
parameters = { shared_buffers = "64MB", max_connections = 100, "pg_stat_statements.max" = 10 }
hba = ["host all all 10.0.0.0/8 scram-sha-256"]

[journal]
path = "/srv/baton/journal.jsonl"
"#;

fn problems(text: &str) -> Vec<String> {
    match Config::parse(Path::new("member.toml"), text) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Problems { problems, .. }) => {
            problems.iter().map(ToString::to_string).collect()
        }
        Err(other) => vec![format!("{other:#}")],
    }
}

#[test]
fn a_good_configuration_loads_and_survives_being_written_out() {
    let config = Config::parse(Path::new("member.toml"), GOOD).unwrap();
    assert_eq!(config.control.socket, Path::new("/run/baton/control.sock"));
    assert_eq!(config.postgres.parameters["max_connections"], "100");
    let written = config.to_toml().unwrap();
    assert_eq!(
        Config::parse(Path::new("written.toml"), &written).unwrap(),
        config
    );
}

/// The kernel's initiator needs no directory; what names the volume survives being written out.
#[test]
fn the_kernel_s_transport_needs_no_bridge() {
    let text = GOOD
        .replace("directory = \"/srv/baton/bridge\"\n", "")
        .replace(
            "[volume]",
            "[volume]\ntransport = \"kernel\"\nidentifier = \"eui.0025385b71501f2a\"",
        );
    let config = Config::parse(Path::new("member.toml"), &text).unwrap();
    assert_eq!(
        config.volume().expect("it has one").directory,
        Path::new("/run/baton/bridge")
    );
    let written = config.to_toml().unwrap();
    assert!(written.contains("0025385b71501f2a"), "{written}");
    let again = Config::parse(Path::new("written.toml"), &written).unwrap();
    assert_eq!(again, config);
}

const KUBERNETES: &str = r#"
[lease]
store = "kubernetes"
namespace = "db"
name = "main-local"

[kubernetes]
namespace = "db"
pod = "main-a"
service = "main-rw"

[pooler]
address = "pooler.db.svc:6432"
user = "baton"
password_file = "/etc/baton/pooler/password"
"#;

fn in_kubernetes() -> String {
    GOOD.replace("[lease]\npath = \"/srv/shared/main.lease\"\n", KUBERNETES)
}

#[test]
fn a_pod_s_configuration_loads_with_timings_that_spare_the_api_server() {
    let text = in_kubernetes();
    let config = Config::parse(Path::new("member.toml"), &text).unwrap();
    assert_eq!(config.timings.lease_renew, Duration::from_secs(3));
    assert_eq!(config.timings.lease_age, Duration::from_secs(6));
    assert!(config.for_decisions().routed);
    assert_eq!(config.pooler.as_ref().unwrap().database, "pgbouncer");
    let written = config.to_toml().unwrap();
    let again = Config::parse(Path::new("written.toml"), &written).unwrap();
    assert_eq!(again, config);
    let outside = Config::parse(Path::new("member.toml"), GOOD).unwrap();
    assert!(!outside.for_decisions().routed);
    assert_eq!(outside.timings.lease_renew, Duration::from_secs(1));
}

/// What to change in a pod's configuration, and words that one problem must say.
const BAD_IN_KUBERNETES: &[(&str, &str, &[&str])] = &[
    (
        "\"kubernetes\"",
        "\"etcd\"",
        &["lease.store", "\"file\" or \"kubernetes\""],
    ),
    (
        "name = \"main-local\"\n",
        "",
        &["lease.name: missing", "name = "],
    ),
    (
        "name = \"main-local\"",
        "name = \"main-local\"\npath = \"/x\"",
        &["lease.path: unknown"],
    ),
    ("\"main-local\"", "\"Main\"", &["lease.name", "a-z"]),
    (
        "namespace = \"db\"\nname",
        "namespace = \"9db\"\nname",
        &["lease.namespace", "letter"],
    ),
    (
        "namespace = \"db\"\npod",
        "namespace = \"other\"\npod",
        &["kubernetes.namespace", "one namespace"],
    ),
    ("pod = \"main-a\"\n", "", &["kubernetes.pod: missing"]),
    (
        "service = \"main-rw\"",
        "service = \"main.rw\"",
        &["kubernetes.service"],
    ),
    (
        "pooler.db.svc:6432",
        "pooler.db.svc:0",
        &["pooler.address", "6432"],
    ),
    ("user = \"baton\"\n", "", &["pooler.user: missing"]),
    (
        "/etc/baton/pooler/password",
        "/srv/baton/volume/password",
        &["pooler.password_file", "within volume.mount_point"],
    ),
    (
        "[pooler]",
        "[timings]\nstorage_beats = false\nlease_renew = \"1s\"\n[pooler]",
        &["timings.storage_beats", "kubernetes"],
    ),
    (
        "[pooler]",
        "[timings]\nlease_age = \"3s\"\n[pooler]",
        &["timings.lease_age", "lease_renew + lease_deadline = 4s"],
    ),
    (
        "[pooler]",
        "[timings]\nisolation = \"4s\"\n[pooler]",
        &["timings.isolation", "lease_age"],
    ),
];

#[test]
fn each_mistake_in_a_pod_s_configuration_is_named_and_nothing_else() {
    let good = in_kubernetes();
    assert_eq!(problems(&good), Vec::<String>::new());
    for (from, to, words) in BAD_IN_KUBERNETES {
        assert!(good.contains(from), "the case {from:?} changes nothing");
        let found = problems(&good.replacen(from, to, 1));
        let named = |problem: &String| words.iter().all(|word| problem.contains(word));
        assert!(
            found.len() == 1 && found.iter().all(named),
            "{from:?} -> {to:?}: expected {words:?} alone in {found:#?}"
        );
    }
}

/// What to change in the good configuration, and words that the one problem must say.
const BAD: &[(&str, &str, &[&str])] = &[
    ("member = \"a\"\n", "", &["member: missing", "member = "]),
    (
        "cluster = \"main\"",
        "cluster = \"Main_1\"",
        &["cluster:", "a-z"],
    ),
    (
        "cluster = \"main\"",
        "cluster = 5",
        &["cluster:", "must be text in quotes"],
    ),
    (
        "number = 1\nruntime",
        "number = 0\nruntime",
        &["number:", "1 to 255"],
    ),
    (
        "number = 1\nruntime",
        "number = 256\nruntime",
        &["number:", "1 to 255"],
    ),
    (
        "number = 1\nruntime",
        "number = 2\nruntime",
        &["peer.members[0].number", "own number"],
    ),
    (
        "runtime_dir = \"/run/baton\"",
        "runtime_dir = \"run\"",
        &["runtime_dir:", "absolute"],
    ),
    (
        "runtime_dir",
        "runtime_dri = 1\nruntime_dir",
        &["runtime_dri: unknown", "did you mean runtime_dir"],
    ),
    (
        "[journal]",
        "[jurnal]\n[journal]",
        &["jurnal: unknown", "journal"],
    ),
    ("[lease]", "[lease]\nfoo = 1", &["lease.foo: unknown"]),
    (
        "[lease]",
        "[lease]\nstore = \"etcd\"",
        &["lease.store", "\"file\""],
    ),
    (
        "[lease]",
        "[timings]\ndetection = 2\n[lease]",
        &["timings.detection", "string"],
    ),
    (
        "[lease]",
        "[timings]\ndetection = \"2\"\n[lease]",
        &["timings.detection", "250ms"],
    ),
    (
        "[lease]",
        "[timings]\ndetection = \"500ms\"\n[lease]",
        &["timings.detection", "4 × heartbeat"],
    ),
    (
        "[volume]",
        "[volume]\ntransport = \"fc\"",
        &["volume.transport", "\"tcp\" or \"kernel\""],
    ),
    (
        "[volume]",
        "[volume]\nidentifier = \"nvme0n1\"",
        &["volume.identifier", "NGUID", "EUI-64"],
    ),
    (
        "[volume]",
        "[volume]\nidentifier = \"0025385b71501f2a\"",
        &["volume.identifier", "only transport \"kernel\" can check"],
    ),
    (
        "[volume]",
        "[timings]\nkeep_alive = \"4500ms\"\n[volume]\ntransport = \"kernel\"",
        &["timings.keep_alive", "whole seconds"],
    ),
    (
        "[volume]",
        "[volume]\nnamespace_id = 0",
        &["volume.namespace_id", "from 1"],
    ),
    (
        "address = \"127.0.0.1:4420\"",
        "address = \"127.0.0.1\"",
        &["volume.address", "host:port"],
    ),
    (
        "nqn.2026-11.dev.baton:lab",
        "baton",
        &["volume.subsystem", "nqn."],
    ),
    (
        "nqn.2026-11.dev.baton:lab",
        "nqn.2014-08.org.nvmexpress.discovery",
        &["volume.subsystem", "discovery"],
    ),
    (
        "8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c11",
        "8e6f",
        &["volume.host_id", "uuidgen"],
    ),
    (
        "8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c11",
        "00000000-0000-0000-0000-000000000000",
        &["volume.host_id", "zeroes"],
    ),
    (
        "/srv/baton/volume",
        "/",
        &["volume.mount_point", "must not be /"],
    ),
    (
        "/srv/baton/bridge",
        "/srv/baton/volume/bridge",
        &["volume.directory", "apart"],
    ),
    (
        "/srv/baton/bridge",
        "/srv/../bridge",
        &["volume.directory", "without .."],
    ),
    (
        "/srv/shared/main.lease",
        "/srv/baton/volume/main.lease",
        &["lease.path", "within volume.mount_point"],
    ),
    (
        "/srv/baton/journal.jsonl",
        "/srv/shared/main.lease",
        &["journal.path", "lease's file"],
    ),
    (
        "name = \"b\"",
        "name = \"a\"",
        &["peer.members[0].name", "this member itself"],
    ),
    (
        "127.0.0.1:7402",
        "127.0.0.1:7401",
        &["peer.members[0].address", "itself listens"],
    ),
    (
        "listen = \"127.0.0.1:7401\"",
        "listen = \"127.0.0.1:0\"",
        &["peer.listen", "port 0"],
    ),
    (
        "[[peer.members]]",
        "members = 3\n[postgres.x]",
        &["peer.members", "list of tables"],
    ),
    (
        "[postgres]",
        "[postgres]\nport = 70000",
        &["postgres.port", "65535"],
    ),
    (
        "[postgres]",
        "[postgres]\nport = 7401",
        &["postgres.port", "peer.listen"],
    ),
    (
        "[postgres]",
        "[postgres]\nos_user = \"root\"",
        &["postgres.os_user", "root"],
    ),
    (
        "[postgres]",
        "[postgres]\ndata_directory = \"/d\"",
        &["postgres.data_directory", "relative"],
    ),
    (
        "[postgres]",
        "[postgres]\ndata_directory = \"../d\"",
        &["postgres.data_directory", "relative"],
    ),
    (
        "shared_buffers = \"64MB\"",
        "fsync = \"off\"",
        &["postgres.parameters.fsync", "must stay on"],
    ),
    (
        "shared_buffers = \"64MB\"",
        "fsync = false",
        &["postgres.parameters.fsync", "must stay on"],
    ),
    (
        "shared_buffers = \"64MB\"",
        "full_page_writes = 0",
        &["postgres.parameters.full_page_writes"],
    ),
    (
        "shared_buffers = \"64MB\"",
        "Port = 5",
        &["postgres.parameters.Port", "postgres.port"],
    ),
    (
        "shared_buffers = \"64MB\"",
        "a.b = 5",
        &["postgres.parameters", "quotes"],
    ),
    (
        "[journal]",
        "[journal]\nmax_bytes = 1",
        &["journal.max_bytes", "65536"],
    ),
    ("cluster = \"main\"", "cluster = ", &["not valid TOML"]),
];

#[test]
fn each_mistake_is_named_with_what_to_do() {
    assert_eq!(problems(GOOD), Vec::<String>::new());
    for (from, to, words) in BAD {
        assert!(GOOD.contains(from), "the case {from:?} changes nothing");
        let found = problems(&GOOD.replacen(from, to, 1));
        let named = found
            .iter()
            .any(|problem| words.iter().all(|word| problem.contains(word)));
        assert!(
            named,
            "{from:?} -> {to:?}: expected {words:?} in {found:#?}"
        );
    }
}

#[test]
fn an_empty_file_names_everything_that_is_missing() {
    let found = problems("");
    for setting in [
        "cluster",
        "member",
        "number",
        "runtime_dir",
        "volume.address",
        "volume.subsystem",
        "volume.host_nqn",
        "volume.host_id",
        "volume.mount_point",
        "lease.path",
        "peer.listen",
        "peer.secret_file",
        "postgres.bin_dir",
        "journal.path",
    ] {
        let named = found
            .iter()
            .filter(|problem| problem.starts_with(&format!("{setting}: missing")))
            .count();
        assert_eq!(named, 1, "{setting} in {found:#?}");
    }
    assert_eq!(found.len(), 14, "{found:#?}");
}

#[test]
fn every_wrong_timing_is_named() {
    let text = GOOD.replace(
        "[lease]",
        "[timings]\ndetection = 2\nheartbeat = \"x\"\nheartbaet = \"1s\"\nmax_takeovers = \"a\"\n[lease]",
    );
    let found = problems(&text);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(
        found
            .iter()
            .any(|problem| problem.contains("did you mean heartbeat")),
        "{found:#?}"
    );
}

#[test]
fn mistakes_of_form_and_contradictions_are_named_together() {
    let text = GOOD
        .replace("name = \"b\"", "name = \"a\"")
        .replace("/srv/baton/bridge", "/srv/baton/volume/bridge")
        .replace("cluster = \"main\"", "")
        .replace("[lease]", "[lease]\nstroe = \"file\"");
    let found = problems(&text);
    assert_eq!(found.len(), 4, "{found:#?}");
}

/// The sections of the further fences, and timings with room for them.
const FENCING: &str = r#"[timings]
fence = "60s"

[fencing.command]
program = "/usr/local/sbin/power-off"
arguments = ["--outlet", "7"]
timeout = "10s"

[fencing.watchdog]
timeout = "10s"
max_age = "2s"
margin = "1s"

[lease]"#;

fn with_fencing() -> String {
    GOOD.replace("[lease]", FENCING)
}

#[test]
fn further_fences_load_and_survive_being_written_out() {
    let config = Config::parse(Path::new("member.toml"), &with_fencing()).unwrap();
    let watchdog = config.fencing.watchdog.as_ref().unwrap();
    assert_eq!(watchdog.device, Path::new("/dev/watchdog"));
    assert_eq!(config.fencing.further().0.len(), 2);
    let written = config.to_toml().unwrap();
    assert_eq!(
        Config::parse(Path::new("written.toml"), &written).unwrap(),
        config
    );
}

/// What to change in the good fences, and words that the one problem must say.
const BAD_FENCING: &[(&str, &str, &[&str])] = &[
    (
        "program = \"/usr/local/sbin/power-off\"\n",
        "",
        &["fencing.command.program: missing"],
    ),
    (
        "\"/usr/local/sbin/power-off\"",
        "\"power-off\"",
        &["fencing.command.program:", "absolute"],
    ),
    (
        "[\"--outlet\", \"7\"]",
        "[\"--outlet\", 7]",
        &["fencing.command.arguments:", "text in quotes"],
    ),
    (
        "\"7\"]\ntimeout = \"10s\"",
        "\"7\"]\ntimeout = \"0s\"",
        &["fencing.command.timeout:", "more than zero"],
    ),
    (
        "\"7\"]\ntimeout = \"10s\"",
        "\"7\"]\ntimeout = 10",
        &["fencing.command.timeout:", "string"],
    ),
    (
        "\"7\"]\ntimeout = \"10s\"",
        "\"7\"]\ntimeout = \"30s\"",
        &["timings.fence:", "65s", "fencing.command"],
    ),
    (
        "[fencing.watchdog]\ntimeout = \"10s\"",
        "[fencing.watchdog]\ntimeout = \"1500ms\"",
        &["fencing.watchdog.timeout:", "whole seconds"],
    ),
    (
        "[fencing.watchdog]\ntimeout = \"10s\"",
        "[fencing.watchdog]\ntimeout = \"13s\"",
        &["timings.fence:", "64s"],
    ),
    (
        "max_age = \"2s\"",
        "max_age = \"10s\"",
        &["fencing.watchdog.max_age", "less than the timeout"],
    ),
    (
        "margin = \"1s\"",
        "margin = \"100ms\"",
        &["fencing.watchdog.margin", "at least"],
    ),
    (
        "max_age = \"2s\"",
        "max_aeg = 1\nmax_age = \"2s\"",
        &["fencing.watchdog.max_aeg: unknown", "did you mean max_age"],
    ),
    (
        "[fencing.watchdog]\ntimeout = \"10s\"\nmax_age = \"2s\"",
        "[fencing.watchdog]\ntimeout = \"2s\"\nmax_age = \"1s\"",
        &["fencing.watchdog.timeout:", "one slow report"],
    ),
    (
        "fence = \"60s\"",
        "fence = \"60s\"\nstorage_beats = false",
        &["timings.storage_beats:", "look dead"],
    ),
    (
        "[fencing.watchdog]",
        "[fencing.watchdgo]",
        &["fencing.watchdgo: unknown", "did you mean watchdog"],
    ),
];

#[test]
fn each_mistake_in_the_further_fences_is_named() {
    for (from, to, words) in BAD_FENCING {
        let good = with_fencing();
        assert!(good.contains(from), "{from:?} is in the good configuration");
        let found = problems(&good.replacen(from, to, 1));
        let said = |problem: &String| words.iter().all(|word| problem.contains(word));
        assert!(
            found.len() == 1 && said(&found[0]),
            "{from:?} -> {to:?}: expected {words:?} in {found:#?}"
        );
    }
}

/// Two sites, this member's among them.
fn with_sites() -> String {
    let text = GOOD.replacen("cluster = \"main\"", "cluster = \"main\"\nsite = \"a\"", 1);
    text + r#"
[replication]
record = "/srv/shared/main.cluster"
first_primary = "a"
password_file = "/etc/baton/replication"
max_lag = "32MB"

[[replication.sites]]
name = "a"
lease = "/srv/shared/main.lease"
hosts = ["10.1.0.1:5432", "10.1.0.2:5432"]

[[replication.sites]]
name = "b"
lease = "/srv/shared/main-b.lease"
hosts = ["10.2.0.1:5432"]
"#
}

#[test]
fn several_sites_load_and_survive_being_written_out() {
    let config = Config::parse(Path::new("member.toml"), &with_sites()).unwrap();
    let zone = config.zone().unwrap();
    assert_eq!(
        (zone.site.0.as_str(), zone.sites.len(), zone.quorum),
        ("a", 2, 1)
    );
    assert_eq!(config.replication.as_ref().unwrap().max_lag, 32 << 20);
    let seeded = Config::parse(Path::new("member.toml"), &with_backups()).unwrap();
    let seed = seeded.replication.as_ref().unwrap().seed.as_ref().unwrap();
    assert!(seed.fallback && seed.timeout == Duration::from_secs(2 * 3600));
    assert!(!zone.archive && seeded.zone().unwrap().archive);
    for config in [config, seeded] {
        let written = config.to_toml().unwrap();
        assert_eq!(
            Config::parse(Path::new("written.toml"), &written).unwrap(),
            config
        );
    }
}

/// The same with a backup tool and its archive.
fn with_backups() -> String {
    let archive = "restore_command = \"archive-get %f %p\", shared_buffers";
    let text = with_sites().replacen("shared_buffers", archive, 1);
    text + r#"
[replication.seed]
program = "/usr/bin/pgbackrest"
arguments = ["--pg1-path={data_directory}", "restore"]
timeout = "2h"
"#
}

#[test]
fn each_mistake_about_a_backup_tool_is_named() {
    let good = with_backups();
    assert_eq!(problems(&good), Vec::<String>::new());
    for (from, to, expected) in [
        (
            "restore_command = \"archive-get %f %p\", ",
            "",
            "replication.seed: needs postgres.parameters.restore_command",
        ),
        (
            "--pg1-path={data_directory}",
            "--delta",
            "replication.seed.arguments: nowhere say {data_directory}",
        ),
        (
            "/usr/bin/pgbackrest",
            "pgbackrest",
            "replication.seed.program: pgbackrest must be an absolute path",
        ),
        (
            "\"2h\"",
            "\"0s\"",
            "replication.seed.timeout: must be more than zero",
        ),
        (
            "\"2h\"",
            "\"13h\"",
            "timings.seed: is 86400s, must be at least 2 × replication.seed.timeout = 93600s",
        ),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from} is not there");
        let found = problems(&text);
        let [problem] = found.as_slice() else {
            panic!("{to}: {found:#?}");
        };
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn each_mistake_among_the_sites_is_named() {
    let good = with_sites();
    assert_eq!(problems(&good), Vec::<String>::new());
    let mistakes = [
        (
            "first_primary = \"a\"",
            "first_primary = \"x\"",
            "replication.first_primary: x is no site",
        ),
        (
            "site = \"a\"",
            "site = \"c\"",
            "replication.sites: does not name this member's own site, c",
        ),
        (
            "name = \"b\"\nlease",
            "name = \"a\"\nlease",
            "have the same name in PostgreSQL",
        ),
        (
            "main-b.lease",
            "main.lease",
            "replication: /srv/shared/main.lease is named twice",
        ),
        (
            "first_primary",
            "quorum = 2\nfirst_primary",
            "replication.quorum: commits would wait for 2 sites",
        ),
        (
            "hosts = [\"10.2.0.1:5432\"]",
            "hosts = [\"10.2.0.1:5432\"]\nfailover = \"never\"",
            "replication.quorum: commits would wait for 1 sites, but besides the primary's only 0",
        ),
        (
            "max_lag = \"32MB\"",
            "max_lag = \"32\"",
            "replication.max_lag: \"32\" is no size",
        ),
        (
            "max_lag",
            "synchronous = \"maybe\"\nmax_lag",
            "replication.synchronous: \"maybe\" is none of",
        ),
        (
            "max_lag",
            "sslmode = \"on\"\nmax_lag",
            "replication.sslmode: \"on\" is none of",
        ),
        (
            "[replication]",
            "[timings]\nsite_detection = \"1s\"\n[replication]",
            "timings.site_detection: is 1s, must be at least 3 × detection",
        ),
        (
            "shared_buffers = \"64MB\"",
            "synchronous_standby_names = \"*\"",
            "postgres.parameters.synchronous_standby_names: between sites Baton sets it itself",
        ),
        (
            "shared_buffers = \"64MB\"",
            "Recovery_Target_Time = \"2026-01-01\"",
            "postgres.parameters.Recovery_Target_Time: between sites Baton sets it itself",
        ),
        (
            "shared_buffers = \"64MB\"",
            "synchronous_commit = \"remote_write\"",
            "postgres.parameters.synchronous_commit: \"remote_write\" lets commits pass",
        ),
        (
            "shared_buffers = \"64MB\"",
            "max_slot_wal_keep_size = \"1GB\"",
            "postgres.parameters.max_slot_wal_keep_size: set replication.slot_wal_max",
        ),
    ];
    let with = |from: &str, to: &str| {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from} is not there");
        text
    };
    let lower = |value: &str| {
        let to = format!("synchronous_commit = \"{value}\"");
        with("shared_buffers = \"64MB\"", &to)
    };
    assert_eq!(problems(&lower("remote_apply")), Vec::<String>::new());
    let off = lower("off").replacen("max_lag", "synchronous = \"off\"\nmax_lag", 1);
    assert_eq!(problems(&off), Vec::<String>::new());
    for (from, to, expected) in mistakes {
        let text = with(from, to);
        let found = problems(&text);
        assert!(
            found.iter().any(|problem| problem.contains(expected)),
            "{to}: {found:#?}"
        );
    }
}
