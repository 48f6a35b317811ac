//! `[api]`: the HTTP API, and whether its files and its port can be used here.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Endpoint;
use super::machine::SECRET_MIN_BYTES;
use super::read::{Absolute, Draft};
use super::reader::{Parsed, Section};
use crate::api::tls;

/// Where the API listens unless it is told otherwise: Patroni's port, so that probes and load
/// balancers need no change.
const DEFAULT_LISTEN: &str = "0.0.0.0:8008";

/// `[api]`: the HTTP API. Without the section there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Api {
    /// Where it listens.
    pub listen: Endpoint,
    /// Its certificate with the chain, PEM; with it the API speaks TLS only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The bearer token for what changes something, at least 16 bytes. Without it the API only reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl Api {
    /// The files of certificate and key, where TLS is wanted.
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        self.certificate_file
            .as_deref()
            .zip(self.key_file.as_deref())
    }
}

pub(super) fn read(section: &mut Section<'_>) -> Option<Api> {
    let listen = section.optional("listen", None::<Parsed<Endpoint>>);
    let mut file = |name| {
        let path = section.optional(name, None::<Absolute>);
        path.map(|path| path.map(|Absolute(path)| path))
    };
    let certificate_file = file("certificate_file");
    let key_file = file("key_file");
    let token_file = file("token_file");
    let listen = match listen? {
        Some(Parsed(listen)) => listen,
        None => DEFAULT_LISTEN.parse().ok()?,
    };
    Some(Api {
        listen,
        certificate_file: certificate_file?,
        key_file: key_file?,
        token_file: token_file?,
    })
}

/// What the settings say against each other and against others.
pub(super) fn contradictions(api: &Api, draft: &Draft, note: &mut impl FnMut(&str, String)) {
    let Api {
        listen,
        certificate_file,
        key_file,
        token_file,
    } = api;
    let mut wrong = |setting: &str, holds: bool, text: &str| {
        if holds {
            note(setting, text.to_owned());
        }
    };
    let (certificate, key) = (certificate_file.is_some(), key_file.is_some());
    wrong(
        "api.key_file",
        certificate && !key,
        "missing: api.certificate_file needs its private key",
    );
    wrong(
        "api.certificate_file",
        key && !certificate,
        "missing: api.key_file needs its certificate",
    );
    wrong(
        "api.token_file",
        token_file.is_some() && !certificate && !key,
        "needs TLS, or the token could be overheard: set api.certificate_file and api.key_file",
    );
    wrong(
        "api.listen",
        listen.port() == 0,
        "port 0 would be another one at each start; choose a port, such as 8008",
    );
    let peer = draft.peer.as_ref().map(|peer| peer.listen.port());
    wrong(
        "api.listen",
        peer == Some(listen.port()),
        "has the port of peer.listen; choose another",
    );
    let postgres = draft.postgres.as_ref().map(|postgres| postgres.port);
    wrong(
        "api.listen",
        postgres == Some(listen.port()),
        "has the port of PostgreSQL (postgres.port); choose another",
    );
}

/// Whether files and port can be used on this machine. The port of a member that runs is its own.
pub(super) fn here(api: &Api, control: &Path, note: &mut impl FnMut(&str, String)) {
    let listen = (api.listen.host(), api.listen.port());
    if let Err(error) = TcpListener::bind(listen) {
        let running = || UnixStream::connect(control).is_ok();
        match error.kind() {
            ErrorKind::AddrInUse if running() => {}
            ErrorKind::AddrInUse => note(
                "api.listen",
                format!(
                    "another program listens at {}: stop that one, or choose another port",
                    api.listen
                ),
            ),
            _ => note(
                "api.listen",
                format!("cannot listen at {} ({error}); correct it", api.listen),
            ),
        }
    }
    let mut readable = true;
    if let Some(Err(text)) = api.key_file.as_deref().map(private) {
        note("api.key_file", text);
        readable = false;
    }
    if let (Some((certificate, key)), true) = (api.tls(), readable)
        && let Err(error) = tls::load(certificate, key)
    {
        note(error.setting(), error.to_string());
    }
    if let Some(Err(text)) = api.token_file.as_deref().map(token) {
        note("api.token_file", text);
    }
}

/// Whether the file is hidden from all but its owner and group. The group may read it: a Kubernetes
/// Secret is made readable to an unprivileged pod that way.
pub(super) fn private(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let found =
        std::fs::metadata(path).map_err(|error| format!("cannot read {shown} ({error})"))?;
    if found.permissions().mode() & 0o007 != 0 {
        return Err(format!(
            "{shown} is open to every user; run chmod 600 {shown}"
        ));
    }
    Ok(())
}

fn token(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let make = format!("make it with (umask 077; head -c 32 /dev/urandom | base64 > {shown})");
    private(path).map_err(|text| format!("{text}; {make}"))?;
    let text = std::fs::read(path).map_err(|error| format!("cannot read {shown} ({error})"))?;
    let token = text.trim_ascii();
    if token.len() < SECRET_MIN_BYTES || !token.iter().all(u8::is_ascii_graphic) {
        return Err(format!(
            "{shown} must hold one line of at least {SECRET_MIN_BYTES} visible ASCII characters; {make}"
        ));
    }
    Ok(())
}
