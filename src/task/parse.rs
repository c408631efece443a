//! Makes a task of a body's parts, or says all that is wrong with them.

use std::borrow::Cow;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::error::Category;

use super::{
    Command, Context, FirstTry, Lane, LuaPolicy, Mode, Operation, Refusal, RefusalKind, Rules, Script, Task, TaskId,
    refusal::Errors,
    wire::{self, Body, BodyCommand, Place, Strings, Value},
};
use crate::commands::{self, ArgumentFault, NotAccepted};

mod late;

const MAX_RETRIES: u64 = 20;
/// How far a service's clock may be ahead of ours.
const MAX_AHEAD: SignedDuration = SignedDuration::from_mins(5);
/// Of a field that says where a task comes from.
pub const MAX_CONTEXT_BYTES: usize = 256;
const MAX_ERROR_BYTES: usize = 2048;
const MAX_ORDERING_KEY_BYTES: usize = 1024;
/// Bytes of a name that could be a command's.
const MAX_COMMAND_NAME: usize = 64;

/// Padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn task<'a>(
    body: &'a [u8],
    rules: &Rules,
    now: Timestamp,
    default_target: &str,
) -> Result<Task<'a>, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| {
        malformed("the body is not UTF-8; send bytes as base64, with `encoding` set to `base64`".into())
    })?;
    let mut errors = Errors::default();
    let mut body = Body::default();
    wire::read(text, &mut body, &mut errors).map_err(|error| malformed(why_not_json(&error)))?;
    Check { rules, now, default_target, errors }.task(body)
}

fn malformed(detail: String) -> Refusal {
    Refusal { kind: RefusalKind::MalformedJson, detail, errors: Vec::new() }
}

/// Serde's own words repeat values, except those about syntax.
fn why_not_json(error: &serde_json::Error) -> String {
    match error.classify() {
        Category::Syntax | Category::Eof => format!("the body is not JSON: {error}"),
        Category::Data | Category::Io => "the body is not a JSON object".into(),
    }
}

/// Goes through a body and notes what is wrong.
struct Check<'r> {
    rules: &'r Rules,
    now: Timestamp,
    default_target: &'r str,
    errors: Errors,
}

