//! What the configuration says of tasks that do not say it themselves.

use super::{Lane, Late, Operation, Task};

/// Which tasks a rule is about, and what it says of them. What it leaves open about them does not matter to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultRule {
    /// The task's `source`; a task without one does not match.
    pub source: Option<Pattern>,
    /// All keys that the task writes; a script without keys does not match.
    pub key: Option<Pattern>,
    /// All commands of the task, in upper case; a script is `EVAL`.
    pub command: Option<Pattern>,
    pub late: Option<Late>,
    pub max_retries: Option<u8>,
    pub lane: Option<Lane>,
}

/// What rules say of a task, in so far as it does not say it itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    pub late: Option<Late>,
    pub max_retries: Option<u8>,
    pub lane: Option<Lane>,
}

/// A text in which each `*` stands for any bytes, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn matches(&self, text: &[u8]) -> bool {
        let Some((start, rest)) = self.0.split_once('*') else { return self.0.as_bytes() == text };
        let Some(mut text) = text.strip_prefix(start.as_bytes()) else { return false };
        let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
        // Each part is taken where it is found first, which leaves the most for those behind it.
        for part in middle.split('*').filter(|part| !part.is_empty()) {
            let Some(found) = text.windows(part.len()).position(|window| window == part.as_bytes()) else {
                return false;
            };
            text = &text[found + part.len()..];
        }
        text.ends_with(end.as_bytes())
    }
}

impl Defaults {
    /// For each thing that a task leaves open, the first rule that matches and says something of it decides.
    pub(super) fn of(task: &Task<'_>, rules: &[DefaultRule]) -> Self {
        let mut defaults = Self::default();
        for rule in rules.iter().filter(|rule| rule.matches(task)) {
            defaults.late = defaults.late.or(rule.late);
            defaults.max_retries = defaults.max_retries.or(rule.max_retries);
            defaults.lane = defaults.lane.or(rule.lane);
        }
        Self {
            late: defaults.late.filter(|_| task.late.is_none()),
            max_retries: defaults.max_retries.filter(|_| task.max_retries.is_none()),
            lane: defaults.lane.filter(|_| task.lane.is_none()),
        }
    }
}

impl DefaultRule {
    fn matches(&self, task: &Task<'_>) -> bool {
        let Self { source, key, command, .. } = self;
        let has_source =
            |pattern: &Pattern| task.context.source.as_deref().is_some_and(|source| pattern.matches(source.as_bytes()));
        source.as_ref().is_none_or(has_source)
            && command.as_ref().is_none_or(|pattern| has_commands(&task.operation, pattern))
            && key.as_ref().is_none_or(|pattern| writes_keys(&task.operation, pattern))
    }
}

fn has_commands(operation: &Operation<'_>, pattern: &Pattern) -> bool {
    let matches = |name: &str| pattern.matches(name.as_bytes());
    match operation {
        Operation::Simple(command) => matches(command.spec.name),
        Operation::Pipeline { commands, .. } => commands.iter().all(|command| matches(command.spec.name)),
        Operation::Lua(_) => matches("EVAL"),
    }
}

/// Invalidating unlinks all keys that are written, so one of them that matches is not enough.
fn writes_keys(operation: &Operation<'_>, pattern: &Pattern) -> bool {
    let mut writes = false;
    let all = operation.units().all(|unit| {
        unit.keys.iter().filter(|key| key.written).all(|key| {
            writes = true;
            pattern.matches(key.bytes)
        })
    });
    all && writes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::task::{Config, LateAction, Rules};

    #[test]
    fn stars_stand_for_anything() {
        let check = |pattern: &str, text: &str, matches: bool| {
            assert_eq!(Pattern::new(pattern).matches(text.as_bytes()), matches, "{pattern} {text}");
        };
        check("", "", true);
        check("", "a", false);
        check("abc", "abc", true);
        check("abc", "abcd", false);
        check("*", "", true);
        check("*", "anything", true);
        check("**", "a", true);
        check("cache:*", "cache:", true);
        check("cache:*", "cache", false);
        check("*:v2", "user:v2", true);
        check("*:v2", "user:v2x", false);
        check("a*a", "a", false);
        check("a*a", "aa", true);
        check("a*b*c", "a-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("a*b*b", "ab", false);
        check("a*bc*bcd", "abcbcd", true);
        check("a*bc*bcd", "abcd", false);
        check("*ab*", "xaab", true);
        check("user:?", "user:1", false);
    }

    fn defaults(rules: &[DefaultRule], body: &str) -> Defaults {
        let admission = Rules::new(Config::default(), ["default".to_owned()]);
        Defaults::of(&Task::parse(body.as_bytes(), &admission, Timestamp::now()).expect(body), rules)
    }

    #[test]
    fn rule_is_about_source_commands_and_all_written_keys() {
        let pattern = |text: &str| Some(Pattern::new(text));
        let rule = |source: &str, key: &str, command: &str| DefaultRule {
            source: pattern(source).filter(|_| !source.is_empty()),
            key: pattern(key).filter(|_| !key.is_empty()),
            command: pattern(command).filter(|_| !command.is_empty()),
            max_retries: Some(9),
            ..DefaultRule::default()
        };
        let check = |rule: DefaultRule, body: &str, matches: bool| {
            assert_eq!(defaults(&[rule], body).max_retries.is_some(), matches, "{body}");
        };
        let set = r#"{"type":"simple","command":"set","args":["cache:1","v"],"source":"orders"}"#;
        check(rule("", "", ""), set, true);
        check(rule("orders", "cache:*", "SET"), set, true);
        check(rule("ord*", "*", "*SET*"), set, true);
        check(rule("payments", "", ""), set, false);
        check(rule("", "session:*", ""), set, false);
        check(rule("", "", "DEL"), set, false);
        let copy = r#"{"type":"simple","command":"COPY","args":["other","cache:1"]}"#;
        check(rule("", "cache:*", ""), copy, true);
        check(rule("*", "", ""), copy, false);
        check(rule("", "cache:*", ""), r#"{"type":"simple","command":"DEL","args":["cache:1","other"]}"#, false);
        let two = r#"{"type":"pipeline","commands":[{"command":"SET","args":["cache:1","v"]},{"command":"DEL","args":["cache:2"]}]}"#;
        check(rule("", "cache:*", ""), two, true);
        check(rule("", "cache:1", ""), two, false);
        check(rule("", "", "SET"), two, false);
        check(rule("", "*", ""), r#"{"type":"lua","script":"return 1"}"#, false);
        check(rule("", "*", "EVAL"), r#"{"type":"lua","script":"return 1","keys":["k"]}"#, true);
    }

    #[test]
    fn first_rule_that_says_something_decides_and_the_task_goes_before() {
        let late = |seconds| Late { after: Duration::from_secs(seconds), action: LateAction::Drop };
        let rules = [
            DefaultRule { source: Some(Pattern::new("nobody")), late: Some(late(1)), ..DefaultRule::default() },
            DefaultRule { max_retries: Some(1), ..DefaultRule::default() },
            DefaultRule { max_retries: Some(2), late: Some(late(2)), lane: Some(Lane::Low), ..DefaultRule::default() },
        ];
        let plain = defaults(&rules, r#"{"type":"simple","command":"DEL","args":["k"]}"#);
        assert_eq!(plain, Defaults { late: Some(late(2)), max_retries: Some(1), lane: Some(Lane::Low) });
        let own = r#"{"type":"simple","command":"DEL","args":["k"],"max_retries":7,"priority":"normal"}"#;
        assert_eq!(defaults(&rules, own), Defaults { late: Some(late(2)), ..Defaults::default() });
    }
}
