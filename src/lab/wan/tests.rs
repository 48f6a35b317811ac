//! The line between two real network namespaces. Needs root.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::*;
use crate::clock;
use crate::lab::network::Drawn;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn tcp_sees_latency_loss_and_a_cut_and_gets_everything_through() {
    let network = Drawn::make().await;
    let [a, b] = ["a", "b"].map(|site| network.site(site));
    let address = (b.line, 5432);
    let listener = enter(&b.namespace, move || TcpListener::bind(address))
        .unwrap()
        .unwrap();
    let line = network.join().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut copy = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut copy)
    });
    let connect = move || TcpStream::connect_timeout(&address.into(), SOON);
    let mut stream = enter(&a.namespace, connect).unwrap().unwrap();
    stream.set_nodelay(true).unwrap();

    // much more than one window, so that the line itself has to keep up
    let bulk: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut writing = stream.try_clone().unwrap();
    let sent = bulk.clone();
    let writer = std::thread::spawn(move || writing.write_all(&sent));
    let mut back = vec![0; bulk.len()];
    stream.read_exact(&mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert!(back == bulk, "what came back is what was sent");

    assert!(round_trip(&mut stream) < Duration::from_millis(50));
    line.set(Shape::slow(Duration::from_millis(60), 0.0));
    let slow = round_trip(&mut stream);
    assert!((120..400).contains(&slow.as_millis()), "{slow:?}");
    line.set(Shape::slow(Duration::from_millis(5), 0.2));
    for _ in 0..20 {
        round_trip(&mut stream);
    }

    line.set(Shape::CUT);
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    stream.write_all(&[7]).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "nothing passes a cut line");
    line.set(Shape::default());
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [7], "a healed line carries what was sent again");
    drop(stream);
    echo.join().unwrap().unwrap();
}

fn round_trip(stream: &mut TcpStream) -> Duration {
    let begun = clock::now();
    stream.write_all(&[1]).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    clock::now().since(begun)
}
