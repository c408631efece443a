//! The connection for questions about a target, which no batch can hold up: probes, fences, markers, inspection.

use deadpool_redis::redis::{Pipeline, Value, aio::MultiplexedConnection};

use super::{ConnectionName, Target, errors};
use crate::retry::{Failure, FailureClass};

/// Servers from this version on take a TTL as the time at which it ends, wherever they take one.
const ABSOLUTE_TTL_SINCE: [u32; 2] = [6, 2];

pub(super) struct Control {
    pub(super) name: ConnectionName,
    /// Why it does not bear that name.
    pub(super) name_refused: Option<Failure>,
    pub(super) has_absolute_ttl: bool,
    /// Of the server that this connection is to.
    pub(super) run_id: Option<Box<str>>,
    connection: MultiplexedConnection,
}

impl Target {
    /// The connection that was kept, if it still works, else a new one. [`Target::keep`] it after use, unless it
    /// failed.
    ///
    /// The error is always a hold: the target does not answer.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the connection.
    pub(super) async fn control(&self) -> Result<Control, Failure> {
        let kept = self.control.lock().expect("nothing panics while it is held").take();
        if let Some(mut control) = kept {
            let mut questions = Pipeline::with_capacity(1);
            questions.cmd("PING");
            match control.ask::<1>(&mut questions).await {
                Ok(_) => return Ok(control),
                // At some time since its last use, which says nothing about now.
                Err(failure) if &*failure.code == Failure::CONNECTION_LOST => {}
                Err(failure) => return Err(failure),
            }
        }
        let fresh = self.control_client.get_multiplexed_async_connection_with_config(&self.control_settings).await;
        let connection = fresh.map_err(|error| errors::before_sending(&error))?;
        let name = self.next_name();
        let mut control = Control { name, name_refused: None, has_absolute_ttl: true, run_id: None, connection };
        let mut questions = Pipeline::with_capacity(2);
        questions.cmd("CLIENT").arg("SETNAME").arg(control.name.to_string()).cmd("INFO").arg("server");
        let [named, info] = control.ask(&mut questions).await?;
        control.name_refused = errors::of_value(&named);
        control.run_id = text(&info).and_then(|text| self::info(text, "run_id")).map(Into::into);
        control.has_absolute_ttl = version(&info).is_none_or(|version| version >= ABSOLUTE_TTL_SINCE);
        Ok(control)
    }

    pub(super) fn keep(&self, control: Control) {
        *self.control.lock().expect("nothing panics while it is held") = Some(control);
    }
}

impl Control {
    /// Asks and waits for all answers. The error is a hold: there were none.
    pub(super) async fn ask<const N: usize>(&mut self, questions: &mut Pipeline) -> Result<[Value; N], Failure> {
        self.ask_all(questions).await?.try_into().map_err(|_| wrong_count())
    }

    pub(super) async fn ask_all(&mut self, questions: &mut Pipeline) -> Result<Vec<Value>, Failure> {
        let replies: Result<Vec<Value>, _> = questions.ignore_errors().query_async(&mut self.connection).await;
        replies.map_err(|error| errors::as_hold(errors::after_sending(&error)))
    }
}

/// What the answer says if it is a refusal for good, which says nothing about whether the target is well. Any other
/// error is a hold.
pub(super) fn unless_refused(reply: &Value) -> Result<Option<Failure>, Failure> {
    match errors::of_value(reply) {
        Some(failure) if failure.class == FailureClass::Dead => Ok(Some(failure)),
        Some(failure) => Err(errors::as_hold(failure)),
        None => Ok(None),
    }
}

fn wrong_count() -> Failure {
    Failure::hold("protocol-error", "the number of replies is not that of the questions")
}

/// The text of an answer of the kind that `INFO` gives.
pub(super) fn text(reply: &Value) -> Option<&str> {
    match reply {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// The value of a field in what `INFO` answers.
pub(super) fn info<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
}

fn version(reply: &Value) -> Option<[u32; 2]> {
    let mut parts = info(text(reply)?, "redis_version")?.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_or_unknown() {
        let version = |text: &str| version(&Value::BulkString(text.into()));
        assert_eq!(version("# Server\r\nredis_version:6.2.14\r\nredis_git_sha1:0\r\n"), Some([6, 2]));
        assert_eq!(version("redis_version:255.255.255"), Some([255, 255]));
        assert_eq!(version("redis_version:unstable"), None);
        assert_eq!(version("something else"), None);
        assert_eq!(super::version(&Value::Nil), None);
    }
}
