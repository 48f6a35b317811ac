//! Faults by a unix socket, for tests that run the server as a program. One command is one line
//! of JSON with one field; the answer is one line, `{"ok":true}` or `{"error":"…"}`. `requests`
//! answers with the log.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::faults::Partition;
use crate::server::{Reader, Server};

/// A command.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    Outage(bool),
    Blackhole(bool),
    LatencyMs(u64),
    Partition { who: String, how: Option<Partition> },
    Errors { code: u16, every: u32 },
    Conflicts(u32),
    LoseReplies { who: String, count: u32 },
    ExpireHistory,
    ExpiredByHttp(bool),
    NoBookmarks(bool),
    BookmarkNow,
    Clear,
    Requests,
    ForgetRequests,
}

/// Listens for commands at a path.
///
/// # Errors
/// If the path is taken or cannot be written.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(path)
}

/// Carries out the commands that come in, until dropped.
pub async fn serve(listener: UnixListener, server: &Server) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, server.reader()));
                }
                Err(error) => {
                    tracing::error!(%error, "no more commands can be taken");
                    return;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(stream: UnixStream, server: Reader) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = match serde_json::from_str::<Command>(&line) {
            Ok(command) => carry_out(command, &server),
            Err(error) => json!({ "error": error.to_string() }),
        };
        if write
            .write_all(format!("{answer}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
    }
}

fn carry_out(command: Command, server: &Reader) -> Value {
    let faults = server.faults();
    match command {
        Command::Outage(on) => faults.outage(on),
        Command::Blackhole(on) => faults.blackhole(on),
        Command::LatencyMs(delay) => faults.latency(Duration::from_millis(delay)),
        Command::Partition { who, how } => faults.partition(&who, how),
        Command::Errors { code, every } => faults.errors(code, every),
        Command::Conflicts(every) => faults.conflicts(every),
        Command::LoseReplies { who, count } => faults.lose_replies(&who, count),
        Command::ExpireHistory => faults.expire_history(),
        Command::ExpiredByHttp(on) => faults.expired_by_http(on),
        Command::NoBookmarks(on) => faults.no_bookmarks(on),
        Command::BookmarkNow => faults.bookmark_now(),
        Command::Clear => faults.clear(),
        Command::Requests => return json!(server.requests()),
        Command::ForgetRequests => server.forget_requests(),
    }
    json!({ "ok": true })
}
