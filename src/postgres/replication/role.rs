//! The role as which other sites connect.

use std::time::Duration;

use crate::postgres::session::{Session, SessionError, literal};

/// What `pg_rewind` calls at its source.
const FUNCTIONS: [&str; 4] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

impl Session {
    /// Makes the role for replication, or gives it this password: it may replicate, look at statistics, and read the
    /// data directory's files, which `pg_rewind` does.
    ///
    /// PostgreSQL gets a SCRAM verifier, never the password, and the statements are not logged.
    pub async fn ensure_role(
        &self,
        user: &str,
        password: &str,
        deadline: Duration,
    ) -> Result<(), SessionError> {
        let sql = role_sql(user, password);
        self.execute("making the role for replication", &sql, deadline)
            .await
    }
}

/// One batch is one transaction: the role with all its rights, or nothing.
fn role_sql(user: &str, password: &str) -> String {
    let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
    let (role, name) = (identifier(user), literal(user));
    let grants: String = FUNCTIONS
        .iter()
        .map(|function| format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role}; "))
        .collect();
    let verifier = literal(&verifier);
    format!(
        "SET LOCAL log_statement = 'none'; SET LOCAL log_min_duration_statement = -1; \
         SET LOCAL log_min_error_statement = 'panic'; \
         DO $baton$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name}) \
         THEN CREATE ROLE {role}; END IF; END $baton$; \
         ALTER ROLE {role} WITH LOGIN REPLICATION PASSWORD {verifier}; \
         GRANT pg_monitor TO {role}; {grants}\
         DO $baton$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_checkpoint') \
         THEN GRANT pg_checkpoint TO {role}; END IF; END $baton$"
    )
}

pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_does_not_leave() {
        let sql = role_sql("r\"x", "open sesame");
        assert!(!sql.contains("sesame"), "{sql}");
        assert!(
            sql.contains("ALTER ROLE \"r\"\"x\" WITH LOGIN REPLICATION PASSWORD E'SCRAM-SHA-256$")
        );
    }
}
