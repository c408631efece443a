//! What a server said that refused something (RFC 9457).

use std::fmt;

use serde::Deserialize;

use super::http::Answer;

/// A problem document, as much of it as a person needs.
#[derive(Debug, Default, Deserialize)]
pub struct Problem {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<FieldProblem>,
    /// Whether the same request may be accepted later.
    #[serde(default)]
    pub retryable: bool,
}

#[derive(Debug, Deserialize)]
struct FieldProblem {
    #[serde(default)]
    pointer: String,
    #[serde(default)]
    detail: String,
}

impl Problem {
    /// What an answer says, or its status where it says nothing that can be understood.
    pub fn of(answer: &Answer) -> Self {
        serde_json::from_slice(&answer.body).unwrap_or_else(|_| Self {
            title: answer.status.canonical_reason().unwrap_or("no reason given").into(),
            ..Self::default()
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.detail.as_str(), self.title.as_str()) {
            ("", "") => f.write_str("no reason given")?,
            ("", title) => f.write_str(title)?,
            (detail, _) => f.write_str(detail)?,
        }
        // A single error is told by the detail already.
        if self.errors.len() < 2 {
            return Ok(());
        }
        self.errors.iter().try_for_each(|error| write!(f, "; {}: {}", error.pointer, error.detail))
    }
}
