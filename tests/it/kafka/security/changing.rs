//! What a broker wants changes while sidecars share its work: they do not get in any more.

use serde_json::Value;

use super::Guest;
use crate::{
    harness::{
        Proxy, Redis, Sidecar,
        kafka::{
            guarded::{self, ADMIN, Certificates, Guarded},
            unique,
        },
        proxy::Mode,
        wait_until,
    },
    kafka::{fleet::owned_by, load::Load, reaches_kafka},
};

/// Two are shut out by a restart of the broker, and a third one, which is not, soon has their partitions. What they had
/// read by then is not for them to make, though their Redis answers again, and what they are given waits on their disks.
/// One of them goes on when the broker is mended, and one when it is started with the new password.
#[test]
fn sidecar_that_is_shut_out_keeps_tasks_and_makes_none_until_that_is_mended() {
    let (redis, certificates, topic) = (Redis::start(&[]), Certificates::make(), unique("shut-out"));
    let (mut kafka, Guarded { sasl, tls, .. }) = guarded::start(&certificates);
    let (proxy, plain) = (Proxy::start(redis.port()), kafka.address());
    let start = |guest: Guest<'_>| guest.start_for(&proxy.url(), &topic);
    let mut by_password = start(Guest::new(&certificates, &sasl).logs_in(ADMIN, "SCRAM-SHA-512"));
    let by_authority = start(Guest::new(&certificates, &tls).trusts("ca.pem"));
    let untouched = start(Guest::new(&certificates, &plain));
    let all = [&by_password, &by_authority, &untouched];
    for sidecar in all {
        wait_until("Kafka takes tasks", || reaches_kafka(sidecar));
    }
    wait_until("each to have a share", || all.iter().all(|sidecar| owned_by(sidecar) == 1));
    let load = Load::start_apart(all.map(Sidecar::address).to_vec());
    load.go_on_for(200);
    proxy.set_mode(Mode::Refuse);
    proxy.cut();
    for sidecar in all {
        sidecar.wait_for_log("Holding the tasks of default");
    }
    load.go_on_for(100);

    kafka.set_password(ADMIN.0, "new-secret");
    certificates.present_by("other");
    kafka.kill9();
    kafka.restart();
    let shut_out =
        [(&by_password, "refused the login", "kafka.sasl"), (&by_authority, "invalid peer certificate", "kafka.tls")];
    wait_until("the third to have all", || owned_by(&untouched) == 3);
    let before = shut_out.map(|(sidecar, ..)| sidecar.executions());
    proxy.set_mode(Mode::Pass);
    for (sidecar, why, _) in shut_out {
        sidecar.wait_for_log("default answers again");
        wait_until(&format!("a line that says: {why}"), || !complaints(sidecar, why).is_empty());
        assert!(sidecar.is_ready());
    }
    untouched.wait_for_log("Released the tasks of default");
    load.go_on_for(200);
    assert_eq!(shut_out.map(|(sidecar, ..)| sidecar.executions()), before, "their leases are over");
    for (sidecar, why, setting) in shut_out {
        is_told_once(sidecar, why, setting);
    }
    assert_eq!(load.unanswered(), 0);

    certificates.present_by("ca");
    kafka.kill9();
    kafka.restart();
    let paused = load.pause();
    by_password.kill9();
    std::fs::write(certificates.file(ADMIN.1), "new-secret").expect("the directory is ours");
    by_password.restart();
    load.moved(0, by_password.address());
    drop(paused);
    for sidecar in [&by_password, &by_authority, &untouched] {
        wait_until("Kafka takes tasks again", || reaches_kafka(sidecar));
    }
    load.go_on_for(200);
    assert_eq!(load.unanswered(), 0);
    load.end(&redis);
}

/// Lines that say why tasks stay here.
fn complaints(sidecar: &Sidecar, why: &str) -> Vec<String> {
    let mut lines = messages(sidecar, why);
    lines.retain(|line| line.starts_with("Appends to Kafka are failing"));
    lines
}

fn messages(sidecar: &Sidecar, text: &str) -> Vec<String> {
    let message = |line: &Value| line["message"].as_str().expect("a line has a message").to_owned();
    sidecar.logged(text).iter().map(message).collect()
}

/// The line is there once and names the setting, however often it is tried again; so is what else was said of that.
fn is_told_once(sidecar: &Sidecar, why: &str, setting: &str) {
    let lines = complaints(sidecar, why);
    assert!(lines.len() == 1 && lines[0].contains(setting) && !lines[0].contains('\n'), "{lines:?}");
    let mut lines = messages(sidecar, setting);
    lines.sort_unstable();
    let all = lines.clone();
    lines.dedup();
    assert_eq!(lines, all, "something is said again and again");
}