impl<'r> Check<'r> {
    fn task<'a>(mut self, mut body: Body<'a>) -> Result<Task<'a>, Refusal> {
        let operation = self.operation(&mut body);
        let id = self.id(body.id);
        let target = self.target(body.target);
        let lane = self.choice("priority", body.priority, Lane::ALL.iter().map(|lane| (lane.as_str(), *lane)));
        let max_retries = self.max_retries(body.max_retries);
        let ordering_key = self.ordering_key(body.ordering_key);
        let idempotent = self.flag("idempotent", body.idempotent).unwrap_or(false);
        let coalesce = self.flag("coalesce", body.coalesce).unwrap_or(true);
        let choices = [("refused", FirstTry::Refused), ("unknown", FirstTry::Unknown)];
        let first_try = self.choice("first_try", body.first_try, choices).unwrap_or(FirstTry::Refused);
        let occurred_at = self.occurred_at(body.occurred_at);
        let deadline = self.time("deadline", body.deadline);
        let late = self.late(body.late);
        let version = self.version(body.version, operation.as_ref());
        let context = Context {
            trace_id: self.bounded("trace_id", body.trace_id, MAX_CONTEXT_BYTES),
            user_uuid: self.bounded("user_uuid", body.user_uuid, MAX_CONTEXT_BYTES),
            device_id: self.bounded("device_id", body.device_id, MAX_CONTEXT_BYTES),
            source: self.bounded("source", body.source, MAX_CONTEXT_BYTES),
            error: self.bounded("error", body.error, MAX_ERROR_BYTES),
        };
        if let (FirstTry::Unknown, false, Some(operation)) = (first_try, idempotent, &operation) {
            self.refuse_unknown_outcome(operation);
        }
        if let Some(refusal) = self.errors.into_refusal() {
            return Err(refusal);
        }
        let operation = operation.expect("an operation is missing only where an error was noted");
        let target = target.unwrap_or_else(|| match self.default_target {
            Task::DEFAULT_TARGET => Cow::Borrowed(Task::DEFAULT_TARGET),
            other => Cow::Owned(other.to_owned()),
        });
        Ok(Task {
            id,
            operation,
            target,
            lane,
            max_retries,
            ordering_key,
            idempotent,
            coalesce,
            first_try,
            occurred_at,
            deadline,
            late,
            version,
            context,
        })
    }

    fn refuse_unknown_outcome(&mut self, operation: &Operation<'_>) {
        if operation.units().any(|unit| unit.class.is_once()) {
            let detail = "the first try may have run, and this operation may change more when it runs again; set \
                          `idempotent` to true if that is harmless";
            self.errors.add(RefusalKind::OutcomeUnknown, "/first_try", detail);
        }
    }

    fn operation<'a>(&mut self, body: &mut Body<'a>) -> Option<Operation<'a>> {
        #[derive(Clone, Copy)]
        enum Kind {
            Simple,
            Pipeline,
            Lua,
        }
        let choices = [("simple", Kind::Simple), ("pipeline", Kind::Pipeline), ("lua", Kind::Lua)];
        if !is_set(&body.kind) {
            self.errors.invalid("/type", "`type` is missing: one of simple, pipeline, lua");
            return None;
        }
        let kind = self.choice("type", body.kind.take(), choices)?;
        let base64 = self.choice("encoding", body.encoding.take(), [("base64", ())]).is_some();
        let args = [("args", has_items(&body.args))];
        let of_simple = [("command", is_set(&body.command))];
        let of_pipeline = [
            ("commands", body.commands.as_ref().is_some_and(|commands| !commands.items.is_empty())),
            ("mode", is_set(&body.mode)),
        ];
        let of_script = [
            ("script", is_set(&body.script)),
            ("keys", has_items(&body.keys)),
            ("ttl_args", body.ttl_args.as_ref().is_some_and(|args| !args.items.is_empty())),
            ("written_keys", has_items(&body.written_keys)),
        ];
        match kind {
            Kind::Simple => {
                self.refuse_foreign("simple", of_pipeline.iter().chain(&of_script));
                let command = BodyCommand { command: body.command.take(), args: body.args.take() };
                self.command(Place::Body, command, base64).map(Operation::Simple)
            }
            Kind::Pipeline => {
                self.refuse_foreign("pipeline", of_simple.iter().chain(&args).chain(&of_script));
                let modes = [("each", Mode::Each), ("atomic", Mode::Atomic)];
                let mode = self.choice("mode", body.mode.take(), modes).unwrap_or(Mode::Each);
                let commands = self.commands(body.commands.take().unwrap_or_default(), base64)?;
                Some(Operation::Pipeline { mode, commands })
            }
            Kind::Lua => {
                self.refuse_foreign("lua", of_simple.iter().chain(&of_pipeline));
                self.script(body, base64).map(Operation::Lua)
            }
        }
    }

    /// Refuses those fields of other types of task that are set.
    fn refuse_foreign<'f>(&mut self, kind: &str, fields: impl Iterator<Item = &'f (&'static str, bool)>) {
        for (field, _) in fields.filter(|(_, set)| *set) {
            self.errors.invalid(format!("/{field}"), format!("a task of type {kind} has no such field"));
        }
    }

    fn commands<'a>(&mut self, commands: wire::Commands<'a>, base64: bool) -> Option<Vec<Command<'a>>> {
        let most = self.rules.config.max_commands;
        if commands.faulty {
            return None;
        }
        let commands = commands.items;
        if commands.is_empty() {
            self.errors.invalid("/commands", "a pipeline has at least one command");
            return None;
        }
        if commands.len() > most {
            self.errors.invalid("/commands", format!("a pipeline has at most {most} commands"));
            return None;
        }
        let mut complete = true;
        let mut made = Vec::with_capacity(commands.len());
        for (index, command) in commands.into_iter().enumerate() {
            match command.and_then(|command| self.command(Place::Command(index), command, base64)) {
                Some(command) => made.push(command),
                None => complete = false,
            }
        }
        complete.then_some(made)
    }

    fn command<'a>(&mut self, place: Place, command: BodyCommand<'a>, base64: bool) -> Option<Command<'a>> {
        let name = match command.command {
            Some(Value::Text(name)) => name,
            None | Some(Value::Absent) => {
                self.errors.invalid(place.field("command"), "the command's name is missing");
                return None;
            }
            Some(_) => {
                self.errors.invalid(place.field("command"), "the command's name is a string");
                return None;
            }
        };
        let args = self.strings(place, "args", command.args.unwrap_or_default(), base64);
        let spec = match commands::lookup(name.as_bytes()) {
            Ok(spec) => spec,
            Err(reason) => {
                self.refuse_command(place, &name, reason);
                return None;
            }
        };
        match Command::try_new(spec, args?) {
            Ok(command) => self.check_keys(place, &command).then_some(command),
            Err(fault) => {
                self.add_fault(place, &fault);
                None
            }
        }
    }

    fn refuse_command(&mut self, place: Place, name: &str, reason: NotAccepted) {
        let pointer = place.field("command");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.is_empty() || name.len() > MAX_COMMAND_NAME || !name.bytes().all(plain) {
            let detail = "this is no command name: one word, with subcommand and arguments in `args`";
            self.errors.invalid(pointer, detail);
            return;
        }
        let near = if reason == NotAccepted::Unknown { commands::nearest(name.as_bytes()) } else { None };
        let detail = match near {
            Some(near) => format!("unknown command; did you mean {near}?"),
            None => reason.detail().to_owned(),
        };
        self.errors.add(RefusalKind::CommandNotAllowed, pointer, detail);
    }

    fn add_fault(&mut self, place: Place, fault: &ArgumentFault) {
        let (kind, pointer) = match *fault {
            ArgumentFault::Count { surplus: None, .. } => (RefusalKind::ValidationFailed, place.field("args")),
            ArgumentFault::Count { surplus: Some(index), .. } | ArgumentFault::Invalid { index, .. } => {
                (RefusalKind::ValidationFailed, place.item("args", index))
            }
            ArgumentFault::NotAccepted { index: Some(index), .. } => {
                (RefusalKind::CommandNotAllowed, place.item("args", index))
            }
            ArgumentFault::NotAccepted { index: None, .. } => (RefusalKind::CommandNotAllowed, place.field("command")),
        };
        self.errors.add(kind, pointer, fault.to_string());
    }

    /// Whether all keys, and patterns of keys, begin as the rules want.
    fn check_keys(&mut self, place: Place, command: &Command<'_>) -> bool {
        let mut allowed = true;
        for index in command.key_indexes() {
            allowed &= self.check_key(place, "args", index, &command.args[index]);
        }
        for index in command.spec.patterns(&command.args) {
            allowed &= self.check_key(place, "args", index, &command.args[index]);
        }
        allowed
    }

    fn check_key(&mut self, place: Place, field: &str, index: usize, key: &[u8]) -> bool {
        let why_not = self.rules.why_not_key(key);
        if let Some(detail) = why_not {
            self.errors.add(RefusalKind::KeyNotAllowed, place.item(field, index), detail);
        }
        why_not.is_none()
    }

    fn script<'a>(&mut self, body: &mut Body<'a>, base64: bool) -> Option<Script<'a>> {
        let keys = self.strings(Place::Body, "keys", body.keys.take().unwrap_or_default(), base64);
        let args = self.strings(Place::Body, "args", body.args.take().unwrap_or_default(), base64);
        let most_bytes = self.rules.config.max_arg_bytes;
        if !is_set(&body.script) {
            self.errors.invalid("/script", "`script` is missing: the source of the script");
            return None;
        }
        let source = self.bounded("script", body.script.take(), most_bytes)?;
        let (keys, args) = (keys?, args?);
        let ttl_args = self.ttl_args(body.ttl_args.take(), &args);
        let written = self.written_keys(body.written_keys.take(), &keys, base64);
        let script = Script { source, keys, args, ttl_args, written };
        let most = self.rules.config.max_args;
        if script.keys.len() + script.args.len() > most {
            self.errors.invalid("/args", format!("keys and arguments are at most {most} together"));
            return None;
        }
        let mut allowed = self.check_policy(&script);
        for (index, key) in script.keys.iter().enumerate() {
            allowed &= self.check_key(Place::Body, "keys", index, key);
        }
        allowed.then_some(script)
    }

    fn check_policy(&mut self, script: &Script<'_>) -> bool {
        let (pointer, detail) = match &self.rules.config.lua {
            LuaPolicy::On => return true,
            LuaPolicy::Off => ("/type", "scripts are switched off here"),
            LuaPolicy::Listed(listed) => {
                let sha1 = script.sha1();
                if listed.iter().any(|allowed| allowed.eq_ignore_ascii_case(&sha1)) {
                    return true;
                }
                ("/script", "this script is not one of those that are allowed here")
            }
        };
        self.errors.add(RefusalKind::CommandNotAllowed, pointer, detail);
        false
    }

    /// Decodes and bounds a list of arguments or keys. None: an error was noted.
    fn strings<'a>(
        &mut self,
        place: Place,
        field: &str,
        strings: Strings<'a>,
        base64: bool,
    ) -> Option<Vec<Cow<'a, [u8]>>> {
        let (most, most_bytes) = (self.rules.config.max_args, self.rules.config.max_arg_bytes);
        let Strings { mut items, number, faulty } = strings;
        if items.len() > most {
            self.errors.invalid(place.field(field), format!("these are more than the {most} that are allowed"));
            return None;
        }
        let mut complete = !faulty;
        if base64 {
            if let Some(index) = number {
                let detail = "with `encoding` set to `base64` every argument is a string in base64";
                self.errors.invalid(place.item(field, index), detail);
                return None;
            }
            for (index, item) in items.iter_mut().enumerate() {
                match BASE64.decode(&*item) {
                    Ok(bytes) => *item = Cow::Owned(bytes),
                    Err(_) => {
                        self.errors.invalid(place.item(field, index), "this is not base64 (standard alphabet)");
                        complete = false;
                    }
                }
            }
        }
        for (index, _) in items.iter().enumerate().filter(|(_, item)| item.len() > most_bytes) {
            self.errors.invalid(place.item(field, index), format!("this is longer than {most_bytes} bytes"));
            complete = false;
        }
        complete.then_some(items)
    }

    fn id(&mut self, value: Option<Value<'_>>) -> Option<TaskId> {
        match TaskId::parse(&self.text("id", value)?) {
            Ok(id) => Some(id),
            Err(error) => {
                self.errors.invalid("/id", error.to_string());
                None
            }
        }
    }

    fn target<'a>(&mut self, value: Option<Value<'a>>) -> Option<Cow<'a, str>> {
        let named = self.text("target", value);
        if !self.rules.knows_target(named.as_deref().unwrap_or(self.default_target)) {
            self.errors.add(RefusalKind::UnknownTarget, "/target", "no such target is configured");
        }
        named
    }

    fn max_retries(&mut self, value: Option<Value<'_>>) -> Option<u8> {
        let retries = match value? {
            Value::Absent => return None,
            Value::Number(number @ 0..=MAX_RETRIES) => u8::try_from(number).ok(),
            _ => None,
        };
        if retries.is_none() {
            self.errors.invalid("/max_retries", format!("this must be a whole number from 0 to {MAX_RETRIES}"));
        }
        retries
    }

    fn ordering_key<'a>(&mut self, value: Option<Value<'a>>) -> Option<Cow<'a, str>> {
        let key = self.bounded("ordering_key", value, MAX_ORDERING_KEY_BYTES)?;
        if key.is_empty() {
            self.errors.invalid("/ordering_key", "an ordering key is not empty; leave it out for the default");
        }
        Some(key)
    }

    fn occurred_at(&mut self, value: Option<Value<'_>>) -> Option<Timestamp> {
        let at = self.time("occurred_at", value)?;
        if at.duration_since(self.now) > MAX_AHEAD {
            self.errors.invalid("/occurred_at", "this is more than 5 minutes in the future");
            return None;
        }
        Some(at)
    }

    fn time(&mut self, field: &str, value: Option<Value<'_>>) -> Option<Timestamp> {
        let at = rfc3339(&self.text(field, value)?);
        if at.is_none() {
            let detail = "this must be a time as in RFC 3339, like 2026-01-31T12:00:00.5Z";
            self.errors.invalid(format!("/{field}"), detail);
        }
        at
    }

    fn text<'a>(&mut self, field: &str, value: Option<Value<'a>>) -> Option<Cow<'a, str>> {
        match value? {
            Value::Absent => None,
            Value::Text(text) => Some(text),
            Value::Flag(_) | Value::Number(_) | Value::Other => {
                self.errors.invalid(format!("/{field}"), "this must be a string");
                None
            }
        }
    }

    fn bounded<'a>(&mut self, field: &str, value: Option<Value<'a>>, most: usize) -> Option<Cow<'a, str>> {
        let text = self.text(field, value)?;
        if text.len() > most {
            self.errors.invalid(format!("/{field}"), format!("this is longer than {most} bytes"));
            return None;
        }
        Some(text)
    }

    fn flag(&mut self, field: &str, value: Option<Value<'_>>) -> Option<bool> {
        match value? {
            Value::Absent => None,
            Value::Flag(flag) => Some(flag),
            Value::Text(_) | Value::Number(_) | Value::Other => {
                self.errors.invalid(format!("/{field}"), "this must be true or false");
                None
            }
        }
    }

    fn choice<T>(
        &mut self,
        field: &str,
        value: Option<Value<'_>>,
        choices: impl IntoIterator<Item = (&'static str, T)> + Clone,
    ) -> Option<T> {
        let text = self.text(field, value)?;
        let chosen = choices.clone().into_iter().find(|(name, _)| *name == text).map(|(_, choice)| choice);
        if chosen.is_none() {
            let names: Vec<_> = choices.into_iter().map(|(name, _)| name).collect();
            self.errors.invalid(format!("/{field}"), format!("this must be one of: {}", names.join(", ")));
        }
        chosen
    }
}

fn has_items(list: &Option<Strings<'_>>) -> bool {
    list.as_ref().is_some_and(|list| !list.items.is_empty())
}

fn is_set(value: &Option<Value<'_>>) -> bool {
    !matches!(value, None | Some(Value::Absent))
}

/// Jiff reads more than RFC 3339 has: other separators, shorter forms, zone names.
fn rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    let dated = separators.iter().all(|(index, separator)| bytes.get(*index) == Some(separator));
    let timed = matches!(bytes.get(10), Some(b'T' | b't'));
    let offset = match bytes {
        [.., b'Z' | b'z'] => true,
        [.., b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|digit| digit.is_ascii_digit()),
        _ => false,
    };
    if !(dated && timed && offset) || bytes.contains(&b'[') {
        return None;
    }
    text.parse().ok()
}
