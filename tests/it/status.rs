//! What a task is doing can be asked at any time.

use serde_json::Value;

use crate::harness::{Proxy, Redis, Sidecar, set, wait_for, wait_until};

/// Waits until the task is said to be in that state.
fn status(sidecar: &Sidecar, id: &str, wanted: &str) -> Value {
    wait_for(&format!("{id} to be {wanted}"), || {
        let answer = sidecar.get(id);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let status = answer.json();
        (status["status"] == wanted).then_some(status)
    })
}

#[test]
fn held_backoff_and_settled_are_told_apart() {
    let mut redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let sidecar = Sidecar::start(&proxy.url(), &["--retry-base", "30s"]);
    redis.kill9();
    sidecar.post(&set("waits", "held", "1"));
    let held = status(&sidecar, "waits", "held");
    assert!(held["held_since"].is_string(), "{held}");
    assert!(held["held_by"].as_str().is_some_and(|by| !by.is_empty()), "{held}");
    assert_eq!(held["attempts"], 0);
    redis.restart();
    let settled = status(&sidecar, "waits", "settled");
    assert_eq!((&settled["outcome"], &settled["attempts"]), (&"applied".into(), &1.into()));

    proxy.answer(|command| (command.get(1).is_some_and(|key| key == b"later")).then(|| "TRYAGAIN not now".to_owned()));
    // Full jitter may choose a wait too short to be seen.
    wait_until("a task in backoff", || {
        let id = format!("later-{}", proxy.count("SET", "later"));
        sidecar.post(&set(&id, "later", "1"));
        wait_until("its first try", || sidecar.get(&id).json()["status"] != "ready");
        let backoff = sidecar.get(&id).json();
        if backoff["status"] != "backoff" {
            return false;
        }
        assert!(backoff["not_before"].is_string(), "{backoff}");
        assert_eq!(backoff["last_error"]["code"], "TRYAGAIN");
        true
    });
    assert_eq!(sidecar.get("never-sent").status, 404);
}
