//! What a dead letter says of a task.

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::entry::{End, Entry};
use crate::{
    dead_letters::{DeadLetter, DeadUnit},
    log::Partition,
    queue::Envelope,
    retry::{Failure, ReasonClass},
    task::{MAX_COMMANDS, MAX_CONTEXT_BYTES, Rules},
};

/// Bytes of the largest task that a letter keeps as it is.
pub const MAX_TASK: usize = 512 * 1024;

/// What is kept of a record that is no task and no JSON: in base64 it is a third more.
pub const MAX_NOT_JSON: usize = 320 * 1024;

const _: () = assert!(MAX_NOT_JSON.div_ceil(3) * 4 <= MAX_TASK);

/// Bytes of the largest letter beside the task: what is said of each unit, of the whole, and where it comes from.
pub const MAX_BESIDE_TASK: usize = {
    // Control characters are escaped in a message, so that none of its bytes takes more than two in JSON. A code is a word.
    let failure = 2 * Failure::MAX_MESSAGE + 64;
    let unit = failure + 128;
    let context = 2 * 6 * MAX_CONTEXT_BYTES;
    MAX_COMMANDS * unit + failure + context + 4096
};

/// The letter of a task of which at least one unit is dead.
pub fn of_entry(entry: &Entry, partition: &Partition, rules: &Rules, now: Timestamp) -> DeadLetter {
    let trouble = entry.trouble.as_ref().expect("a dead task has a failure");
    let (_, failure, reason) = trouble.dead.first().expect("a dead task has a dead unit");
    let mut letter = of_envelope(&entry.envelope, partition, entry.offset, failure, *reason, rules, now);
    letter.attempts = entry.attempts();
    letter.first_error_at = trouble.first_error_at;
    letter.last_error_at = trouble.last_error_at;
    if entry.units.len() > 1 {
        letter.units = entry
            .units
            .iter()
            .enumerate()
            .map(|(index, unit)| {
                let death = trouble.dead.iter().find(|(dead, _, _)| *dead as usize == index);
                let (outcome, failure) = match (unit.end, death) {
                    (_, Some((_, failure, reason))) => (reason.as_str(), Some(failure)),
                    (Some(End::Settled(outcome)), None) => (outcome.as_str(), None),
                    (_, None) => ("unfinished", None),
                };
                DeadUnit {
                    index: index as u32,
                    outcome: outcome.to_owned(),
                    code: failure.map_or(String::new(), |failure| failure.code.to_string()),
                    message: failure.map_or(String::new(), |failure| failure.message.to_string()),
                }
            })
            .collect();
    }
    letter
}

/// The letter of a record that is no task which could be executed.
pub fn of_envelope(
    envelope: &Envelope,
    partition: &Partition,
    offset: u64,
    failure: &Failure,
    reason: ReasonClass,
    rules: &Rules,
    now: Timestamp,
) -> DeadLetter {
    let text = std::str::from_utf8(&envelope.value).ok();
    let json = text.and_then(|text| RawValue::from_string(text.to_owned()).ok());
    let context = envelope.task(rules, &partition.queue.target).ok().map(|task| task.context);
    DeadLetter {
        schema: DeadLetter::SCHEMA,
        id: envelope.id.as_str().to_owned(),
        target: partition.queue.target.to_string(),
        lane: partition.queue.lane.to_owned(),
        partition: partition.index,
        offset,
        accepted_at: envelope.accepted_at,
        dead_at: now,
        reason: reason.as_str().to_owned(),
        code: failure.code.to_string(),
        message: failure.message.to_string(),
        attempts: 0,
        first_error_at: now,
        last_error_at: now,
        units: Vec::new(),
        source: context.as_ref().and_then(|context| context.source.as_deref().map(str::to_owned)),
        trace_id: context.as_ref().and_then(|context| context.trace_id.as_deref().map(str::to_owned)),
        traceparent: envelope.traceparent.as_deref().map(str::to_owned),
        task_base64: json.is_none().then(|| {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(&envelope.value)
        }),
        task: json,
    }
}
