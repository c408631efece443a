//! What is stored beside a task's own bytes: the only durable form that a task has.
//!
//! The value of a record is the client's JSON, unchanged. Everything that Redrive adds travels in headers, so that a
//! queue stays readable with any tool:
//!
//! | header | value |
//! |---|---|
//! | `schema` | `1` |
//! | `id` | the task's id |
//! | `accepted_at` | milliseconds since 1970, decimal |
//! | `identity` | 16 bytes: hash of the id, hash of the operation, little-endian |
//! | `traceparent` | the request's W3C trace context, where it had one |
//! | `late` | what a rule of the configuration said: what to do and after how many milliseconds, `invalidate 30000` |
//! | `max_retries` | what a rule of the configuration said, decimal |
//!
//! A service may put the same JSON into a queue itself. A record without `schema` is such a one, and its other headers
//! mean nothing here, but for `traceparent`: what Redrive would have added is made up for when it is read, so that it
//! comes out the same each time.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use crate::{
    log::{HeadersBuilder, Record},
    task::{Identity, Late, LateAction, Refusal, Rules, Task, TaskId},
};

const SCHEMA: &str = "1";

/// A task as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub id: TaskId,
    pub accepted_at: Timestamp,
    pub identity: Identity,
    pub traceparent: Option<Box<str>>,
    /// As a rule of the configuration says; what the task itself says goes before it.
    pub late: Option<Late>,
    /// As a rule of the configuration says; what the task itself says goes before it.
    pub max_retries: Option<u8>,
    /// The client's own bytes.
    pub value: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It did not come through Redrive: see [`Envelope::adopt`].
    #[error("the record has no headers of redrive")]
    Foreign,
    #[error("the record's schema is newer than this version of redrive")]
    NewerSchema,
    #[error("the record's header {0} is missing or malformed")]
    Header(&'static str),
}

impl Envelope {
    /// What is stored of a task: the client's own bytes, and beside them what is decided at its acceptance.
    pub fn accept(
        rules: &Rules,
        task: &Task<'_>,
        id: &TaskId,
        value: Bytes,
        accepted_at: Timestamp,
        traceparent: Option<&str>,
    ) -> Self {
        let defaults = rules.defaults(task);
        Self {
            id: id.clone(),
            accepted_at,
            identity: task.identity(id),
            traceparent: traceparent.map(Box::from),
            late: defaults.late,
            max_retries: defaults.max_retries,
            value,
        }
    }

    /// Accepts a record that did not come through Redrive, as its task would have been accepted. `made_id` is for one
    /// that names none; `target` for one that names none, too: that of its queue.
    pub fn adopt(
        record: &Record,
        rules: &Rules,
        target: &str,
        made_id: &TaskId,
        accepted_at: Timestamp,
    ) -> Result<Self, Refusal> {
        rules.check_foreign_size(record.value.len())?;
        let task = Task::parse_for(&record.value, rules, accepted_at, target)?;
        let id = task.id.as_ref().unwrap_or(made_id);
        let traceparent = record.headers.get("traceparent").filter(|value| is_traceparent(value));
        let traceparent = traceparent.and_then(|value| std::str::from_utf8(value).ok());
        Ok(Self::accept(rules, &task, id, record.value.clone(), accepted_at, traceparent))
    }

