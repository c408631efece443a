use axum::http::StatusCode;
use jiff::Timestamp;
use serde_json::json;

use super::harness::*;
use crate::{
    dead_letters::DeadLetter,
    queue::{Envelope, recent::Settled},
    task::Outcome,
};

async fn submit(world: &World, id: &str) {
    let task = format!(r#"{{"type":"simple","command":"SET","args":["k","secret-value"],"id":"{id}"}}"#);
    assert_eq!(call(&world.data(), post("/tasks", task)).await.status, StatusCode::ACCEPTED);
}

fn settle(world: &World, outcome: Option<Outcome>) {
    let stored = world.stored().pop().expect("a task is stored");
    let identity = Envelope::decode(&stored.record).expect("it can be read").identity;
    world.state.queues.settle([Settled {
        identity,
        outcome,
        attempts: 2,
        last_error: Some("READONLY".into()),
        superseded_by: None,
    }]);
}

pub fn letter(id: &str) -> DeadLetter {
    DeadLetter {
        schema: DeadLetter::SCHEMA,
        id: id.into(),
        target: "default".into(),
        lane: "normal".into(),
        partition: 0,
        offset: 0,
        accepted_at: Timestamp::UNIX_EPOCH,
        dead_at: Timestamp::UNIX_EPOCH,
        reason: "wrong_type".into(),
        code: "WRONGTYPE".into(),
        message: "Operation against a key holding the wrong kind of value".into(),
        attempts: 1,
        first_error_at: Timestamp::UNIX_EPOCH,
        last_error_at: Timestamp::UNIX_EPOCH,
        units: Vec::new(),
        source: None,
        trace_id: None,
        traceparent: None,
        task: serde_json::from_str(r#"{"type":"simple","command":"SET","args":["k","secret-value"]}"#).ok(),
        task_base64: None,
    }
}

#[tokio::test]
async fn stored_task_is_queued_and_then_settled() {
    let world = World::new();
    submit(&world, "a").await;
    let answer = call(&world.data(), get("/tasks/a")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!((&answer.body["status"], &answer.body["attempts"]), (&json!("queued"), &json!(0)));
    assert!(answer.body.get("outcome").is_none());

    settle(&world, Some(Outcome::Applied));
    let answer = call(&world.data(), get("/tasks/a")).await;
    assert_eq!((&answer.body["status"], &answer.body["outcome"]), (&json!("settled"), &json!("applied")));
    assert_eq!((&answer.body["attempts"], &answer.body["last_error"]["message"]), (&json!(2), &json!("READONLY")));
}

#[tokio::test]
async fn dead_task_says_why_also_after_a_restart() {
    let world = World::new();
    submit(&world, "a").await;
    world.state.dead_letters.put(&letter("a")).await.expect("it is stored");
    world.state.dead_letters.put(&letter("forgotten")).await.expect("it is stored");
    for (id, outcome) in [("a", Some(Outcome::Dead)), ("a", None), ("forgotten", None)] {
        if id == "a" {
            settle(&world, outcome);
        }
        let answer = call(&world.data(), get(&format!("/tasks/{id}"))).await;
        assert_eq!((&answer.body["status"], &answer.body["outcome"]), (&json!("settled"), &json!("dead")));
        assert_eq!(
            (&answer.body["reason"], &answer.body["last_error"]["code"]),
            (&json!("wrong_type"), &json!("WRONGTYPE"))
        );
        assert!(!answer.body.to_string().contains("secret-value"));
    }
}

#[tokio::test]
async fn task_settled_by_an_earlier_process_has_no_outcome() {
    let world = World::new();
    submit(&world, "a").await;
    settle(&world, None);
    let answer = call(&world.data(), get("/tasks/a")).await;
    assert_eq!(answer.body["status"], "settled");
    assert!(answer.body.get("outcome").is_none());
}

#[tokio::test]
async fn unknown_task_may_be_one_or_the_other() {
    let world = World::new();
    for id in ["nobody", "a%2Fb", "%ff", "a%20b"] {
        let answer = call(&world.data(), get(&format!("/tasks/{id}"))).await;
        answer.assert_problem("task-unknown");
        let detail = answer.body["detail"].as_str().expect("a sentence");
        assert!(detail.contains("never accepted") && detail.contains("past what is remembered"), "{detail}");
        assert!(answer.body.get("accepted").is_none());
    }
}
