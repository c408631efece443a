//! Where values come from: a TOML file, the environment, flags. Here they get their setting's name and their origin;
//! whether a value is right is decided later, the same way for all of them.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::de::{DeTable, DeValue};

use super::{
    kind::{Raw, scalar},
    problem::{Problem, nearest},
    rule::{GivenRule, read_rules},
    setting::{ENV_PREFIX, SETTINGS},
};
use crate::faults;

/// What the configuration is made from, weakest first. Not `Debug`: passwords are in it.
#[derive(Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// The whole environment; what does not concern Redrive is passed over.
    pub env: Vec<(OsString, OsString)>,
    /// Settings given as flags, by the setting's name.
    pub flags: Vec<(String, Raw)>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
    File {
        path: Arc<Path>,
        /// Counted from 1.
        line: usize,
    },
    /// The variable's name.
    Env(String),
    /// The flag, without its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => f.write_str(name),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, PartialEq, Eq)]
pub struct Given {
    /// The name of a setting, or `targets.NAME.url` and `targets.NAME.identity`; of a rule `rules[1]`, counted from 1.
    pub name: String,
    pub raw: Raw,
    pub origin: Origin,
}

/// Values in the order in which later ones win, and what could not be made sense of.
#[derive(Default)]
pub struct Gathered {
    pub given: Vec<Given>,
    /// In their order in the file.
    pub rules: Vec<GivenRule>,
    pub problems: Vec<Problem>,
}

impl Sources {
    pub fn gather(&self) -> Gathered {
        let mut gathered = Gathered::default();
        if let Some(path) = &self.file {
            gathered.read_file(path);
        }
        for (name, value) in &self.env {
            gathered.read_env(name, value);
        }
        for (name, raw) in &self.flags {
            gathered.read_flag(name, raw);
        }
        gathered
    }
}

impl Gathered {
    fn read_file(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.read_toml(path.into(), &text),
            Err(error) => self.problems.push(Problem::Unreadable { path: path.into(), reason: error.to_string() }),
        }
    }

    fn read_toml(&mut self, path: Arc<Path>, text: &str) {
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            self.problems.push(Problem::Syntax { path: (&*path).into(), line, message: error.message().into() });
        }
        self.read_table(&path, text, "", root.get_ref());
    }

    fn read_table(&mut self, path: &Arc<Path>, text: &str, prefix: &str, table: &DeTable<'_>) {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let name =
                if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
            let origin = Origin::File { path: path.clone(), line: line_of(text, key.span().start) };
            match value.get_ref() {
                value if name == "rules" => {
                    let line = line_of(text, key.span().start);
                    self.rules = read_rules(path, text, line, value, &mut self.problems);
                }
                DeValue::Table(inner) if is_group(&name) => self.read_table(path, text, &name, inner),
                DeValue::Table(_) => self.unknown(origin, name),
                value => self.put(name, to_raw(value), origin),
            }
        }
    }

    fn read_env(&mut self, name: &OsString, value: &OsString) {
        let is_ours = |name: &&str| name.starts_with(ENV_PREFIX) && *name != CONFIG_ENV && !faults::is_variable(name);
        let Some(name) = name.to_str().filter(is_ours) else { return };
        let origin = Origin::Env(name.into());
        let Some(value) = value.to_str() else {
            self.problems.push(Problem::Invalid {
                origin,
                name: name.into(),
                given: "not UTF-8".into(),
                expected: "text".into(),
            });
            return;
        };
        if is_service_link(name, value) {
            return;
        }
        let raw = Raw::One(value.into());
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.env_name() == name) {
            self.given.push(Given { name: setting.name.into(), raw, origin });
            return;
        }
        let of_target = |suffix| {
            let target = name.strip_prefix("REDRIVE_TARGETS_")?.strip_suffix(suffix)?;
            (!target.is_empty()).then(|| target.to_ascii_lowercase())
        };
        let setting = of_target("_URL").map(|target| target_setting(&target));
        let setting = setting.or_else(|| of_target("_IDENTITY").map(|target| identity_setting(&target)));
        if let Some(name) = setting {
            self.given.push(Given { name, raw, origin });
            return;
        }
        let names: Vec<String> = SETTINGS.iter().map(|setting| setting.env_name()).collect();
        let nearest = nearest(name, names.iter().map(String::as_str)).map(Into::into);
        self.problems.push(Problem::Unknown { origin, name: name.into(), nearest });
    }

    fn read_flag(&mut self, name: &str, raw: &Raw) {
        let flag = match name.strip_prefix("targets.") {
            Some(_) if identified_target(name).is_some() => "target-identity".into(),
            Some(_) => "target".into(),
            None => name.replace(['.', '_'], "-"),
        };
        self.put(name.into(), raw.clone(), Origin::Flag(flag));
    }

    fn put(&mut self, name: String, raw: Raw, origin: Origin) {
        if SETTINGS.iter().any(|setting| setting.name == name) || of_target(&name).is_some() {
            self.given.push(Given { name, raw, origin });
        } else {
            self.unknown(origin, name);
        }
    }

    fn unknown(&mut self, origin: Origin, name: String) {
        let nearest = nearest(&name, SETTINGS.iter().map(|setting| setting.name)).map(Into::into);
        self.problems.push(Problem::Unknown { origin, name, nearest });
    }
}

