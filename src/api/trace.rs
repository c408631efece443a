//! The W3C trace context of a request.

use axum::http::HeaderMap;

use crate::queue::envelope::is_traceparent;

/// The request's `traceparent`, if it is well formed. One that is not is ignored, as the standard asks.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    is_traceparent(value.as_bytes()).then_some(value)
}

/// The trace's id, of a `traceparent` that is well formed.
pub(super) fn trace_id(traceparent: &str) -> &str {
    &traceparent[3..35]
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn check(value: &str, expected: bool) {
        assert_eq!(is_traceparent(value.as_bytes()), expected, "{value}");
    }

    #[test]
    fn only_a_well_formed_context_is_kept() {
        check(VALID, true);
        check(&VALID.replace("00-4", "01-4"), true);
        check(&format!("{}-extra", VALID.replace("00-4", "01-4")), true);
        check(&format!("{VALID}-extra"), false);
        check(&VALID.to_uppercase(), false);
        check(&VALID.replace("00-4", "ff-4"), false);
        check("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false);
        check("", false);
        check(&VALID[..54], false);
        assert_eq!(trace_id(VALID), "4bf92f3577b34da6a3ce929d0e0e4736");
    }
}
