//! What can be wrong with a configuration. All problems are collected, so that one start shows them all.

use std::{fmt, path::PathBuf};

use super::source::Origin;

/// One thing that is wrong, and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("{}: the file cannot be read: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{}:{line}: not TOML: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{origin}: `{name}` is not a setting{}", DidYouMean(nearest))]
    Unknown { origin: Origin, name: String, nearest: Option<String> },
    #[error("{origin}: `{name}` is {given}; expected {expected}")]
    Invalid { origin: Origin, name: String, given: String, expected: String },
    /// Each value is right, together they are not.
    #[error("{message} (`{name}` is from {origin})")]
    Contradiction { name: &'static str, origin: Origin, message: String },
}

struct DidYouMean<'a>(&'a Option<String>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
            None => f.write_str("; `redrive serve --help` lists them"),
        }
    }
}

/// Everything that is wrong with a configuration; at least one problem.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError(Vec<Problem>);

impl ConfigError {
    /// `Err` with the problems if there are any.
    pub(super) fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [problem] => write!(f, "wrong configuration: {problem}"),
            problems => {
                write!(f, "wrong configuration, {} problems:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// The candidate that `name` was most likely meant to be, if one is near.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let bound = name.chars().count() / 3 + 1;
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many characters have to be put in, left out or changed to make one text of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slip_of_the_finger_finds_its_name() {
        let names = ["redis.url", "retry.cap", "retry.base", "listen"];
        assert_eq!(nearest("redis.ulr", names), Some("redis.url"));
        assert_eq!(nearest("retry.bse", names), Some("retry.base"));
        assert_eq!(nearest("lisen", names), Some("listen"));
        assert_eq!(nearest("kafka.brokers", names), None);
    }

    #[test]
    fn distance_counts_changes() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abc", "axc"), 1);
        assert_eq!(distance("abc", "bc"), 1);
    }
}
