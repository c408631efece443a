//! The units that go to a target together, as one pipeline.

use std::{borrow::Cow, fmt, sync::Arc};

use deadpool_redis::redis::{Arg, Cmd, Pipeline, cmd};

use super::{
    Done,
    marker::{Marker, OwnKeys},
    once::{Gathered, Place},
    script::{self, ONCE, VERSION},
    version::Fence,
};
use crate::retry::{Failure, FailureClass};

/// Units to execute together. Each has its own result.
///
/// Nothing is promised of the order in which they run: units that touch the same key do not belong in one batch.
pub struct Batch {
    own: Arc<OwnKeys>,
    calls: Calls,
    /// Once-units that will go in one call.
    gathered: Gathered,
    units: usize,
    bytes: usize,
}

/// A pipeline, and what it consists of.
pub(super) struct Calls {
    pub(super) pipeline: Pipeline,
    calls: Vec<Call>,
}

/// One or several commands of the pipeline, and the units that they execute.
#[derive(Clone)]
pub(super) enum Call {
    /// One command.
    Command { unit: usize },
    /// `MULTI`, the members, `EXEC`.
    Atomic { unit: usize, members: usize },
    /// `EVALSHA` of a task's script.
    Script { unit: usize, source: Box<[u8]> },
    /// `EVALSHA` of the script that runs once-units.
    Once { units: Box<[Place]> },
    /// The same around a task's script.
    OnceScript { unit: usize, script: Box<[u8]> },
    /// `EVALSHA` of the version fence.
    Versioned { unit: usize },
    /// The same around a task's script.
    VersionedScript { unit: usize, script: Box<[u8]> },
}

impl Call {
    /// How many commands it has in the pipeline, and so how many replies it gets.
    pub(super) fn commands(&self) -> usize {
        match self {
            Self::Atomic { members, .. } => members + 2,
            _ => 1,
        }
    }

    /// The places of its units in the batch.
    pub(super) fn units(&self) -> impl Iterator<Item = usize> {
        let (one, many): (_, &[Place]) = match self {
            Self::Command { unit }
            | Self::Atomic { unit, .. }
            | Self::Script { unit, .. }
            | Self::OnceScript { unit, .. }
            | Self::Versioned { unit }
            | Self::VersionedScript { unit, .. } => (Some(*unit), &[]),
            Self::Once { units } => (None, units),
        };
        one.into_iter().chain(many.iter().map(|place| place.unit))
    }

    /// What a server must have to run it.
    fn source(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Command { .. } | Self::Atomic { .. } => None,
            Self::Script { source, .. } => Some(Cow::Borrowed(source)),
            Self::Once { .. } => Some(Cow::Borrowed(ONCE.source())),
            Self::OnceScript { script, .. } => Some(Cow::Owned(ONCE.around(script))),
            Self::Versioned { .. } => Some(Cow::Borrowed(VERSION.source())),
            Self::VersionedScript { script, .. } => Some(Cow::Owned(VERSION.around(script))),
        }
    }
}

/// Sizes only: a batch is full of arguments.
impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("units", &self.len()).field("bytes", &self.bytes).finish()
    }
}

impl Batch {
    pub(super) fn new(own: Arc<OwnKeys>) -> Self {
        Self { own, calls: Calls::new(), gathered: Gathered::default(), units: 0, bytes: 0 }
    }

    /// Units pushed so far.
    pub fn len(&self) -> usize {
        self.units
    }

    pub fn is_empty(&self) -> bool {
        self.units == 0
    }

