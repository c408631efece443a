//! Rules of the file: `[[rules]]` tables, which say of some tasks what they do not say themselves.

use std::{path::Path, sync::Arc};

use toml::de::{DeTable, DeValue};

use super::{
    kind::{parse_duration, scalar, show_duration},
    problem::Problem,
    source::{Origin, line_of},
};
use crate::task::{DefaultRule, Lane, Late, LateAction, Pattern};

const FIELDS: &str = "`source`, `key`, `command`, `late`, `max_retries` or `priority`";
const MAX_RETRIES: u8 = 20;

/// A rule, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenRule {
    pub rule: DefaultRule,
    pub origin: Origin,
}

/// Reads the value of `rules`. What is wrong is added to `problems`.
pub fn read_rules(
    path: &Arc<Path>,
    text: &str,
    line: usize,
    value: &DeValue<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<GivenRule> {
    let DeValue::Array(items) = value else {
        let origin = Origin::File { path: path.clone(), line };
        let expected = "tables, each under its own `[[rules]]`".into();
        problems.push(Problem::Invalid { origin, name: "rules".into(), given: "something else".into(), expected });
        return Vec::new();
    };
    let mut rules = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let origin = Origin::File { path: path.clone(), line: line_of(text, item.span().start) };
        let mut reader = Reader { path, text, name: format!("rules[{}]", index + 1), problems: &mut *problems };
        if let DeValue::Table(table) = item.get_ref() {
            if let Some(rule) = reader.rule(table, &origin) {
                rules.push(GivenRule { rule, origin });
            }
        } else {
            let name = reader.name.clone();
            reader.refuse(origin, name, "no table", "a table under `[[rules]]`");
        }
    }
    rules
}

struct Reader<'a> {
    path: &'a Arc<Path>,
    text: &'a str,
    /// What problems call the rule.
    name: String,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    /// None: something is wrong with it, which was noted.
    fn rule(&mut self, table: &DeTable<'_>, origin: &Origin) -> Option<DefaultRule> {
        let before = self.problems.len();
        let mut rule = DefaultRule::default();
        for (key, value) in table {
            let place = self.place(key.span().start);
            let (name, value) = (key.get_ref().as_ref(), value.get_ref());
            match name {
                "source" => rule.source = self.pattern(place, name, value),
                "key" => rule.key = self.pattern(place, name, value),
                "command" => {
                    let pattern = self.pattern(place, name, value);
                    rule.command = pattern.map(|pattern| Pattern::new(pattern.as_str().to_ascii_uppercase()));
                }
                "late" => rule.late = self.late(place, value),
                "max_retries" => rule.max_retries = self.max_retries(place, value),
                "priority" => rule.lane = self.lane(place, value),
                _ => self.unknown(place, name, FIELDS),
            }
        }
        let says_nothing = rule.late.is_none() && rule.max_retries.is_none() && rule.lane.is_none();
        if before == self.problems.len() && says_nothing {
            let name = self.name.clone();
            self.refuse(origin.clone(), name, "without effect", "one of `late`, `max_retries` and `priority` in it");
        }
        (before == self.problems.len()).then_some(rule)
    }

    fn pattern(&mut self, place: Origin, name: &str, value: &DeValue<'_>) -> Option<Pattern> {
        match value {
            DeValue::String(text) if !text.is_empty() => Some(Pattern::new(text.as_ref())),
            other => {
                self.invalid(place, name, other, "a text, in which `*` stands for anything");
                None
            }
        }
    }

    fn late(&mut self, place: Origin, value: &DeValue<'_>) -> Option<Late> {
        const EXPECTED: &str = "a table such as `{ after = \"30s\", do = \"invalidate\" }`";
        let DeValue::Table(table) = value else {
            self.invalid(place, "late", value, EXPECTED);
            return None;
        };
        let (mut after, mut action) = (None, None);
        let before = self.problems.len();
        for (key, value) in table {
            let place = self.place(key.span().start);
            let value = value.get_ref();
            match key.get_ref().as_ref() {
                "after" => {
                    after = parse_duration(&scalar(value)).filter(|after| *after <= Late::MAX_AFTER);
                    if after.is_none() {
                        let expected = format!("a duration such as `30s`, at most {}", show_duration(Late::MAX_AFTER));
                        self.invalid(place, "late.after", value, &expected);
                    }
                }
                "do" => {
                    action = LateAction::from_name(&scalar(value));
                    if action.is_none() {
                        self.invalid(place, "late.do", value, "`replay`, `invalidate` or `drop`");
                    }
                }
                other => self.unknown(place, &format!("late.{other}"), "`after` or `do`"),
            }
        }
        if before == self.problems.len() && (after.is_none() || action.is_none()) {
            let name = format!("{}.late", self.name);
            self.refuse(place, name, "incomplete", EXPECTED);
        }
        Some(Late { after: after?, action: action? })
    }

    fn max_retries(&mut self, place: Origin, value: &DeValue<'_>) -> Option<u8> {
        let retries = scalar(value).parse().ok().filter(|retries| *retries <= MAX_RETRIES);
        if retries.is_none() {
            self.invalid(place, "max_retries", value, &format!("a whole number from 0 to {MAX_RETRIES}"));
        }
        retries
    }

    fn lane(&mut self, place: Origin, value: &DeValue<'_>) -> Option<Lane> {
        let name = scalar(value);
        let lane = Lane::ALL.into_iter().find(|lane| lane.as_str() == name);
        if lane.is_none() {
            self.invalid(place, "priority", value, "`high`, `normal` or `low`");
        }
        lane
    }

    fn place(&self, offset: usize) -> Origin {
        Origin::File { path: self.path.clone(), line: line_of(self.text, offset) }
    }

    fn unknown(&mut self, origin: Origin, field: &str, known: &str) {
        self.refuse(origin, format!("{}.{field}", self.name), "not a field", known);
    }

    fn invalid(&mut self, origin: Origin, field: &str, given: &DeValue<'_>, expected: &str) {
        let given = format!("\"{}\"", scalar(given).escape_debug());
        self.refuse(origin, format!("{}.{field}", self.name), &given, expected);
    }

    fn refuse(&mut self, origin: Origin, name: String, given: &str, expected: &str) {
        self.problems.push(Problem::Invalid { origin, name, given: given.into(), expected: expected.into() });
    }
}

