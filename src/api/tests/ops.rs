use axum::http::StatusCode;
use serde_json::json;

use super::{harness::*, status::letter};
use crate::{
    api::{Config, Token},
    log::AppendError,
};

#[tokio::test]
async fn ready_means_that_a_task_can_be_stored() {
    let world = World::new();
    for plane in [world.data(), world.ops()] {
        let answer = call(&plane, get("/readyz")).await;
        assert_eq!((answer.status, answer.body), (StatusCode::OK, json!("ok\n")));
    }
    world.trouble(Some(Trouble::Error(AppendError::Unavailable { reason: "no disk".into() })));
    let answer = call(&world.ops(), get("/readyz")).await;
    answer.assert_problem("not-ready");
    let answer = call(&world.ops(), get("/readyz?verbose")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let lines = answer.body.as_str().expect("text");
    assert!(lines.contains("[-] log: ") && lines.contains("[+] serving ok"), "{lines}");
    assert_eq!(call(&world.ops(), get("/livez")).await.status, StatusCode::OK);
    world.trouble(None);
    world.state.readiness.set_draining();
    call(&world.data(), get("/readyz")).await.assert_problem("not-ready");
}

#[tokio::test]
async fn startup_is_told_once_everything_runs() {
    let world = World::new();
    call(&world.ops(), get("/startupz")).await.assert_problem("not-ready");
    world.state.readiness.set_started();
    assert_eq!(call(&world.ops(), get("/startupz")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn metrics_and_version_are_open() {
    let world = World::with(Config { token: Some(Token::new(b"correct-horse-battery")), ..Config::default() });
    let answer = call(&world.ops(), get("/metrics")).await;
    assert!(answer.body.as_str().is_some_and(|text| text.contains("\nkafka_consumer_lag 0\n")));
    assert_eq!(call(&world.ops(), get("/version")).await.body, json!({"version": env!("CARGO_PKG_VERSION")}));
}

#[tokio::test]
async fn overview_and_partitions_count_what_waits() {
    let world = World::new();
    call(&world.data(), post("/tasks", TASK)).await;
    let overview = call(&world.ops(), get("/admin/v1/overview")).await;
    assert_eq!((&overview.body["unfinished"], &overview.body["ready"]), (&json!(1), &json!(true)), "{overview:?}");
    let partitions = call(&world.ops(), get("/admin/v1/partitions")).await;
    let first = &partitions.body["items"][0];
    assert_eq!(
        (&first["target"], &first["lane"], &first["finished"]),
        (&json!("default"), &json!("normal"), &json!(0))
    );
}

#[tokio::test]
async fn dead_letters_are_listed_in_pages_without_values() {
    let world = World::new();
    assert_eq!(call(&world.ops(), get("/admin/v1/dead-letters")).await.body, json!({"items": []}));
    for number in 0..5 {
        world.state.dead_letters.put(&letter(&format!("t{number}"))).await.expect("it is stored");
    }
    let mut found = Vec::new();
    let mut path = "/admin/v1/dead-letters?limit=2".to_owned();
    loop {
        let page = call(&world.ops(), get(&path)).await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        assert!(!page.body.to_string().contains("secret-value"));
        let items = page.body["items"].as_array().expect("a list");
        found.extend(items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()));
        let Some(cursor) = page.body.get("next_cursor") else { break };
        path = format!("/admin/v1/dead-letters?limit=2&cursor={}", cursor.as_str().expect("a cursor"));
    }
    assert_eq!(found, ["t4", "t3", "t2", "t1", "t0"]);

    let one = call(&world.ops(), get("/admin/v1/dead-letters/t3")).await;
    assert_eq!(one.body["task"]["args"], json!(["k", "secret-value"]));
    call(&world.ops(), get("/admin/v1/dead-letters/t9")).await.assert_problem("dead-letter-unknown");
}

#[tokio::test]
async fn malformed_paging_is_refused() {
    let world = World::new();
    for query in ["limit=0", "limit=501", "limit=x", "cursor=!", "cursor=AAAA", "limit=1&limit=2", "page=2"] {
        let answer = call(&world.ops(), get(&format!("/admin/v1/dead-letters?{query}"))).await;
        answer.assert_problem("invalid-request");
    }
}