    /// Bytes of names and arguments pushed so far, scripts' sources not counted.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// One command. A name of two words is a name and a first argument.
    pub fn push_command<'a>(&mut self, name: &str, args: impl Iterator<Item = &'a [u8]> + Clone) {
        let command = self.command(name, args);
        let unit = self.next_unit();
        self.calls.push(command, Call::Command { unit });
    }

    /// Commands that are executed without anything between them, as one unit.
    pub fn push_atomic<'a, A>(&mut self, commands: impl Iterator<Item = (&'a str, A)>)
    where
        A: Iterator<Item = &'a [u8]> + Clone,
    {
        self.calls.pipeline.cmd("MULTI");
        let mut members = 0;
        for (name, args) in commands {
            let command = self.command(name, args);
            self.calls.pipeline.add_command(command);
            members += 1;
        }
        let unit = self.next_unit();
        self.calls.push(cmd("EXEC"), Call::Atomic { unit, members });
    }

    /// A script. Only its digest is sent at first; the source follows if the server does not know it.
    pub fn push_script<'a>(
        &mut self,
        source: &[u8],
        keys: impl ExactSizeIterator<Item = &'a [u8]>,
        args: impl Iterator<Item = &'a [u8]>,
    ) {
        let mut command = evalsha(&script::digest(source), keys.len());
        self.append(&mut command, keys);
        self.append(&mut command, args);
        let unit = self.next_unit();
        self.calls.push(command, Call::Script { unit, source: source.into() });
    }

    /// Commands as one unit that runs once: where its marker says that it ran, it is [`Done::AppliedBefore`].
    ///
    /// Nothing comes between the commands. What is refused unexecuted leaves no marker.
    pub fn push_once<'a, A>(&mut self, marker: &Marker, commands: impl ExactSizeIterator<Item = (&'a str, A)>)
    where
        A: Iterator<Item = &'a [u8]> + Clone,
    {
        let before = self.gathered.bytes();
        let unit = self.next_unit();
        self.gathered.push(unit, self.own.buckets(marker, ""), marker.field().as_ref(), commands);
        self.bytes += self.gathered.bytes() - before;
        if self.gathered.is_full() {
            self.close_gathered();
        }
    }

    /// A script as one unit that runs once. Its failure midway leaves the marker, as one of a unit that ran in part.
    pub fn push_once_script<'a>(
        &mut self,
        marker: &Marker,
        source: &[u8],
        keys: impl ExactSizeIterator<Item = &'a [u8]>,
        args: impl Iterator<Item = &'a [u8]>,
    ) {
        let [bucket, before] = self.own.buckets(marker, "");
        let (life, field) = (self.own.marker_ttl_ms(), marker.field());
        let mut command = evalsha(&ONCE.digest_around(source), 2 + keys.len());
        self.append(&mut command, [bucket.as_bytes(), before.as_bytes()].into_iter());
        self.append(&mut command, keys);
        self.append(&mut command, [life.as_bytes(), field.as_ref()].into_iter());
        self.append(&mut command, args);
        let unit = self.next_unit();
        self.calls.push(command, Call::OnceScript { unit, script: source.into() });
    }

    /// Commands as one unit that writes `key`, and runs only if the fence's version is newer than the last one that
    /// was applied to it; else it is [`Done::Stale`], or [`Done::AppliedBefore`] if it was that one.
    ///
    /// Nothing comes between the commands. What is refused unexecuted leaves the former version.
    pub fn push_versioned<'a, A>(&mut self, fence: &Fence<'_>, key: &[u8], commands: impl Iterator<Item = (&'a str, A)>)
    where
        A: Iterator<Item = &'a [u8]> + Clone,
    {
        let marker = self.own.version_marker(key);
        let mut command = evalsha(VERSION.digest(), 2);
        self.append(&mut command, [key, &marker].into_iter());
        self.append_fence(&mut command, fence);
        for (name, args) in commands {
            let (_, bytes) = push_words(&mut command, name, args);
            self.bytes += bytes;
        }
        let unit = self.next_unit();
        self.calls.push(command, Call::Versioned { unit });
    }

    /// A script in the same way. Its failure midway leaves its version, as one that was applied in part.
    pub fn push_versioned_script<'a>(
        &mut self,
        fence: &Fence<'_>,
        key: &[u8],
        source: &[u8],
        keys: impl ExactSizeIterator<Item = &'a [u8]>,
        args: impl Iterator<Item = &'a [u8]>,
    ) {
        let marker = self.own.version_marker(key);
        let mut command = evalsha(&VERSION.digest_around(source), 1 + keys.len());
        self.append(&mut command, std::iter::once(&*marker));
        self.append(&mut command, keys);
        self.append_fence(&mut command, fence);
        self.append(&mut command, args);
        let unit = self.next_unit();
        self.calls.push(command, Call::VersionedScript { unit, script: source.into() });
    }

    /// All of it, as it is sent.
    pub(super) fn into_calls(mut self) -> Calls {
        self.close_gathered();
        self.calls
    }

    fn next_unit(&mut self) -> usize {
        self.units += 1;
        self.units - 1
    }

    fn close_gathered(&mut self) {
        if let Some((command, units)) = self.gathered.take(&self.own.marker_ttl_ms()) {
            self.calls.push(command, Call::Once { units });
        }
    }

    fn command<'a>(&mut self, name: &str, args: impl Iterator<Item = &'a [u8]> + Clone) -> Cmd {
        let (count, bytes) = args.clone().fold((1, name.len()), |(count, bytes), arg| (count + 1, bytes + arg.len()));
        let mut command = Cmd::with_capacity(count, bytes);
        command.arg(name);
        for arg in args {
            command.arg(arg);
        }
        self.bytes += bytes;
        command
    }

    fn append_fence(&mut self, command: &mut Cmd, fence: &Fence<'_>) {
        let (version, life) = (fence.version.to_string(), self.own.version_ttl_ms());
        self.append(command, [version.as_bytes(), fence.id.as_bytes(), life.as_bytes()].into_iter());
    }

    fn append<'a>(&mut self, command: &mut Cmd, words: impl Iterator<Item = &'a [u8]>) {
        for word in words {
            self.bytes += word.len();
            command.arg(word);
        }
    }
}