/// A rule as it is written in the file, on one line.
pub fn show_rule(rule: &DefaultRule) -> String {
    // The escapes of JSON are those of TOML too.
    let quoted = |text: &str| serde_json::to_string(text).expect("a text is JSON");
    let pattern = |name: &str, pattern: &Option<Pattern>| {
        pattern.as_ref().map(|pattern| format!("{name} = {}", quoted(pattern.as_str())))
    };
    let late = rule.late.map(|late| {
        let (after, action) = (show_duration(late.after), late.action.as_str());
        format!("late = {{ after = \"{after}\", do = \"{action}\" }}")
    });
    let parts = [
        pattern("source", &rule.source),
        pattern("key", &rule.key),
        pattern("command", &rule.command),
        late,
        rule.max_retries.map(|retries| format!("max_retries = {retries}")),
        rule.lane.map(|lane| format!("priority = \"{}\"", lane.as_str())),
    ];
    format!("{{ {} }}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rule_is_shown_as_it_is_written() {
        let late = Late { after: Duration::from_secs(90), action: LateAction::Drop };
        let rule = DefaultRule {
            source: Some(Pattern::new("a \"b\"")),
            key: Some(Pattern::new("cache:*")),
            command: Some(Pattern::new("SET")),
            late: Some(late),
            max_retries: Some(0),
            lane: Some(Lane::High),
        };
        let shown = show_rule(&rule);
        assert_eq!(
            shown,
            r#"{ source = "a \"b\"", key = "cache:*", command = "SET", late = { after = "90s", do = "drop" }, max_retries = 0, priority = "high" }"#
        );
        let text = format!("rules = [{shown}]");
        let (root, errors) = DeTable::parse_recoverable(&text);
        assert!(errors.is_empty());
        let (_, value) = root.get_ref().iter().next().expect("the rules");
        let mut problems = Vec::new();
        let read = read_rules(&Path::new("r.toml").into(), &text, 1, value.get_ref(), &mut problems);
        assert_eq!((read.len(), &read[0].rule, problems.len()), (1, &rule, 0));
    }
}
