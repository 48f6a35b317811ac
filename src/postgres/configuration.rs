//! PostgreSQL's configuration as a member writes it, outside the volume.
//!
//! What belongs to the cluster stays on the volume (`postgresql.conf`, `ALTER SYSTEM`); what belongs
//! to the member (port, sockets, authentication of Baton itself) is written anew at every start. In
//! order of strength:
//!
//! 1. the command line: what safety rests on; nothing overrides it
//! 2. `ALTER SYSTEM` (`postgresql.auto.conf` on the volume)
//! 3. `postgres.parameters` of the member's configuration
//! 4. `postgresql.conf` on the volume
//! 5. Baton's defaults
//!
//! With several sites there is one thing more, between 1 and 2: what safety between them rests on.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::instance::Instance;
use super::replication::{self, ConfigureError, Serving};

/// The role as which Baton itself connects.
pub const SUPERUSER: &str = "postgres";

const CONFIG_FILE: &str = "postgresql.conf";
const HBA_FILE: &str = "pg_hba.conf";
const IDENT_FILE: &str = "pg_ident.conf";

/// What Baton sets unless somebody else does.
const DEFAULTS: &[(&str, &str)] = &[
    // After a crash PostgreSQL makes sure that everything is on disk before it replays. One syncfs
    // instead of one fsync per file: the filesystem was just mounted, there is nothing to write.
    ("recovery_init_sync_method", "syncfs"),
    // No collector process: a log file on the volume would be one more thing to wait for, and a
    // fenced member could not write it.
    ("logging_collector", "off"),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
];

/// What nothing may override.
const MANDATORY: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    // A failed fsync must end the server: the kernel forgets what it could not write.
    ("data_sync_retry", "off"),
    // A crash is Baton's to see, to count and to journal; a restart of the postmaster is as quick.
    ("restart_after_crash", "off"),
    // Parallel queries' shared memory lives in the private IPC namespace and goes with it; POSIX
    // shared memory would stay behind in /dev/shm after a kill.
    ("dynamic_shared_memory_type", "sysv"),
    ("shared_memory_type", "mmap"),
    ("external_pid_file", ""),
];

