//! Delivers lines through `POST /tasks/batch` until every one has a verdict: accepted, or refused with a reason.
//!
//! Whatever has no verdict (nobody there, no answer, "later") is sent again with the same ids: it is the same task
//! then, however often it arrives.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use hyper::{
    Method, StatusCode,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        http::{Answer, Endpoint, request},
        problem::Problem,
    },
    task::{Line, Refused, Task},
};

/// How long one request may take; far above what a server takes that is not stuck.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Hands lines in at one place.
pub struct Sender {
    endpoint: Endpoint,
    wait: Duration,
}

impl Sender {
    /// `wait` is how long a batch is tried again.
    pub fn new(endpoint: Endpoint, wait: Duration) -> Self {
        Self { endpoint, wait }
    }

    /// Hands in all lines, in their order, and returns those that were refused.
    ///
    /// # Errors
    ///
    /// When `wait` has passed, or when no task would be taken there (a wrong address, say). What was accepted before
    /// is unknown then.
    pub async fn deliver(&self, lines: Vec<Line>) -> anyhow::Result<Vec<Refused>> {
        let mut refused = Vec::new();
        let mut batches = vec![lines];
        let mut patience = Patience::new(self.wait);
        while let Some(mut batch) = batches.pop() {
            if batch.is_empty() {
                continue;
            }
            match self.send(&batch).await? {
                Verdict::Judged(mut results) => {
                    refused.extend(results.refused);
                    results.later.sort_unstable();
                    let later: Vec<Line> = keep(batch, &results.later);
                    if !later.is_empty() {
                        patience.pause(None, "the server takes these later").await?;
                        batches.push(later);
                    }
                }
                Verdict::Later { after, reason } => {
                    patience.pause(after, &reason).await?;
                    batches.push(batch);
                }
                // The server's bounds are narrower than ours, or one line spoils the batch: halves will tell.
                Verdict::Refused(_) if batch.len() > 1 => {
                    let second_half = batch.split_off(batch.len() / 2);
                    batches.push(second_half);
                    batches.push(batch);
                }
                Verdict::Refused(reason) => refused.push(Refused { line: batch[0].number, reason }),
            }
        }
        refused.sort_by_key(|refused| refused.line);
        Ok(refused)
    }

