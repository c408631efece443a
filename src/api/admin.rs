//! The admin API: what an operator looks at. It reads, and changes nothing.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State as Extract, rejection::PathRejection},
    http::Uri,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::json;

use super::{
    State, ops,
    problem::{Problem, ProblemType},
    schema::{
        BreakerList, BreakerReason, BreakerStatus, DeadLetterDocument, DeadLetterList, DeadUnitDocument, Overview,
        PartitionList, PartitionStatus, ReadProblems, TargetStatus, TokenProblems,
    },
};
use crate::{
    consumer::{BreakerOverview, TargetOverview},
    dead_letters::DeadLetter,
    log::{Depth, Owner},
    task::TaskId,
};

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 500;

/// The process at a glance
///
/// What every target's worker does, what waits, and whether tasks are taken.
#[utoipa::path(
    get, path = "/admin/v1/overview", operation_id = "getOverview", tag = "admin",
    responses((status = 200, description = "The process at a glance.", body = Overview, examples(("outage" = (
        summary = "Redis is down", value = json!({
            "scope": "process", "version": "0.1.0", "ready": true, "unfinished": 2, "bytes": 262144, "dead_letters": 0,
            "targets": [{"target": "default", "url": "redis://127.0.0.1:6379/0", "breaker": "open",
                "held_since": "2026-11-25T11:58:00Z", "held_by": "connection refused", "held_commands": [], "ready": 0,
                "backoff": 0, "held": 2, "in_flight": 0, "window_bytes": 400,
                "oldest_accepted_at": "2026-11-25T11:58:01Z"}]}))))),
        ReadProblems, TokenProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn get_overview(Extract(state): Extract<Arc<State>>) -> Result<Json<Overview>, Problem> {
    let targets = state.consumer.overview().await;
    let dead_letters = state.dead_letters.count().await?;
    let depth = state.queues.log().depth();
    let not_ready = ops::readiness(&state).into_iter().find_map(|(_, result)| result.err());
    Ok(Json(Overview {
        scope: "process",
        version: env!("CARGO_PKG_VERSION"),
        ready: not_ready.is_none(),
        not_ready_because: not_ready,
        unfinished: depth.iter().filter(|depth| !depth.is_elsewhere()).map(Depth::lag).sum(),
        bytes: depth.iter().map(|depth| depth.bytes).sum(),
        dead_letters: dead_letters as u64,
        targets: targets.into_iter().map(target_status).collect(),
    }))
}

fn target_status(target: TargetOverview) -> TargetStatus {
    TargetStatus {
        target: target.target,
        url: target.url,
        breaker: target.breaker,
        held_since: target.held_since,
        held_by: target.held_by,
        held_commands: target.held_commands,
        ready: target.ready,
        backoff: target.backoff,
        held: target.held,
        in_flight: target.in_flight,
        window_bytes: target.window_bytes,
        oldest_accepted_at: target.oldest_accepted_at,
    }
}

/// The breakers
///
/// Whether each target is used, how much is sent to it at a time, and how fast.
#[utoipa::path(
    get, path = "/admin/v1/breakers", operation_id = "listBreakers", tag = "admin",
    responses((status = 200, description = "One for each target.", body = BreakerList, examples(("ramp" = (
        summary = "Redis has returned", value = json!({"items": [{
            "target": "default", "state": "ramp",
            "reason": {"code": "connection-refused", "message": "nothing accepts connections there"},
            "since": "2026-11-25T12:00:00Z", "held": 0, "batches": 1, "limit_batches": 2, "batch_units": 128,
            "rate": 4870.0, "rate_limit": 5000.0, "spared_until": "2026-11-25T12:00:29Z", "ping_ms": 0.21,
            "ping_baseline_ms": 0.18}]}))))),
        ReadProblems, TokenProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn list_breakers(Extract(state): Extract<Arc<State>>) -> Json<BreakerList> {
    let breakers = state.consumer.breakers().await;
    Json(BreakerList { items: breakers.into_iter().map(breaker_status).collect() })
}

fn breaker_status(breaker: BreakerOverview) -> BreakerStatus {
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    BreakerStatus {
        target: breaker.target,
        state: breaker.state,
        reason: breaker.reason.map(|(code, message)| BreakerReason { code, message }),
        since: breaker.since,
        next_probe_at: breaker.next_probe_at,
        held: breaker.held,
        batches: breaker.batches,
        limit_batches: breaker.limit_batches,
        batch_units: breaker.batch_units,
        rate: breaker.rate,
        rate_limit: breaker.rate_limit,
        spared_until: breaker.spared_until,
        ping_ms: breaker.ping.map(millis),
        ping_baseline_ms: breaker.ping_baseline.map(millis),
    }
}

/// The partitions
///
/// How far each is finished, who works on it, and what holds its watermark. With Kafka, those of other members of the
/// group too.
#[utoipa::path(
    get, path = "/admin/v1/partitions", operation_id = "listPartitions", tag = "admin",
    responses((status = 200, description = "All partitions that exist.", body = PartitionList, examples(("one" = (
        summary = "One partition", value = json!({"items": [{
            "target": "default", "lane": "normal", "partition": 0, "end": 12, "finished": 10, "lag": 2,
            "owner": "this", "bytes": 262144, "in_window": 2, "first_id": "order-1", "first_status": "held",
            "first_waits_for": "connection refused (connection)",
            "oldest_accepted_at": "2026-11-25T11:58:01Z"}]}))))),
        ReadProblems, TokenProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn list_partitions(Extract(state): Extract<Arc<State>>) -> Json<PartitionList> {
    let targets = state.consumer.overview().await;
    let depth = state.queues.log().depth();
    let mut items: Vec<_> = depth.into_iter().map(|depth| partition_status(depth, &targets)).collect();
    if let Some((log, targets)) = state.consumer.overview_beside().await {
        let left = log.depth().into_iter().filter(|depth| depth.lag() > 0);
        items.extend(left.map(|depth| PartitionStatus { log: Some("earlier"), ..partition_status(depth, &targets) }));
    }
    Json(PartitionList { items })
}

fn partition_status(depth: Depth, targets: &[TargetOverview]) -> PartitionStatus {
    let lag = depth.lag();
    let queue = depth.partition.queue;
    let window = targets.iter().filter(|target| *target.target == *queue.target).flat_map(|target| &target.partitions);
    let window = window.into_iter().find(|found| found.lane == queue.lane && found.index == depth.partition.index);
    let first = window.and_then(|window| window.first.clone());
    PartitionStatus {
        target: queue.target.to_string(),
        lane: queue.lane,
        partition: depth.partition.index,
        log: None,
        end: depth.end,
        finished: depth.finished,
        lag,
        owner: match depth.owner {
            Owner::Us => "this".to_owned(),
            Owner::Other(member) => member.to_string(),
            Owner::Nobody => "none".to_owned(),
        },
        held_by: depth.held_by,
        bytes: depth.bytes,
        in_window: window.map_or(0, |window| window.unfinished),
        first_status: first.as_ref().map(|first| first.state.as_str()),
        oldest_accepted_at: first.as_ref().map(|first| first.accepted_at),
        first_waits_for: first.as_ref().and_then(|first| first.waits_for.clone()),
        first_id: first.map(|first| first.id),
    }
}

/// The dead letters
///
/// Newest first, without the tasks' own bytes.
#[utoipa::path(
    get, path = "/admin/v1/dead-letters", operation_id = "listDeadLetters", tag = "admin",
    params(
        ("limit" = Option<u32>, Query, nullable = false, minimum = 1, maximum = 500,
            description = "How many at most. Default: 50."),
        ("cursor" = Option<String>, Query, nullable = false,
            description = "`next_cursor` of the page before. What it holds is nobody's business."),
    ),
    responses((status = 200, description = "A page.", body = DeadLetterList, examples(("one" = (
        summary = "One dead letter", value = json!({"items": [example_letter()]}))))),
        ReadProblems, TokenProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn list_dead_letters(
    Extract(state): Extract<Arc<State>>,
    uri: Uri,
) -> Result<Json<DeadLetterList>, Problem> {
    let (limit, before) = paging(&uri)?;
    let page = state.dead_letters.list(before, limit).await?;
    let items =
        page.items.into_iter().map(|letter| DeadLetterDocument { task: None, task_base64: None, ..letter.into() });
    Ok(Json(DeadLetterList { items: items.collect(), next_cursor: page.next.map(cursor) }))
}

/// One dead letter
///
/// With the task as it was sent, its values included.
#[utoipa::path(
    get, path = "/admin/v1/dead-letters/{id}", operation_id = "getDeadLetter", tag = "admin",
    params(("id" = String, Path, description = "The task's id.")),
    responses((status = 200, description = "The dead letter.", body = DeadLetterDocument, examples(("one" = (
        summary = "A dead letter", value = json!(example_letter()))))),
        ReadProblems, TokenProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn get_dead_letter(
    Extract(state): Extract<Arc<State>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<DeadLetterDocument>, Problem> {
    let unknown = || Problem::new(ProblemType::DeadLetterUnknown, "no dead letter of this id is kept");
    let id = id.ok().and_then(|Path(id)| TaskId::parse(&id).ok()).ok_or_else(unknown)?;
    let letter = state.dead_letters.find(&id).await?.ok_or_else(unknown)?;
    Ok(Json(letter.into()))
}

impl From<DeadLetter> for DeadLetterDocument {
    fn from(letter: DeadLetter) -> Self {
        Self {
            id: letter.id,
            target: letter.target,
            lane: letter.lane,
            partition: letter.partition,
            offset: letter.offset,
            accepted_at: letter.accepted_at,
            dead_at: letter.dead_at,
            reason: letter.reason,
            code: letter.code,
            message: letter.message,
            attempts: letter.attempts,
            first_error_at: letter.first_error_at,
            last_error_at: letter.last_error_at,
            units: letter
                .units
                .into_iter()
                .map(|unit| DeadUnitDocument {
                    index: unit.index,
                    outcome: unit.outcome,
                    code: unit.code,
                    message: unit.message,
                })
                .collect(),
            source: letter.source,
            trace_id: letter.trace_id,
            traceparent: letter.traceparent,
            task: letter.task,
            task_base64: letter.task_base64,
        }
    }
}

fn example_letter() -> serde_json::Value {
    json!({
        "id": "order-1", "target": "default", "lane": "normal", "partition": 0, "offset": 10,
        "accepted_at": "2026-11-25T12:00:00.123Z", "dead_at": "2026-11-25T12:00:01Z", "reason": "wrong_type",
        "code": "WRONGTYPE", "message": "Operation against a key holding the wrong kind of value", "attempts": 1,
        "first_error_at": "2026-11-25T12:00:01Z", "last_error_at": "2026-11-25T12:00:01Z"
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Paging {
    limit: Option<usize>,
    cursor: Option<String>,
}

fn paging(uri: &Uri) -> Result<(usize, Option<u64>), Problem> {
    let invalid = |detail: &'static str| Problem::new(ProblemType::InvalidRequest, detail);
    let Query(Paging { limit, cursor }) = Query::try_from_uri(uri)
        .map_err(|_| invalid("the query may have limit, a whole number, and cursor, each once"))?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(invalid("the limit must be from 1 to 500"));
    }
    let before = cursor.map(|cursor| position(&cursor).ok_or_else(|| invalid("the cursor is not one of ours")));
    Ok((limit, before.transpose()?))
}

fn cursor(position: u64) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(position.to_be_bytes())
}

fn position(cursor: &str) -> Option<u64> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