    /// The task again that was accepted, for a queue of this target.
    pub fn task<'e>(&'e self, rules: &Rules, target: &str) -> Result<Task<'e>, Refusal> {
        Task::parse_for(&self.value, rules, self.accepted_at, target)
    }

    /// For a record that is no task: what a dead letter needs.
    pub fn of_unreadable(id: TaskId, accepted_at: Timestamp, value: Bytes) -> Self {
        let identity = Identity::from_bytes([0; 16]);
        Self { id, accepted_at, identity, traceparent: None, late: None, max_retries: None, value }
    }

    pub fn encode(&self) -> Record {
        let mut headers = HeadersBuilder::with_capacity(128);
        headers.push("schema", SCHEMA.as_bytes());
        headers.push("id", self.id.as_str().as_bytes());
        let mut digits = [0; 20];
        headers.push("accepted_at", decimal(self.accepted_at.as_millisecond(), &mut digits));
        headers.push("identity", self.identity.as_bytes());
        if let Some(traceparent) = &self.traceparent {
            headers.push("traceparent", traceparent.as_bytes());
        }
        if let Some(late) = self.late {
            headers.push("late", late_to_text(late).as_bytes());
        }
        if let Some(max_retries) = self.max_retries {
            headers.push("max_retries", decimal(i64::from(max_retries), &mut digits));
        }
        Record { headers: headers.build(), value: self.value.clone() }
    }

    pub fn decode(record: &Record) -> Result<Self, EnvelopeError> {
        let (mut schema, mut id, mut accepted_at, mut identity, mut traceparent) = (None, None, None, None, None);
        let (mut late, mut max_retries) = (None, None);
        for (name, value) in record.headers.iter() {
            match name {
                "schema" => schema = Some(value),
                "id" => id = std::str::from_utf8(value).ok().and_then(|id| TaskId::parse(id).ok()),
                "accepted_at" => accepted_at = parse_milliseconds(value),
                "identity" => identity = <[u8; 16]>::try_from(value).ok().map(Identity::from_bytes),
                "traceparent" => traceparent = std::str::from_utf8(value).ok().map(Box::from),
                "late" => late = Some(late_of_text(value).ok_or(EnvelopeError::Header("late"))?),
                "max_retries" => max_retries = Some(small(value).ok_or(EnvelopeError::Header("max_retries"))?),
                _ => {}
            }
        }
        match schema {
            Some(schema) if schema == SCHEMA.as_bytes() => {}
            Some(_) => return Err(EnvelopeError::NewerSchema),
            None => return Err(EnvelopeError::Foreign),
        }
        Ok(Self {
            id: id.ok_or(EnvelopeError::Header("id"))?,
            accepted_at: accepted_at.ok_or(EnvelopeError::Header("accepted_at"))?,
            identity: identity.ok_or(EnvelopeError::Header("identity"))?,
            traceparent,
            late,
            max_retries,
            value: record.value.clone(),
        })
    }
}

/// Whether it is a W3C trace context: `00-<32 hex>-<16 hex>-<2 hex>` in lower case, ids not all zero. A later version may have more after it.
pub fn is_traceparent(value: &[u8]) -> bool {
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

/// Writes a time before the year 2286, and after 1970, without allocating.
fn decimal(milliseconds: i64, digits: &mut [u8; 20]) -> &[u8] {
    let mut rest = u64::try_from(milliseconds).unwrap_or(0);
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &digits[start..];
        }
    }
}

fn parse_milliseconds(value: &[u8]) -> Option<Timestamp> {
    let milliseconds = std::str::from_utf8(value).ok()?.parse().ok()?;
    Timestamp::from_millisecond(milliseconds).ok()
}

fn late_to_text(late: Late) -> String {
    format!("{} {}", late.action.as_str(), late.after.as_millis())
}

fn late_of_text(value: &[u8]) -> Option<Late> {
    let (action, after) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    Some(Late { after: Duration::from_millis(after.parse().ok()?), action: LateAction::from_name(action)? })
}

