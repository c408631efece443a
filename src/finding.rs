//! How bad it is what was found on a target, or on a topic.

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// What it was found on is used, and something of what is promised does not hold.
    Warning,
    /// Tasks, or some of them, cannot be stored there or executed.
    Error,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}
