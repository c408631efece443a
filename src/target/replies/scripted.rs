//! What our scripts answer; their files say what.

use deadpool_redis::redis::{Cmd, ServerError, Value};

use super::atomic;
use crate::{
    retry::{self, Context, Executed, Failure, FailureClass, Origin, ReasonClass},
    target::{Done, batch, once::Place},
};

/// Server 6.2 puts this, a line number and `: ` before errors of its own making, and no code.
const UNTIDY: &str = "@user_script: ";

/// The results of once-units, one for each place.
pub(super) fn once(units: &[Place], reply: &Value, command: &Cmd) -> Vec<Result<Done, Failure>> {
    match reply {
        Value::Array(entries) if entries.len() == units.len() => {
            let judge =
                |(place, entry): (&Place, &Value)| entry_of(entry, &|| place.words(command, units.len()).collect());
            units.iter().zip(entries).map(judge).collect()
        }
        Value::ServerError(error) => vec![Err(not_run(error)); units.len()],
        _ => vec![Err(unexpected()); units.len()],
    }
}

/// The result of a script that runs once.
pub(super) fn once_script(reply: &Value, command: &Cmd) -> Result<Done, Failure> {
    match reply {
        Value::Array(entries) if entries.len() == 1 => of_script(&entries[0], command),
        Value::ServerError(error) => Err(refused_script(error, command)),
        _ => Err(unexpected()),
    }
}

/// The result of commands behind a fence.
pub(super) fn versioned(reply: &Value, command: &Cmd) -> Result<Done, Failure> {
    match reply {
        Value::ServerError(error) => {
            Err(classify(&joined(error), Origin::Command, &batch::arguments(command).collect::<Vec<_>>()))
        }
        Value::Int(-1) => Ok(Done::Stale),
        entry => entry_of(entry, &|| batch::arguments(command).collect()),
    }
}

/// The result of a script behind a fence.
pub(super) fn versioned_script(reply: &Value, command: &Cmd) -> Result<Done, Failure> {
    match reply {
        Value::ServerError(error) => Err(refused_script(error, command)),
        Value::Int(-1) => Ok(Done::Stale),
        entry => of_script(entry, command),
    }
}

/// `arguments`: those of the unit, for which errors are searched.
fn entry_of<'a>(entry: &Value, arguments: &dyn Fn() -> Vec<&'a [u8]>) -> Result<Done, Failure> {
    match entry {
        Value::Int(1) => Ok(Done::Applied),
        Value::Int(0) => Ok(Done::AppliedBefore),
        Value::Int(2) => Err(partial_before()),
        Value::Array(words) => match words.split_first() {
            Some((tag, words)) => Err(tagged(tag, words, &arguments())),
            None => Err(unexpected()),
        },
        _ => Err(unexpected()),
    }
}

fn tagged(tag: &Value, words: &[Value], arguments: &[&[u8]]) -> Failure {
    let judge = |word: &Value| match word {
        Value::BulkString(text) => Err(classify(&String::from_utf8_lossy(text), Origin::Command, arguments)),
        _ => Ok(Done::Applied),
    };
    let results: Vec<Result<Done, Failure>> = words.iter().map(judge).collect();
    let failure = match text_of(tag) {
        Some(b"marker") => atomic::strongest(&results).map(of_marker),
        Some(b"refused") => atomic::strongest(&results),
        Some(b"partial") => Some(atomic::partial(&results)),
        _ => None,
    };
    failure.unwrap_or_else(unexpected)
}

fn of_script(entry: &Value, command: &Cmd) -> Result<Done, Failure> {
    let arguments = || batch::arguments(command).collect::<Vec<_>>();
    if let Value::Array(words) = entry
        && let [tag, Value::BulkString(text)] = words.as_slice()
        && text_of(tag) == Some(b"partial")
    {
        return Err(classify(&String::from_utf8_lossy(text), Origin::InsideScript, &arguments()));
    }
    entry_of(entry, &arguments)
}

/// The marker could not be written, and nothing was run without it.
fn of_marker(failure: Failure) -> Failure {
    match (failure.class, failure.reason) {
        (FailureClass::Hold, _) => failure,
        // As a command that the user may not run: waiting does not help, but an operator does.
        (_, ReasonClass::NoPermission) => Failure::dead(
            ReasonClass::NoPermission,
            Executed::No,
            &failure.code,
            "the target's user may not write the markers of what must run once",
        ),
        _ => Failure::hold(&failure.code, "the marker of what must run once cannot be written"),
    }
}

/// The call itself was refused.
fn not_run(error: &ServerError) -> Failure {
    let failure = classify(&joined(error), Origin::Script, &[]);
    match failure.executed {
        // Our own script was stopped. What it ran has its marker, so trying again is safe.
        Executed::Partly => Failure {
            class: FailureClass::Backoff,
            executed: Executed::Maybe,
            reason: ReasonClass::RetriesExhausted,
            ..failure
        },
        Executed::No | Executed::Maybe => failure,
    }
}

/// A call with a task's script in it was refused, or does not compile.
fn refused_script(error: &ServerError, command: &Cmd) -> Failure {
    classify(&joined(error), Origin::Script, &batch::arguments(command).collect::<Vec<_>>())
}

fn classify(error: &str, origin: Origin, arguments: &[&[u8]]) -> Failure {
    let (code, text) = tidy(error);
    retry::classify(code, text, Context { origin, arguments })
}

fn partial_before() -> Failure {
    Failure::dead(ReasonClass::Partial, Executed::Partly, "partial", "an earlier execution ran in part only")
}

fn unexpected() -> Failure {
    Failure::ambiguous("protocol-error", "a script of Redrive's was answered with something else")
}

fn text_of(word: &Value) -> Option<&[u8]> {
    match word {
        Value::BulkString(text) => Some(text),
        _ => None,
    }
}

fn joined(error: &ServerError) -> String {
    format!("{} {}", error.code(), error.details().unwrap_or_default())
}

/// Code and text of an error that a script got, as those of an error in reply to a command.
fn tidy(error: &str) -> (&str, &str) {
    let own = error.strip_prefix(UNTIDY).and_then(|rest| rest.split_once(": ")).map(|(_line, rest)| rest.trim());
    let error = own.map_or(error, |own| own.strip_prefix('-').unwrap_or(own));
    let is_code = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    match error.split_once(' ') {
        Some((code, text)) if is_code(code) => (code, text),
        _ => ("ERR", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_all_servers_look_alike() {
        let cases = [
            ("WRONGTYPE Operation against", ("WRONGTYPE", "Operation against")),
            ("@user_script: 12: -OOM command not allowed.\r\n", ("OOM", "command not allowed.")),
            ("@user_script: 1: Unknown Redis command called", ("ERR", "Unknown Redis command called")),
            ("user_script:3: bad", ("ERR", "user_script:3: bad")),
            ("TSDB: the key", ("ERR", "TSDB: the key")),
            ("word", ("ERR", "word")),
            ("", ("ERR", "")),
        ];
        for (error, expected) in cases {
            assert_eq!(tidy(error), expected, "{error}");
        }
    }
}
