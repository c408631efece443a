//! What an answer says when it is not what was asked for: problem details (RFC 9457), from one closed list.
//!
//! Handlers return a [`Problem`]; the `front` layer turns it into bytes, so that whether something was accepted, the
//! count, the log line and `Retry-After` are decided in one place for all routes.

use std::{borrow::Cow, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::task::{self, RefusalKind};

/// What the `type` of every problem begins with; the slug follows.
pub const TYPE_PREFIX: &str = "urn:redrive:problem:";

/// The kinds of problem. The list is closed, `docs/problems.md` describes each, and a slug never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemType {
    /// The body is not JSON.
    MalformedJson,
    /// The request line, a header or a query parameter is malformed.
    InvalidRequest,
    /// `Idempotency-Key` is not a string of 1 to 128 characters of `[A-Za-z0-9_.:-]`.
    IdempotencyKeyInvalid,
    /// The bearer token is missing or wrong.
    Unauthorized,
    /// The request comes from a web page of another site.
    CrossSite,
    /// There is nothing at this path.
    NotFound,
    /// No such task is remembered.
    TaskUnknown,
    /// No such dead letter is kept.
    DeadLetterUnknown,
    /// The path does not know this method; `Allow` lists those that it knows.
    MethodNotAllowed,
    /// The body did not arrive in time.
    BodyTimeout,
    /// The body, or the record made of it, is over the limit.
    PayloadTooLarge,
    /// The body is not declared as plain `application/json`.
    UnsupportedMediaType,
    /// The `Host` is not one of this server's names.
    WrongHost,
    /// A field is missing, unknown, malformed or out of bounds.
    ValidationFailed,
    /// The id was used for another operation.
    IdempotencyKeyReused,
    /// The `Idempotency-Key` header and the task's `id` differ.
    IdempotencyKeyMismatch,
    /// The command is not one that may be queued.
    CommandNotAllowed,
    /// A key is outside the allowed prefixes.
    KeyNotAllowed,
    /// The target is not configured.
    UnknownTarget,
    /// The outcome of the first try is unknown and the operation may not run twice.
    OutcomeUnknown,
    /// The request line and the headers are over the limit.
    HeadTooLarge,
    /// Too many bytes are being stored at this moment.
    Overloaded,
    /// The storage has no room.
    QueueFull,
    /// The storage cannot be used now.
    QueueUnavailable,
    /// The process is stopping.
    Draining,
    /// The process is not ready, or has not started yet.
    NotReady,
    /// A fault of the server.
    Internal,
}

impl ProblemType {
    pub const ALL: [Self; 27] = [
        Self::MalformedJson,
        Self::InvalidRequest,
        Self::IdempotencyKeyInvalid,
        Self::Unauthorized,
        Self::CrossSite,
        Self::NotFound,
        Self::TaskUnknown,
        Self::DeadLetterUnknown,
        Self::MethodNotAllowed,
        Self::BodyTimeout,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::WrongHost,
        Self::ValidationFailed,
        Self::IdempotencyKeyReused,
        Self::IdempotencyKeyMismatch,
        Self::CommandNotAllowed,
        Self::KeyNotAllowed,
        Self::UnknownTarget,
        Self::OutcomeUnknown,
        Self::HeadTooLarge,
        Self::Overloaded,
        Self::QueueFull,
        Self::QueueUnavailable,
        Self::Draining,
        Self::NotReady,
        Self::Internal,
    ];

