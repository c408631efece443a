//! The units that go to a target together, as one pipeline.

use std::fmt;

use deadpool_redis::redis::{Arg, Cmd, Pipeline, Script};

/// Units to execute together. Each has its own result.
///
/// They are sent in the order in which they were pushed, but a script whose source the server lacks runs after all
/// others: units that touch the same key do not belong in one batch.
pub struct Batch {
    pub(super) pipeline: Pipeline,
    pub(super) units: Vec<Unit>,
    bytes: usize,
}

/// What one unit has in the pipeline.
#[derive(Clone)]
pub(super) enum Unit {
    /// One command.
    Command,
    /// `MULTI`, the members, `EXEC`.
    Atomic { members: usize },
    /// `EVALSHA`, and the source in case that the server does not have it.
    Script { source: Box<[u8]> },
}

impl Unit {
    /// How many commands it has in the pipeline, and so how many replies it gets.
    pub(super) fn commands(&self) -> usize {
        match self {
            Self::Command | Self::Script { .. } => 1,
            Self::Atomic { members } => members + 2,
        }
    }
}

/// Sizes only: a batch is full of arguments.
impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("units", &self.len()).field("bytes", &self.bytes).finish()
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    pub fn new() -> Self {
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors();
        Self { pipeline, units: Vec::new(), bytes: 0 }
    }

    /// Units pushed so far.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Bytes of names and arguments pushed so far, scripts' sources not counted.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// One command. A name of two words is a name and a first argument.
    pub fn push_command<'a>(&mut self, name: &str, args: impl Iterator<Item = &'a [u8]> + Clone) {
        let command = self.command(name, args);
        self.push(command, Unit::Command);
    }

    /// Commands that are executed without anything between them, as one unit.
    pub fn push_atomic<'a, A>(&mut self, commands: impl Iterator<Item = (&'a str, A)>)
    where
        A: Iterator<Item = &'a [u8]> + Clone,
    {
        self.pipeline.cmd("MULTI");
        let mut members = 0;
        for (name, args) in commands {
            let command = self.command(name, args);
            self.pipeline.add_command(command);
            members += 1;
        }
        self.pipeline.cmd("EXEC");
        self.units.push(Unit::Atomic { members });
    }

    /// A script. Only its digest is sent at first; the source follows if the server does not know it.
    pub fn push_script<'a>(
        &mut self,
        source: &[u8],
        keys: impl ExactSizeIterator<Item = &'a [u8]>,
        args: impl Iterator<Item = &'a [u8]>,
    ) {
        let count = keys.len().to_string();
        // The client digests text only. A source that is not text is sent whole each time.
        let (name, body) = match std::str::from_utf8(source) {
            Ok(text) => ("EVALSHA", Script::new(text).get_hash().as_bytes().to_vec()),
            Err(_) => ("EVAL", source.to_vec()),
        };
        let mut command = Cmd::new();
        self.append(&mut command, [name.as_bytes(), &body, count.as_bytes()].into_iter());
        self.append(&mut command, keys);
        self.append(&mut command, args);
        self.push(command, Unit::Script { source: source.into() });
    }

    pub(super) fn push(&mut self, command: Cmd, unit: Unit) {
        self.pipeline.add_command(command);
        self.units.push(unit);
    }

    fn command<'a>(&mut self, name: &str, args: impl Iterator<Item = &'a [u8]> + Clone) -> Cmd {
        let (count, bytes) = args.clone().fold((1, name.len()), |(count, bytes), arg| (count + 1, bytes + arg.len()));
        let mut command = Cmd::with_capacity(count, bytes);
        self.append(&mut command, std::iter::once(name.as_bytes()));
        self.append(&mut command, args);
        command
    }

    fn append<'a>(&mut self, command: &mut Cmd, args: impl Iterator<Item = &'a [u8]>) {
        for arg in args {
            self.bytes += arg.len();
            command.arg(arg);
        }
    }

    /// The commands of the unit that begins at `first`, as they were pushed.
    pub(super) fn commands(&self, first: usize) -> impl Iterator<Item = &Cmd> {
        self.pipeline.cmd_iter().skip(first)
    }

    pub(super) fn has_atomic(&self) -> bool {
        self.units.iter().any(|unit| matches!(unit, Unit::Atomic { .. }))
    }

    /// The same batch without its atomic units.
    pub(super) fn without_atomic(&self) -> Self {
        let mut rest = Self::new();
        let mut first = 0;
        for unit in &self.units {
            if !matches!(unit, Unit::Atomic { .. }) {
                rest.pipeline.add_command(self.commands(first).next().expect("a unit has commands").clone());
                rest.units.push(unit.clone());
            }
            first += unit.commands();
        }
        rest
    }
}

/// The same call with its source in place of its digest.
pub(super) fn with_source(evalsha: &Cmd, source: &[u8]) -> Cmd {
    let mut eval = Cmd::new();
    eval.arg("EVAL").arg(source);
    for argument in arguments(evalsha).skip(1) {
        eval.arg(argument);
    }
    eval
}

/// What follows the name of a command.
pub(super) fn arguments(command: &Cmd) -> impl Iterator<Item = &[u8]> {
    command.args_iter().skip(1).filter_map(|argument| match argument {
        Arg::Simple(bytes) => Some(bytes),
        _ => None,
    })
}
