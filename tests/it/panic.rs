//! A panic while a request is handled is that request's failure, and nobody else's.

use serde_json::json;

use crate::harness::{Fault, Faults, Redis, Sidecar, rpush};

/// More than the connections that may be open at once, so that one which were not given back would be missed.
const PANICS: usize = 20;

#[test]
fn panic_of_a_handler_is_one_answer_and_the_process_goes_on() {
    let redis = Redis::start(&[]);
    let faults = Faults::new();
    let most = ["--http-max-connections", "10"];
    let mut sidecar = Sidecar::start_in(faults.environment(), &redis.url(), &most);
    sidecar.post(&rpush("before", "log"));
    sidecar.wait_until_done();
    // Whether an unknown task is dead is looked up by a thread of its own. Where there can be none, the runtime panics
    // in the middle of the handler.
    faults.begin(Fault::NoThreads);
    for _ in 0..PANICS {
        for answer in [sidecar.get("canary5309"), sidecar.ops("/admin/v1/dead-letters/canary5309")] {
            assert_eq!(answer.status, 500, "{}", answer.body);
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
            let problem = answer.json();
            assert_eq!(problem["type"], "urn:redrive:problem:internal");
            assert_eq!(problem["detail"], "the server failed to handle the request", "nothing of the panic is told");
        }
        sidecar.post(&rpush("meanwhile", "log"));
    }
    assert_eq!(sidecar.metric(r#"redrive_tasks_refused_total{reason="internal"}"#), 2.0 * PANICS as f64);
    let line = sidecar.wait_for_log("A request's handler panicked");
    assert_eq!(line["level"], "ERROR");
    assert!(sidecar.is_ready());

    faults.end(Fault::NoThreads);
    let answer = sidecar.get("canary5309");
    assert_eq!((answer.status, &answer.json()["type"]), (404, &json!("urn:redrive:problem:task-unknown")));
    sidecar.post(&rpush("after", "log"));
    sidecar.wait_until_done();
    assert_eq!(redis.list("log"), ["before", "meanwhile", "after"]);
    assert_eq!(sidecar.term().code(), Some(0));
    assert_eq!(sidecar.logged("Panicked at src/").len(), 2 * PANICS, "the log has the place of each");
    assert!(sidecar.logs().iter().all(|line| !line.contains("canary5309")));
}