    /// Slug, status and title.
    const fn row(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::MalformedJson => ("malformed-json", StatusCode::BAD_REQUEST, "The body is not JSON"),
            Self::InvalidRequest => ("invalid-request", StatusCode::BAD_REQUEST, "The request is malformed"),
            Self::IdempotencyKeyInvalid => {
                ("idempotency-key-invalid", StatusCode::BAD_REQUEST, "The idempotency key is malformed")
            }
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED, "A bearer token is needed"),
            Self::CrossSite => ("cross-site", StatusCode::FORBIDDEN, "Requests from other sites are refused"),
            Self::NotFound => ("not-found", StatusCode::NOT_FOUND, "There is nothing at this path"),
            Self::TaskUnknown => ("task-unknown", StatusCode::NOT_FOUND, "The task is not known"),
            Self::DeadLetterUnknown => ("dead-letter-unknown", StatusCode::NOT_FOUND, "The dead letter is not known"),
            Self::MethodNotAllowed => {
                ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "The path does not know this method")
            }
            Self::BodyTimeout => ("body-timeout", StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time"),
            Self::PayloadTooLarge => ("payload-too-large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::UnsupportedMediaType => {
                ("unsupported-media-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body must be plain JSON")
            }
            Self::WrongHost => ("wrong-host", StatusCode::MISDIRECTED_REQUEST, "The host is not this server"),
            Self::ValidationFailed => ("validation-failed", StatusCode::UNPROCESSABLE_ENTITY, "The task is not valid"),
            Self::IdempotencyKeyReused => {
                ("idempotency-key-reused", StatusCode::UNPROCESSABLE_ENTITY, "The id was used for another operation")
            }
            Self::IdempotencyKeyMismatch => (
                "idempotency-key-mismatch",
                StatusCode::UNPROCESSABLE_ENTITY,
                "The header and the task name different ids",
            ),
            Self::CommandNotAllowed => {
                ("command-not-allowed", StatusCode::UNPROCESSABLE_ENTITY, "The command may not be queued")
            }
            Self::KeyNotAllowed => ("key-not-allowed", StatusCode::UNPROCESSABLE_ENTITY, "The key is not allowed"),
            Self::UnknownTarget => ("unknown-target", StatusCode::UNPROCESSABLE_ENTITY, "The target is not configured"),
            Self::OutcomeUnknown => {
                ("outcome-unknown", StatusCode::UNPROCESSABLE_ENTITY, "The operation may have run already")
            }
            Self::HeadTooLarge => {
                ("head-too-large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large")
            }
            Self::Overloaded => ("overloaded", StatusCode::SERVICE_UNAVAILABLE, "Too much is being stored now"),
            Self::QueueFull => ("queue-full", StatusCode::SERVICE_UNAVAILABLE, "The queue is full"),
            Self::QueueUnavailable => {
                ("queue-unavailable", StatusCode::SERVICE_UNAVAILABLE, "The queue cannot be used now")
            }
            Self::Draining => ("draining", StatusCode::SERVICE_UNAVAILABLE, "The server is stopping"),
            Self::NotReady => ("not-ready", StatusCode::SERVICE_UNAVAILABLE, "The server is not ready"),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "The server failed"),
        }
    }

    pub const fn slug(self) -> &'static str {
        self.row().0
    }

    pub const fn status(self) -> StatusCode {
        self.row().1
    }

    pub const fn title(self) -> &'static str {
        self.row().2
    }

    /// The slugs in the order of [`ProblemType::ALL`]: what `Metrics::new` is given.
    pub fn slugs() -> [&'static str; Self::ALL.len()] {
        Self::ALL.map(Self::slug)
    }

    /// Whether the same request may succeed later, unchanged.
    pub const fn retryable(self) -> bool {
        matches!(
            self,
            Self::BodyTimeout
                | Self::Overloaded
                | Self::QueueFull
                | Self::QueueUnavailable
                | Self::Draining
                | Self::NotReady
                | Self::Internal
        )
    }
}

/// Why a request was not answered as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: ProblemType,
    /// A sentence for the person who reads it. It never holds a value, a key or a token.
    pub detail: Cow<'static, str>,
    pub errors: Vec<FieldProblem>,
    /// How long the sender should wait at least, where waiting helps.
    pub retry_after: Option<Duration>,
}

/// A fault of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldProblem {
    /// The field, as a JSON pointer (RFC 6901) into the request's body.
    #[schema(example = "/args/0")]
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Problem {
    pub fn new(kind: ProblemType, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = (kind.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(1));
        Self { kind, detail: detail.into(), errors: Vec::new(), retry_after }
    }

    pub fn with_error(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        self.errors.push(FieldProblem { pointer: pointer.into(), detail: detail.into() });
        self
    }

    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The document that is sent. `accepted` is `Some(false)` in answers to writes, and absent in others.
    pub fn document(&self, accepted: Option<bool>) -> ProblemDocument<'_> {
        ProblemDocument {
            type_uri: format!("{TYPE_PREFIX}{}", self.kind.slug()),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            errors: &self.errors,
            retryable: self.kind.retryable(),
            accepted,
        }
    }

    /// The answer as it is sent.
    pub fn render(&self, accepted: Option<bool>) -> Response {
        let body = serde_json::to_vec(&self.document(accepted)).expect("a problem has only strings and numbers");
        let mut response = (self.kind.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, jittered_seconds(wait).into());
        }
        if self.kind == ProblemType::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Whole seconds, up to twice as many as asked, so that those who were refused together do not come back together.
