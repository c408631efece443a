use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::join_all;

use super::harness::*;
use crate::{
    api::Config,
    log::AppendError,
    queue::Envelope,
    task::{DefaultRule, Lane, Late, LateAction, Pattern},
};

#[tokio::test]
async fn stored_task_is_answered_with_its_id_and_place() {
    let world = World::new();
    let answer = call(&world.data(), post("/tasks", TASK)).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let id = answer.body["id"].as_str().expect("an id");
    assert_eq!(uuid::Uuid::parse_str(id).expect("a UUID").get_version_num(), 7);
    assert_eq!(answer.header("location"), Some(format!("/tasks/{id}").as_str()));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("idempotent-replayed"), None);
    assert_eq!(answer.body["status"], "queued");
    assert_eq!(answer.body["durability"], "local");

    let stored = world.stored();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].record.value, TASK.as_bytes());
    let envelope = Envelope::decode(&stored[0].record).expect("it can be read");
    assert_eq!(envelope.id.as_str(), id);
    assert_eq!(answer.body["accepted_at"], envelope.accepted_at.to_string());
}

#[tokio::test]
async fn repeated_request_gets_the_first_answer() {
    let world = World::new();
    let router = world.data();
    let request = || with_header(post("/tasks", TASK), "idempotency-key", "\"order-1\"");
    let first = call(&router, request()).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let second = call(&router, request()).await;
    assert_eq!(second.status, StatusCode::ACCEPTED);
    assert_eq!(second.header("idempotent-replayed"), Some("true"));
    assert_eq!(second.body, first.body);
    assert_eq!(world.stored().len(), 1);
}

