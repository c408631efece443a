//! Why a task is not accepted, in words for its sender.

/// Refusals name at most this many errors.
pub(super) const MAX_ERRORS: usize = 20;

/// A stable code for what was refused. Where several apply, the first in this order is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalKind {
    /// The body is not a JSON object.
    MalformedJson,
    /// A field is missing, unknown, or has a value that it cannot have.
    ValidationFailed,
    /// The target is not configured.
    UnknownTarget,
    /// The policy does not accept the command or script.
    CommandNotAllowed,
    /// A key is outside of the configured prefixes, or one of Redrive's own.
    KeyNotAllowed,
    /// The first try may have run, and running it again is not known to be harmless.
    OutcomeUnknown,
}

impl RefusalKind {
    pub const ALL: [Self; 6] = [
        Self::MalformedJson,
        Self::ValidationFailed,
        Self::UnknownTarget,
        Self::CommandNotAllowed,
        Self::KeyNotAllowed,
        Self::OutcomeUnknown,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedJson => "malformed-json",
            Self::ValidationFailed => "validation-failed",
            Self::UnknownTarget => "unknown-target",
            Self::CommandNotAllowed => "command-not-allowed",
            Self::KeyNotAllowed => "key-not-allowed",
            Self::OutcomeUnknown => "outcome-unknown",
        }
    }
}

/// Names places in the body, never contents of it (but for names of unknown fields, in pointers).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    pub kind: RefusalKind,
    /// A sentence.
    pub detail: String,
    /// Empty where the body could not be read at all.
    pub errors: Vec<FieldError>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) to what is wrong, or to where what is missing belongs.
    pub pointer: String,
    /// A sentence.
    pub detail: String,
}

/// Errors found so far.
#[derive(Debug, Default)]
pub(super) struct Errors {
    kind: Option<RefusalKind>,
    found: Vec<FieldError>,
}

impl Errors {
    pub(super) fn add(&mut self, kind: RefusalKind, pointer: impl Into<String>, detail: impl Into<String>) {
        self.kind = Some(self.kind.map_or(kind, |known| known.min(kind)));
        if self.found.len() < MAX_ERRORS {
            self.found.push(FieldError { pointer: pointer.into(), detail: detail.into() });
        }
    }

    pub(super) fn invalid(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.add(RefusalKind::ValidationFailed, pointer, detail);
    }

    /// The refusal, if anything was found.
    pub(super) fn into_refusal(self) -> Option<Refusal> {
        let kind = self.kind?;
        let detail = match self.found.as_slice() {
            [FieldError { pointer, detail }] => format!("{pointer}: {detail}"),
            errors => format!("{} fields are at fault", errors.len()),
        };
        Some(Refusal { kind, detail, errors: self.found })
    }
}