fn small(value: &[u8]) -> Option<u8> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{self, DefaultRule, RefusalKind};

    fn envelope() -> Envelope {
        Envelope {
            id: TaskId::parse("order-1:a").expect("the id is valid"),
            accepted_at: Timestamp::from_millisecond(1_764_000_000_123).expect("the time is valid"),
            identity: Identity::from_bytes(*b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0"),
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            late: None,
            max_retries: None,
            value: Bytes::from_static(br#"{"type":"simple","command":"SET","args":["k","v"]}"#),
        }
    }

    #[test]
    fn what_is_stored_is_read_again() {
        assert_eq!(Envelope::decode(&envelope().encode()), Ok(envelope()));
        let plain = Envelope { traceparent: None, ..envelope() };
        assert_eq!(Envelope::decode(&plain.encode()), Ok(plain));
        assert_eq!(Envelope::decode(&ruled().encode()), Ok(ruled()));
    }

    /// One for which a rule had something to say.
    fn ruled() -> Envelope {
        let late = Late { after: Duration::from_secs(30), action: LateAction::Invalidate };
        Envelope { late: Some(late), max_retries: Some(5), traceparent: None, ..envelope() }
    }

    /// These bytes are in journals: a change of the format must go on reading them.
    #[test]
    fn stored_form_is_stable() {
        let mut golden = Vec::new();
        golden.extend_from_slice(b"\x06schema\x01\x001\x02id\x09\x00order-1:a");
        golden.extend_from_slice(b"\x0baccepted_at\x0d\x001764000000123");
        golden.extend_from_slice(b"\x08identity\x10\x00\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        golden.extend_from_slice(b"\x0btraceparent\x37\x0000-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!(envelope().encode().headers.as_bytes(), &golden);
        golden.truncate(golden.len() - b"\x0btraceparent\x37\x00".len() - 55);
        golden.extend_from_slice(b"\x04late\x10\x00invalidate 30000\x0bmax_retries\x01\x005");
        assert_eq!(ruled().encode().headers.as_bytes(), &golden);
    }

    #[test]
    fn damaged_headers_are_an_error() {
        let mut record = envelope().encode();
        record.headers = crate::log::Headers::from_packed(Bytes::from_static(b"\x06schema\x01\x002"));
        assert_eq!(Envelope::decode(&record), Err(EnvelopeError::NewerSchema));
        for (name, value) in [("late", "explode 30000"), ("late", "drop"), ("late", "drop -1"), ("max_retries", "many")]
        {
            let mut headers = HeadersBuilder::with_capacity(128);
            envelope().encode().headers.iter().for_each(|(name, value)| headers.push(name, value));
            headers.push(name, value.as_bytes());
            record.headers = headers.build();
            assert_eq!(Envelope::decode(&record), Err(EnvelopeError::Header(name)), "{value}");
        }
        record.headers = crate::log::Headers::default();
        assert_eq!(Envelope::decode(&record), Err(EnvelopeError::Foreign));
    }

    fn check_adopted(body: &str, headers: &[(&str, &str)]) -> Result<Envelope, Refusal> {
        let mut packed = HeadersBuilder::default();
        headers.iter().for_each(|(name, value)| packed.push(name, value.as_bytes()));
        let record = Record { headers: packed.build(), value: Bytes::copy_from_slice(body.as_bytes()) };
        assert_eq!(Envelope::decode(&record), Err(EnvelopeError::Foreign));
        let late = Late { after: Duration::from_secs(30), action: LateAction::Invalidate };
        let rule = DefaultRule { late: Some(late), max_retries: Some(5), ..DefaultRule::default() };
        let rules = Rules::new(task::Config::default(), ["sessions".to_owned()]).with_defaults(vec![rule]);
        let made_id = TaskId::parse("sessions.normal:3:42").expect("the id is valid");
        let adopted = Envelope::adopt(&record, &rules, "sessions", &made_id, envelope().accepted_at);
        if let Ok(adopted) = &adopted {
            assert_eq!(Envelope::decode(&adopted.encode()).as_ref(), Ok(adopted), "it is stored as any other");
            assert_eq!(adopted.task(&rules, "sessions").expect("it was one").target, "sessions");
        }
        adopted
    }

    #[test]
    fn record_of_another_producer_is_accepted_as_at_the_front_door() {
        let body = r#"{"type":"simple","command":"SET","args":["k","v"],"id":"order-1","max_retries":1}"#;
        let traceparent = envelope().traceparent.expect("it has one");
        let headers = [("id", "not-ours"), ("accepted_at", "soon"), ("traceparent", &traceparent)];
        let adopted = check_adopted(body, &headers).expect("it is a task");
        assert_eq!((adopted.id.as_str(), adopted.accepted_at), ("order-1", envelope().accepted_at));
        assert_eq!(adopted.traceparent, Some(traceparent));
        assert!(adopted.late.is_some() && adopted.max_retries.is_none(), "rules say what the task does not");

        let nameless = r#"{"type":"simple","command":"SET","args":["k","v"]}"#;
        let adopted = check_adopted(nameless, &[("traceparent", "none")]).expect("it is a task");
        assert_eq!((adopted.id.as_str(), adopted.max_retries), ("sessions.normal:3:42", Some(5)));
        assert_eq!(adopted.traceparent, None);
        let again = check_adopted(nameless, &[]).expect("it is a task");
        assert_eq!(again.identity, adopted.identity);
    }

    #[test]
    fn record_of_another_producer_is_refused_as_at_the_front_door() {
        let padding = " ".repeat(1 << 18);
        let long = format!(r#"{{"type":"simple","command":"DEL","args":["k"]{padding}}}"#);
        let check =
            |body, kind| assert_eq!(check_adopted(body, &[]).map_err(|refusal| refusal.kind), Err(kind), "{body}");
        check(&long, RefusalKind::ValidationFailed);
        check("", RefusalKind::MalformedJson);
        check("[]", RefusalKind::MalformedJson);
        check(r#"{"type":"simple","command":"SET","args":["k"]}"#, RefusalKind::ValidationFailed);
        check(r#"{"type":"simple","command":"FLUSHALL","args":[]}"#, RefusalKind::CommandNotAllowed);
        check(r#"{"type":"simple","command":"DEL","args":["redrive:x"]}"#, RefusalKind::KeyNotAllowed);
        check(r#"{"type":"simple","command":"DEL","args":["k"],"target":"other"}"#, RefusalKind::UnknownTarget);
    }
}
