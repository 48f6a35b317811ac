//! Writes through the Service while something happens, and a look at every row.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton::clock;
use baton::drill::gap;
use baton::drill::verify;
use baton::drill::writer::{self, Plan, Writer};

/// How many connections write.
const CONNECTIONS: u16 = 4;

/// Writes before a fault, and after their return.
const AROUND: Duration = Duration::from_secs(2);

/// What the ledger says: nothing is lost or doubled.
#[derive(Debug)]
pub struct Written {
    /// The longest time without an acknowledged write, in milliseconds.
    pub gap_ms: u64,
    pub acknowledged: u64,
}

/// Writes through the Service at this address while something happens; `returned` is how long writes may take to return. The ledger's file must
/// not be there.
pub async fn around<F>(
    service: Ipv4Addr,
    ledger: PathBuf,
    returned: Duration,
    happen: F,
) -> Result<Written>
where
    F: AsyncFnOnce() -> Result<()>,
{
    let plan = plan(service, ledger);
    let writer = Writer::start(&plan, returned)
        .await
        .context("begin to write")?;
    tokio::time::sleep(AROUND).await;
    let fault = clock::now();
    happen().await?;
    let all_write = writer
        .all_write(clock::now() + writer::ON_THE_WAY, returned)
        .await;
    tokio::time::sleep(AROUND).await;
    let written = writer.finish().await?;
    ensure!(
        all_write,
        "not every connection wrote again within {returned:?}"
    );
    let rows = writer::rows(&plan, returned).await?;
    let verdict = verify::verify(&written.entries, &rows);
    ensure!(verdict.holds(), "writes lost or doubled: {verdict:?}");
    let gaps = gap::gaps(&written.entries, CONNECTIONS, fault, written.ended);
    let length: Duration = gaps.longest.length();
    Ok(Written {
        gap_ms: u64::try_from(length.as_millis())?,
        acknowledged: verdict.writes.acknowledged,
    })
}

fn plan(service: Ipv4Addr, ledger: PathBuf) -> Plan {
    let mut server = tokio_postgres::Config::new();
    server
        .host(service.to_string())
        .port(5432)
        .user("postgres")
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(1));
    Plan {
        servers: vec![server],
        connections: CONNECTIONS,
        ledger,
        insert_timeout: Duration::from_secs(5),
    }
}