/// Why the configuration was not written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A step on the filesystem failed.
    #[error("{operation} {}", path.display())]
    Step {
        /// What was attempted.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What replication between sites needs.
    #[error(transparent)]
    Replication(#[from] ConfigureError),
}

/// Writes the configuration files and returns the postmaster's command line. Each file is replaced at once, so
/// that a running PostgreSQL never reads half of one.
pub fn write(instance: &Instance, serving: &Serving) -> Result<Vec<String>, ConfigurationError> {
    let own = nix::unistd::geteuid().as_raw();
    make_runtime_directory(instance)?;
    let socket_directory = &instance.socket_directory;
    if !socket_directory.exists() {
        make_directory(
            socket_directory,
            instance.user.uid,
            instance.user.gid,
            0o755,
        )?;
    }
    rewrite(instance, serving)?;
    write_file(
        instance,
        IDENT_FILE,
        &ident_file(&user_names(own, &instance.user.name)),
    )?;
    Ok(command_line(instance))
}

/// Writes anew what a running PostgreSQL re-reads when it is told to.
pub fn rewrite(instance: &Instance, serving: &Serving) -> Result<(), ConfigurationError> {
    replication::write_passfile(instance, serving)?;
    write_file(instance, CONFIG_FILE, &main_file(instance, serving))?;
    let lines = hba_file(&replication::hba(serving), &instance.hba);
    write_file(instance, HBA_FILE, &lines)
}

/// Makes the directory of the member's own files.
pub(super) fn make_runtime_directory(instance: &Instance) -> Result<(), ConfigurationError> {
    let own = nix::unistd::geteuid().as_raw();
    let directory = &instance.runtime_directory;
    make_directory(directory, own, instance.user.gid, 0o750)
}

fn make_directory(path: &Path, uid: u32, gid: u32, mode: u32) -> Result<(), ConfigurationError> {
    let failed = |operation| {
        move |source| ConfigurationError::Step {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    fs::create_dir_all(path).map_err(failed("making"))?;
    // In a pod the directory is what the platform made of it, and all in it is this user's.
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    chown(path, Some(uid), Some(gid)).map_err(failed("giving away"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("protecting"))
}

fn write_file(instance: &Instance, name: &str, text: &str) -> Result<(), ConfigurationError> {
    let path = instance.runtime_directory.join(name);
    let new = path.with_extension("new");
    let failed = |operation| {
        let path = path.clone();
        move |source| ConfigurationError::Step {
            operation,
            path,
            source,
        }
    };
    fs::write(&new, text).map_err(failed("writing"))?;
    // Readable for PostgreSQL's group, writable for the member alone.
    chown(&new, None, Some(instance.user.gid)).map_err(failed("giving away"))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o640)).map_err(failed("protecting"))?;
    fs::rename(&new, &path).map_err(failed("replacing"))
}

fn main_file(instance: &Instance, serving: &Serving) -> String {
    let mut text =
        String::from("# Written by Baton at every start. Change postgres.parameters instead.\n");
    let mut set = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {}", quote(value));
    };
    for (name, value) in DEFAULTS {
        set(name, value);
    }
    for (name, value) in replication::defaults(serving) {
        set(name, &value);
    }
    set("cluster_name", &instance.cluster);
    let included = instance.data_directory.join(CONFIG_FILE);
    let _ = writeln!(
        text,
        "include_if_exists {}",
        quote(&included.to_string_lossy())
    );
    for (name, value) in &instance.parameters {
        let _ = writeln!(text, "{name} = {}", quote(value));
    }
    for (name, value) in replication::own(instance, serving) {
        let _ = writeln!(text, "{name} = {}", quote(&value));
    }
    text
}

/// A string of PostgreSQL's configuration files: quotes doubled, backslashes too.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

fn hba_file(sites: &[String], lines: &[String]) -> String {
    let mut text = format!(
        "# Written by Baton at every start. Change postgres.hba instead.\n\
         local all {SUPERUSER} peer map=baton\n"
    );
    for line in sites.iter().chain(lines) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// The member's own user, and PostgreSQL's, may connect as superuser over the Unix socket.
fn ident_file(users: &[String]) -> String {
    let mut text = String::from("# Written by Baton at every start.\n");
    for user in users {
        let _ = writeln!(text, "baton {user} {SUPERUSER}");
    }
    text
}

fn user_names(own: u32, postgres: &str) -> Vec<String> {
    let own = nix::unistd::User::from_uid(own.into()).ok().flatten();
    let mut names: Vec<String> = own.map(|user| user.name).into_iter().collect();
    if !names.iter().any(|name| name == postgres) {
        names.push(postgres.to_owned());
    }
    names
}

fn command_line(instance: &Instance) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let runtime = &instance.runtime_directory;
    let mut line = vec![
        text(&instance.programs.path("postgres")),
        "-D".to_owned(),
        text(&instance.data_directory),
    ];
    let places = [
        ("config_file", text(&runtime.join(CONFIG_FILE))),
        ("hba_file", text(&runtime.join(HBA_FILE))),
        ("ident_file", text(&runtime.join(IDENT_FILE))),
        ("unix_socket_directories", text(&instance.socket_directory)),
        ("listen_addresses", instance.listen_addresses.clone()),
        ("port", instance.port.to_string()),
    ];
    let mandatory = MANDATORY
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let waits = instance
        .synchronous
        .then(|| ("synchronous_commit", synchronous_commit(instance)));
    for (name, value) in places.into_iter().chain(mandatory).chain(waits) {
        line.extend(["-c".to_owned(), format!("{name}={value}")]);
    }
    line
}

/// The server's default: sessions, roles and databases still choose their own.
fn synchronous_commit(instance: &Instance) -> String {
    const FURTHER: &str = "remote_apply";
    let set = |(name, value): (&String, &String)| {
        name.eq_ignore_ascii_case("synchronous_commit") && value.eq_ignore_ascii_case(FURTHER)
    };
    match instance.parameters.iter().any(set) {
        true => FURTHER.to_owned(),
        false => "on".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted() {
        assert_eq!(quote("a"), "'a'");
        assert_eq!(quote(r"it's \ here"), r"'it''s \\ here'");
    }

    #[test]
    fn baton_comes_in_before_any_line_of_the_user() {
        let text = hba_file(&[], &["local all all reject".to_owned()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "local all postgres peer map=baton");
        assert_eq!(lines[2], "local all all reject");
    }
}
