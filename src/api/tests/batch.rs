use axum::http::StatusCode;
use serde_json::{Value, json};

use super::harness::*;
use crate::{api::Config, log::AppendError, queue::Envelope};

fn batch(tasks: &[&str]) -> String {
    format!(r#"{{"tasks": [{}]}}"#, tasks.join(" , "))
}

#[tokio::test]
async fn every_task_is_stored_as_its_own_bytes() {
    let world = World::new();
    let other = r#"{ "type" : "simple","command":"DEL","args":["b"], "id":"b" }"#;
    let answer = call(&world.data(), post("/tasks/batch", batch(&[TASK, other]))).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    assert_eq!((&answer.body["accepted"], &answer.body["refused"]), (&json!(2), &json!(0)));
    assert_eq!(answer.body["results"][1], json!({"index": 1, "status": "accepted", "id": "b"}));
    let stored = world.stored();
    assert_eq!(stored[0].record.value, TASK.as_bytes());
    assert_eq!(stored[1].record.value, other.as_bytes());
    let id = Envelope::decode(&stored[0].record).expect("it can be read").id.to_string();
    assert_eq!(answer.body["results"][0]["id"], id);
}

#[tokio::test]
async fn refused_task_does_not_hold_the_others_up() {
    let world = World::new();
    let tasks =
        [TASK, r#"{"type":"simple","command":"GET","args":["a"]}"#, "7", r#"{"type":"simple","command":"SET"}"#];
    let answer = call(&world.data(), post("/tasks/batch", batch(&tasks))).await;
    assert_eq!(answer.status, StatusCode::MULTI_STATUS);
    assert_eq!((&answer.body["accepted"], &answer.body["refused"]), (&json!(1), &json!(3)));
    let results = answer.body["results"].as_array().expect("a list");
    let indexes: Vec<_> = results.iter().map(|result| result["index"].as_u64().expect("a number")).collect();
    assert_eq!(indexes, [0, 1, 2, 3]);
    assert_eq!(results[1]["status"], "refused");
    assert_eq!(results[1]["problem"]["type"], "urn:redrive:problem:command-not-allowed");
    assert_eq!(results[1]["problem"]["accepted"], false);
    let pointer = results[1]["problem"]["errors"][0]["pointer"].as_str().expect("a pointer");
    assert!(pointer.starts_with("/tasks/1"), "{pointer}");
    assert_eq!(world.stored().len(), 1);
    assert_eq!(world.refused("command-not-allowed"), 1);
}

#[tokio::test]
async fn faulty_envelope_stores_nothing() {
    let world = World::with(Config { max_batch: 2, ..Config::default() });
    let cases = [
        ("[]".to_owned(), "validation-failed"),
        (r#"{"tasks":{}}"#.to_owned(), "validation-failed"),
        (r#"{"tasks":[]}"#.to_owned(), "validation-failed"),
        ("{}".to_owned(), "validation-failed"),
        (format!(r#"{{"tasks":[{TASK}],"mode":"fast"}}"#), "validation-failed"),
        (batch(&[TASK, TASK, TASK]), "validation-failed"),
        (format!(r#"{{"tasks":[{TASK}"#), "malformed-json"),
        (format!(r#"{{"tasks":[{TASK}, SET]}}"#), "malformed-json"),
    ];
    for (body, slug) in cases {
        let answer = call(&world.data(), post("/tasks/batch", body)).await;
        answer.assert_problem(slug);
        assert_eq!(answer.body["accepted"], false);
    }
    let keyed = with_header(post("/tasks/batch", batch(&[TASK])), "idempotency-key", "a");
    call(&world.data(), keyed).await.assert_problem("idempotency-key-invalid");
    assert!(world.stored().is_empty());
}

#[tokio::test]
async fn same_id_twice_is_stored_once() {
    let world = World::new();
    let task = r#"{"type":"simple","command":"INCR","args":["a"],"id":"a"}"#;
    let answer = call(&world.data(), post("/tasks/batch", batch(&[task, task]))).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    assert_eq!(world.stored().len(), 1);
}

#[tokio::test]
async fn batch_that_cannot_be_stored_is_a_problem_of_its_own() {
    let world = World::new();
    world.trouble(Some(Trouble::Error(AppendError::Unavailable { reason: "no disk".into() })));
    let answer = call(&world.data(), post("/tasks/batch", batch(&[TASK, TASK]))).await;
    answer.assert_problem("queue-unavailable");
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    // With a task that is refused for good among them, each is told its own reason.
    let answer = call(&world.data(), post("/tasks/batch", batch(&[TASK, "7"]))).await;
    assert_eq!(answer.status, StatusCode::MULTI_STATUS);
    let retryable: Vec<&Value> = [0, 1].map(|index| &answer.body["results"][index]["problem"]["retryable"]).into();
    assert_eq!(retryable, [&json!(true), &json!(false)]);
}

#[tokio::test]
async fn tiny_items_in_great_number_are_refused() {
    let world = World::new();
    let items = vec!["0"; 1_000_000].join(",");
    let answer = call(&world.data(), post("/tasks/batch", format!(r#"{{"tasks":[{items}]}}"#))).await;
    answer.assert_problem("validation-failed");
}
