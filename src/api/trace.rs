//! The W3C trace context of a request.

use axum::http::HeaderMap;

/// The request's `traceparent`, if it is well formed. One that is not is ignored, as the standard asks.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    is_valid(value.as_bytes()).then_some(value)
}

/// The trace's id, of a `traceparent` that is well formed.
pub(super) fn trace_id(traceparent: &str) -> &str {
    &traceparent[3..35]
}

/// `00-<32 hex>-<16 hex>-<2 hex>` in lower case, ids not all zero. A later version may have more after it.
fn is_valid(value: &[u8]) -> bool {
    let Some((known, rest)) = value.split_at_checked(55) else { return false };
    let hex = |range: std::ops::Range<usize>| known[range].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |range: std::ops::Range<usize>| known[range].iter().all(|byte| *byte == b'0');
    let version = &known[..2];
    known[2] == b'-'
        && known[35] == b'-'
        && known[52] == b'-'
        && hex(0..2)
        && hex(3..35)
        && hex(36..52)
        && hex(53..55)
        && !zero(3..35)
        && !zero(36..52)
        && version != b"ff"
        && (rest.is_empty() || (version != b"00" && rest.starts_with(b"-") && rest.len() <= 200))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn check(value: &str, expected: bool) {
        assert_eq!(is_valid(value.as_bytes()), expected, "{value}");
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