    async fn send(&self, batch: &[Line]) -> anyhow::Result<Verdict> {
        let body = Body { tasks: batch.iter().map(|line| &line.task).collect() };
        let body = Bytes::from(serde_json::to_vec(&body).expect("tasks are JSON already"));
        let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        match request(&self.endpoint, Method::POST, "/tasks/batch", &headers, body, REQUEST_TIMEOUT).await {
            Ok(answer) => judge(&self.endpoint, batch, &answer),
            Err(error) if error.may_pass() => {
                Ok(Verdict::Later { after: None, reason: format!("{:#}", anyhow::Error::from(error)) })
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    tasks: Vec<&'a Task>,
}

#[derive(Deserialize)]
struct BatchAnswer {
    results: Vec<ItemResult>,
}

#[derive(Deserialize)]
struct ItemResult {
    index: usize,
    status: String,
    problem: Option<Problem>,
}

/// What one request came to.
enum Verdict {
    /// Those of its lines that are not accepted; all others are.
    Judged(Judged),
    /// Nothing was accepted, or nobody knows.
    Later { after: Option<Duration>, reason: String },
    /// The batch was refused as a whole.
    Refused(String),
}

#[derive(Default)]
struct Judged {
    refused: Vec<Refused>,
    /// Places in the batch of lines that are to be sent again.
    later: Vec<usize>,
}

fn judge(endpoint: &Endpoint, batch: &[Line], answer: &Answer) -> anyhow::Result<Verdict> {
    match answer.status {
        StatusCode::ACCEPTED => Ok(Verdict::Judged(Judged::default())),
        StatusCode::MULTI_STATUS => judge_each(batch, &answer.body).map(Verdict::Judged),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            let after = retry_after(&answer.headers);
            Ok(Verdict::Later { after, reason: Problem::of(answer).to_string() })
        }
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
            Ok(Verdict::Refused(Problem::of(answer).to_string()))
        }
        status => anyhow::bail!("{endpoint} answers {}: {}", status.as_u16(), Problem::of(answer)),
    }
}

fn judge_each(batch: &[Line], body: &[u8]) -> anyhow::Result<Judged> {
    let answer: BatchAnswer = serde_json::from_slice(body).context("the answer to a batch cannot be understood")?;
    let mut judged = Judged::default();
    for result in answer.results.into_iter().filter(|result| result.status != "accepted") {
        let line = batch.get(result.index).context("the answer to a batch names a task that was not sent")?;
        let problem = result.problem.unwrap_or_default();
        if problem.retryable {
            judged.later.push(result.index);
        } else {
            judged.refused.push(Refused { line: line.number, reason: problem.to_string() });
        }
    }
    Ok(judged)
}

fn keep(batch: Vec<Line>, places: &[usize]) -> Vec<Line> {
    let kept = batch.into_iter().enumerate().filter(|(place, _)| places.binary_search(place).is_ok());
    kept.map(|(_, line)| line).collect()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// How long there will be another try, and how long until it.
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    fn new(wait: Duration) -> Self {
        Self { until: Instant::now() + wait, pause: FIRST_PAUSE }
    }

    /// Waits as long as the server asks for, or else twice as long as before. Fails when that would be too long.
    async fn pause(&mut self, asked_for: Option<Duration>, reason: &str) -> anyhow::Result<()> {
        let pause = asked_for.unwrap_or(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        anyhow::ensure!(Instant::now() + pause <= self.until, "given up: {reason}");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::http::testing::Server, *};

    fn lines(count: usize) -> Vec<Line> {
        (1..=count).map(|number| Line::new(number, Task::of_json("{}").expect("an object"))).collect()
    }

    fn ids(body: &[u8]) -> Vec<String> {
        let body: serde_json::Value = serde_json::from_slice(body).expect("a batch is JSON");
        let tasks = body["tasks"].as_array().expect("a batch has tasks").clone();
        tasks.iter().map(|task| task["id"].as_str().expect("every task has an id").into()).collect()
    }

    async fn deliver(server: &Server, count: usize, wait: Duration) -> anyhow::Result<Vec<Refused>> {
        Sender::new(server.endpoint().clone(), wait).deliver(lines(count)).await
    }

    #[tokio::test]
    async fn what_has_no_answer_is_repeated_with_its_ids() {
        let server = Server::tcp().await;
        server.hang_up();
        server.answer(503, &[("Retry-After", "0")], "{}");
        server.answer(202, &[], "{}");
        let refused = deliver(&server, 2, Duration::from_secs(60)).await.expect("they are accepted in the end");
        assert_eq!(refused, []);
        let asked: Vec<_> = server.requests().iter().map(|asked| ids(&asked.body)).collect();
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().all(|ids| *ids == asked[0]));
        assert_eq!(server.requests()[0].headers[CONTENT_TYPE], "application/json");
    }

    #[tokio::test]
    async fn refused_lines_are_named_and_later_ones_sent_again() {
        let server = Server::tcp().await;
        let results = r#"{"accepted": 1, "refused": 2, "results": [
            {"index": 0, "status": "refused", "problem": {"title": "No", "detail": "GET is not a write", "retryable": false}},
            {"index": 1, "status": "refused", "problem": {"title": "The journal is full", "retryable": true}},
            {"index": 2, "status": "accepted", "id": "x"}]}"#;
        server.answer(207, &[], results);
        server.answer(202, &[], "{}");
        let refused = deliver(&server, 3, Duration::from_secs(60)).await.expect("every line has a verdict");
        assert_eq!(refused, [Refused { line: 1, reason: "GET is not a write".into() }]);
        let asked = server.requests();
        assert_eq!(ids(&asked[1].body), ids(&asked[0].body)[1..2]);
    }

    #[tokio::test]
    async fn batch_that_is_too_large_is_halved() {
        let server = Server::tcp().await;
        server.answer(413, &[], r#"{"title": "too large"}"#);
        server.answer(202, &[], "{}");
        server.answer(413, &[], r#"{"title": "too large"}"#);
        let refused = deliver(&server, 2, Duration::from_secs(60)).await.expect("every line has a verdict");
        assert_eq!(refused, [Refused { line: 2, reason: "too large".into() }]);
    }

    #[tokio::test]
    async fn wrong_place_and_lost_patience_end_it() {
        let server = Server::tcp().await;
        server.answer(404, &[], "");
        let error = deliver(&server, 1, Duration::from_secs(60)).await.expect_err("there is no such path");
        assert!(error.to_string().contains("answers 404"), "{error}");

        server.answer(503, &[("Retry-After", "3600")], r#"{"title": "The journal is full"}"#);
        let error = deliver(&server, 1, Duration::from_secs(60)).await.expect_err("that is too long");
        assert_eq!(error.to_string(), "given up: The journal is full");
    }
}
