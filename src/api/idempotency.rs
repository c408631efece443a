//! The `Idempotency-Key` header: another way to give a task's id.

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderName};

use super::{
    guard::only,
    problem::{Problem, ProblemType},
};
use crate::task::TaskId;

pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Decides the id of a task: the header's, the task's own, or a fresh one.
///
/// # Errors
///
/// When the header is malformed, or names another id than the task.
pub(super) fn decide_id(headers: &HeaderMap, own: Option<&TaskId>) -> Result<TaskId, Problem> {
    match (key(headers)?, own) {
        (None, None) => Ok(TaskId::new()),
        (None, Some(own)) => Ok(own.clone()),
        (Some(key), Some(own)) if key != *own => {
            let detail = "the Idempotency-Key header and the task's id differ";
            Err(Problem::new(ProblemType::IdempotencyKeyMismatch, detail).with_error("/id", "differs from the header"))
        }
        (Some(key), _) => Ok(key),
    }
}

fn key(headers: &HeaderMap) -> Result<Option<TaskId>, Problem> {
    let invalid = |fault: Cow<'static, str>| {
        Problem::new(ProblemType::IdempotencyKeyInvalid, format!("the Idempotency-Key header {fault}"))
    };
    let Some(value) = only(headers, IDEMPOTENCY_KEY).map_err(|fault| invalid(fault.into()))? else { return Ok(None) };
    let key = std::str::from_utf8(value).ok().and_then(unquote).and_then(|key| TaskId::parse(key).ok());
    let key = key.ok_or_else(|| invalid("is not 1 to 128 of the characters A-Z a-z 0-9 _ . : -".into()))?;
    Ok(Some(key))
}

/// The draft asks for a quoted string, most clients send a bare one. Characters that need escapes are in no id.
fn unquote(value: &str) -> Option<&str> {
    let value = value.trim();
    match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"'),
        None => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[&str], own: Option<&str>, expected: Result<&str, ProblemType>) {
        let headers = values.iter().map(|value| (IDEMPOTENCY_KEY, value.parse().expect("a header's value"))).collect();
        let own = own.map(|own| TaskId::parse(own).expect("the id is valid"));
        let decided = decide_id(&headers, own.as_ref());
        assert_eq!(decided.as_ref().map(TaskId::as_str).map_err(|problem| problem.kind), expected, "{values:?}");
    }

    #[test]
    fn id_comes_from_the_header_or_from_the_task() {
        check(&["order-1"], None, Ok("order-1"));
        check(&["\"order-1\""], None, Ok("order-1"));
        check(&[], Some("order-1"), Ok("order-1"));
        check(&["\"order-1\""], Some("order-1"), Ok("order-1"));
        check(&["order-2"], Some("order-1"), Err(ProblemType::IdempotencyKeyMismatch));
        for malformed in ["", "\"\"", "\"open", "a b", "a\\\"b", "a/b"] {
            check(&[malformed], None, Err(ProblemType::IdempotencyKeyInvalid));
        }
        check(&["a", "a"], None, Err(ProblemType::IdempotencyKeyInvalid));
    }
}
