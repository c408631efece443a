//! What a setting takes, how it is read from text, and what to say when it is wrong.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use toml::de::DeValue;

use super::{Listen, Lua, secret::RedisUrl};
use crate::telemetry;

/// What a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP address or `unix:/path`.
    Listen,
    /// A TCP address.
    Address,
    Path,
    /// A path, or empty for none.
    OptionalPath,
    Flag,
    Count {
        min: u64,
        max: u64,
    },
    /// Bytes.
    Size {
        min: u64,
        max: u64,
    },
    Duration {
        min: Duration,
        max: Duration,
    },
    List,
    RedisUrl,
    OwnPrefix,
    /// A word, or empty for none.
    OptionalText,
    /// What Kafka takes as the name of a topic or a group.
    KafkaName,
    /// One of these words.
    OneOf(&'static [&'static str]),
    Lua,
    LogFilter,
    LogFormat,
}

/// A value as it was given, before it is known to be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raw {
    /// A word of the environment or of a flag, or a scalar of the file.
    One(String),
    /// An array of the file, or a flag that was repeated.
    Many(Vec<String>),
}

impl Raw {
    /// The items of a list: an array's as they are, those of a word between its commas.
    fn items(&self) -> Vec<String> {
        match self {
            Self::One(text) => text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Into::into).collect(),
            Self::Many(items) => items.clone(),
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => f.write_str(text),
            Self::Many(items) => f.write_str(&items.join(",")),
        }
    }
}

/// A value of the file as it would be written elsewhere.
pub fn scalar(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        // No setting takes these: what stands for them is refused by every kind.
        DeValue::Array(_) | DeValue::Table(_) => String::new(),
    }
}

/// A value of the right kind, within its bounds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Listen(Listen),
    Address(SocketAddr),
    Path(PathBuf),
    OptionalPath(Option<PathBuf>),
    Flag(bool),
    Count(u64),
    Size(u64),
    Duration(Duration),
    List(Vec<String>),
    RedisUrl(RedisUrl),
    Text(String),
    Lua(Lua),
    LogFormat(telemetry::Format),
}

impl Kind {
    /// Reads a value, or says what would have been right, as the end of a sentence that begins with "expected".
    pub fn parse(self, raw: &Raw) -> Result<Value, String> {
        match self {
            Self::List => return self.list(raw.items()),
            Self::Lua => return parse_lua(raw).map(Value::Lua).ok_or_else(|| self.to_string()),
            _ => {}
        }
        let Raw::One(text) = raw else {
            return Err(format!("{self}, not a list"));
        };
        let text = text.trim();
        let value = match self {
            Self::Listen => parse_listen(text).map(Value::Listen),
            Self::Address => text.parse().ok().map(Value::Address),
            Self::Path => (!text.is_empty()).then(|| Value::Path(text.into())),
            Self::OptionalPath => Some(Value::OptionalPath((!text.is_empty()).then(|| text.into()))),
            Self::Flag => text.parse().ok().map(Value::Flag),
            Self::Count { min, max } => text.parse().ok().filter(|count| (min..=max).contains(count)).map(Value::Count),
            Self::Size { min, max } => parse_size(text).filter(|size| (min..=max).contains(size)).map(Value::Size),
            Self::Duration { min, max } => {
                parse_duration(text).filter(|duration| (min..=max).contains(duration)).map(Value::Duration)
            }
            Self::RedisUrl => return RedisUrl::parse(text).map(Value::RedisUrl),
            Self::OwnPrefix => is_own_prefix(text).then(|| Value::Text(text.into())),
            Self::OptionalText => Some(Value::Text(text.into())),
            Self::KafkaName => is_kafka_name(text).then(|| Value::Text(text.into())),
            Self::OneOf(words) => words.contains(&text).then(|| Value::Text(text.into())),
            Self::LogFilter => is_log_filter(text).then(|| Value::Text(text.into())),
            Self::LogFormat => telemetry::Format::parse(text).map(Value::LogFormat),
            Self::List | Self::Lua => unreachable!("lists were read above"),
        };
        value.ok_or_else(|| self.to_string())
    }