impl Calls {
    fn new() -> Self {
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors();
        Self { pipeline, calls: Vec::new() }
    }

    fn push(&mut self, command: Cmd, call: Call) {
        self.pipeline.add_command(command);
        self.calls.push(call);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Each call with its commands in the pipeline.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Call, impl Iterator<Item = &Cmd>)> {
        let mut first = 0;
        self.calls.iter().map(move |call| {
            let commands = self.pipeline.cmd_iter().skip(first).take(call.commands());
            first += call.commands();
            (call, commands)
        })
    }

    /// The places in the batch of all units.
    pub(super) fn units(&self) -> impl Iterator<Item = usize> {
        self.calls.iter().flat_map(Call::units)
    }

    pub(super) fn has_atomic(&self) -> bool {
        self.calls.iter().any(|call| matches!(call, Call::Atomic { .. }))
    }

    /// The same without atomic units.
    pub(super) fn without_atomic(&self) -> Self {
        let mut rest = Self::new();
        for (call, mut commands) in self.iter() {
            if !matches!(call, Call::Atomic { .. }) {
                rest.push(commands.next().expect("a call has commands").clone(), call.clone());
            }
        }
        rest
    }

    /// Those whose scripts the server did not know, with their sources. That it does not know one proves that nothing
    /// of it ran, so sending it again is safe for any script.
    pub(super) fn unknown_scripts(&self, results: &[Result<Done, Failure>]) -> Self {
        let mut again = Self::new();
        for (call, mut commands) in self.iter() {
            let is_unknown =
                |unit: usize| matches!(&results[unit], Err(failure) if failure.class == FailureClass::Route);
            if let Some(source) = call.source()
                && call.units().any(is_unknown)
            {
                again.push(with_source(commands.next().expect("a call has commands"), &source), call.clone());
            }
        }
        again
    }
}

fn evalsha(digest: &str, keys: usize) -> Cmd {
    let mut command = cmd("EVALSHA");
    command.arg(digest).arg(keys);
    command
}

/// The same call with its source in place of its digest.
fn with_source(evalsha: &Cmd, source: &[u8]) -> Cmd {
    let mut eval = Cmd::new();
    eval.arg("EVAL").arg(source);
    for argument in arguments(evalsha).skip(1) {
        eval.arg(argument);
    }
    eval
}

/// Adds a command as our scripts read it: the number of its words, and the words. Returns how many words and bytes
/// these are.
pub(super) fn push_words<'a>(
    words: &mut Cmd,
    name: &str,
    args: impl Iterator<Item = &'a [u8]> + Clone,
) -> (usize, usize) {
    let (count, bytes) = args.clone().fold((1, name.len()), |(count, bytes), arg| (count + 1, bytes + arg.len()));
    words.arg(count).arg(name);
    for arg in args {
        words.arg(arg);
    }
    (count + 1, bytes)
}

/// What follows the name of a command.
pub(super) fn arguments(command: &Cmd) -> impl Iterator<Item = &[u8]> {
    all_words(command).skip(1)
}

/// A command's name and what follows.
pub(super) fn all_words(command: &Cmd) -> impl Iterator<Item = &[u8]> {
    command.args_iter().filter_map(|argument| match argument {
        Arg::Simple(bytes) => Some(bytes),
        _ => None,
    })
}
