//! What verbs ask the loop for, and the code that each answer becomes.

use std::path::PathBuf;

use baton::config::{self, Config};
use baton::decide::zone::{SiteNumber, Synchronous, Unsafe, ZoneReason};
use baton::decide::{Answer, Ask, Reason};
use fencing::MemberId;

/// Method, path, body; what the loop is asked, what it answers; the code.
pub type Case = (
    &'static str,
    &'static str,
    &'static str,
    Option<(Ask, Answer)>,
    u16,
);

/// The loop refuses.
fn refused(reason: Reason) -> Answer {
    Answer::Refused(Box::new(reason))
}

/// Every verb with what it makes of each answer.
pub fn cases() -> Vec<Case> {
    let to = |to: Option<u8>| Ask::Switchover {
        to: to.and_then(MemberId::new),
    };
    let busy = refused(Reason::NotNow { ask: to(None) });
    let all = r#"{"leader": "a", "candidate": "b"}"#;
    let leader = r#"{"leader": "a"}"#;
    let candidate = r#"{"candidate": "b"}"#;
    let scheduled = r#"{"leader": "a", "scheduled_at": "2030-01-01T00:00+00"}"#;
    vec![
        (
            "POST",
            "/switchover",
            all,
            Some((to(Some(2)), Answer::Done)),
            200,
        ),
        (
            "POST",
            "/switchover",
            leader,
            Some((to(None), Answer::Done)),
            200,
        ),
        (
            "POST",
            "/switchover",
            leader,
            Some((to(None), refused(Reason::NoReadyStandby))),
            412,
        ),
        (
            "POST",
            "/switchover",
            leader,
            Some((to(None), refused(Reason::HandoverFailed))),
            503,
        ),
        ("POST", "/switchover", leader, Some((to(None), busy)), 409),
        ("POST", "/switchover", r#"{"leader": "b"}"#, None, 412),
        (
            "POST",
            "/switchover",
            r#"{"leader": "a", "candidate": "z"}"#,
            None,
            412,
        ),
        (
            "POST",
            "/switchover",
            r#"{"leader": "a", "candidate": "a"}"#,
            None,
            400,
        ),
        ("POST", "/switchover", scheduled, None, 400),
        ("POST", "/switchover", candidate, None, 400),
        ("POST", "/switchover", "", None, 400),
        ("POST", "/switchover", "{", None, 400),
        ("POST", "/switchover", r#"{"laeder": "a"}"#, None, 400),
        (
            "POST",
            "/failover",
            candidate,
            Some((to(Some(2)), Answer::Done)),
            200,
        ),
        (
            "POST",
            "/failover",
            r#"{"member": "b"}"#,
            Some((to(Some(2)), Answer::Done)),
            200,
        ),
        ("POST", "/failover", leader, None, 400),
        (
            "POST",
            "/switchover",
            r#"{"leader": "a", "site": "west"}"#,
            None,
            412,
        ),
        ("POST", "/failover", r#"{"site": "local"}"#, None, 412),
        (
            "POST",
            "/failover",
            r#"{"candidate": "b", "allow_data_loss": true}"#,
            None,
            400,
        ),
        ("POST", "/pause", "", Some((Ask::Pause, Answer::Done)), 200),
        (
            "POST",
            "/pause",
            "",
            Some((Ask::Pause, refused(Reason::LeaseUnreachable))),
            503,
        ),
        (
            "POST",
            "/resume",
            "",
            Some((Ask::Resume, Answer::Done)),
            200,
        ),
        (
            "PATCH",
            "/config",
            r#"{"pause": true}"#,
            Some((Ask::Pause, Answer::Done)),
            200,
        ),
        (
            "PATCH",
            "/config",
            r#"{"pause": null}"#,
            Some((Ask::Resume, Answer::Done)),
            200,
        ),
        ("PATCH", "/config", r#"{"ttl": 5}"#, None, 400),
        (
            "POST",
            "/restart",
            r#"{"role": "primary", "timeout": "30"}"#,
            Some((Ask::Restart, Answer::Done)),
            200,
        ),
        (
            "POST",
            "/restart",
            "",
            Some((
                Ask::Restart,
                refused(Reason::NotActive {
                    active: MemberId::new(2),
                }),
            )),
            503,
        ),
        ("POST", "/restart", r#"{"role": "replica"}"#, None, 503),
        ("POST", "/restart", r#"{"timeout": 0}"#, None, 400),
        ("POST", "/restart", r#"{"schedule": "now"}"#, None, 400),
        (
            "POST",
            "/reload",
            "",
            Some((Ask::Reload, Answer::Done)),
            202,
        ),
        (
            "POST",
            "/reload",
            "",
            Some((
                Ask::Reload,
                refused(Reason::ReloadFailed {
                    cause: "member.toml has 1 problem".to_owned(),
                }),
            )),
            503,
        ),
        ("GET", "/switchover", "", None, 405),
    ]
}

/// The member's site is `east`; `west` is the other.
pub fn among_sites(config: &mut Config) {
    config.site = "east".to_owned();
    let site = |name: &str| config::Site {
        name: name.to_owned(),
        lease: format!("{name}.lease"),
        hosts: vec!["127.0.0.1:1".parse().unwrap()],
        failover: config::Failover::Allowed,
    };
    config.replication = Some(config::Replication {
        record: "cluster".to_owned(),
        synchronous: Synchronous::Preferred,
        quorum: 1,
        first_primary: "east".to_owned(),
        user: "replicas".to_owned(),
        password_file: PathBuf::from("/nowhere"),
        sslmode: "prefer".to_owned(),
        root_certificate: None,
        slot_wal_max: "1GB".to_owned(),
        max_lag: 1,
        seed: None,
        sites: vec![site("west"), site("east")],
    });
}

/// The same of what is between sites.
pub fn of_sites() -> Vec<Case> {
    let to_west = r#"{"leader": "a", "site": "west"}"#;
    let move_to = Ask::SwitchoverSite {
        site: SiteNumber(1),
    };
    let take = |allow_data_loss| Ask::Failover { allow_data_loss };
    let unsafe_now = refused(Reason::Zone(ZoneReason::NotSafe(Unsafe::PrimaryLives)));
    let here = r#"{"site": "east"}"#;
    let post = |path, body, asked, code| ("POST", path, body, asked, code);
    let (switchover, failover) = ("/switchover", "/failover");
    let lossy = r#"{"site": "east", "allow_data_loss": true}"#;
    let both = r#"{"leader": "a", "site": "west", "candidate": "b"}"#;
    let lossy_move = r#"{"leader": "a", "site": "west", "allow_data_loss": true}"#;
    vec![
        post(switchover, to_west, Some((move_to, Answer::Done)), 200),
        post(
            switchover,
            to_west,
            Some((move_to, refused(Reason::NoSuchSite))),
            412,
        ),
        post(
            switchover,
            to_west,
            Some((move_to, unsafe_now.clone())),
            412,
        ),
        post(switchover, r#"{"leader": "b", "site": "west"}"#, None, 412),
        post(switchover, r#"{"leader": "a", "site": "north"}"#, None, 412),
        post(switchover, r#"{"site": "west"}"#, None, 400),
        post(switchover, both, None, 400),
        post(switchover, lossy_move, None, 400),
        post(failover, here, Some((take(false), Answer::Done)), 200),
        post(failover, here, Some((take(false), unsafe_now)), 412),
        post(failover, lossy, Some((take(true), Answer::Done)), 200),
        post(failover, r#"{"site": "west"}"#, None, 412),
        post(failover, r#"{"site": "east", "candidate": "b"}"#, None, 400),
    ]
}
