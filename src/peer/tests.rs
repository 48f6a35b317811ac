//! Strangers, eavesdroppers and twins: nothing that is not authentic and new is heard.

use std::collections::BTreeMap;
use std::time::Duration;

use fencing::Epoch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::decide::{Custody, RoleName};

fn member(number: u8) -> MemberId {
    MemberId::new(number).unwrap()
}

fn identity(number: u8, incarnation: u64) -> Identity {
    Identity {
        cluster: "main".to_owned(),
        site: "local".to_owned(),
        name: format!("m{number}"),
        member: member(number),
        incarnation: Incarnation(incarnation),
        secret: Secret::new(b"0123456789abcdef"),
    }
}

fn heartbeat(number: u8, incarnation: u64, sequence: u64) -> Heartbeat {
    Heartbeat {
        member: member(number),
        incarnation: Incarnation(incarnation),
        sequence,
        role: RoleName::Standby,
        epoch: Epoch::ZERO,
        custody: Custody::Nothing,
        ready: true,
        reachable: true,
        volume: true,
        failed: false,
        stuck: false,
        handover: None,
        heard: BTreeMap::new(),
    }
}

fn quick() -> Patience {
    Patience {
        step: Duration::from_millis(500),
        fresh: Duration::from_secs(5),
        ..Patience::default()
    }
}

fn peer(number: u8, address: std::net::SocketAddr) -> PeerMember {
    PeerMember {
        name: format!("m{number}"),
        number: member(number),
        address: address.into(),
    }
}

async fn channel(identity: Identity, peers: Vec<PeerMember>) -> PeerChannel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    PeerChannel::start_with(identity, listener, peers, quick()).unwrap()
}

/// A listening member 1 that knows member 2 (which never answers at this address).
async fn listening() -> PeerChannel {
    let nowhere = "127.0.0.1:1".parse().unwrap();
    channel(identity(1, 100), vec![peer(2, nowhere)]).await
}

async fn until(channel: &mut PeerChannel, mut done: impl FnMut(&PeerView) -> bool) {
    let waiting = async {
        while !channel.seen().values().any(&mut done) {
            channel.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .expect("it never came");
}

fn heard(view: &PeerView, sequence: u64) -> bool {
    view.heard
        .as_ref()
        .is_some_and(|(heartbeat, _)| heartbeat.sequence >= sequence)
}

#[tokio::test]
async fn members_hear_each_other_and_again_after_one_was_away() {
    let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at1, at2) = (first.local_addr().unwrap(), second.local_addr().unwrap());
    let mut one =
        PeerChannel::start_with(identity(1, 10), first, vec![peer(2, at2)], quick()).unwrap();
    let mut two =
        PeerChannel::start_with(identity(2, 20), second, vec![peer(1, at1)], quick()).unwrap();
    one.publish(heartbeat(1, 10, 1));
    two.publish(heartbeat(2, 20, 1));
    until(&mut one, |view| heard(view, 1)).await;
    until(&mut two, |view| heard(view, 1)).await;
    drop(two);
    until(&mut one, |view| matches!(view.outgoing, Link::Down { .. })).await;
    let again = TcpListener::bind(at2).await.unwrap();
    let mut two =
        PeerChannel::start_with(identity(2, 21), again, vec![peer(1, at1)], quick()).unwrap();
    two.publish(heartbeat(2, 21, 1));
    let is_new = |view: &PeerView| {
        view.heard
            .as_ref()
            .is_some_and(|(h, _)| h.incarnation.0 == 21)
    };
    until(&mut one, is_new).await;
    one.publish(heartbeat(1, 10, 2));
    until(&mut two, |view| heard(view, 2)).await;
    assert!(one.seen()[&member(2)].duplicate.is_none());
}

#[tokio::test]
async fn a_request_reaches_the_one_it_is_for() {
    let mut one = listening().await;
    let two = channel(identity(2, 20), vec![peer(1, one.address())]).await;
    let message = Message::Ask {
        id: 5,
        ask: Ask::Pause,
    };
    two.send(member(1), message.clone()).unwrap();
    assert_eq!(
        two.send(member(3), message.clone()),
        Err(SendError::Unknown(member(3)))
    );
    let came = loop {
        if let PeerEvent::Message { from, message, .. } = one.next().await {
            break (from, message);
        }
    };
    assert_eq!(came, (member(2), message));
}

#[tokio::test]
async fn who_is_not_of_us_is_refused_and_told_why() {
    let wrong_secret = Identity {
        secret: Secret::new(b"another secret!!"),
        ..identity(2, 20)
    };
    let wrong_cluster = Identity {
        cluster: "other".to_owned(),
        ..identity(2, 20)
    };
    let cases = [
        (wrong_secret, "peer.secret_file"),
        (wrong_cluster, "cluster main"),
        (identity(3, 30), "closed"),
    ];
    for (stranger, word) in cases {
        let one = listening().await;
        let (number, incarnation) = (stranger.member.number(), stranger.incarnation.0);
        let mut other = channel(stranger, vec![peer(1, one.address())]).await;
        other.publish(heartbeat(number, incarnation, 1));
        until(
            &mut other,
            |view| matches!(&view.outgoing, Link::Down { cause, .. } if cause.contains(word)),
        )
        .await;
        assert!(one.seen()[&member(2)].heard.is_none(), "{word}");
    }
}

#[tokio::test]
async fn a_dialer_finds_out_that_the_other_side_is_somebody_else() {
    let one = listening().await;
    let mut two = channel(identity(2, 20), vec![peer(3, one.address())]).await;
    until(
        &mut two,
        |view| matches!(&view.outgoing, Link::Down { cause, .. } if cause.contains("member 1")),
    )
    .await;
}

/// Dials by hand; the session that results.
async fn dial(one: &PeerChannel, as_whom: &Identity) -> (TcpStream, wire::Sealer) {
    let mut stream = TcpStream::connect(one.address()).await.unwrap();
    let sealer = wire::dial(&mut stream, as_whom, member(1)).await.unwrap();
    (stream, sealer)
}

async fn is_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    // Closed with unread bytes gives a reset instead of an end.
    let _ = read.expect("it stays open");
}