    fn list(self, items: Vec<String>) -> Result<Value, String> {
        if items.iter().any(String::is_empty) {
            return Err(format!("{self}, without an empty entry"));
        }
        Ok(Value::List(items))
    }

    /// Whether a flag of it may stand alone.
    pub fn is_flag(self) -> bool {
        self == Self::Flag
    }

    /// Whether a flag of it may be repeated.
    pub fn is_list(self) -> bool {
        matches!(self, Self::List | Self::Lua)
    }

    /// What stands for the value in `--help`.
    pub fn placeholder(self) -> &'static str {
        match self {
            Self::Listen => "ADDRESS|unix:PATH",
            Self::Address => "ADDRESS",
            Self::Path | Self::OptionalPath => "PATH",
            Self::Flag => "true|false",
            Self::Count { .. } => "NUMBER",
            Self::Size { .. } => "SIZE",
            Self::Duration { .. } => "DURATION",
            Self::List => "LIST",
            Self::RedisUrl => "URL",
            Self::OwnPrefix | Self::OptionalText | Self::KafkaName | Self::OneOf(_) => "TEXT",
            Self::Lua => "true|false|LIST",
            Self::LogFilter => "LEVEL",
            Self::LogFormat => "text|json|auto",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Listen => f.write_str("an IP address and port such as `127.0.0.1:7379`, or `unix:/path`"),
            Self::Address => f.write_str("an IP address and port such as `127.0.0.1:7380`"),
            Self::Path | Self::OptionalPath => f.write_str("a path"),
            Self::Flag => f.write_str("`true` or `false`"),
            Self::Count { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::Size { min, max } => {
                write!(f, "a size such as `64KiB` or `1GiB`, from {} to {}", show_size(min), show_size(max))
            }
            Self::Duration { min, max } => {
                let (min, max) = (show_duration(min), show_duration(max));
                write!(f, "a duration such as `200ms`, `30s` or `24h`, from {min} to {max}")
            }
            Self::List => f.write_str("a list, with commas between its entries"),
            Self::RedisUrl => f.write_str("a URL such as `redis://127.0.0.1:6379/0`"),
            Self::OwnPrefix => f.write_str("1 to 64 printable characters without spaces and braces"),
            Self::OptionalText => f.write_str("a text"),
            Self::KafkaName => f.write_str("1 to 160 letters, digits, dots, dashes and underscores"),
            Self::OneOf(words) => {
                let shown: Vec<_> =
                    words.iter().filter(|word| !word.is_empty()).map(|word| format!("`{word}`")).collect();
                write!(f, "one of {}", shown.join(", "))
            }
            Self::Lua => f.write_str("`true`, `false`, or a list of SHA-1s of 40 hexadecimal digits"),
            Self::LogFilter => f.write_str(
                "`error`, `warn`, `info`, `debug` or `trace`, also per module as in `info,redrive::target=debug`",
            ),
            Self::LogFormat => f.write_str("`text`, `json` or `auto`"),
        }
    }
}

const SIZE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

const DURATION_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Bytes of `64KiB`, `1GiB` or `4096`. None if it is something else or too much.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text);
    let factor = if unit.is_empty() { 1 } else { unit_factor(&SIZE_UNITS, unit)? };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// The duration of `200ms`, `30s`, `5m`, `24h` or `7d`. None if it is something else or too much.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text);
    let millis = number.parse::<u64>().ok()?.checked_mul(unit_factor(&DURATION_UNITS, unit)?)?;
    Some(Duration::from_millis(millis))
}

/// A size in the largest unit that gives a whole number.
pub fn show_size(bytes: u64) -> String {
    show(&SIZE_UNITS, bytes).unwrap_or_else(|| "0B".into())
}

/// A duration in the largest unit that gives a whole number of it; parts of a millisecond are left out.
pub fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    show(&DURATION_UNITS, millis).unwrap_or_else(|| "0s".into())
}

