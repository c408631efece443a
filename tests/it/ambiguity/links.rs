//! A late packet is a late write: what a link still holds of what was given up must not be made after what was made
//! since.

use serde_json::Value;

use crate::harness::{Proxy, Redis, Sidecar, set, simple, wait_until};

use super::nemesis::QUICK;

/// `SET key 1` is lost in one link, and made over another; `SET key 2` is made; then the link delivers what it has.
pub fn end_after_a_late_packet(redis: &Redis, proxy: &Proxy, sidecar: &Sidecar, key: &str) -> String {
    proxy.stall_link_of(key);
    sidecar.post(&set(&format!("{key}-1"), key, "1"));
    wait_until("the link to be stalled", || proxy.stalled() > 0);
    redis.wait_for_value(key, "1");
    sidecar.post(&set(&format!("{key}-2"), key, "2"));
    redis.wait_for_value(key, "2");
    proxy.heal();
    redis.get(key)
}

#[test]
fn late_packet_changes_nothing() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let sidecar = Sidecar::start(&proxy.url(), &QUICK);
    for key in ["first", "second", "third"] {
        assert_eq!(end_after_a_late_packet(&redis, &proxy, &sidecar, key), "2", "{key}");
    }
}

#[test]
fn late_packet_of_a_killed_sidecar_changes_nothing() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let mut sidecar = Sidecar::start(&proxy.url(), &QUICK);
    for key in ["first", "second", "third"] {
        proxy.stall_link_of(key);
        sidecar.post(&set(&format!("{key}-1"), key, "1"));
        wait_until("the link to be stalled", || proxy.stalled() > 0);
        sidecar.kill9();
        sidecar.restart();
        redis.wait_for_value(key, "1");
        sidecar.post(&set(&format!("{key}-2"), key, "2"));
        redis.wait_for_value(key, "2");
        proxy.heal();
        assert_eq!(redis.get(key), "2", "{key}");
    }
}

/// What is left where nobody may close connections: once-units and versioned tasks are fenced by what they write.
#[test]
fn without_the_right_to_close_connections_counters_and_versions_are_right() {
    let redis = Redis::start(&[]);
    redis.cli(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-client|kill"]);
    let proxy = Proxy::start(redis.port());
    let sidecar = Sidecar::start(&proxy.url_for("app", "pw"), &QUICK);
    let warning = sidecar.wait_for_log("CLIENT KILL");
    assert_eq!(warning["level"], "WARN", "{warning}");

    proxy.stall_link_of("counter");
    sidecar.post(&simple("increment", "INCR", &["counter"]));
    wait_until("the link to be stalled", || proxy.stalled() == 1);
    redis.wait_for_value("counter", "1");

    proxy.stall_link_of("versioned");
    sidecar.post(&versioned("older", "1", 9));
    wait_until("the link to be stalled", || proxy.stalled() == 2);
    redis.wait_for_value("versioned", "1");
    sidecar.post(&versioned("newer", "2", 10));
    redis.wait_for_value("versioned", "2");

    proxy.heal();
    assert_eq!((redis.get("counter"), redis.get("versioned")), ("1".to_owned(), "2".to_owned()));
    sidecar.wait_until_done();
    assert_eq!((sidecar.settled("applied"), sidecar.settled("dead")), (3, 0));
}

fn versioned(id: &str, value: &str, version: u64) -> Value {
    let mut task = set(id, "versioned", value);
    task["version"] = version.to_string().into();
    task
}
