//! The scripts of ours that decide whether something runs, and a task's script put into one of them.

use std::{fmt::Write as _, sync::LazyLock};

use sha1_smol::Sha1;

use crate::faults;

/// Runs once-units; its file says how it is called.
pub(super) static ONCE: LazyLock<Wrapper> = LazyLock::new(|| Wrapper::new(include_str!("scripts/once.lua")));

/// The version fence; its file says how it is called.
pub(super) static VERSION: LazyLock<Wrapper> = LazyLock::new(|| Wrapper::new(include_str!("scripts/version.lua")));

/// The line of a wrapper that a task's script replaces.
const NO_BODY: &str = "local body = nil\n";

/// The line in whose place the commands' part stands.
const COMMANDS: &str = "-- commands.lua\n";

/// What a task's script becomes the inside of. Its first line stays the first one, so that errors name its lines; and
/// it comes before anything of ours, so that it sees no name that is not its own.
const OPEN: &[u8] = b"local body = function(...) ";
const CLOSE: &[u8] = b"\nend\n";

/// One of our scripts.
pub(super) struct Wrapper {
    source: String,
    digest: String,
    /// What follows a task's script.
    tail: String,
}

impl Wrapper {
    fn new(file: &str) -> Self {
        let source = with_planted_bugs(without_comments(&complete(file)));
        let (_, tail) = source.split_once(NO_BODY).expect("a wrapper has a place for a script");
        Self { digest: Sha1::from(&source).digest().to_string(), tail: tail.to_owned(), source }
    }

    /// The source that runs commands.
    pub(super) fn source(&self) -> &[u8] {
        self.source.as_bytes()
    }

    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// The source that runs `script`.
    pub(super) fn around(&self, script: &[u8]) -> Vec<u8> {
        self.parts(script).concat()
    }

    pub(super) fn digest_around(&self, script: &[u8]) -> String {
        let mut digest = Sha1::new();
        self.parts(script).iter().for_each(|part| digest.update(part));
        digest.digest().to_string()
    }

    fn parts<'a>(&'a self, script: &'a [u8]) -> [&'a [u8]; 5] {
        let (shebang, script) = script.split_at(shebang_len(script));
        [shebang, OPEN, script, CLOSE, self.tail.as_bytes()]
    }
}

/// The version fence as a service may run its own writes through it; `docs/version-fence.lua` is the same with comments.
pub fn version_fence() -> &'static str {
    &VERSION.source
}

/// The digest of a script by which a server knows it.
pub(super) fn digest(source: &[u8]) -> String {
    Sha1::from(source).digest().to_string()
}

/// A file with the commands' part in its place.
pub(super) fn complete(file: &str) -> String {
    file.replacen(COMMANDS, include_str!("scripts/commands.lua"), 1)
}

/// What tests break, to show that they notice.
fn with_planted_bugs(mut source: String) -> String {
    let mut plant = |bug, line: &str, broken: &str| {
        if faults::planted(bug) && source.contains(line) {
            source = source.replacen(line, broken, 1);
        }
    };
    plant(
        "marker-after-effect",
        "  local known = not none_before and seen(before, field) or mark(bucket, field)\n",
        "  local known = not none_before and seen(before, field) or seen(bucket, field)\n  \
           if not known then return run(body) or mark(bucket, field) or 1 end\n",
    );
    plant(
        "version-as-number",
        "local function is_less(one, other)\n",
        "local function is_less(one, other)\n  one, other = tonumber(one), tonumber(other)\n  \
           if true then return one < other end\n",
    );
    source
}

fn without_comments(source: &str) -> String {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("--") && !line.is_empty());
    lines.fold(String::new(), |mut source, line| {
        writeln!(source, "{line}").expect("writing into a string succeeds");
        source
    })
}

/// Servers since 7.0 read flags from a first line that begins so; it must stay the first.
fn shebang_len(script: &[u8]) -> usize {
    match script.starts_with(b"#!") {
        true => script.iter().position(|byte| *byte == b'\n').map_or(script.len(), |end| end + 1),
        false => 0,
    }
}
