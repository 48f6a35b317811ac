//! `baton target` as a process: what it prints, what it refuses, how it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running target, killed when the test ends however it ends.
struct Process {
    child: Child,
    listen: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command
        .args(["target", "--listen", "127.0.0.1:0", "--volatile-cache"])
        .arg("--namespace")
        .arg(format!("{},size=4M", dir.join("ns").display()))
        .arg("--state")
        .arg(dir.join("state.json"))
        .arg("--control")
        .arg(dir.join("control"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn start(dir: &Path) -> Process {
    let mut child = command(dir).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).expect("one line of JSON");
    let listen = ready["listen"].as_str().unwrap().to_owned();
    Process { child, listen }
}

#[test]
fn it_says_where_it_listens_and_ends_by_signal() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = start(dir.path());
    TcpStream::connect(&process.listen).unwrap();

    let mut control = UnixStream::connect(dir.path().join("control")).unwrap();
    control.write_all(b"{\"do\":\"status\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(control).read_line(&mut answer).unwrap();
    let status: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(status["listen"], process.listen);
    assert_eq!(status["namespaces"][0]["blocks"], 8192);

    kill(Pid::from_raw(process.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
    // The control socket is left behind, and is no obstacle.
    drop(start(dir.path()));
}

#[test]
fn a_namespace_in_use_and_a_damaged_state_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let process = start(dir.path());
    let refused = |expected: &str| {
        let mut child = command(dir.path()).spawn().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        let mut error = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut error)
            .unwrap();
        assert!(error.contains(expected), "{error}");
    };
    refused("is in use by another target");
    drop(process);
    std::fs::write(dir.path().join("state.json"), "{").unwrap();
    refused("is damaged");
}
