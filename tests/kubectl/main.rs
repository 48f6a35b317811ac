//! `kubectl baton`: the program by another name, against an API server that answers just what is asked.

mod server;
mod several;

use axum::http::StatusCode;
use serde_json::{Value, json};

use server::{Plugin, said};

#[test]
fn status_and_history_come_from_the_kubernetes_api() {
    let plugin = Plugin::new(false, (StatusCode::OK, Value::Null));
    let output = plugin.run(&["status", "main", "-o", "json"]);
    assert!(output.status.success(), "{}", said(&output));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&status["active"], &status["standby"]),
        (&json!("a"), &json!("b"))
    );
    assert_eq!(
        (&status["epoch"], &status["serving"]),
        (&json!(7), &json!(true))
    );
    let text = said(&plugin.run(&["status", "main", "--namespace", "db"]));
    assert!(
        text.contains("Cluster db/main: active a, epoch 7"),
        "{text}"
    );
    let text = said(&plugin.run(&["history", "main"]));
    assert!(
        text.contains("planned") && text.contains("2023-11-14"),
        "{text}"
    );
    let absent = plugin.run(&["status", "other"]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(said(&absent).contains("there is no BatonCluster other in namespace db"));
}

#[test]
fn orders_go_to_the_active_with_its_token() {
    let done = json!({"message": "Successfully switched over to \"b\""});
    let plugin = Plugin::new(true, (StatusCode::OK, done));
    let output = plugin.run(&["switchover", "main", "--to", "b"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("switched over to"));
    assert!(plugin.run(&["pause", "main"]).status.success());
    assert!(plugin.run(&["resume", "main"]).status.success());
    let token = Some("of-the-member".to_owned());
    let asked = plugin.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [
            (
                "main-a switchover".to_owned(),
                token.clone(),
                json!({"leader": "a", "candidate": "b"})
            ),
            ("main-a pause".to_owned(), token.clone(), json!({})),
            ("main-a resume".to_owned(), token, json!({})),
        ]
    );
    drop(plugin.runtime);
}

#[test]
fn a_refusal_is_told_in_the_member_s_words() {
    let refused = json!({"error": "no standby is ready", "reason": "NoReadyStandby"});
    let plugin = Plugin::new(true, (StatusCode::PRECONDITION_FAILED, refused));
    let output = plugin.run(&["switchover", "main"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("no standby is ready"),
        "{}",
        said(&output)
    );
}

#[test]
fn without_a_token_nothing_is_asked_and_the_way_out_is_told() {
    let plugin = Plugin::new(false, (StatusCode::OK, Value::Null));
    let output = plugin.run(&["switchover", "main"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("set spec.api.tokenSecret"),
        "{}",
        said(&output)
    );
    assert!(plugin.asked.lock().unwrap().is_empty());
}