/// Makes what is sent out of the first frame, which was heard, and the second.
type Attack = fn(&[u8], &[u8]) -> Vec<u8>;

#[tokio::test]
async fn repeated_changed_and_oversize_frames_end_the_connection() {
    let attacks: [Attack; 5] = [
        |first, _| first.to_vec(),
        |_, second| [&second[..20], &[second[20] ^ 1], &second[21..]].concat(),
        |_, second| [&second[..second.len() - 1], &[second[second.len() - 1] ^ 1]].concat(),
        |_, second| [&second[..11], &[9], &second[12..]].concat(),
        |_, _| u32::MAX.to_be_bytes().repeat(4),
    ];
    for (index, attack) in attacks.into_iter().enumerate() {
        let mut one = listening().await;
        let (mut stream, mut sealer) = dial(&one, &identity(2, 20)).await;
        let first = sealer
            .seal(&Message::Heartbeat(heartbeat(2, 20, 1)))
            .unwrap();
        stream.write_all(&first).await.unwrap();
        until(&mut one, |view| heard(view, 1)).await;
        let second = sealer
            .seal(&Message::Heartbeat(heartbeat(2, 20, 2)))
            .unwrap();
        stream.write_all(&attack(&first, &second)).await.unwrap();
        is_closed(&mut stream).await;
        assert!(
            !heard(&one.seen()[&member(2)], 2),
            "attack {index} was heard"
        );
    }
}

#[tokio::test]
async fn a_recorded_session_cannot_be_played_again() {
    // What the dialer sends in a session: the hello, the proof and a frame, recorded by a proxy.
    let mut one = listening().await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy_address = proxy.local_addr().unwrap();
    let target = one.address();
    let recording = tokio::spawn(async move {
        let (mut from, _) = proxy.accept().await.unwrap();
        let mut to = TcpStream::connect(target).await.unwrap();
        let mut recorded = Vec::new();
        let (mut up, mut down) = ([0; 4096], [0; 4096]);
        loop {
            tokio::select! {
                read = from.read(&mut up) => match read.unwrap_or(0) {
                    0 => return recorded,
                    n => { recorded.extend_from_slice(&up[..n]); to.write_all(&up[..n]).await.unwrap(); }
                },
                read = to.read(&mut down) => {
                    let n = read.unwrap();
                    from.write_all(&down[..n]).await.unwrap();
                }
            }
        }
    });
    let two = channel(identity(2, 20), vec![peer(1, proxy_address)]).await;
    two.publish(heartbeat(2, 20, 1));
    until(&mut one, |view| heard(view, 1)).await;
    drop(two);
    let recorded = recording.await.unwrap();
    let fresh = listening().await;
    for target in [one.address(), fresh.address()] {
        let mut stream = TcpStream::connect(target).await.unwrap();
        stream.write_all(&recorded).await.unwrap();
        is_closed(&mut stream).await;
    }
    assert!(fresh.seen()[&member(2)].heard.is_none());
}

