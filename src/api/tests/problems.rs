use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};

use super::harness::*;
use crate::api::openapi;

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

fn request(method: &Method, path: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    request.body(Body::empty()).expect("the request is valid")
}

/// The plane that has a path, told by the servers that the document gives for it.
fn planes(world: &World) -> Vec<(String, Router, Vec<Method>)> {
    let document = serde_json::to_value(openapi::document()).expect("the document is serialisable");
    let paths = document["paths"].as_object().expect("an object").iter();
    paths
        .map(|(path, item)| {
            let router = if item.get("servers").is_some() { world.ops() } else { world.data() };
            let known = METHODS.into_iter().filter(|method| item.get(method.as_str().to_lowercase()).is_some());
            (path.replace("{id}", "a"), router, known.collect())
        })
        .collect()
}

#[tokio::test]
async fn method_that_a_path_does_not_know_is_a_problem_with_allow() {
    let world = World::new();
    for (path, router, known) in planes(&world) {
        for method in METHODS.iter().filter(|method| !known.contains(method)) {
            let answer = call(&router, request(method, &path)).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            answer.assert_problem("method-not-allowed");
            let allow = answer.header("allow").expect("Allow is there");
            assert!(known.iter().all(|known| allow.contains(known.as_str())), "{method} {path}: {allow}");
            assert_eq!(answer.body.get("accepted").is_some(), !method.is_safe());
        }
    }
}

#[tokio::test]
async fn path_that_is_not_there_is_a_problem() {
    let world = World::new();
    for path in ["/", "/task", "/tasks/", "/tasks/a/b", "/admin", "/admin/v1/nothing", "/TASKS", "/tasks%2Fbatch"] {
        for router in [world.data(), world.ops()] {
            for method in &METHODS {
                call(&router, request(method, path)).await.assert_problem("not-found");
            }
        }
    }
    assert!(world.refused("not-found") > 0);
}

#[tokio::test]
async fn panic_of_a_handler_is_a_problem() {
    let world = World::new();
    world.trouble(Some(Trouble::Panic));
    let answer = call(&world.ops(), get("/readyz")).await;
    answer.assert_problem("internal");
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!answer.body.to_string().contains("as the test asked"));
}

#[cfg(feature = "swagger-ui")]
#[tokio::test]
async fn documentation_needs_nothing_from_elsewhere() {
    let world = World::new();
    let page = call(&world.data(), get("/docs/")).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.starts_with("default-src 'self'")));
    for file in ["index.css", "swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js"] {
        let answer = call(&world.data(), get(&format!("/docs/{file}"))).await;
        assert_eq!(answer.status, StatusCode::OK, "{file}");
    }
    let initializer = call(&world.data(), get("/docs/swagger-initializer.js")).await;
    let script = initializer.body.as_str().expect("a script");
    assert!(script.contains("\"/openapi.json\"") && !script.contains("://"), "{script}");
    assert_eq!(call(&world.data(), get("/openapi.json")).await.body["openapi"], "3.1.0");
    let redirect = call(&world.data(), get("/docs")).await;
    assert_eq!(redirect.header("location"), Some("/docs/"));
}
