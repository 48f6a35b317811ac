//! `[api]`: every mistake is named, those of the file and those of the machine.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use baton::config::{Config, ConfigError};

use crate::client::{certificate, secret};
use crate::common::Site;

/// The section with everything.
const API: &str = r#"[api]
listen = "127.0.0.1:8008"
certificate_file = "/etc/baton/api.crt"
key_file = "/etc/baton/api.key"
token_file = "/etc/baton/api.token"
"#;

fn with(api: &str) -> String {
    let site = Site::new();
    let text = std::fs::read_to_string(site.file("member.toml")).unwrap();
    let text = text.replace(&site.directory.path().display().to_string(), "/srv/baton");
    format!("{text}\n{api}")
}

fn load(api: &str) -> Result<Config, Vec<String>> {
    match Config::parse(Path::new("member.toml"), &with(api)) {
        Ok(config) => Ok(config),
        Err(ConfigError::Problems { problems, .. }) => {
            Err(problems.iter().map(ToString::to_string).collect())
        }
        Err(other) => panic!("{other:#}"),
    }
}

#[test]
fn the_api_is_off_by_default_and_survives_being_written_out() {
    assert_eq!(load("").unwrap().api, None);
    let bare = load("[api]\n").unwrap().api.unwrap();
    assert_eq!(bare.listen.to_string(), "0.0.0.0:8008");
    let config = load(API).unwrap();
    assert!(config.api.as_ref().unwrap().tls().is_some());
    let written = config.to_toml().unwrap();
    let again = Config::parse(Path::new("written.toml"), &written).unwrap();
    assert_eq!(again, config);
}

/// What to change in the good section, and words that the one problem must say.
const BAD: &[(&str, &str, &[&str])] = &[
    (
        "certificate_file = \"/etc/baton/api.crt\"\n",
        "",
        &["api.certificate_file: missing"],
    ),
    (
        "key_file = \"/etc/baton/api.key\"\n",
        "",
        &["api.key_file: missing"],
    ),
    (
        "certificate_file = \"/etc/baton/api.crt\"\nkey_file = \"/etc/baton/api.key\"\n",
        "",
        &["api.token_file: needs TLS"],
    ),
    ("127.0.0.1:8008", "127.0.0.1", &["api.listen:", "host:port"]),
    ("127.0.0.1:8008", "127.0.0.1:0", &["api.listen:", "port 0"]),
    (
        "127.0.0.1:8008",
        "127.0.0.1:7401",
        &["api.listen:", "peer.listen"],
    ),
    (
        "127.0.0.1:8008",
        "127.0.0.1:5432",
        &["api.listen:", "postgres.port"],
    ),
    (
        "/etc/baton/api.token",
        "api.token",
        &["api.token_file:", "absolute"],
    ),
    (
        "/etc/baton/api.key",
        "/srv/baton/mount/api.key",
        &["api.key_file:", "volume.mount_point"],
    ),
    (
        "token_file",
        "tokenfile",
        &["api.tokenfile: unknown", "did you mean token_file"],
    ),
];

#[test]
fn each_mistake_in_the_section_is_named() {
    for (from, to, words) in BAD {
        assert!(API.contains(from), "{from:?} is in the good section");
        let found = load(&API.replacen(from, to, 1)).unwrap_err();
        let said = |problem: &String| words.iter().all(|word| problem.contains(word));
        assert!(
            found.len() == 1 && said(&found[0]),
            "{from:?} -> {to:?}: expected {words:?} in {found:#?}"
        );
    }
}

#[test]
fn what_this_machine_lacks_for_the_api_is_named_all_at_once() {
    let site = Site::new();
    certificate(&site);
    secret(&site, "api.token", "short");
    std::fs::set_permissions(site.file("api.key"), PermissionsExt::from_mode(0o644)).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = std::fs::read_to_string(site.file("member.toml")).unwrap();
    let api = format!(
        "[api]\nlisten = \"{}\"\ncertificate_file = {:?}\nkey_file = {:?}\ntoken_file = {:?}\n",
        taken.local_addr().unwrap(),
        site.file("api.crt"),
        site.file("api.key"),
        site.file("api.token"),
    );
    let write = |text: &str| std::fs::write(site.file("member.toml"), text).unwrap();
    let check = || {
        let output = Command::new(env!("CARGO_BIN_EXE_baton"))
            .args(["run", "--check", "--config"])
            .arg(site.file("member.toml"))
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    write(&format!("{text}\n{api}"));
    let told = check();
    for words in [
        "api.listen: another program listens",
        "api.key_file: ",
        "chmod 600",
        "api.token_file: ",
        "at least 16",
    ] {
        assert!(told.contains(words), "{words:?} in {told}");
    }
    // A key that fits no certificate, and no key at all.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    secret(&site, "api.key", &other.signing_key.serialize_pem());
    let told = check();
    assert!(
        told.contains("api.certificate_file: certificate and key cannot"),
        "{told}"
    );
    secret(&site, "api.key", "nothing");
    let told = check();
    assert!(told.contains("api.key_file: cannot use"), "{told}");
}