#[tokio::test]
async fn another_version_is_named_on_both_sides() {
    let one = listening().await;
    let mut stream = TcpStream::connect(one.address()).await.unwrap();
    let hello = br#"{"version":2,"anything":"else"}"#;
    stream
        .write_all(&[&(hello.len() as u16).to_be_bytes()[..], hello].concat())
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer: serde_json::Value = serde_json::from_slice(&answer[2..]).unwrap();
    assert_eq!(answer["version"], PROTOCOL_VERSION);

    let old = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut two = channel(identity(2, 20), vec![peer(1, old.local_addr().unwrap())]).await;
    let (mut stream, _) = old.accept().await.unwrap();
    stream
        .write_all(&[&(hello.len() as u16).to_be_bytes()[..], hello].concat())
        .await
        .unwrap();
    until(
        &mut two,
        |view| matches!(&view.outgoing, Link::Down { cause, .. } if cause.contains("version 2")),
    )
    .await;
}

#[tokio::test]
async fn silence_and_rubbish_of_strangers_are_cut_off() {
    let one = listening().await;
    let mut silent = TcpStream::connect(one.address()).await.unwrap();
    let mut rubbish = TcpStream::connect(one.address()).await.unwrap();
    rubbish.write_all(&[0xff; 64]).await.unwrap();
    is_closed(&mut rubbish).await;
    is_closed(&mut silent).await;
}

#[tokio::test]
async fn two_processes_with_one_number_are_noticed_a_restart_is_not() {
    let now = clock::now();
    let second = Duration::from_secs(1);
    let mut view = seen::All::new(&[peer(2, "127.0.0.1:1".parse().unwrap())], now)
        .peers
        .remove(&member(2))
        .unwrap();
    let connection = |serial, made| seen::Connection { serial, made };
    let (first, newcomer) = (connection(1, now), connection(2, now + second));
    assert!(view.hear(heartbeat(2, 20, 1), first, now));
    assert!(
        !view.hear(heartbeat(2, 20, 1), first, now),
        "an old one is no news"
    );
    // A restart: the newcomer's connection is newer; last words come within the grace.
    assert!(view.hear(heartbeat(2, 21, 1), newcomer, now + second));
    assert!(!view.hear(heartbeat(2, 20, 2), first, now + second));
    assert_eq!(view.duplicate, None);
    assert!(matches!(
        view.observation(now, now + second),
        Seen::Known { .. }
    ));
    // Not a restart: the first one goes on talking.
    assert!(!view.hear(heartbeat(2, 20, 3), first, now + 2 * second));
    assert!(view.duplicate.is_some());
    assert!(matches!(
        view.observation(now, now + 2 * second),
        Seen::Unknown { .. }
    ));
    // The proof grows old.
    assert!(matches!(
        view.observation(now, now + 20 * second),
        Seen::Known { .. }
    ));
    // The first one comes back by a new connection.
    let again = connection(3, now + 30 * second);
    assert!(view.hear(heartbeat(2, 20, 4), again, now + 30 * second));
    assert!(matches!(
        view.observation(now, now + 30 * second),
        Seen::Unknown { .. }
    ));
}

#[tokio::test]
async fn a_process_that_uses_our_own_number_is_noticed() {
    let mut one = listening().await;
    let _twin = channel(identity(1, 101), vec![peer(1, one.address())]).await;
    let waiting = async {
        while one.impostor().is_none() {
            one.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), waiting)
        .await
        .unwrap();
    assert_eq!(one.impostor().unwrap().other, Incarnation(101));
}

#[tokio::test]
async fn nothing_is_sent_that_the_loop_did_not_just_say() {
    let at = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = at.local_addr().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let patience = Patience {
        fresh: Duration::from_millis(50),
        ..quick()
    };
    let two = PeerChannel::start_with(identity(2, 20), listener, vec![peer(1, address)], patience)
        .unwrap();
    two.publish(heartbeat(2, 20, 1));
    // The loop hangs from here on; the peer comes later.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let mut one =
        PeerChannel::start_with(identity(1, 10), at, vec![peer(2, nowhere)], quick()).unwrap();
    until(&mut one, |view| matches!(view.incoming, Link::Up { .. })).await;
    let later = tokio::time::timeout(
        Duration::from_millis(300),
        until(&mut one, |view| heard(view, 1)),
    );
    assert!(later.await.is_err(), "an old heartbeat was sent");
}