#[tokio::test]
async fn id_of_another_operation_is_refused() {
    let world = World::new();
    let router = world.data();
    let request = |body: &'static str| with_header(post("/tasks", body), "idempotency-key", "order-1");
    call(&router, request(TASK)).await;
    let other = call(&router, request(r#"{"type":"simple","command":"DEL","args":["user:42"]}"#)).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    other.assert_problem("idempotency-key-reused");
    assert_eq!(other.body["accepted"], false);
    assert_eq!(world.stored().len(), 1);
}

#[tokio::test]
async fn header_and_task_must_name_the_same_id() {
    let world = World::new();
    let task = r#"{"type":"simple","command":"SET","args":["k","v"],"id":"a"}"#;
    let answer = call(&world.data(), with_header(post("/tasks", task), "idempotency-key", "b")).await;
    answer.assert_problem("idempotency-key-mismatch");
    assert_eq!(answer.body["errors"][0]["pointer"], "/id");
    assert!(world.stored().is_empty());
}

#[tokio::test]
async fn fifty_clients_with_one_id_store_one_task() {
    let world = World::new();
    let (address, _server) = world.serve_data();
    let task = r#"{"type":"simple","command":"INCR","args":["k"],"id":"order-1"}"#;
    let answers = join_all((0..50).map(|_| exchange(address, raw_post(address, task)))).await;
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 202 ")), "{answers:?}");
    let replayed = answers.iter().filter(|answer| answer.contains("idempotent-replayed: true")).count();
    assert_eq!(replayed, 49);
    assert_eq!(world.stored().len(), 1);
}

#[tokio::test]
async fn trace_context_is_kept_and_a_malformed_one_ignored() {
    const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let world = World::new();
    for (given, kept) in [(CONTEXT, Some(CONTEXT)), ("00-nonsense", None)] {
        let answer = call(&world.data(), with_header(post("/tasks", TASK), "traceparent", given)).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        let stored = world.stored().pop().expect("it is stored");
        let envelope = Envelope::decode(&stored.record).expect("it can be read");
        assert_eq!(envelope.traceparent.as_deref(), kept);
    }
}

#[tokio::test]
async fn what_a_rule_says_is_stored_with_the_task() {
    let late = Late { after: Duration::from_secs(30), action: LateAction::Invalidate };
    let cached = DefaultRule {
        key: Some(Pattern::new("cache:*")),
        late: Some(late),
        max_retries: Some(5),
        ..DefaultRule::default()
    };
    let reports =
        DefaultRule { source: Some(Pattern::new("reports")), lane: Some(Lane::Low), ..DefaultRule::default() };
    let world = World::with_defaults(Config::default(), vec![cached, reports]);
    let task = |key: &str, more: &str| format!(r#"{{"type":"simple","command":"SET","args":["{key}","v"]{more}}}"#);
    let tasks = [task("other", ""), task("cache:1", ""), task("cache:2", r#","max_retries":1"#)];
    let envelopes = || world.stored().into_iter().map(|entry| Envelope::decode(&entry.record).expect("readable"));
    let said = || envelopes().map(|envelope| (envelope.late, envelope.max_retries)).collect::<Vec<_>>();
    let expected = [(None, None), (Some(late), Some(5)), (Some(late), None)];
    for task in &tasks {
        assert_eq!(call(&world.data(), post("/tasks", task.clone())).await.status, StatusCode::ACCEPTED);
    }
    assert_eq!(said(), expected);
    let batch = format!(r#"{{"tasks":[{}]}}"#, tasks.join(","));
    assert_eq!(call(&world.data(), post("/tasks/batch", batch)).await.status, StatusCode::ACCEPTED);
    assert_eq!(said(), [expected, expected].concat());

    let lanes = || world.state.queues.log().depth().into_iter().map(|depth| depth.partition.queue.lane);
    assert_eq!(lanes().filter(|lane| *lane == "low").count(), 0);
    let low = task("k", r#","source":"reports""#);
    assert_eq!(call(&world.data(), post("/tasks", low)).await.status, StatusCode::ACCEPTED);
    let own = task("k", r#","source":"reports","priority":"high""#);
    assert_eq!(call(&world.data(), post("/tasks", own)).await.status, StatusCode::ACCEPTED);
    assert_eq!(said().len(), 6);
    assert!(lanes().any(|lane| lane == "low") && lanes().any(|lane| lane == "high"));
}

#[tokio::test]
async fn what_cannot_be_stored_is_told_as_not_accepted() {
    let world = World::new();
    let cases = [
        (AppendError::Full { retry_after: Duration::from_secs(3) }, "queue-full", true),
        (AppendError::Unavailable { reason: "no disk".into() }, "queue-unavailable", true),
        (AppendError::Closed, "draining", true),
        (AppendError::TooLarge { bytes: 10, limit: 5 }, "payload-too-large", false),
    ];
    for (error, slug, retryable) in cases {
        world.trouble(Some(Trouble::Error(error)));
        let answer = call(&world.data(), post("/tasks", TASK)).await;
        answer.assert_problem(slug);
        assert_eq!((&answer.body["accepted"], &answer.body["retryable"]), (&false.into(), &retryable.into()));
        assert_eq!(world.refused(slug), 1);
    }
    world.trouble(None);
    assert_eq!(call(&world.data(), post("/tasks", TASK)).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn unknown_fate_is_not_answered() {
    let world = World::new();
    let (address, _server) = world.serve_data();
    let batch = format!(r#"{{"tasks":[{TASK}]}}"#);
    let batch = raw_post(address, &batch).replace("/tasks ", "/tasks/batch ");
    for trouble in [Trouble::Error(AppendError::FateUnknown), Trouble::Panic] {
        world.trouble(Some(trouble));
        assert_eq!(exchange(address, raw_post(address, TASK)).await, "");
        assert_eq!(exchange(address, &batch).await, "");
    }
    world.trouble(None);
    assert!(exchange(address, raw_post(address, TASK)).await.starts_with("HTTP/1.1 202 "));
}

#[tokio::test]
async fn stopping_server_takes_no_task() {
    let world = World::new();
    world.state.readiness.set_draining();
    for path in ["/tasks", "/tasks/batch"] {
        call(&world.data(), post(path, TASK)).await.assert_problem("draining");
    }
    assert!(world.stored().is_empty());
}

#[tokio::test]
async fn refused_task_says_what_to_correct_and_never_a_value() {
    let world = World::new();
    let task = r#"{"type":"simple","command":"SET","args":["k","secret-value",null],"colour":"secret-value"}"#;
    let answer = call(&world.data(), post("/tasks", task)).await;
    answer.assert_problem("validation-failed");
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer.body["errors"].as_array().is_some_and(|errors| errors.len() >= 2), "{answer:?}");
    assert!(!answer.body.to_string().contains("secret-value"));
    let answer = call(&world.data(), post("/tasks", r#"{"type":"simple","command":"FLUSHALL","args":[]}"#)).await;
    answer.assert_problem("command-not-allowed");
    assert_eq!(world.refused("command-not-allowed"), 1);
}