fn show(units: &[(&str, u64)], amount: u64) -> Option<String> {
    let (unit, factor) = units.iter().find(|(_, factor)| amount >= *factor && amount.is_multiple_of(*factor))?;
    Some(format!("{}{unit}", amount / factor))
}

fn unit_factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    (number, unit.trim_start())
}

fn parse_listen(text: &str) -> Option<Listen> {
    match text.strip_prefix("unix:") {
        Some(path) => path.starts_with('/').then(|| Listen::Unix(path.into())),
        None => text.parse().ok().map(Listen::Tcp),
    }
}

fn parse_lua(raw: &Raw) -> Option<Lua> {
    match raw {
        Raw::One(text) if text.trim() == "true" => Some(Lua::On),
        Raw::One(text) if text.trim() == "false" => Some(Lua::Off),
        _ => {
            let digests = raw.items();
            let all_sha1 = digests.iter().all(|item| item.len() == 40 && item.bytes().all(|b| b.is_ascii_hexdigit()));
            (!digests.is_empty() && all_sha1)
                .then(|| Lua::Only(digests.iter().map(|item| item.to_ascii_lowercase()).collect()))
        }
    }
}

/// Braces are refused because in a Cluster they decide the slot, and own keys must go where the task's keys are.
fn is_own_prefix(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'{' && b != b'}')
}

/// What stands behind the name of the main topic (the target, the lane) must fit into the 249 characters that Kafka
/// allows.
fn is_kafka_name(text: &str) -> bool {
    let right = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=160).contains(&text.len()) && text != "." && text != ".." && text.bytes().all(right)
}

/// Stricter than the filter's own parser, which takes a misspelt level for the name of a module.
fn is_log_filter(text: &str) -> bool {
    let is_level = |level: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&level);
    text.split(',').map(str::trim).all(|directive| match directive.split_once('=') {
        Some((module, level)) => !module.is_empty() && is_level(level),
        None => is_level(directive),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("64KiB"), Some(65_536));
        assert_eq!(parse_size("1 GiB"), Some(1 << 30));
        assert_eq!(parse_size("4096"), Some(4096));
        for wrong in ["", "64KB", "64k", "-1", "1.5GiB", "KiB", "99999999TiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("200ms"), Some(Duration::from_millis(200)));
        assert_eq!(parse_duration("24h"), Some(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("7d"), Some(Duration::from_secs(7 * 86_400)));
        for wrong in ["", "30", "s", "-1s", "1.5s", "1 year", "99999999999999999d"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for bytes in [0, 1, 1000, 65_536, 3 << 20, 1 << 40] {
            assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }
        for millis in [0, 1, 999, 1000, 90_000, 3_600_000, 86_400_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
    }

    #[test]
    fn listeners_are_addresses_or_absolute_sockets() {
        let check = |text: &str| parse_listen(text);
        assert_eq!(check("127.0.0.1:0"), Some(Listen::Tcp(([127, 0, 0, 1], 0).into())));
        assert_eq!(check("unix:/run/redrive.sock"), Some(Listen::Unix("/run/redrive.sock".into())));
        assert_eq!(check("unix:redrive.sock"), None);
        assert_eq!(check("localhost:7379"), None);
    }

    #[test]
    fn scripts_are_on_off_or_listed() {
        let sha = "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709";
        let check = |text: &str| parse_lua(&Raw::One(text.into()));
        assert_eq!(check("true"), Some(Lua::On));
        assert_eq!(check("false"), Some(Lua::Off));
        assert_eq!(check(sha), Some(Lua::Only(vec![sha.to_ascii_lowercase()])));
        assert_eq!(check(""), None);
        assert_eq!(check("yes"), None);
    }

    #[test]
    fn misspelt_level_is_not_taken_for_a_module() {
        assert!(is_log_filter("info,redrive::target=debug"));
        assert!(!is_log_filter("inof"));
        assert!(!is_log_filter("info,"));
        assert!(!is_log_filter("redrive=loud"));
    }
}
