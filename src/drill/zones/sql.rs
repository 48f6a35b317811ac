//! Questions to one PostgreSQL, as superuser.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::drill::stage_error::StageError;

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Where clients reach a PostgreSQL, and as whom.
pub(super) fn server(address: SocketAddr) -> tokio_postgres::Config {
    let mut server = tokio_postgres::Config::new();
    server.host(address.ip().to_string()).port(address.port());
    server
        .user("postgres")
        .dbname("postgres")
        .connect_timeout(CONNECT_WITHIN);
    server
}

/// The rows of a statement's result as text; a null is empty.
pub(super) async fn rows(
    address: SocketAddr,
    sql: &str,
    within: Duration,
) -> Result<Vec<Vec<String>>, StageError> {
    let failed = |why: String| StageError::Machine {
        what: format!("ask PostgreSQL at {address} with {sql:?}"),
        why,
    };
    let asked = async {
        let (client, connection) = server(address).connect(NoTls).await?;
        // what goes wrong reaches the question too
        let driver = tokio::spawn(async move { drop(connection.await) });
        let answer = client.simple_query(sql).await;
        driver.abort();
        answer
    };
    let answer = timeout(within, asked).await;
    let answer = answer.map_err(|_| failed(format!("no answer within {within:?}")))?;
    let messages = answer.map_err(|error| failed(words(&error)))?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            let columns = 0..row.len();
            Some(
                columns
                    .map(|column| row.get(column).unwrap_or_default().to_owned())
                    .collect(),
            )
        }
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// The only value of the only row.
pub(super) async fn value(
    address: SocketAddr,
    sql: &str,
    within: Duration,
) -> Result<String, StageError> {
    let mut rows = rows(address, sql, within).await?;
    let value = rows.pop().and_then(|mut row| row.pop());
    value.ok_or_else(|| StageError::Machine {
        what: format!("ask PostgreSQL at {address} with {sql:?}"),
        why: "no row".to_owned(),
    })
}

fn words(error: &tokio_postgres::Error) -> String {
    let server = error.as_db_error().map(|error| error.message().to_owned());
    server.unwrap_or_else(|| error.to_string())
}