fn jittered_seconds(wait: Duration) -> u64 {
    let least = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let least = least.clamp(1, 3600);
    least + fastrand::u64(0..=least)
}

/// Hands the problem over to the `front` layer, which renders it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        response.extensions_mut().insert(Refused(Box::new(self)));
        response
    }
}

/// Marks an answer that is still to be rendered.
#[derive(Clone, Debug)]
pub(super) struct Refused(pub Box<Problem>);

impl From<task::Refusal> for Problem {
    fn from(refusal: task::Refusal) -> Self {
        let kind = match refusal.kind {
            RefusalKind::MalformedJson => ProblemType::MalformedJson,
            RefusalKind::ValidationFailed => ProblemType::ValidationFailed,
            RefusalKind::UnknownTarget => ProblemType::UnknownTarget,
            RefusalKind::CommandNotAllowed => ProblemType::CommandNotAllowed,
            RefusalKind::KeyNotAllowed => ProblemType::KeyNotAllowed,
            RefusalKind::OutcomeUnknown => ProblemType::OutcomeUnknown,
        };
        let errors = refusal.errors.into_iter();
        let errors = errors.map(|error| FieldProblem { pointer: error.pointer, detail: error.detail });
        Self { errors: errors.collect(), ..Self::new(kind, refusal.detail) }
    }
}

/// A problem document (RFC 9457), as `application/problem+json`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemDocument<'a> {
    /// The kind of problem, from a closed list: `urn:redrive:problem:` and a slug.
    #[serde(rename = "type")]
    #[schema(example = "urn:redrive:problem:validation-failed")]
    type_uri: String,
    /// The kind of problem in words. The same for all problems of a kind.
    title: &'static str,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What went wrong this time.
    detail: &'a str,
    /// The fields at fault, at most 20 of them.
    #[serde(skip_serializing_if = "<[FieldProblem]>::is_empty")]
    errors: &'a [FieldProblem],
    /// Whether the same request may succeed later, unchanged.
    retryable: bool,
    /// In answers to writes: always `false`, nothing of what this problem is about was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    accepted: Option<bool>,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_is_listed_once() {
        let slugs: HashSet<_> = ProblemType::slugs().into_iter().collect();
        assert_eq!(slugs.len(), ProblemType::ALL.len());
        for kind in task::RefusalKind::ALL {
            assert!(slugs.contains(kind.as_str()), "{} is no problem type", kind.as_str());
            let refusal = task::Refusal { kind, detail: String::new(), errors: Vec::new() };
            assert_eq!(Problem::from(refusal).kind.slug(), kind.as_str());
        }
    }

    #[test]
    fn every_kind_is_documented() {
        let documented: Vec<_> = include_str!("../../docs/problems.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|line| {
                let mut cells = line.split('|').map(|cell| cell.trim().trim_end_matches('`'));
                let mut cell = || cells.next().expect("a row has a cell for each column");
                (cell(), cell(), cell(), cell())
            })
            .collect();
        let listed = ProblemType::ALL.map(|kind| (kind.slug(), kind.status(), kind.retryable(), kind.title()));
        let listed = listed.map(|(slug, status, retryable, title)| {
            (slug, status.as_u16().to_string(), if retryable { "yes" } else { "no" }, title)
        });
        let listed: Vec<_> = listed.iter().map(|(a, b, c, d)| (*a, b.as_str(), *c, *d)).collect();
        assert_eq!(documented, listed);
    }

    #[test]
    fn retry_after_is_jittered_upwards_in_whole_seconds() {
        for _ in 0..100 {
            assert!((1..=2).contains(&jittered_seconds(Duration::from_millis(200))));
            assert!((5..=10).contains(&jittered_seconds(Duration::from_secs(5))));
        }
    }
}
