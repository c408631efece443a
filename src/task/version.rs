//! The version of what a task writes.

use std::fmt;

/// Orders the writes of one key: a task is applied only if its version is above the one applied last. From 0 to
/// 2^63 - 1; written in decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u64);

impl Version {
    pub const MAX: Self = Self(i64::MAX.unsigned_abs());

    /// Reads a version as a client writes it: decimal digits, no sign, no leading zeros. None: it is something else,
    /// or too large.
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = text == "0" || !text.starts_with('0');
        if !canonical || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        text.parse().ok().map(Self).filter(|version| *version <= Self::MAX)
    }

    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_spelling_of_a_number_is_a_version() {
        for text in ["0", "7", "10", "9007199254740993", "9223372036854775807"] {
            assert_eq!(Version::parse(text).map(|version| version.to_string()).as_deref(), Some(text));
        }
        for text in ["", "00", "07", "+7", "-1", "7 ", "7.0", "1e3", "٧", "9223372036854775808", &"9".repeat(40)] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }
}