/// The variable that names the file.
pub const CONFIG_ENV: &str = "REDRIVE_CONFIG";

/// The name of the target whose URL this setting is.
pub fn target_name(setting: &str) -> Option<&str> {
    setting.strip_prefix("targets.")?.strip_suffix(".url")
}

/// The setting that is the URL of this target.
pub fn target_setting(target: &str) -> String {
    format!("targets.{target}.url")
}

/// The name of the target that this setting says the identity of.
pub fn identified_target(setting: &str) -> Option<&str> {
    setting.strip_prefix("targets.")?.strip_suffix(".identity")
}

/// The setting that is the identity of this target.
pub fn identity_setting(target: &str) -> String {
    format!("targets.{target}.identity")
}

/// The name of the target that this setting is about.
pub fn of_target(setting: &str) -> Option<&str> {
    target_name(setting).or_else(|| identified_target(setting))
}

/// Whether names of settings begin with this one, so that a table of the file may have it.
fn is_group(name: &str) -> bool {
    let is_target = name == "targets" || name.strip_prefix("targets.").is_some_and(|target| !target.contains('.'));
    is_target
        || SETTINGS.iter().any(|setting| setting.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// Whether Kubernetes made this variable. It puts the addresses of every Service of the namespace into every pod, and
/// for a Service whose name begins with `redrive` their names begin as ours do.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_part = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| {
        let Some((before, after)) = name.split_once(protocol) else { return false };
        let port = before.rsplit('_').next().unwrap_or_default();
        port.bytes().all(|b| b.is_ascii_digit()) && ["", "_PROTO", "_PORT", "_ADDR"].contains(&after)
    });
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || is_part
        || (name.ends_with("_PORT") && is_address)
}

fn to_raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::Array(items) => Raw::Many(items.iter().map(|item| scalar(item.get_ref())).collect()),
        value => Raw::One(scalar(value)),
    }
}

pub fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_kubernetes_are_passed_over() {
        let check = |name: &str, value: &str| is_service_link(name, value);
        assert!(check("REDRIVE_SERVICE_HOST", "10.0.0.1"));
        assert!(check("REDRIVE_SERVICE_PORT", "7380"));
        assert!(check("REDRIVE_SERVICE_PORT_OPS", "7380"));
        assert!(check("REDRIVE_PORT", "tcp://10.0.0.1:7380"));
        assert!(check("REDRIVE_CONSOLE_PORT_7380_TCP_ADDR", "10.0.0.1"));
        assert!(check("REDRIVE_PORT_7380_TCP", "tcp://10.0.0.1:7380"));
        assert!(!check("REDRIVE_LISTEN", "127.0.0.1:1"));
        assert!(!check("REDRIVE_PORT", "7379"));
        assert!(!check("REDRIVE_TCP_NODELAY", "true"));
    }

    #[test]
    fn broken_file_shows_every_line_that_is_broken() {
        let mut gathered = Gathered::default();
        gathered.read_toml(Path::new("r.toml").into(), "listen = \n\n[retry]\nbase = \"1s\nmax_retries = 2\n");
        let lines: Vec<_> = gathered
            .problems
            .iter()
            .filter_map(|problem| match problem {
                Problem::Syntax { line, .. } => Some(*line),
                _ => None,
            })
            .collect();
        assert!(lines.contains(&1) && lines.contains(&4), "{lines:?}");
    }
}
