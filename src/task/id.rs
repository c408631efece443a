//! A task's name.

use std::{fmt, sync::Arc};

/// 1 to 128 of `[A-Za-z0-9_.:-]`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskIdError {
    #[error("an id is not empty")]
    Empty,
    #[error("an id has at most {} characters", TaskId::MAX_LEN)]
    TooLong,
    #[error("an id has only letters, digits and the characters _ . : -")]
    Character,
}

impl TaskId {
    pub const MAX_LEN: usize = 128;

    /// Takes an id that a client chose.
    ///
    /// # Errors
    ///
    /// When it is empty, too long, or has another character.
    pub fn parse(text: &str) -> Result<Self, TaskIdError> {
        if text.is_empty() {
            return Err(TaskIdError::Empty);
        }
        if text.len() > Self::MAX_LEN {
            return Err(TaskIdError::TooLong);
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte)) {
            return Err(TaskIdError::Character);
        }
        Ok(Self(text.into()))
    }

    /// A fresh one: UUIDv7, so ids sort by the time at which they were made.
    #[expect(clippy::new_without_default, reason = "every call gives another id")]
    pub fn new() -> Self {
        let mut buffer = uuid::Uuid::encode_buffer();
        Self(Arc::from(&*uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
