//! The way to a real API server from within the test's network namespace: a Unix socket that a thread
//! outside serves, and an address inside that leads there.

use std::io;
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kube::config::Kubeconfig;

/// The outer end. Its socket is removed when it is dropped.
pub struct Outside {
    directory: tempfile::TempDir,
}

impl Outside {
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("api")
    }
}

/// Serves the socket: each connection leads to the API server of this kubeconfig.
pub fn outside(kubeconfig: &Path) -> Result<Outside> {
    let address = address(kubeconfig)?;
    let directory = tempfile::Builder::new()
        .prefix("baton-kube")
        .tempdir()
        .context("make a directory")?;
    let door = Outside { directory };
    let listener = UnixListener::bind(door.socket()).context("listen for the test")?;
    std::thread::spawn(move || {
        for inner in listener.incoming().flatten() {
            let address = address.clone();
            std::thread::spawn(move || {
                if let Ok(outer) = TcpStream::connect(&*address) {
                    carry(inner, outer);
                }
            });
        }
    });
    Ok(door)
}

/// `host:port` of the current context's server.
fn address(kubeconfig: &Path) -> Result<String> {
    let config = Kubeconfig::read_from(kubeconfig).context("read the kubeconfig")?;
    let server = config
        .clusters
        .first()
        .and_then(|cluster| cluster.cluster.as_ref()?.server.clone())
        .context("the kubeconfig names no server")?;
    let authority = server
        .split("//")
        .nth(1)
        .context("the server has no host")?;
    let authority = authority.trim_end_matches('/');
    Ok(if authority.contains(':') {
        authority.to_owned()
    } else {
        format!("{authority}:443")
    })
}

/// Both ways, each to its end.
fn carry(inner: UnixStream, outer: TcpStream) {
    let (Ok(mut from_inner), Ok(mut to_outer)) = (inner.try_clone(), outer.try_clone()) else {
        return;
    };
    let there = std::thread::spawn(move || {
        let _ = io::copy(&mut from_inner, &mut to_outer);
        let _ = to_outer.shutdown(std::net::Shutdown::Write);
    });
    let (mut from_outer, mut to_inner) = (outer, inner);
    let _ = io::copy(&mut from_outer, &mut to_inner);
    let _ = to_inner.shutdown(std::net::Shutdown::Write);
    let _ = there.join();
}

/// The inner end: connections to this address go through the door.
pub async fn inside(listen: std::net::SocketAddr, socket: PathBuf) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await;
    let listener = listener.context("listen for the members")?;
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                if let Ok(mut far) = tokio::net::UnixStream::connect(socket).await {
                    let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    Ok(())
}
