//! Free TCP ports on loopback for servers that come and go.

use std::io;
use std::net::TcpListener;

/// Below Linux's range for outgoing connections (32768 up, `ip_local_port_range`): from that range,
/// while a server is down, an outgoing connection may take its port, or even connect to itself.
const RANGE: std::ops::Range<u16> = 15_000..30_000;

/// How often another port is drawn before giving up.
const DRAWS: usize = 200;

/// `N` different ports on which nobody listens now.
pub fn free<const N: usize>() -> io::Result<[u16; N]> {
    let mut held = Vec::new();
    for _ in 0..DRAWS {
        if held.len() == N {
            break;
        }
        let port = rand::random_range(RANGE);
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => held.push((port, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
    ports
        .try_into()
        .map_err(|_| io::Error::other(format!("no {N} free ports in {RANGE:?}")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_differ_and_are_free() {
        let [a, b, c] = super::free().unwrap();
        assert!(a != b && b != c && a != c);
        assert!(std::net::TcpListener::bind(("127.0.0.1", a)).is_ok());
    }
}
