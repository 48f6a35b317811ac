//! A line to a primary that carries what it sends slowly, until it need not any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use baton::config::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Some 8 MiB a second: `pg_basebackup` tells how far it is once a second.
const PIECE: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(8);

/// The line, for as long as this exists.
pub struct SlowLine {
    /// Where it begins.
    pub at: Endpoint,
    fast: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl SlowLine {
    /// To this port of this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string().parse().unwrap();
        let fast = Arc::new(AtomicBool::new(false));
        let (mut tasks, slowly) = (JoinSet::new(), Arc::clone(&fast));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                connections.spawn(carry(client, server, Arc::clone(&slowly)));
            }
        });
        Self {
            at,
            fast,
            _tasks: tasks,
        }
    }

    /// From now on.
    pub fn be_fast(&self) {
        self.fast.store(true, Ordering::Relaxed);
    }
}

async fn carry(client: TcpStream, server: TcpStream, fast: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let _ = copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
    };
    let back = async {
        let mut piece = vec![0; PIECE];
        while let Ok(length @ 1..) = from_server.read(&mut piece).await {
            if to_client.write_all(&piece[..length]).await.is_err() {
                return;
            }
            if !fast.load(Ordering::Relaxed) {
                tokio::time::sleep(PAUSE).await;
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::join!(there, back);
}
