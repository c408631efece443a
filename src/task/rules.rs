//! What a task is checked against.

/// Limits of admission, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Arguments of one command; keys and arguments of a script together.
    pub max_args: usize,
    /// Bytes of one argument, decoded, and of a script's source.
    pub max_arg_bytes: usize,
    /// Commands of a pipeline.
    pub max_commands: usize,
    /// Every key begins with one of these; none: all keys are allowed.
    pub key_prefixes: Vec<String>,
    pub lua: LuaPolicy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_args: 1024,
            max_arg_bytes: 128 * 1024,
            max_commands: 128,
            key_prefixes: Vec::new(),
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

/// What a task is checked against: the limits and the targets there are.
#[derive(Clone, Debug)]
pub struct Rules {
    pub(super) config: Config,
    targets: Vec<String>,
}

impl Rules {
    pub fn new(config: Config, targets: impl IntoIterator<Item = String>) -> Self {
        Self { config, targets: targets.into_iter().collect() }
    }

    pub(super) fn knows_target(&self, name: &str) -> bool {
        self.targets.iter().any(|target| target == name)
    }

    pub(super) fn allows_key(&self, key: &[u8]) -> bool {
        let prefixes = &self.config.key_prefixes;
        prefixes.is_empty() || prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
    }
}
