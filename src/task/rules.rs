//! What a task is checked against.

use super::{DefaultRule, Defaults, Refusal, RefusalKind, Task};

/// Of a pipeline.
pub const MAX_COMMANDS: usize = 128;

/// Limits of admission, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Arguments of one command; keys and arguments of a script together.
    pub max_args: usize,
    /// Bytes of one argument, decoded, and of a script's source.
    pub max_arg_bytes: usize,
    /// Commands of a pipeline.
    pub max_commands: usize,
    /// Bytes of a task that did not come through the front door, which has its own bound.
    pub max_foreign_bytes: usize,
    /// Every key begins with one of these; none: all keys are allowed.
    pub key_prefixes: Vec<String>,
    /// What Redrive's own keys begin with: no key of a task does.
    pub own_prefix: String,
    pub lua: LuaPolicy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_args: 1024,
            max_arg_bytes: 128 * 1024,
            max_commands: MAX_COMMANDS,
            max_foreign_bytes: 256 * 1024,
            key_prefixes: Vec::new(),
            own_prefix: "redrive:".into(),
            lua: LuaPolicy::On,
        }
    }
}

/// Which scripts are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LuaPolicy {
    On,
    Off,
    /// Those whose source has one of these SHA-1s, in hex.
    Listed(Vec<String>),
}

/// What a task is checked against: the limits and the targets there are; and what is said of tasks that leave it open.
#[derive(Clone, Debug)]
pub struct Rules {
    pub(super) config: Config,
    targets: Vec<String>,
    defaults: Vec<DefaultRule>,
}

impl Rules {
    pub fn new(config: Config, targets: impl IntoIterator<Item = String>) -> Self {
        Self { config, targets: targets.into_iter().collect(), defaults: Vec::new() }
    }

    pub fn with_defaults(self, defaults: Vec<DefaultRule>) -> Self {
        Self { defaults, ..self }
    }

    /// What is said of a task in so far as it does not say it itself.
    pub fn defaults(&self, task: &Task<'_>) -> Defaults {
        if self.defaults.is_empty() { Defaults::default() } else { Defaults::of(task, &self.defaults) }
    }

    /// What is wrong with a task of that many bytes that did not come through the front door, if it is too long.
    pub fn check_foreign_size(&self, bytes: usize) -> Result<(), Refusal> {
        let most = self.config.max_foreign_bytes;
        if bytes <= most {
            return Ok(());
        }
        let detail = format!("the task has {bytes} bytes, of {most} that are allowed");
        Err(Refusal { kind: RefusalKind::ValidationFailed, detail, errors: Vec::new() })
    }

    pub(super) fn knows_target(&self, name: &str) -> bool {
        self.targets.iter().any(|target| target == name)
    }

    /// Why no task may touch this key, if none may.
    pub(super) fn why_not_key(&self, key: &[u8]) -> Option<&'static str> {
        let begins_with = |prefix: &String| key.starts_with(prefix.as_bytes());
        if begins_with(&self.config.own_prefix) {
            return Some("this key begins like those that redrive keeps for itself");
        }
        let prefixes = &self.config.key_prefixes;
        let allowed = prefixes.is_empty() || prefixes.iter().any(begins_with);
        (!allowed).then_some("this key begins with none of the prefixes that are allowed here")
    }
}
