//! What verbs ask the loop for, and the code that each answer becomes.

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
