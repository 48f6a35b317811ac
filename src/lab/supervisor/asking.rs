//! Who asks the supervisor for something: its socket, and signals.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::{Event, SupervisorError, io_error};
use crate::lab::layout::Lab;
use crate::lab::protocol::Answer;

/// Answers requests, one a line, several a connection.
pub(super) fn listen(
    lab: &Lab,
    events: mpsc::UnboundedSender<Event>,
) -> Result<(), SupervisorError> {
    let socket = lab.supervisor_socket();
    // ours by the lock: what is there was left by a supervisor that was killed
    drop(std::fs::remove_file(&socket));
    let what = format!("listen on {}", socket.display());
    let listener = UnixListener::bind(&socket).map_err(io_error(what))?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, events.clone()));
        }
    });
    Ok(())
}

async fn answer(stream: UnixStream, events: mpsc::UnboundedSender<Event>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match serde_json::from_str(&line) {
            Ok(request) => {
                let (asked, answer) = oneshot::channel();
                drop(events.send(Event::Asked(request, asked)));
                answer
                    .await
                    .unwrap_or_else(|_| Answer::Failed("the lab has ended".into()))
            }
            Err(error) => Answer::Failed(error.to_string()),
        };
        let mut line = serde_json::to_string(&answer).map_err(io::Error::other)?;
        line.push('\n');
        write.write_all(line.as_bytes()).await?;
    }
    Ok(())
}

pub(super) fn terminate_on_signals(
    events: mpsc::UnboundedSender<Event>,
) -> Result<(), SupervisorError> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(io_error("wait for signals"))?;
        let events = events.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                drop(events.send(Event::Terminated));
            }
        });
    }
    Ok(())
}
